//! Signals: actions, masks, sending, waiting.

use super::SysResult;
use super::args::{MaskHow, Signo};
use crate::GuestAddr;
use crate::sentry::abi::{KernelSigaction, StackT, Timespec};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::signals::{AltStack, SS_AUTODISARM, SignalSet};
use crate::sentry::task::{AfterCall, Task};
use std::time::{Duration, Instant};

/// The size of the kernel's `sigset_t`; any other is refused.
const SET_SIZE: usize = 8;

fn check_size(size: usize) -> Result<(), Errno> {
    if size == SET_SIZE { Ok(()) } else { Err(Errno::EINVAL) }
}

pub(super) fn rt_sigaction(
    task: &mut Task,
    signo: Signo,
    new: GuestAddr,
    old: GuestAddr,
    size: usize,
) -> SysResult {
    check_size(size)?;
    let new = task.call_memory().read_optional::<KernelSigaction>(new)?;
    let previous = {
        let mut actions = task.process.actions();
        let previous = actions.get(signo.0)?;
        if let Some(new) = new {
            actions.set(signo.0, new)?;
        }
        previous
    };
    if new.is_some() && task.process.actions().is_ignored(signo.0) {
        let gone = SignalSet::default().with(signo.0);
        task.process.pending().discard(gone);
        for thread in &*task.process.threads() {
            thread.pending().discard(gone);
        }
    }
    task.give_optional(old, &previous).map(|()| 0)
}

impl Task {
    /// Uses another mask for the length of a call; delivery puts the old one back.
    pub(super) fn suspend_mask(&mut self, mask: SignalSet) {
        self.signals.saved_mask = Some(self.handle.mask());
        self.set_mask(mask);
    }

    /// What is pending for this task, its process's signals included.
    pub(crate) fn all_pending(&self) -> SignalSet {
        self.handle.pending().set().union(self.process.pending().set())
    }
}

pub(super) fn rt_sigprocmask(
    task: &mut Task,
    how: MaskHow,
    new: GuestAddr,
    old: GuestAddr,
    size: usize,
) -> SysResult {
    check_size(size)?;
    let previous = task.handle.mask();
    if let Some(set) = task.call_memory().read_optional::<u64>(new)?.map(SignalSet) {
        let mask = match how.0 {
            libc::SIG_BLOCK => previous.union(set),
            libc::SIG_UNBLOCK => previous.minus(set),
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL),
        };
        task.set_mask(mask);
    }
    task.give_optional(old, &previous.0).map(|()| 0)
}

pub(super) fn rt_sigreturn(task: &mut Task) -> SysResult {
    task.after_call = AfterCall::ReturnFromHandler;
    Ok(0)
}

pub(super) fn rt_sigpending(task: &mut Task, set: GuestAddr, size: usize) -> SysResult {
    if size > SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let blocked = task.all_pending().0 & task.handle.mask().0;
    task.memory().write(set, &blocked.to_ne_bytes()[..size])?;
    Ok(0)
}

/// Waits until a signal is delivered.
fn wait_for_delivery(task: &mut Task) -> SysResult {
    let result = task.wait(|_, attention| host::wait_ppoll(attention, &mut [], None, 0));
    match result {
        Err(Errno::ERESTARTSYS) => Err(Errno::ERESTARTNOHAND),
        other => other.map(|_| 0),
    }
}

pub(super) fn rt_sigsuspend(task: &mut Task, mask: GuestAddr, size: usize) -> SysResult {
    check_size(size)?;
    let mask = task.memory().read_object::<u64>(mask)?;
    task.suspend_mask(SignalSet(mask));
    wait_for_delivery(task)
}

pub(super) fn pause(task: &mut Task) -> SysResult {
    wait_for_delivery(task)
}

pub(super) fn rt_sigtimedwait(
    task: &mut Task,
    set: GuestAddr,
    info: GuestAddr,
    timeout: GuestAddr,
    size: usize,
) -> SysResult {
    check_size(size)?;
    let wanted = SignalSet(task.memory().read_object::<u64>(set)?).minus(SignalSet::UNBLOCKABLE);
    let limit = match task.memory().read_optional::<Timespec>(timeout)? {
        Some(time) => Some(time.to_duration().ok_or(Errno::EINVAL)?),
        None => None,
    };
    let started = Instant::now();
    // While it waits the signals count as unblocked, so that their arrival ends the wait.
    let old_mask = task.handle.mask();
    task.handle.set_awaited(wanted);
    task.set_mask(old_mask.minus(wanted));
    let result = loop {
        if let Some(taken) = task.take_signal(wanted) {
            break Ok(taken);
        }
        let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
        if left == Some(Duration::ZERO) {
            break Err(Errno::EAGAIN);
        }
        let mut time = left.map(|left| Timespec::from_duration(left).to_array());
        match task.wait(|_, attention| host::wait_ppoll(attention, &mut [], time.as_mut(), 0)) {
            Ok(_) => {}
            Err(Errno::ERESTARTSYS) => {
                if task.all_pending().0 & wanted.0 == 0 {
                    break Err(Errno::EINTR);
                }
            }
            Err(errno) => break Err(errno),
        }
    };
    task.handle.set_awaited(SignalSet::default());
    task.set_mask(old_mask);
    let taken = result?;
    task.memory().write_optional(info, &taken.0)?;
    Ok(i64::from(taken.signo()))
}

pub(super) fn sigaltstack(task: &mut Task, new: GuestAddr, old: GuestAddr) -> SysResult {
    const MIN_SIZE: u64 = 2048;
    let new = task.memory().read_optional::<StackT>(new)?;
    task.context.pull_full_state().map_err(|_| Errno::EFAULT)?;
    let current = task.signals.stack;
    let active = current.is_active(task.context.registers().rsp);
    if let Some(new) = new {
        if active {
            return Err(Errno::EPERM);
        }
        let disarm = new.flags & SS_AUTODISARM;
        task.signals.stack = match new.flags & !SS_AUTODISARM {
            libc::SS_DISABLE => AltStack { flags: libc::SS_DISABLE | disarm, ..AltStack::DISABLED },
            0 | libc::SS_ONSTACK if new.size < MIN_SIZE => return Err(Errno::ENOMEM),
            0 | libc::SS_ONSTACK => AltStack { sp: new.sp, size: new.size, flags: disarm },
            _ => return Err(Errno::EINVAL),
        };
    }
    let state = if active {
        libc::SS_ONSTACK
    } else if current.size == 0 {
        libc::SS_DISABLE
    } else {
        0
    };
    task.memory().write_optional(old, &current.to_abi(state | current.flags & SS_AUTODISARM)).map(|()| 0)
}
