//! Whether the two sides of a hand-off share a CPU.
//!
//! ```text
//!            the stub thread slept, and so it did the last times before there were PART quick calls;
//!            or there are not enough CPUs to spin
//!   apart ───────────────────────────────────────────────────────────────────────────────────────▶ together
//!   spin   ◀──────────────────────────────────────────────────────────────────────────────────────  sleep
//!            PART quick calls in a row, and enough CPUs to spin
//! ```
//!
//! While they are together the supervisor's thread is confined to a CPU as long as it waits for the stub thread, and the
//! stub thread to the same one. A guest that computes is let go after [`STAY`]; a supervisor that is about to block at
//! once, so that whoever wakes it may draw it to his side.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::placement::{Cpus, roam};

/// After so long in its own code a guest may run on any CPU: longer than any host's scheduler lets its tick wait. A time-out
/// that comes before everything else that the CPU waits for has the host set that CPU's timer, and once more when the
/// event comes before; in a virtual machine either leaves the machine, which was 8 µs a call.
pub(crate) const STAY: Duration = Duration::from_millis(10);
/// An event that comes within this time comes quickly.
const QUICK: Duration = Duration::from_micros(50);
/// After so many quick calls in a row the sides part: about what parting costs.
const PART: u32 = 16;
/// After so many shorter runs of quick calls in a row the sides come together.
const SHORT_RUNS: u32 = 3;
/// Who does not wait for so many microseconds looks for a CPU anew.
const LOOK_AGAIN_US: u64 = 4_000;
/// Who waited for less than so many microseconds stays at home the next time.
const SHORT_WAIT_US: u64 = 1_000;
/// Times are kept of about so many microseconds.
const MEMORY_US: u64 = 10_000;

/// A thread that can be moved.
pub(crate) trait Sitter {
    /// Which one it is.
    fn id(&self) -> u32;
    /// Confines it to a CPU; whether that was done.
    fn confine(&self, cpu: u32) -> bool;
    /// Lets it run anywhere.
    fn let_roam(&self, cpus: &Cpus);
}

/// Where a stub thread is, as far as its supervisor has a say. Only the thread that drives the context uses it.
#[derive(Debug)]
pub(crate) struct Seat {
    together: AtomicBool,
    /// The CPU that the stub thread is confined to, and 1; 0 for none.
    cpu: AtomicU32,
    /// Quick calls in a row.
    quick: AtomicU32,
    /// How many times in a row the stub thread fell asleep after fewer than [`PART`] of them.
    short_runs: AtomicU32,
    share: Share,
}

/// How much of its time a context waits for something other than its guest.
#[derive(Debug, Default)]
struct Share {
    /// When the supervisor went to wait; 0 if it does not.
    waits_since: AtomicU64,
    /// When it last came back.
    busy_since: AtomicU64,
    last_wait_us: AtomicU64,
    busy_us: AtomicU64,
    waited_us: AtomicU64,
    is_busy: AtomicBool,
}

fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

fn set(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Relaxed);
}

impl Share {
    fn wait(&self, now: u64) {
        if get(&self.busy_since) != 0 {
            set(&self.busy_us, get(&self.busy_us) + now.saturating_sub(get(&self.busy_since)));
            set(&self.busy_since, 0);
        }
        set(&self.waits_since, now);
    }

    /// The context goes on; whether it has been waiting, or busy for so long that it should look where it is.
    fn go_on(&self, now: u64) -> bool {
        let waits_since = get(&self.waits_since);
        if waits_since != 0 {
            let waited = now.saturating_sub(waits_since);
            set(&self.last_wait_us, waited);
            set(&self.waited_us, get(&self.waited_us) + waited);
            set(&self.waits_since, 0);
        } else if get(&self.busy_since) != 0 {
            let busy = now.saturating_sub(get(&self.busy_since));
            if busy < LOOK_AGAIN_US {
                return false;
            }
            set(&self.busy_us, get(&self.busy_us) + busy);
        }
        set(&self.busy_since, now);
        self.judge();
        true
    }

    /// Whether the wait that begins is likely to be a short one in a quiet context.
    fn waits_shortly(&self) -> bool {
        !self.is_busy.load(Ordering::Relaxed) && get(&self.last_wait_us) < SHORT_WAIT_US
    }

    /// Four fifths make it busy, less than a half quiet: two that pass a token to and fro are busy half of the time each,
    /// and a little more on one CPU.
    fn judge(&self) {
        let (busy, waited) = (get(&self.busy_us), get(&self.waited_us));
        let all = busy + waited;
        if busy * 5 > all * 4 {
            self.is_busy.store(true, Ordering::Relaxed);
        } else if busy * 2 < all {
            self.is_busy.store(false, Ordering::Relaxed);
        }
        if all > MEMORY_US {
            set(&self.busy_us, busy / 2);
            set(&self.waited_us, waited / 2);
        }
    }
}

impl Seat {
    /// Of a stub thread that is confined to this CPU already. It waits, and nothing is known of its guest: it begins on
    /// the side of whoever runs it.
    pub(crate) fn new(cpu: Option<u32>) -> Self {
        Self {
            together: AtomicBool::new(false),
            cpu: AtomicU32::new(cpu.map_or(0, |cpu| cpu + 1)),
            quick: AtomicU32::new(0),
            short_runs: AtomicU32::new(SHORT_RUNS),
            share: Share::default(),
        }
    }

    /// Whether the guest makes one call after the other.
    pub(crate) fn is_quick(&self) -> bool {
        self.quick.load(Ordering::Relaxed) >= PART
    }

    /// The CPU that the stub thread is confined to.
    pub(crate) fn cpu(&self) -> Option<u32> {
        self.cpu.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Before a reply to a stub thread, which may be asleep: whether both sides sleep on one CPU until the next.
    pub(crate) fn choose(&self, cpus: &Cpus, stub: &impl Sitter, asleep: bool, may_spin: bool) -> bool {
        if !cpus.several() {
            return false;
        }
        let quick = self.quick.load(Ordering::Relaxed);
        if !self.together.load(Ordering::Relaxed) {
            if !asleep {
                self.quick.store(quick.saturating_add(1), Ordering::Relaxed);
                return false;
            }
            if may_spin && !self.run_was_short(quick) {
                self.let_go(cpus, stub);
                return false;
            }
            self.together.store(true, Ordering::Relaxed);
        } else if may_spin && quick >= PART {
            self.together.store(false, Ordering::Relaxed);
            self.short_runs.store(0, Ordering::Relaxed);
            self.let_go(cpus, stub);
            cpus.part();
            return false;
        }
        self.sit_down(cpus, stub);
        true
    }

    /// The stub thread fell asleep after so many quick calls: whether that happens all the time.
    fn run_was_short(&self, quick: u32) -> bool {
        let short_runs = if quick < PART { self.short_runs.load(Ordering::Relaxed) + 1 } else { 0 };
        self.short_runs.store(short_runs.min(SHORT_RUNS), Ordering::Relaxed);
        self.quick.store(0, Ordering::Relaxed);
        short_runs >= SHORT_RUNS
    }

    fn sit_down(&self, cpus: &Cpus, stub: &impl Sitter) {
        let now = cpus.now();
        let who = stub.id();
        let look = self.share.go_on(now);
        let busy = self.share.is_busy.load(Ordering::Relaxed);
        let stays = if look { None } else { cpus.stays(who, busy, now) };
        let Some(cpu) = stays.or_else(|| cpus.settle(who, busy, now)) else { return };
        if self.cpu.load(Ordering::Relaxed) != cpu + 1 && stub.confine(cpu) {
            self.cpu.store(cpu + 1, Ordering::Relaxed);
        }
    }

    /// The stub thread may run anywhere.
    pub(crate) fn let_go(&self, cpus: &Cpus, stub: &impl Sitter) {
        if self.cpu.load(Ordering::Relaxed) != 0 {
            self.cpu.store(0, Ordering::Relaxed);
            stub.let_roam(cpus);
        }
    }

    /// The event for which both slept came after so long.
    pub(crate) fn waited(&self, how_long: Duration) {
        let quick = if how_long < QUICK { self.quick.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        self.quick.store(quick, Ordering::Relaxed);
    }

    /// The supervisor is about to wait for something other than the stub thread.
    pub(crate) fn leave(&self, cpus: &Cpus) {
        if self.together.load(Ordering::Relaxed) {
            self.quick.store(0, Ordering::Relaxed);
            self.share.wait(cpus.now());
            if !self.share.waits_shortly() {
                roam();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_makes_quiet_and_working_makes_busy() {
        let share = Share::default();
        let mut now = 1;
        let mut turns = |busy: u64, waits: u64| {
            for _ in 0..1_000 {
                assert!(share.go_on(now), "it has been waiting");
                now += busy;
                share.wait(now);
                now += waits;
            }
            share.is_busy.load(Ordering::Relaxed)
        };
        assert!(!turns(10, 40));
        assert!(turns(90, 10));
        assert!(turns(60, 40), "between the two it stays as it was");
        assert!(!turns(40, 60));
        assert!(!turns(60, 40));
    }

    #[test]
    fn who_never_waits_looks_for_a_cpu_now_and_then_and_is_busy() {
        let share = Share::default();
        let looks = (1..100_000).filter(|now| share.go_on(*now)).count();
        assert_eq!(looks, 100_000 / LOOK_AGAIN_US as usize);
        assert!(share.is_busy.load(Ordering::Relaxed));
    }

    #[test]
    fn short_waits_are_spent_at_home() {
        let share = Share::default();
        share.wait(1);
        share.go_on(50);
        share.wait(60);
        assert!(share.waits_shortly());
        share.go_on(60 + SHORT_WAIT_US);
        share.wait(70 + SHORT_WAIT_US);
        assert!(!share.waits_shortly());
    }

    struct Anybody;

    impl Sitter for Anybody {
        fn id(&self) -> u32 {
            7
        }

        fn confine(&self, _: u32) -> bool {
            true
        }

        fn let_roam(&self, _: &Cpus) {}
    }

    /// Moves this test's own thread about, as the supervisor's.
    #[test]
    fn many_quick_calls_part_the_sides_and_short_runs_bring_them_together() {
        let checks = || {
            let cpus = Cpus::detect(true);
            if !cpus.several() {
                println!("one CPU only: nothing to choose between");
                return;
            }
            let seat = Seat::new(None);
            assert!(seat.choose(&cpus, &Anybody, true, true), "a new thread begins together");
            for _ in 0..PART {
                seat.waited(QUICK / 2);
            }
            assert!(!seat.choose(&cpus, &Anybody, false, true));
            assert_eq!(seat.cpu(), None);
            // The run of calls that parted them was long enough.
            for _ in 0..SHORT_RUNS {
                assert!(!seat.choose(&cpus, &Anybody, true, true));
            }
            assert!(seat.choose(&cpus, &Anybody, true, true));
            assert!(seat.cpu().is_some());
            for _ in 0..PART {
                seat.waited(QUICK);
            }
            assert!(seat.choose(&cpus, &Anybody, true, true), "no quick calls");
            seat.let_go(&cpus, &Anybody);
            assert_eq!(seat.cpu(), None);
        };
        std::thread::spawn(checks).join().expect("the thread's checks");
    }
}
