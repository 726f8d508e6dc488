//! The shared-memory area between one stub thread and the supervisor: one slot of 64 KiB.
//!
//! Every field is atomic because another process writes it; every field that the stub can write is read
//! once by the supervisor, checked, and then used.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use crate::layout::SLOT_SIZE;

/// The cache line that carries a whole call and its result.
///
/// The stub writes everything here before it publishes an event in `state`; the supervisor writes
/// `args[0]` (and for work replies `nr` and `args`) before it publishes a reply.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Line {
    /// Whose turn it is: see [`crate::wire`].
    pub state: AtomicU32,
    /// The call's number, or the signal's.
    pub nr: AtomicU32,
    /// The call's arguments; `args[0]` doubles as the result.
    pub args: [AtomicU64; 6],
    /// The guest's instruction pointer after the call.
    pub rip: AtomicU64,
}

const _: () = assert!(size_of::<Line>() == 64, "the hand-off is one cache line");

/// A `struct timespec`.
#[repr(C)]
#[derive(Debug)]
pub struct Timespec {
    /// Seconds.
    pub sec: AtomicU64,
    /// Nanoseconds.
    pub nsec: AtomicU64,
}

/// Number of 64-bit words of `struct sigcontext` up to and including `fpstate`.
pub const SIGCONTEXT_WORDS: usize = 24;
/// Indices into `struct sigcontext` (arch/x86/include/uapi/asm/sigcontext.h) counted in 64-bit words.
pub mod gregs {
    #![allow(missing_docs, reason = "each constant is the register of that name")]
    pub const R8: usize = 0;
    pub const R9: usize = 1;
    pub const R10: usize = 2;
    pub const R11: usize = 3;
    pub const R12: usize = 4;
    pub const R13: usize = 5;
    pub const R14: usize = 6;
    pub const R15: usize = 7;
    pub const RDI: usize = 8;
    pub const RSI: usize = 9;
    pub const RBP: usize = 10;
    pub const RBX: usize = 11;
    pub const RDX: usize = 12;
    pub const RAX: usize = 13;
    pub const RCX: usize = 14;
    pub const RSP: usize = 15;
    pub const RIP: usize = 16;
    pub const RFLAGS: usize = 17;
    /// cs, gs, fs, ss: 16 bits each, from the low end.
    pub const CSGSFSSS: usize = 18;
    pub const ERR: usize = 19;
    pub const TRAPNO: usize = 20;
    pub const OLDMASK: usize = 21;
    pub const CR2: usize = 22;
    /// Address of the fxsave/xsave image.
    pub const FPSTATE: usize = 23;
}

/// Room for an xsave image in bytes. Every state of today's CPUs with AMX tiles takes less.
pub const XSTATE_LEN: usize = 12 * 1024;
/// Call numbers below this can be answered in the stub.
pub const ANSWERS: usize = 512;
/// A call is answered with a constant.
pub const ANSWER: u8 = 1;
/// A call is made on the host kernel.
pub const PASS: u8 = 2;
/// What an argument points to is sent along with the call: the first argument, the second, or the fourth.
pub const SEND_FIRST: u8 = 3;
/// As [`SEND_FIRST`].
pub const SEND_SECOND: u8 = 4;
/// As [`SEND_FIRST`].
pub const SEND_FOURTH: u8 = 5;
/// How many bytes are sent along.
pub const SENT_LEN: usize = 56;
/// Length of the payload buffer in bytes.
pub const PAYLOAD_LEN: usize = 4096;

/// The complete state of a guest thread. Written by the supervisor before `RESUME_FULL`, by the stub
/// before `SPILLED`.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct StateArea {
    /// `struct sigcontext`, see [`gregs`]; the fpstate word is not used.
    pub sigcontext: [AtomicU64; SIGCONTEXT_WORDS],
    /// The xsave image (standard format, with the software bytes of a signal frame).
    pub xstate: XstateArea,
}

/// A 64-byte-aligned xsave image.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct XstateArea(pub [AtomicU64; XSTATE_LEN / 8]);

/// What is sent along with a call: one cache line.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct SentLine {
    /// The bytes, [`SENT_LEN`] of them.
    pub words: [AtomicU64; SENT_LEN / 8],
    /// Where the guest has them; 0 if nothing was sent.
    pub addr: AtomicU64,
}

/// One slot. Only the first part is a struct; the signal stack is the rest of the slot.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Sysmsg {
    /// The hot line.
    pub line: Line,
    /// Not 0 while the supervisor sleeps on `line.state`: the stub wakes it. Written by the supervisor.
    pub supervisor_sleeps: AtomicU32,
    /// How many `pause`s the stub spins before it sleeps. Written by the supervisor.
    pub spin: AtomicU32,
    /// How long one sleep of the stub lasts at most. Written by the supervisor.
    pub sleep_timeout: Timespec,
    /// When a futex wait that the stub executes for its guest ends. Written by the supervisor.
    pub deadline: Timespec,
    /// How many `pause`s the syshandler lets pass between publishing an event and its first look for the reply. Written
    /// by the supervisor.
    pub head_start: AtomicU32,
    _pad0: [u32; 5],
    /// Not 0 while the stub sleeps on `line.state`: the supervisor wakes it. Written by the stub.
    pub stub_sleeps: AtomicU32,
    _pad1: [u32; 15],
    /// Address (in the stub process) of the `struct sigcontext` of the event's signal frame. Written by the stub.
    pub frame: AtomicU64,
    /// The guest's fs base: written by the stub at every trap, by the supervisor before `RESUME_FULL`.
    pub fs_base: AtomicU64,
    /// What %gs base is at a trap; what it becomes at `RESUME_FULL`.
    pub gs_base: AtomicU64,
    /// Top of the small stack that the syshandler uses for `pushfq`: the end of [`Sysmsg::scratch`], as a stub
    /// address. Written by the supervisor.
    pub scratch_top: AtomicU64,
    /// The guest's rsp while the syshandler uses that stack. Written by the stub.
    pub guest_rsp: AtomicU64,
    /// Calls that the stub answered by itself. Written by the stub: the guest's claim.
    pub answered: AtomicU64,
    /// The call's number, then its answer, while the syshandler needs the register. Written by the stub.
    pub saved_nr: AtomicU64,
    /// Bit n set: private futex operation n goes to the host kernel, if the call is passed on at all. Written by the
    /// supervisor.
    pub passed_futexes: AtomicU32,
    /// Not 0 while the host kernel makes a call that was passed on to it. Written by the stub: the guest's
    /// claim.
    pub in_passed_call: AtomicU32,
    /// A stack of a few words.
    pub scratch: [AtomicU64; 8],
    /// What an argument of the call points to, for those numbers whose flag says so. Written by the stub: the guest's claim.
    pub sent: SentLine,
    /// Byte n is [`ANSWER`]: call number n is answered with `answers[n]`; [`PASS`]: it goes to the host kernel;
    /// [`SEND_FIRST`], [`SEND_SECOND`], [`SEND_FOURTH`]: an argument is sent along. Written by the supervisor.
    pub answer_flags: [AtomicU8; ANSWERS],
    /// The constant results of answered calls. Written by the supervisor.
    pub answers: [AtomicU64; ANSWERS],
    /// The complete state.
    pub state: StateArea,
    /// Data of small copies.
    pub payload: [AtomicU64; PAYLOAD_LEN / 8],
}

/// Offset of the signal stack in a slot.
pub const SIGSTACK: u64 = 0x6000;
/// Length of the signal stack in bytes.
pub const SIGSTACK_LEN: u64 = SLOT_SIZE - SIGSTACK;

const _: () = assert!(size_of::<Sysmsg>() as u64 <= SIGSTACK, "the signal stack lies behind the structure");
const _: () = assert!(offset_of!(Sysmsg, supervisor_sleeps) == 64, "sleep flags are not in the hot line");
const _: () = assert!(offset_of!(Sysmsg, stub_sleeps) == 128, "each side's sleep flag has its own line");
const _: () = assert!(
    offset_of!(Sysmsg, frame) == 192,
    "what the stub writes at every call is in no line that the supervisor reads"
);
const _: () = assert!(offset_of!(StateArea, xstate) % 64 == 0, "xrstor needs 64-byte alignment");

/// What slot 0, the leader's, holds.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct LeaderSlot {
    /// A hint that the leader has answered: the sequence number of its last answer. The answer itself
    /// is the file offset of the address space's memfd. Written by the leader (and by any hostile guest).
    pub hint: AtomicU32,
}
