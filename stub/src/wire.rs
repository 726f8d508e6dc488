//! The values of [`Line::state`](crate::sysmsg::Line::state).
//!
//! The word belongs in turn to the stub and to the supervisor. Values without bit 31, other than
//! [`RESUME`], are **events**: written by the stub, after which it waits for the word to change.
//! [`RESUME`] and values with bit 31 are **replies**: written by the supervisor, after which it waits
//! for an event.
//!
//! ```text
//!            event (stub writes)                 reply (supervisor writes)
//!  guest ──────────────────────────▶ stub waits ─────────────────────────▶ guest runs
//!  runs     PATCHED TRAPPED COMPAT              RESUME  RESUME_FULL  EXECUTE_RESUME*
//!           VSYSCALL FAULT INTERRUPTED
//!                                    ▲        │ SPILL EXECUTE COPY_* STORE_WORD  (work)
//!                                    └────────┘ answered by SPILLED / DONE
//! ```

/// Reply: run the guest; after a call `args[0]` is its result.
pub const RESUME: u32 = 0;

/// Event: a call through a patched site.
pub const PATCHED: u32 = 1;
/// Event: a 64-bit call through seccomp.
pub const TRAPPED: u32 = 2;
/// Event: an i386 call (`int 0x80`) through seccomp.
pub const COMPAT: u32 = 3;
/// Event: a call through the vsyscall page.
pub const VSYSCALL: u32 = 4;
/// Event: a synchronous signal. `nr` is the signal, `args` are si_code, si_addr, trapno, error code, cr2.
pub const FAULT: u32 = 5;
/// Event: the interrupt signal found the guest in its own code.
pub const INTERRUPTED: u32 = 6;
/// Event: a new stub thread is ready for its first [`RESUME_FULL`].
pub const READY: u32 = 7;
/// Event: all registers are in the state area (answer to [`SPILL`]).
pub const SPILLED: u32 = 8;
/// Event: the work is done, `args[0]` is its result (answer to [`EXECUTE`], [`COPY_FROM_GUEST`],
/// [`COPY_TO_GUEST`], [`STORE_WORD`]); or a host call failed after which the guest was to run ([`EXECUTE_RESUME`],
/// [`EXECUTE_RESUME_IF_DONE`]), and all registers are where after [`SPILLED`] if they were not in a signal frame.
pub const DONE: u32 = 9;
/// Event: a signal arrived in stub code where none can; the stub process is of no further use.
pub const STUB_FAULT: u32 = 10;

/// Set in every reply but [`RESUME`].
pub const REPLY: u32 = 1 << 31;
/// Reply: load the whole state area and run the guest.
pub const RESUME_FULL: u32 = REPLY | 1;
/// Reply: write all registers to the state area, then [`SPILLED`].
pub const SPILL: u32 = REPLY | 2;
/// Reply: run the host call `nr(args)`, then [`DONE`]; in the syshandler [`PATCHED`] once more, for the same call.
pub const EXECUTE: u32 = REPLY | 3;
/// Reply: run the host call `nr(args)` and run the guest with its result; but if that is `-EINTR`, [`DONE`].
pub const EXECUTE_RESUME: u32 = REPLY | 4;
/// Reply: copy `args[1]` bytes at guest address `args[0]` to the payload, then [`DONE`] with the bytes left over; in
/// the syshandler [`PATCHED`] once more.
pub const COPY_FROM_GUEST: u32 = REPLY | 5;
/// Reply: copy `args[1]` bytes of the payload to guest address `args[0]`; else as [`COPY_FROM_GUEST`].
pub const COPY_TO_GUEST: u32 = REPLY | 6;
/// Reply: go to sleep at once; the event stands.
pub const SLEEP: u32 = REPLY | 8;
/// Reply: if the aligned 64-bit word at guest address `args[0]` is `args[1]`, make it `args[2]`, atomically; then [`DONE`]
/// with 0, 1 (it was something else), or 2 (it cannot be written).
pub const STORE_WORD: u32 = REPLY | 9;
/// Reply: as [`EXECUTE_RESUME`], but [`DONE`] after any error.
pub const EXECUTE_RESUME_IF_DONE: u32 = REPLY | 10;
/// Reply: copy `nr` bytes of the payload to guest address `args[1]` and run the guest with the result `args[0]`; but if the
/// copy faults, [`DONE`] with the bytes left over, as after a failed [`EXECUTE_RESUME`].
pub const COPY_RESUME: u32 = REPLY | 11;

/// An event, once its raw value has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is documented at its constant")]
pub enum StubEvent {
    Patched,
    Trapped,
    Compat,
    Vsyscall,
    Fault,
    Interrupted,
    Ready,
    Spilled,
    Done,
    StubFault,
}

impl StubEvent {
    /// The event that a raw state word stands for, or `None` for anything that no stub writes.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            PATCHED => Self::Patched,
            TRAPPED => Self::Trapped,
            COMPAT => Self::Compat,
            VSYSCALL => Self::Vsyscall,
            FAULT => Self::Fault,
            INTERRUPTED => Self::Interrupted,
            READY => Self::Ready,
            SPILLED => Self::Spilled,
            DONE => Self::Done,
            STUB_FAULT => Self::StubFault,
            _ => return None,
        })
    }
}

/// Whether a raw state word is a reply: the stub has not answered yet.
#[must_use]
pub const fn is_reply(raw: u32) -> bool {
    raw == RESUME || raw & REPLY != 0
}
