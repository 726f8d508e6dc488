//! Which contexts have the CPUs: gang scheduling of the two sides of a hand-off.
//!
//! Two sides that spin need two CPUs at the same time; nothing tells the host's scheduler. While there are CPUs enough for
//! all *hot* contexts, that is those whose guests run, each may spin. Where there are not, those that make quick calls in
//! long runs take turns instead of sleeping at every call, if the platform chooses who runs where at all (co-location):
//!
//! ```text
//!               a switch                     waits for something else, or its guest is in a host call
//!   cold ──────────────────────────▶ hot ────────────────────────────────────────────────────────────▶ cold
//!     │                               │ ▲
//!     │ no room, and                  │ │ room; or none of the hot ones makes calls (they compute: it would
//!     │ its runs are long             ▼ │ wait in vain); or two slices are over
//!     └───────────────────────────▶ waiting
//!                                       ▲ from hot: somebody waits and the slice is over; or there is no room, and
//!                                         it makes quick calls
//! ```
//!
//! Waiting is bounded, whatever the guests do: a guest that spins on a word of another one's does not keep it from
//! running. No stub process writes anything here.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// How long a context has its CPUs for itself while others wait.
const SLICE: Duration = Duration::from_micros(500);
/// Somebody hot is expected to make a call in this time.
const BEAT: Duration = Duration::from_micros(100);
/// So many calls make a run long: less is gained by having a turn than taking it costs.
const LONG_RUN: u32 = 4;
/// After so many calls without room a context sees whether taking turns is better.
const TRY_AFTER: u32 = 64;
/// So many times a context that waited in vain does not wait again.
const SKIPS: u32 = 64;

/// The hot contexts of a platform, and those that wait for a turn.
#[derive(Debug)]
pub(crate) struct Gangs {
    cpus: u32,
    take_turns: bool,
    hot: AtomicU32,
    waiting: AtomicU32,
    /// Changes when there may be room.
    bell: AtomicU32,
    /// Calls of hot contexts while somebody waits.
    beats: AtomicU32,
}

/// What a context knows of its turns.
#[derive(Debug, Default)]
pub(crate) struct Member {
    is_hot: bool,
    /// Calls since it became hot.
    calls: u32,
    ran_long: bool,
    skips: u32,
    /// Since when it is hot while somebody waits.
    since: Option<Instant>,
}

impl Gangs {
    /// `take_turns`: whether contexts wait for one another.
    pub(crate) fn new(cpus: usize, take_turns: bool) -> Self {
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            take_turns: take_turns && cpus > 1,
            hot: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            bell: AtomicU32::new(0),
            beats: AtomicU32::new(0),
        }
    }

    /// Whether both sides of a hand-off may spin: each hot context keeps two CPUs busy.
    pub(crate) fn may_spin(&self) -> bool {
        self.hot.load(Ordering::Relaxed).saturating_mul(2) <= self.cpus
    }

    /// One more is hot.
    pub(crate) fn enter(&self) {
        self.hot.fetch_add(1, Ordering::SeqCst);
    }

    /// One less is.
    pub(crate) fn leave(&self) {
        // Before the look at who waits; they announce themselves before they look at who is hot.
        self.hot.fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.bell.fetch_add(1, Ordering::SeqCst);
            sys::futex_wake_one_private(&self.bell);
        }
    }

    fn has_room(&self) -> bool {
        self.hot.load(Ordering::SeqCst).saturating_add(1).saturating_mul(2) <= self.cpus
    }

    /// Waits for room, but not for ever and not for those that make no calls; returns whether there was some.
    fn wait(&self) -> bool {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let deadline = Instant::now() + 2 * SLICE;
        let found = loop {
            let (seen, beats) = (self.bell.load(Ordering::SeqCst), self.beats.load(Ordering::Relaxed));
            if self.has_room() {
                break true;
            }
            if Instant::now() >= deadline {
                break false;
            }
            sys::futex_wait_private(&self.bell, seen, BEAT);
            let nobody_left = self.bell.load(Ordering::Relaxed) == seen;
            if nobody_left && self.beats.load(Ordering::Relaxed) == beats {
                break self.has_room();
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

impl Member {
    /// The context is about to run: becomes hot if it is not. Before that it may wait for others.
    pub(crate) fn heat(&mut self, gangs: &Gangs) {
        if self.is_hot {
            return;
        }
        if self.ran_long && gangs.take_turns && !gangs.has_room() {
            if self.skips > 0 {
                self.skips -= 1;
            } else if !gangs.wait() {
                self.skips = SKIPS;
            }
        }
        self.is_hot = true;
        self.calls = 0;
        self.since = None;
        gangs.enter();
    }

    /// The context does not run any more.
    pub(crate) fn cool(&mut self, gangs: &Gangs) {
        if self.is_hot {
            self.is_hot = false;
            self.ran_long = self.calls >= LONG_RUN;
            gangs.leave();
        }
    }

    /// At every call: whether the context should [`cool`](Self::cool) before it goes on. `is_quick`: whether its guest makes
    /// one call after the other.
    pub(crate) fn gives_way(&mut self, gangs: &Gangs, is_quick: impl FnOnce() -> bool) -> bool {
        self.calls = self.calls.wrapping_add(1);
        if !self.is_hot || !gangs.take_turns {
            return false;
        }
        if gangs.waiting.load(Ordering::Relaxed) != 0 {
            gangs.beats.fetch_add(1, Ordering::Relaxed);
            let now = Instant::now();
            return now.duration_since(*self.since.get_or_insert(now)) >= SLICE;
        }
        if gangs.may_spin() || !self.calls.is_multiple_of(TRY_AFTER) {
            return false;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return false;
        }
        is_quick()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn one_pair() -> Gangs {
        Gangs::new(2, true)
    }

    fn run(member: &mut Member, gangs: &Gangs, calls: u32) {
        member.heat(gangs);
        (0..calls).for_each(|_| assert!(!member.gives_way(gangs, || false)));
    }

    #[test]
    fn who_is_alone_spins_and_two_on_two_cpus_do_not() {
        let gangs = one_pair();
        let (mut one, mut two) = (Member::default(), Member::default());
        one.heat(&gangs);
        one.heat(&gangs);
        assert!(gangs.may_spin());
        two.heat(&gangs);
        assert!(!gangs.may_spin());
        one.cool(&gangs);
        one.cool(&gangs);
        assert!(gangs.may_spin());
    }

    #[test]
    fn short_runs_wait_for_nobody() {
        let gangs = one_pair();
        let (mut one, mut two) = (Member::default(), Member::default());
        run(&mut one, &gangs, LONG_RUN - 1);
        one.cool(&gangs);
        two.heat(&gangs);
        one.heat(&gangs);
        assert_eq!((one.skips, gangs.hot.load(Ordering::Relaxed)), (0, 2));
    }

    #[test]
    fn nobody_waits_long_for_those_that_make_no_calls() {
        let gangs = one_pair();
        let (mut one, mut two) = (Member::default(), Member::default());
        run(&mut one, &gangs, LONG_RUN);
        one.cool(&gangs);
        two.heat(&gangs);
        one.heat(&gangs);
        assert_eq!(one.skips, SKIPS, "it waited in vain, and does not try again at once");
        assert!(!gangs.may_spin());
        one.cool(&gangs);
        one.ran_long = true;
        one.heat(&gangs);
        assert_eq!(one.skips, SKIPS - 1);
    }

    #[test]
    fn who_waits_gets_the_place_of_who_leaves_or_whose_slice_is_over() {
        let gangs = Arc::new(one_pair());
        let mut first = Member::default();
        first.heat(&gangs);
        let turns = |gangs: &Gangs| {
            let mut second = Member { ran_long: true, ..Member::default() };
            second.heat(gangs);
            let waited_in_vain = second.skips != 0;
            second.cool(gangs);
            waited_in_vain
        };
        let waiter = std::thread::spawn({
            let gangs = Arc::clone(&gangs);
            move || turns(&gangs)
        });
        // It calls all the time, until it is asked for its place; or the other one found it too slow on a busy machine.
        while !waiter.is_finished() && !first.gives_way(&gangs, || false) {}
        first.cool(&gangs);
        let waited_in_vain = waiter.join().expect("its turn");
        assert_eq!((gangs.hot.load(Ordering::Relaxed), gangs.waiting.load(Ordering::Relaxed)), (0, 0));
        if waited_in_vain {
            println!("the machine is busy: the first one was not seen to make calls");
        }
    }

    #[test]
    fn who_makes_quick_calls_without_room_tries_to_take_turns() {
        let gangs = one_pair();
        let (mut one, mut two) = (Member::default(), Member::default());
        one.heat(&gangs);
        two.heat(&gangs);
        let mut tries = |quick: bool| (0..10 * TRY_AFTER).filter(|_| one.gives_way(&gangs, || quick)).count();
        assert_eq!(tries(false), 0);
        assert_eq!(tries(true), 10);
        let alone = Gangs::new(2, false);
        one.heat(&alone);
        two.heat(&alone);
        assert!((0..10 * TRY_AFTER).all(|_| !one.gives_way(&alone, || true)), "it is not wanted");
    }
}
