//! Delivery: from pending signals to handlers, default actions and restarted calls (kernel/signal.c `get_signal`).

use super::frame::{self, FrameContext};
use super::{AltStack, DefaultAction, Disposition, FaultState, Pending, SS_AUTODISARM, SigInfo, SignalSet};
use crate::sentry::abi::KernelSigaction;
use crate::sentry::errno::Errno;
use crate::sentry::hook::DeliveredSignal;
use crate::sentry::kernel::STOPS;
use crate::sentry::task::{ExitStatus, Task};
use crate::{Signal, SwitchError};
use std::sync::{Arc, MutexGuard};

/// The call that the guest is about to return from, if it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReturningCall {
    pub(crate) nr: u32,
    pub(crate) result: i64,
}

impl ReturningCall {
    fn restart(self) -> Option<Errno> {
        i32::try_from(-self.result).ok().map(Errno::from_raw).filter(|errno| errno.is_restart())
    }
}

/// The length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

impl Task {
    /// The signals that would have an effect now.
    pub(crate) fn deliverable(&self) -> SignalSet {
        let pending = self.handle.pending().set().union(self.process.pending().set());
        let actions = self.process.actions();
        let mut ready = pending.minus(self.handle.mask());
        let mut rest = ready;
        while let Some(signo) = rest.first() {
            rest = rest.without(signo);
            if actions.is_ignored(signo) {
                ready = ready.without(signo);
            }
        }
        ready
    }

    /// Whether the task has to end, and then how.
    fn is_at_end(&mut self) -> bool {
        if self.handle.is_doomed() {
            self.exit = Some(self.process.ending().unwrap_or(ExitStatus::Exited(0)));
        }
        self.exit.is_some()
    }

    /// Acts on pending signals before the guest goes on, and finishes the call it returns from.
    pub(crate) fn deliver_signals(&mut self, call: Option<ReturningCall>) -> Result<(), SwitchError> {
        self.handle.attention.take();
        let mut call = call;
        loop {
            self.stay_stopped();
            if self.is_at_end() {
                return Ok(());
            }
            let Some(info) = self.take_signal(SignalSet(!self.handle.mask().0)) else { break };
            let signo = info.signo();
            let disposition = self.process.actions().disposition(signo);
            self.tell_of_signal(&DeliveredSignal { signo, code: info.code(), address: info.address() });
            match disposition {
                Disposition::Ignore | Disposition::Default(DefaultAction::Ignore) => {}
                Disposition::Default(DefaultAction::Stop) => self.stop(&info),
                Disposition::Default(DefaultAction::Terminate) => {
                    self.process.end(ExitStatus::Signaled(signo));
                    self.exit = self.process.ending();
                    return Ok(());
                }
                Disposition::Handler(action) => {
                    self.context.pull_full_state()?;
                    if let Some(call) = call.take() {
                        self.finish_call(call, Some(&action));
                    }
                    self.run_handler(&info, &action);
                }
            }
        }
        if let Some(call) = call {
            if call.restart().is_some() {
                self.context.pull_full_state()?;
                self.finish_call(call, None);
            } else {
                self.context.set_return(call.result);
            }
        }
        if let Some(mask) = self.signals.saved_mask.take() {
            // The old mask may let through what the temporary one held back.
            self.set_mask(mask);
        }
        Ok(())
    }

    /// A stop signal takes effect on the whole process, unless its group is an orphan (nobody would continue it) or
    /// SIGCONT has come since it was taken.
    fn stop(&self, info: &SigInfo) {
        let signo = info.signo();
        let mut tree = self.kernel().tree();
        let group = tree.node(self.process.pid).map_or(0, |node| node.group);
        let stands = self.handle.set_took_stop(false);
        if stands && (signo == libc::SIGSTOP || !tree.is_orphaned(group)) {
            tree.stop(&self.process, signo, info.sender().unwrap_or(0));
        }
    }

    /// Waits while the process is stopped.
    fn stay_stopped(&mut self) {
        let kernel = Arc::clone(self.kernel());
        while self.process.is_stopped() || self.handle.is_at_stop() {
            let seen = self.handle.bell();
            if self.handle.is_doomed() || !kernel.holds_at_stop(&self.handle) {
                return;
            }
            self.context.prepare_sleep();
            self.handle.sleep_through(seen);
        }
    }

    /// Changes the mask; signals that it lets through are looked at when the call returns, and those that it blocks
    /// are left to other threads.
    pub(crate) fn set_mask(&mut self, mask: SignalSet) {
        let mask = mask.minus(SignalSet::UNBLOCKABLE);
        let newly_blocked = mask.minus(self.handle.mask());
        self.handle.store_mask(mask);
        if newly_blocked != SignalSet::default() {
            self.process.retarget(newly_blocked);
        }
        if self.deliverable() != SignalSet::default() {
            self.handle.attention.raise();
        }
    }

    /// Takes the next pending signal of a set out of the queues, the task's own first.
    pub(crate) fn take_signal(&self, of: SignalSet) -> Option<SigInfo> {
        let take_from = |mut queue: MutexGuard<'_, Pending>| {
            let info = queue.take(of)?;
            if STOPS.contains(info.signo()) {
                self.handle.set_took_stop(true);
            }
            Some(info)
        };
        let info = take_from(self.handle.pending()).or_else(|| take_from(self.process.pending()))?;
        Some(self.process.signal_taken(info))
    }

    /// Puts the result into rax, or sets the registers so that the guest makes the call again.
    fn finish_call(&mut self, call: ReturningCall, handler: Option<&KernelSigaction>) {
        let again = match (call.restart(), handler) {
            (None, _) => false,
            (Some(_), None) | (Some(Errno::ERESTARTNOINTR), _) => true,
            (Some(Errno::ERESTARTSYS), Some(action)) => action.flags & libc::SA_RESTART as u64 != 0,
            (Some(_), Some(_)) => false,
        };
        let result = match call.restart() {
            Some(_) if !again => Errno::EINTR.as_return(),
            _ => call.result,
        };
        if !again {
            self.context.set_return(result);
        }
        let registers = self.context.registers_mut();
        if again {
            // The call is made again as it was, or goes on where it was interrupted.
            let goes_on = call.restart() == Some(Errno::ERESTART_RESTARTBLOCK);
            registers.rax = if goes_on { libc::SYS_restart_syscall as u64 } else { u64::from(call.nr) };
            registers.rip = registers.rip.wrapping_sub(SYSCALL_LEN);
        } else {
            registers.rax = result as u64;
        }
    }

    /// Builds the handler's frame; a stack that cannot take it means SIGSEGV.
    fn run_handler(&mut self, info: &SigInfo, action: &KernelSigaction) {
        let signo = info.signo();
        self.restart = None;
        if action.flags & libc::SA_RESETHAND as u64 != 0 {
            self.process.actions().reset(signo);
        }
        let mask = self.signals.saved_mask.take().unwrap_or(self.handle.mask());
        let xstate = self.context.xstate().to_vec();
        let xfeatures = self.kernel().xfeatures;
        let context = FrameContext {
            info,
            action,
            mask,
            stack: self.signals.stack,
            fault: self.signals.last_fault,
            xfeatures,
        };
        let pushed = frame::push(self.mm.space(), self.context.registers_mut(), &xstate, &context);
        if pushed.is_err() {
            if signo == libc::SIGSEGV {
                self.process.actions().reset(signo);
            }
            self.force_signal(SigInfo::from_kernel(libc::SIGSEGV));
            return;
        }
        if self.signals.stack.flags & SS_AUTODISARM != 0 {
            self.signals.stack = AltStack::DISABLED;
        }
        let mut blocked = self.handle.mask().union(SignalSet(action.mask));
        if action.flags & libc::SA_NODEFER as u64 == 0 {
            blocked = blocked.with(signo);
        }
        self.set_mask(blocked);
    }

    /// A signal that cannot be put off: blocked or ignored, it kills.
    pub(crate) fn force_signal(&mut self, info: SigInfo) {
        let signo = info.signo();
        let blocked = self.handle.mask().contains(signo);
        let mut actions = self.process.actions();
        if blocked || actions.disposition(signo) == Disposition::Ignore {
            actions.reset(signo);
            self.handle.store_mask(self.handle.mask().without(signo));
        }
        drop(actions);
        self.handle.push(info);
    }

    /// A fault of the guest, as the platform reports it.
    pub(crate) fn fault(&mut self, signal: &Signal) -> Result<(), SwitchError> {
        self.signals.last_fault =
            FaultState { trapno: signal.trapno, error_code: signal.error_code, cr2: signal.cr2 };
        self.force_signal(SigInfo::from_fault(signal));
        self.deliver_signals(None)
    }

    /// `rt_sigreturn`: back to what the frame on the stack says.
    pub(crate) fn return_from_handler(&mut self) -> Result<(), SwitchError> {
        self.context.pull_full_state()?;
        let mut registers = *self.context.registers();
        let xfeatures = self.kernel().xfeatures;
        let restored = frame::pop(self.mm.space(), &mut registers, self.context.xstate_mut(), xfeatures);
        match restored {
            Ok(restored) => {
                *self.context.registers_mut() = registers;
                self.context.set_return(registers.rax as i64);
                self.set_mask(restored.mask);
                if !self.signals.stack.is_active(registers.rsp) {
                    self.signals.stack = restored.stack;
                }
            }
            Err(frame::BadFrame) => self.force_signal(SigInfo::from_kernel(libc::SIGSEGV)),
        }
        self.deliver_signals(None)
    }
}
