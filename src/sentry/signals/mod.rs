//! Signals of a guest: sets, dispositions, queues, delivery.

mod actions;
pub(crate) mod deliver;
mod frame;
mod incoming;
mod pending;
mod siginfo;

pub(crate) use actions::{Actions, DefaultAction, Disposition};
pub(crate) use incoming::Incoming;
pub(crate) use pending::Pending;
pub(crate) use siginfo::SigInfo;

use super::abi::{NSIG, StackT};

/// A set of signals, bit n-1 for signal n, as the kernel's `sigset_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SignalSet(pub(crate) u64);

impl SignalSet {
    /// The signals that cannot be blocked, caught or ignored.
    pub(crate) const UNBLOCKABLE: SignalSet = SignalSet(bit(libc::SIGKILL) | bit(libc::SIGSTOP));

    pub(crate) const fn contains(self, signo: i32) -> bool {
        self.0 & bit(signo) != 0
    }

    pub(crate) const fn with(self, signo: i32) -> Self {
        Self(self.0 | bit(signo))
    }

    pub(crate) const fn without(self, signo: i32) -> Self {
        Self(self.0 & !bit(signo))
    }

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lowest signal in the set.
    pub(crate) fn first(self) -> Option<i32> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as i32 + 1)
    }
}

const fn bit(signo: i32) -> u64 {
    if signo >= 1 && signo <= NSIG { 1 << (signo - 1) } else { 0 }
}

/// The name of a signal, for traces and messages.
pub(crate) fn signal_name(signo: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(signo).ok().and_then(|signo| NAMES.get(signo.checked_sub(1)?)) {
        Some(name) => format!("SIG{name}"),
        None if (32..=NSIG).contains(&signo) => format!("SIGRT_{}", signo - 32),
        None => signo.to_string(),
    }
}

/// What belongs to one task alone. Its mask and its own queue are where others can see them, in its handle.
#[derive(Debug)]
pub(crate) struct TaskSignals {
    /// The mask to go back to when a call that changed it for its own duration ends.
    pub(crate) saved_mask: Option<SignalSet>,
    /// `sigaltstack`.
    pub(crate) stack: AltStack,
    /// What the last fault left in the thread's state: it shows in every later signal frame.
    pub(crate) last_fault: FaultState,
}

impl Default for TaskSignals {
    fn default() -> Self {
        Self { saved_mask: None, stack: AltStack::DISABLED, last_fault: FaultState::default() }
    }
}

/// `trapno`, `err` and `cr2` of the last fault.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FaultState {
    pub(crate) trapno: u64,
    pub(crate) error_code: u64,
    pub(crate) cr2: u64,
}

/// An alternate signal stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AltStack {
    pub(crate) sp: u64,
    pub(crate) size: u64,
    /// `SS_DISABLE` or `SS_AUTODISARM`.
    pub(crate) flags: i32,
}

/// `SS_AUTODISARM`: the stack is disabled while a handler runs on it.
pub(crate) const SS_AUTODISARM: i32 = 1 << 31;

impl AltStack {
    /// None: its size is what says so, the flags stay as `sigaltstack` set them.
    pub(crate) const DISABLED: AltStack = AltStack { sp: 0, size: 0, flags: 0 };

    /// Whether a stack pointer lies on this stack (`on_sig_stack`).
    pub(crate) fn is_active(self, sp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.contains(sp)
    }

    fn contains(self, sp: u64) -> bool {
        sp > self.sp && sp - self.sp <= self.size
    }

    /// As `sigaltstack` and a signal frame show it.
    pub(crate) fn to_abi(self, flags: i32) -> StackT {
        StackT { sp: self.sp, flags, padding: 0, size: self.size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_names() {
        let set = SignalSet::default().with(1).with(64).with(0).with(65);
        assert_eq!(set.0, 1 | 1 << 63);
        assert_eq!(
            (set.first(), set.without(1).first(), SignalSet::default().first()),
            (Some(1), Some(64), None)
        );
        assert_eq!(signal_name(libc::SIGSEGV), "SIGSEGV");
        assert_eq!(signal_name(libc::SIGSYS), "SIGSYS");
        assert_eq!((signal_name(34), signal_name(65)), ("SIGRT_2".to_owned(), "65".to_owned()));
    }
}
