//! Host calls that a stub thread makes for its guest: at once, while the guest waits with an event, or as the guest's
//! own call, whose result the guest goes on with in the same hand-off.

use std::sync::atomic::Ordering;

use systrap_stub::wire::{self, StubEvent};

use super::patched::Settled;
use super::{Context, HandOff, Stop};
use crate::seccomp::is_private_futex_op;
use crate::subprocess::{Attention, HostCall};
use crate::{AddressSpace, Error, Event, StubExit, SwitchError};

/// A host call of a stub thread.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StubCall {
    pub(super) nr: i64,
    pub(super) args: [u64; 6],
}

/// What the stub thread does before the guest goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Executing {
    #[default]
    Nothing,
    /// A change of mappings: the supervisor wants to know if it fails.
    Change,
    /// A call that does not block.
    Brief,
    /// A call that may block.
    Wait,
    /// No call: bytes for the guest. `nr` is their number, the arguments are the result and the address.
    Copy,
}

impl Executing {
    pub(super) fn reply(self) -> Option<u32> {
        match self {
            Self::Nothing => None,
            Self::Change => Some(wire::EXECUTE_RESUME_IF_DONE),
            Self::Brief | Self::Wait => Some(wire::EXECUTE_RESUME),
            Self::Copy => Some(wire::COPY_RESUME),
        }
    }
}

/// Why a host call that the stub thread was to make for its guest is the supervisor's business again: see
/// [`Context::executed`]. The guest's call waits for its result as after [`Event::Syscall`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Executed {
    /// An interrupt ended the wait, or came before it began. Nothing was taken from anybody: a wake-up that had reached
    /// the guest would be its result. The result is `-EINTR` unless another is set.
    Interrupted,
    /// The change of mappings failed with this errno, which is the result unless another is set.
    Failed {
        /// The host's errno.
        errno: i32,
    },
    /// The bytes of [`Context::set_return_with`] could not all be written. The result is `-EFAULT` unless another is set.
    CopyFailed {
        /// How many were.
        copied: usize,
    },
}

impl Context {
    /// After [`Event::Interrupted`]: whether it ended a call that the stub thread was making for its guest
    /// ([`Context::execute_futex`], [`MemoryOnReturn`](crate::MemoryOnReturn), [`Context::set_return_with`]), and how. `None` after every other event.
    ///
    /// The call then is as good as reported by [`Event::Syscall`]: the guest's state is that behind the `syscall`, and the
    /// next switch returns the result that [`Context::set_return`] sets. To restart the call, move `rip` back by two and
    /// set `rax` to its number.
    #[must_use]
    pub fn executed(&self) -> Option<Executed> {
        self.executed
    }

    /// Lets the stub thread make a futex call for its guest: at the next switch the host kernel gets the call with `args`
    /// (rdi, rsi, rdx, r10, r8, r9 of futex(2)), and the guest goes on with its result. Until then, and while it sleeps,
    /// nothing is the supervisor's business but an interrupt: that makes the switch return [`Event::Interrupted`], with
    /// [`Executed::Interrupted`] if the call was a wait that had not ended.
    ///
    /// Says whether that is possible. It is if the guest waits with a call, its state was not changed since, and the
    /// operation is one of WAIT, WAKE, WAIT_BITSET, WAKE_BITSET, REQUEUE, CMP_REQUEUE and WAKE_OP with
    /// FUTEX_PRIVATE_FLAG. Such an operation reaches nobody but threads of the same address space.
    ///
    /// A relative time-out begins anew when the call is made again; [`Context::execute_futex_until`] has a deadline.
    #[must_use = "if it is not possible, the call is still to be made"]
    pub fn execute_futex(&mut self, args: [u64; 6]) -> bool {
        let op = args[1] as u32;
        if !is_private_futex_op(op) {
            return false;
        }
        let waits = matches!(op as i32 & OPERATION, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET);
        let kind = if waits { Executing::Wait } else { Executing::Brief };
        self.execute_on_return(kind, StubCall { nr: libc::SYS_futex, args })
    }

    /// As [`Context::execute_futex`] with a WAIT or WAIT_BITSET that ends at `deadline`, a time of CLOCK_MONOTONIC, or of
    /// CLOCK_REALTIME if the operation says so, instead of what the fourth argument points to. Not possible with others.
    #[must_use = "if it is not possible, the call is still to be made"]
    pub fn execute_futex_until(&mut self, args: [u64; 6], deadline: std::time::Duration) -> bool {
        let op = args[1] as u32 as i32;
        let [addr, _, value, _, _, bits] = args;
        let bits = match op & OPERATION {
            libc::FUTEX_WAIT => u64::from(u32::MAX),
            libc::FUTEX_WAIT_BITSET => bits,
            _ => return false,
        };
        let Some(home) = &self.home else { return false };
        // Of the two, only WAIT_BITSET has an absolute time-out (futex(2)).
        let op = op & !OPERATION | libc::FUTEX_WAIT_BITSET;
        let words = &home.thread.sysmsg().deadline;
        words.sec.store(deadline.as_secs(), Ordering::Relaxed);
        words.nsec.store(deadline.subsec_nanos().into(), Ordering::Relaxed);
        let at = home.thread.stub_addr() + DEADLINE;
        self.execute_futex([addr, op as u64, value, at, 0, bits])
    }

    /// Lets the stub thread make a sched_yield(2) for its guest, as [`Context::execute_futex`] does a futex call.
    #[must_use = "if it is not possible, the call is still to be made"]
    pub fn execute_yield(&mut self) -> bool {
        self.execute_on_return(Executing::Brief, StubCall { nr: libc::SYS_sched_yield, args: [0; 6] })
    }

    /// Arranges for a call that the next switch makes, if it can.
    pub(super) fn execute_on_return(&mut self, kind: Executing, call: StubCall) -> bool {
        let can = self.can_execute_on_return();
        if can {
            self.executing = kind;
            self.host_call = call;
        }
        can
    }

    /// Whether the guest waits for nothing but the result of its call.
    pub(super) fn can_execute_on_return(&self) -> bool {
        !self.changed && self.in_call() && self.executing == Executing::Nothing
    }

    /// Whether the switch to `aspace` can carry what is to be executed.
    pub(super) fn can_execute(&self, aspace: &AddressSpace) -> bool {
        !self.changed && self.is_home(aspace)
    }

    pub(super) fn is_home(&self, aspace: &AddressSpace) -> bool {
        self.home
            .as_ref()
            .is_some_and(|home| std::sync::Arc::ptr_eq(&home.space.process, &aspace.inner.process))
    }

    /// Does what is to be executed before anything else happens to the guest; a wait counts as interrupted. Says whether
    /// the supervisor has to be told.
    pub(super) fn execute_at_once(&mut self) -> Result<bool, SwitchError> {
        let call = self.host_call;
        let result = match std::mem::take(&mut self.executing) {
            Executing::Nothing => return Ok(false),
            Executing::Wait => -i64::from(libc::EINTR),
            Executing::Copy => return Ok(self.copy_at_once(call)),
            Executing::Change | Executing::Brief => self.execute(call)?,
        };
        // A call that does not wait is never interrupted: no result of it is the supervisor's business but an error.
        let kind = if result == -i64::from(libc::EINTR) { Executing::Wait } else { Executing::Change };
        self.set_executed(kind, result);
        Ok(self.executed.is_some())
    }

    fn set_executed(&mut self, kind: Executing, result: i64) {
        self.set_return(result);
        self.executed = match (kind, errno_of(result)) {
            (_, None) => None,
            (Executing::Wait, Some(_)) => Some(Executed::Interrupted),
            (_, Some(errno)) => Some(Executed::Failed { errno }),
        };
    }

    /// A host call failed that the guest was to go on behind.
    pub(super) fn came_back(&mut self, kind: Executing) -> Result<Settled, SwitchError> {
        let Some(home) = &mut self.home else { return Err(SwitchError::BadState { what: "no stub thread" }) };
        // The syshandler has spilled the registers.
        if home.stop == Stop::Patched {
            home.stop = Stop::Spilled;
        }
        let result = home.thread.sysmsg().line.args[0].load(Ordering::Relaxed) as i64;
        if kind == Executing::Copy {
            return match usize::try_from(self.host_call.nr - result.clamp(0, self.host_call.nr)) {
                Ok(copied) if result > 0 => {
                    self.attention.turns().end();
                    self.copy_failed(copied);
                    Ok(Settled::Event(Event::Interrupted))
                }
                _ => Err(self.corrupt("a copy came back that did not fail")),
            };
        }
        if errno_of(result).is_none() {
            return Err(self.corrupt("a host call came back that did not fail"));
        }
        if kind == Executing::Brief {
            return Err(self.corrupt("a host call came back that nothing interrupts"));
        }
        if kind == Executing::Wait && !self.attention.take(Attention::INTERRUPT) {
            // An interrupt signal that came after its interrupt had been reported, or the guest was to step aside, which
            // it has done: the call is made again, in a new turn.
            self.attention.take(Attention::STEP_ASIDE);
            self.attention.turns().begin();
            self.executing = kind;
            return Ok(Settled::GoOn(wire::RESUME));
        }
        self.attention.turns().end();
        self.set_executed(kind, result);
        Ok(Settled::Event(Event::Interrupted))
    }

    /// Lets the stub thread, which waits, make a host call now. The result is the guest's claim.
    pub(super) fn execute(&self, call: StubCall) -> Result<i64, SwitchError> {
        let Some(home) = &self.home else { return Err(SwitchError::BadState { what: "no stub thread" }) };
        let hand_off = HandOff::detached(&self.platform, &home.thread);
        match hand_off.exchange_call(wire::EXECUTE, call.nr, call.args)? {
            StubEvent::Done if home.stop != Stop::Patched => {}
            StubEvent::Patched if home.stop == Stop::Patched => {}
            _ => return Err(hand_off.corrupted("an event that answers nothing")),
        }
        Ok(home.thread.sysmsg().line.args[0].load(Ordering::Relaxed) as i64)
    }

    /// As `execute`, with the errors of a call of the leader.
    pub(super) fn execute_host_call(&self, call: &HostCall) -> Result<i64, Error> {
        match self.execute(StubCall { nr: call.nr, args: call.args }) {
            Ok(result) => match errno_of(result) {
                None => Ok(result),
                Some(errno) => Err(Error::stub(call.what, errno)),
            },
            Err(SwitchError::StubDied { how }) => Err(Error::StubDied { how }),
            Err(SwitchError::Platform(error)) => Err(error),
            // Killed, but not reaped yet.
            Err(_) => Err(Error::StubDied { how: StubExit::Unknown }),
        }
    }
}

/// The operation among the bits of FUTEX_CMD_MASK.
const OPERATION: i32 = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
const DEADLINE: u64 = std::mem::offset_of!(systrap_stub::sysmsg::Sysmsg, deadline) as u64;

/// The errno that a result of a host call stands for.
fn errno_of(result: i64) -> Option<i32> {
    (-4095..0).contains(&result).then_some(-result as i32)
}
