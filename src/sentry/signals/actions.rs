//! What a process does about each signal.

use super::SignalSet;
use crate::sentry::abi::{KernelSigaction, NSIG};
use crate::sentry::errno::Errno;

/// The kernel's choice for a signal without a handler (signal(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultAction {
    /// Ends the process (with or without a core dump, which is not written).
    Terminate,
    /// Does nothing.
    Ignore,
    /// Stops the process until SIGCONT.
    Stop,
}

impl DefaultAction {
    pub(crate) fn of(signo: i32) -> Self {
        match signo {
            libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT => DefaultAction::Ignore,
            libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stop,
            _ => DefaultAction::Terminate,
        }
    }
}

const SIG_DFL: u64 = libc::SIG_DFL as u64;
const SIG_IGN: u64 = libc::SIG_IGN as u64;

/// The dispositions of all signals.
#[derive(Debug, Clone)]
pub(crate) struct Actions([KernelSigaction; NSIG as usize]);

/// A disposition, sorted out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    Default(DefaultAction),
    Ignore,
    Handler(KernelSigaction),
}

/// The place of a signal among the actions. Guests name any number.
fn index(signo: i32) -> Option<usize> {
    usize::try_from(signo).ok()?.checked_sub(1)
}

impl Actions {
    /// All default, except for those that this process was told to ignore.
    pub(crate) fn new(ignored: SignalSet) -> Self {
        let mut actions = Self([KernelSigaction::default(); NSIG as usize]);
        for (action, signo) in actions.0.iter_mut().zip(1..) {
            if ignored.contains(signo) {
                action.handler = SIG_IGN;
            }
        }
        actions
    }

    /// The action of a signal, `EINVAL` for a bad number.
    pub(crate) fn get(&self, signo: i32) -> Result<KernelSigaction, Errno> {
        index(signo).and_then(|index| self.0.get(index)).copied().ok_or(Errno::EINVAL)
    }

    /// Changes the action of a signal that may be changed.
    pub(crate) fn set(&mut self, signo: i32, mut action: KernelSigaction) -> Result<(), Errno> {
        if SignalSet::UNBLOCKABLE.contains(signo) {
            return Err(Errno::EINVAL);
        }
        action.mask &= !SignalSet::UNBLOCKABLE.0;
        let slot = index(signo).and_then(|index| self.0.get_mut(index)).ok_or(Errno::EINVAL)?;
        *slot = action;
        Ok(())
    }

    /// Back to the default action, for a fault that cannot be delivered and for `SA_RESETHAND`.
    pub(crate) fn reset(&mut self, signo: i32) {
        let _ = self
            .get(signo)
            .and_then(|action| self.set(signo, KernelSigaction { handler: SIG_DFL, ..action }));
    }

    pub(crate) fn disposition(&self, signo: i32) -> Disposition {
        match self.get(signo).unwrap_or_default() {
            KernelSigaction { handler: SIG_DFL, .. } => Disposition::Default(DefaultAction::of(signo)),
            KernelSigaction { handler: SIG_IGN, .. } => Disposition::Ignore,
            action => Disposition::Handler(action),
        }
    }

    /// Whether the signal has no effect at all, so that it need not even be queued.
    pub(crate) fn is_ignored(&self, signo: i32) -> bool {
        matches!(self.disposition(signo), Disposition::Ignore | Disposition::Default(DefaultAction::Ignore))
    }

    /// What `execve` keeps: ignored signals stay ignored, handlers are gone.
    pub(crate) fn after_exec(&self) -> Self {
        let mut ignored = SignalSet::default();
        for signo in 1..=NSIG {
            if self.disposition(signo) == Disposition::Ignore {
                ignored = ignored.with(signo);
            }
        }
        Self::new(ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispositions() {
        let mut actions = Actions::new(SignalSet::default().with(libc::SIGHUP));
        assert_eq!(actions.disposition(libc::SIGHUP), Disposition::Ignore);
        assert!(actions.is_ignored(libc::SIGCHLD) && !actions.is_ignored(libc::SIGTERM));
        let action = KernelSigaction { handler: 0x1000, mask: u64::MAX, ..KernelSigaction::default() };
        assert_eq!(actions.set(libc::SIGKILL, action), Err(Errno::EINVAL));
        assert_eq!(actions.set(0, action), Err(Errno::EINVAL));
        assert_eq!(actions.set(65, action), Err(Errno::EINVAL));
        assert_eq!(
            (actions.get(i32::MIN), actions.set(i32::MIN, action)),
            (Err(Errno::EINVAL), Err(Errno::EINVAL))
        );
        actions.set(64, action).unwrap();
        assert_eq!(actions.get(64).unwrap().mask, !SignalSet::UNBLOCKABLE.0);
        let after = actions.after_exec();
        assert_eq!(after.disposition(64), Disposition::Default(DefaultAction::Terminate));
        assert_eq!(after.disposition(libc::SIGHUP), Disposition::Ignore);
    }
}
