//! How long each side of a hand-off spins before it sleeps.
//!
//! Spinning is right when the other side answers soon, and it only can if it has a CPU of its own. Where that fails
//! a few times in a row (the guest computes, the embedder blocks, other work wants the CPUs) a side spins only for a
//! moment and leaves its CPU to the other; now and then it tries again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::head_start::HeadStart;

/// `pause`s before a side sleeps: about 50 µs.
const FULL: u32 = 5_000;
/// The same after failures: enough for an answer that is on its way.
const SHORT: u32 = 50;
/// Failures in a row after which a side spins shortly.
const STRIKES: u32 = 3;
/// One hand-off in so many spins fully all the same.
const RETRY: u32 = 32;
/// A wait of this length is worth a sleep.
pub(crate) const WORTH_A_SLEEP: Duration = Duration::from_micros(200);

/// One side's budget. Only the thread that drives the context uses it.
#[derive(Debug, Default)]
struct Side {
    strikes: AtomicU32,
    /// Hand-offs since the last full budget.
    short: AtomicU32,
}

impl Side {
    fn budget(&self) -> u32 {
        if self.strikes.load(Ordering::Relaxed) < STRIKES {
            return FULL;
        }
        let short = self.short.load(Ordering::Relaxed) + 1;
        self.short.store(short % RETRY, Ordering::Relaxed);
        if short == RETRY { FULL } else { SHORT }
    }

    fn worked(&self, budget: u32) {
        if budget == FULL && self.strikes.load(Ordering::Relaxed) != 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
    }

    fn failed(&self) {
        let strikes = self.strikes.load(Ordering::Relaxed);
        self.strikes.store((strikes + 1).min(STRIKES), Ordering::Relaxed);
    }
}

/// The budgets of one stub thread and of whoever drives it.
#[derive(Debug, Default)]
pub(crate) struct Spinning {
    supervisor: Side,
    stub: Side,
    /// What the slot was last told.
    told: AtomicU32,
    /// The stub was told to sleep, or worked: that it sleeps is no failure, and that it does not no success.
    dozes: AtomicU32,
    head_start: HeadStart,
}

/// What a stub thread is told about its next wait, in `pause`s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StubBudget {
    pub(crate) spin: u32,
    pub(crate) head_start: u32,
}

impl Spinning {
    pub(crate) fn new(head_start: HeadStart) -> Self {
        Self { head_start, ..Self::default() }
    }

    /// The supervisor's budget for the next wait.
    pub(crate) fn supervisor(&self, may_spin: bool) -> u32 {
        if may_spin { self.supervisor.budget() } else { 0 }
    }

    /// `pause`s of the supervisor before its first look, if it spins.
    pub(crate) fn supervisor_head_start(&self) -> u32 {
        self.head_start.supervisor
    }

    pub(crate) fn supervisor_worked(&self, budget: u32) {
        self.supervisor.worked(budget);
    }

    /// The supervisor slept so long after its budget.
    pub(crate) fn supervisor_slept(&self, how_long: Duration) {
        if how_long >= WORTH_A_SLEEP {
            self.supervisor.failed();
        }
    }

    /// The stub's budget for its next wait, if it has to be told; `slept` says whether its last wait became a sleep.
    pub(crate) fn stub(&self, may_spin: bool, slept: bool) -> Option<StubBudget> {
        let told = self.told.load(Ordering::Relaxed);
        if self.dozes.load(Ordering::Relaxed) != 0 {
            self.dozes.store(0, Ordering::Relaxed);
        } else if slept {
            // One that was not told to spin has not spun in vain.
            if told == FULL {
                self.stub.failed();
            }
        } else {
            self.stub.worked(told);
        }
        let budget = if may_spin { self.stub.budget() } else { 0 };
        (budget != told).then(|| {
            self.told.store(budget, Ordering::Relaxed);
            let head_start = if budget == 0 { 0 } else { self.head_start.stub };
            StubBudget { spin: budget, head_start }
        })
    }

    /// The budget of either side while the supervisor has the stub do something.
    pub(crate) const AT_WORK: u32 = FULL;

    /// The stub's budget between two pieces of work, if it has to be told.
    pub(crate) fn stub_at_work(&self) -> Option<StubBudget> {
        // How this wait ends says nothing of the guest.
        self.dozes.store(1, Ordering::Relaxed);
        let told = self.told.swap(Self::AT_WORK, Ordering::Relaxed);
        (told != Self::AT_WORK)
            .then_some(StubBudget { spin: Self::AT_WORK, head_start: self.head_start.stub })
    }

    /// Whether the stub spins now, so that it is worth telling it to sleep. If so it counts as told.
    pub(crate) fn doze(&self) -> bool {
        let spins = self.told.load(Ordering::Relaxed) == FULL;
        if spins {
            self.dozes.store(1, Ordering::Relaxed);
        }
        spins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub(spinning: &Spinning, may_spin: bool, slept: bool) -> Option<u32> {
        spinning.stub(may_spin, slept).map(|budget| budget.spin)
    }

    #[test]
    fn failures_in_a_row_shorten_the_budget_and_one_success_restores_it() {
        let spinning = Spinning::default();
        for _ in 0..STRIKES {
            assert_eq!(spinning.supervisor(true), FULL);
            spinning.supervisor_slept(WORTH_A_SLEEP);
        }
        assert_eq!(spinning.supervisor(true), SHORT);
        spinning.supervisor_worked(SHORT);
        let full = (0..RETRY).map(|_| spinning.supervisor(true)).filter(|budget| *budget == FULL).count();
        assert_eq!(full, 1, "one of {RETRY} tries again");
        spinning.supervisor_worked(FULL);
        assert_eq!(spinning.supervisor(true), FULL);
    }

    #[test]
    fn a_stub_has_a_head_start_when_it_spins() {
        let spinning = Spinning::new(HeadStart { supervisor: 2, stub: 6 });
        assert_eq!(spinning.stub(true, false), Some(StubBudget { spin: FULL, head_start: 6 }));
        assert_eq!(spinning.stub(false, false), Some(StubBudget { spin: 0, head_start: 0 }));
    }

    #[test]
    fn short_sleeps_are_no_failures() {
        let spinning = Spinning::default();
        for _ in 0..10 {
            spinning.supervisor_slept(WORTH_A_SLEEP / 2);
        }
        assert_eq!(spinning.supervisor(true), FULL);
    }

    #[test]
    fn sleeping_as_told_is_no_failure() {
        let spinning = Spinning::default();
        for _ in 0..10 {
            assert_eq!(stub(&spinning, false, true), None, "no CPU to spare");
        }
        assert_eq!(stub(&spinning, true, true), Some(FULL));
    }

    #[test]
    fn work_is_waited_for_and_changes_no_budget() {
        let spinning = Spinning::default();
        for _ in 0..=STRIKES {
            stub(&spinning, true, true);
        }
        assert_eq!(spinning.told.load(Ordering::Relaxed), SHORT);
        assert_eq!(spinning.stub_at_work().map(|budget| budget.spin), Some(FULL));
        assert_eq!(spinning.stub_at_work(), None, "it has been told");
        assert_eq!(stub(&spinning, true, false), Some(SHORT), "the guest's calls have a short one still");
    }

    #[test]
    fn a_stub_that_was_told_to_sleep_keeps_its_budget() {
        let spinning = Spinning::default();
        assert_eq!(stub(&spinning, true, false), Some(FULL));
        for _ in 0..10 {
            assert!(spinning.doze());
            assert_eq!(stub(&spinning, true, true), None);
        }
        for _ in 0..STRIKES - 1 {
            assert_eq!(stub(&spinning, true, true), None);
        }
        assert_eq!(stub(&spinning, true, true), Some(SHORT));
        assert_eq!(stub(&spinning, false, true), Some(0), "no CPU to spare");
    }
}
