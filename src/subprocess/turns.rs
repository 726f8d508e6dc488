//! Which contexts run, and which of those that ran at some moment have been back since.
//!
//! Each context counts its turns in a word of its own, which it alone writes: odd while its guest may run, even while it
//! stands at an instruction of its own. Whoever wants to know that nobody is left where a patch used to lead
//! ([`Leavers`]) notes the odd counts of a moment at which the jumps are gone, and waits until each has changed: a
//! context that has been back has left, and one that starts later finds no way in.
//!
//! Why the count of a context that starts to run cannot be missed: it counts before it publishes the reply that its stub
//! thread goes on by, and x86 keeps the order of stores. Who reads the even count looks before the guest goes on, hence
//! after that guest could still have met a jump that was taken away before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::Attention;

/// How often a guest was sent off and came back.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicU64);

impl Turns {
    /// The guest is about to run.
    pub(crate) fn begin(&self) {
        let count = self.0.load(Ordering::Relaxed);
        self.0.store(count + 1 + count % 2, Ordering::Release);
    }

    /// The guest stands outside of all trampolines.
    pub(crate) fn end(&self) {
        let count = self.0.load(Ordering::Relaxed);
        self.0.store(count + count % 2, Ordering::Release);
    }

    /// Which turn it is, if the guest may be running.
    fn running(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|count| count % 2 == 1)
    }
}

/// The contexts that ran at a moment, and have not been back since.
#[derive(Debug, Default)]
pub(crate) struct Leavers(Vec<(Weak<Attention>, u64)>);

impl Leavers {
    /// Those that run now.
    pub(super) fn of(attached: &[Weak<Attention>]) -> Self {
        let running = attached.iter().filter_map(|weak| {
            let turn = weak.upgrade()?.turns().running()?;
            Some((Weak::clone(weak), turn))
        });
        Self(running.collect())
    }

    /// Whether all have been back.
    pub(crate) fn all_left(&mut self) -> bool {
        self.0.retain(|(weak, turn)| still_runs(weak, *turn).is_some());
        self.0.is_empty()
    }

    /// Has those that have not been back interrupted, without anybody being told.
    pub(crate) fn nudge(&self) {
        let running = self.0.iter().filter_map(|(weak, turn)| still_runs(weak, *turn));
        running.for_each(|attention| attention.raise(Attention::STEP_ASIDE));
    }
}

/// The context, if it is in that turn still.
fn still_runs(weak: &Weak<Attention>, turn: u64) -> Option<Arc<Attention>> {
    weak.upgrade().filter(|attention| attention.turns().running() == Some(turn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> (Arc<Attention>, Weak<Attention>) {
        let attention = Arc::<Attention>::default();
        let weak = Arc::downgrade(&attention);
        (attention, weak)
    }

    #[test]
    fn who_stands_is_not_waited_for_and_who_comes_back_has_left() {
        let ((one, weak_one), (two, weak_two)) = (context(), context());
        one.turns().begin();
        two.turns().end();
        let mut leavers = Leavers::of(&[weak_one, weak_two]);
        two.turns().begin();
        assert!(!leavers.all_left());
        one.turns().end();
        assert!(leavers.all_left(), "the other one began later");
    }

    #[test]
    fn a_new_turn_is_not_taken_for_the_old_one() {
        let (one, weak) = context();
        one.turns().begin();
        let mut leavers = Leavers::of(&[weak]);
        one.turns().begin();
        assert!(leavers.all_left(), "it stood in between");
    }

    #[test]
    fn who_is_gone_has_left_and_only_who_runs_is_nudged() {
        let ((one, weak_one), (two, weak_two)) = (context(), context());
        one.turns().begin();
        two.turns().begin();
        let mut leavers = Leavers::of(&[weak_one, weak_two]);
        one.turns().end();
        leavers.nudge();
        assert_eq!((one.get(), two.get()), (0, Attention::STEP_ASIDE));
        drop(two);
        assert!(leavers.all_left());
    }
}
