//! Calls that a signal interrupted and that go on where they were (`struct restart_block`).

use crate::GuestAddr;
use crate::sentry::futex::Key;
use crate::sentry::timers::{Base, CpuClock};
use std::time::Instant;

/// What `restart_syscall` goes on with. A handler that runs makes the call return `EINTR` instead.
#[derive(Clone)]
pub(crate) enum Restart {
    /// A sleep until a time of a host clock; what is left goes to `remaining`.
    Sleep { base: Base, deadline: i64, remaining: GuestAddr },
    /// A sleep until a clock of processor time has reached `deadline`.
    CpuSleep { clock: CpuClock, deadline: i64, remaining: GuestAddr },
    /// `poll`.
    Poll { fds: GuestAddr, count: u32, deadline: Option<Instant> },
    /// `FUTEX_WAIT` with a limit.
    Futex { addr: GuestAddr, key: Key, value: u32, deadline: Option<Instant> },
}
