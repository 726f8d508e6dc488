//! The address map of a stub process, as offsets from its random base.
//!
//! ```text
//! base + 0x0000_0000  text     code of this crate, r-x, a shared mapping of a sealed memfd
//!      + 0x0000_8000  rodata   filter programs, signal masks, signal stacks; r--, same memfd
//!      + 0x0010_0000  request  one page the supervisor writes and the leader reads; r--
//!      + 0x0020_0000  vdso     [vvar] and [vdso] of the host, moved here
//!      + 0x0100_0000  sysmsg   MAX_SLOTS slots of 64 KiB, rw-, shared with the supervisor
//! ```
//!
//! Guest mappings begin below [`MAX_USER_ADDRESS`] and are at most [`MAX_CALL_LEN`] bytes long (in one
//! host call), so that no range that passes both bounds reaches [`MIN_STUB_ADDRESS`].

/// The page size of x86-64.
pub const PAGE_SIZE: u64 = 4096;

/// First address at which no guest mapping may begin.
pub const MAX_USER_ADDRESS: u64 = 0x7700_0000_0000;
/// Longest range, in bytes, that one mapping call of a stub process may name.
pub const MAX_CALL_LEN: u64 = 0x0700_0000_0000;
/// Lowest base of a stub.
pub const MIN_STUB_ADDRESS: u64 = 0x7f00_0000_0000;
/// End (exclusive) of the addresses in which a stub may lie.
pub const MAX_STUB_ADDRESS: u64 = 0x7ffe_0000_0000;
/// A base is a multiple of this many bytes; the text is smaller, so that an address in the text is
/// recognised by its upper 48 bits.
pub const BASE_ALIGN: u64 = 0x1_0000;

/// Offset of the text.
pub const TEXT: u64 = 0;
/// Longest text in bytes.
pub const TEXT_LEN: u64 = 0x8000;
/// Offset of the read-only data.
pub const RODATA: u64 = 0x8000;
/// Length of the read-only data in bytes.
pub const RODATA_LEN: u64 = 0x3_0000;
/// Offset of the request page.
pub const REQUEST: u64 = 0x10_0000;
/// Offset of `[vvar]` and `[vdso]`.
pub const VDSO: u64 = 0x20_0000;
/// Room for `[vvar]` and `[vdso]` in bytes.
pub const VDSO_MAX_LEN: u64 = 0x10_0000;
/// Offset of the sysmsg slots.
pub const SYSMSG: u64 = 0x0100_0000;
/// Size of one sysmsg slot in bytes; slots are aligned to it, so that a signal stack's slot is found from rsp.
pub const SLOT_SIZE: u64 = 0x1_0000;
/// Number of slots; slot 0 belongs to the leader, so one less stub threads can exist in an address space.
pub const MAX_SLOTS: u64 = 4096;
/// Length of the sysmsg slots in bytes.
pub const SYSMSG_LEN: u64 = SLOT_SIZE * MAX_SLOTS;
/// Length of the whole stub region in bytes.
pub const STUB_LEN: u64 = SYSMSG + SYSMSG_LEN;
/// What a stub process has mapped of its own at most, in bytes.
pub const STUB_MAPPED_LEN: u64 = RODATA + RODATA_LEN + PAGE_SIZE + VDSO_MAX_LEN + SYSMSG_LEN;

const _: () = assert!(
    MAX_USER_ADDRESS + MAX_CALL_LEN <= MIN_STUB_ADDRESS,
    "the filters bound address and length separately; their sum must not reach the stub"
);
const _: () =
    assert!(TEXT_LEN <= BASE_ALIGN && RODATA + 8 <= BASE_ALIGN, "text is recognised by its upper 48 bits");
const _: () = assert!(
    STUB_LEN < 1 << 32,
    "a stub region does not cross a 4 GiB boundary: filters compare one high word"
);

/// Offsets within the read-only data.
pub mod rodata {
    use core::mem::size_of;

    /// `u64`: the signal mask of a stub thread (everything blocked that has no handler).
    pub const THREAD_SIGMASK: u64 = 0;
    /// `struct sock_fprog` of the base filter.
    pub const BASE_FPROG: u64 = 16;
    /// `struct sock_fprog` of the guest-thread filter.
    pub const GUEST_FPROG: u64 = 32;
    /// The programs' instructions.
    pub const PROGRAMS: u64 = 64;
    /// Room for the programs in bytes.
    pub const PROGRAMS_LEN: u64 = STACKS - PROGRAMS;
    /// `stack_t` for each slot.
    pub const STACKS: u64 = 0x1_0000;

    /// `stack_t` of sigaltstack(2).
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    #[allow(missing_docs, reason = "the names of the man page")]
    pub struct SigStack {
        pub ss_sp: u64,
        pub ss_flags: u64,
        pub ss_size: u64,
    }

    const _: () = assert!(
        STACKS + super::MAX_SLOTS * size_of::<SigStack>() as u64 <= super::RODATA_LEN,
        "every slot's stack_t has its place"
    );
}
