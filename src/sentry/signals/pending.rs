//! Signals that have been sent and not yet delivered.

use super::{SigInfo, SignalSet};
use std::collections::VecDeque;

/// Signals from here on queue; below, a second one of the same number is dropped.
const FIRST_REAL_TIME: i32 = 32;
/// However large `RLIMIT_SIGPENDING` is: a queue longer than this refuses with `EAGAIN`.
const QUEUE_LIMIT: usize = 1 << 16;

/// A queue of signals.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    set: SignalSet,
    queue: VecDeque<SigInfo>,
}

impl Pending {
    /// Which signals are pending.
    pub(crate) fn set(&self) -> SignalSet {
        self.set
    }

    /// Adds a signal; `false` when the queue is full.
    pub(crate) fn push(&mut self, info: SigInfo) -> bool {
        let signo = info.signo();
        // A timer's signal has its place from the time when the timer was made: there is one at most.
        if !info.is_from_timer() {
            if signo < FIRST_REAL_TIME && self.set.contains(signo) {
                return true;
            }
            if signo >= FIRST_REAL_TIME && self.queue.len() >= QUEUE_LIMIT {
                return false;
            }
        }
        self.set = self.set.with(signo);
        self.queue.push_back(info);
        true
    }

    /// How many signals are queued.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Takes the next signal of a set: faults first, then the lowest number, the oldest of its kind.
    pub(crate) fn take(&mut self, of: SignalSet) -> Option<SigInfo> {
        const SYNCHRONOUS: SignalSet = SignalSet(0)
            .with(libc::SIGSEGV)
            .with(libc::SIGBUS)
            .with(libc::SIGILL)
            .with(libc::SIGTRAP)
            .with(libc::SIGFPE)
            .with(libc::SIGSYS);
        let ready = SignalSet(self.set.0 & of.0);
        let signo = SignalSet(ready.0 & SYNCHRONOUS.0).first().or_else(|| ready.first())?;
        let at = self.queue.iter().position(|info| info.signo() == signo);
        let info = at.and_then(|at| self.queue.remove(at));
        if !self.queue.iter().any(|info| info.signo() == signo) {
            self.set = self.set.without(signo);
        }
        info
    }

    /// Drops the signals of a POSIX timer, or of all.
    pub(crate) fn discard_timer(&mut self, id: Option<i32>) {
        self.queue.retain(|info| !info.is_from_timer() || id.is_some_and(|id| id != info.timer_id()));
        self.set = self.queue.iter().fold(SignalSet::default(), |set, info| set.with(info.signo()));
    }

    /// Drops what is pending of a set.
    pub(crate) fn discard(&mut self, of: SignalSet) {
        self.queue.retain(|info| !of.contains(info.signo()));
        self.set = self.set.minus(of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_signals_coalesce_and_real_time_ones_queue() {
        let mut pending = Pending::default();
        for code in 0..3 {
            pending.push(SigInfo::from_user(libc::SIGUSR1, code, 1, 0));
            pending.push(SigInfo::from_user(40, code, 1, 0));
        }
        pending.push(SigInfo::from_kernel(libc::SIGSEGV));
        let mut taken = Vec::new();
        while let Some(info) = pending.take(SignalSet(u64::MAX)) {
            taken.push((info.signo(), info.code()));
        }
        assert_eq!(taken, [(libc::SIGSEGV, 0x80), (libc::SIGUSR1, 0), (40, 0), (40, 1), (40, 2)]);
        assert_eq!(pending.set(), SignalSet::default());
    }

    #[test]
    fn the_signals_of_timers_are_queued_whatever_is_pending_and_go_with_the_timer() {
        let mut pending = Pending::default();
        let from_timer = |id| SigInfo::from_timer(libc::SIGALRM, id, 7);
        pending.push(SigInfo::from_kernel(libc::SIGALRM));
        pending.push(from_timer(1));
        pending.push(from_timer(2));
        pending.push(SigInfo::from_timer(40, 1, 7));
        pending.push(SigInfo::from_timer(41, 1, 7).claimed_by_process());
        pending.discard_timer(Some(1));
        let all = SignalSet(u64::MAX);
        assert_eq!(pending.set(), SignalSet::default().with(libc::SIGALRM).with(41));
        assert_eq!(pending.take(all).map(|info| info.is_from_timer()), Some(false));
        assert_eq!(pending.take(all), Some(from_timer(2)));
        pending.push(from_timer(2));
        pending.discard_timer(None);
        assert_eq!(pending.take(all).map(|info| info.signo()), Some(41));
        assert_eq!(pending.set(), SignalSet::default());
    }

    #[test]
    fn the_queue_is_bounded_and_discard_empties_it() {
        let mut pending = Pending::default();
        assert!((0..QUEUE_LIMIT).all(|_| pending.push(SigInfo::from_kernel(50))));
        assert!(!pending.push(SigInfo::from_kernel(50)));
        pending.discard(SignalSet::default().with(50));
        assert!(pending.take(SignalSet(u64::MAX)).is_none());
    }
}
