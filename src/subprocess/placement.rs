//! Which CPU a thread that drives a context runs on, while it is said at all.
//!
//! Two sides of a hand-off that spin want a CPU each. Two sides that sleep want the same one: the one that publishes goes
//! to sleep, and the other goes on where it was, for the price of a change of tasks (2 µs there and back). The scheduler
//! does not know that and puts who is woken on an idle CPU; waking a halted one takes some 40 µs in a virtual machine.
//! [`Seat`](super::seat::Seat) decides when the two share a CPU. Here is which: all of a platform that mostly wait go to
//! one (what wakes them is mostly one of them), those that keep a CPU busy each to one of their own.
//!
//! All of this is advice: nothing but speed hangs on it, and a host call that fails changes nothing.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::Subprocess;

/// No CPU.
const NOWHERE: u32 = u32::MAX;
/// For so many microseconds after a sign of life a CPU counts as awake and as taken.
const FRESH_US: u64 = 200;
/// Signs of life are given this many microseconds apart: the words are shared.
const REPEAT_US: u64 = 50;

thread_local! {
    /// The CPU that the calling thread is confined to, and those that it may use otherwise.
    static CONFINED: Cell<Option<(u32, CpuSet)>> = const { Cell::new(None) };
}

/// Lets the calling thread run anywhere again: before it waits for what is no stub thread, and before it makes threads
/// and processes, which would be confined as it is.
pub(crate) fn roam() {
    if let Some((_, all)) = CONFINED.take() {
        let _ = sched_setaffinity(Pid::from_raw(0), &all);
    }
}

/// The CPU that the calling thread is confined to, if it is.
pub(crate) fn confined() -> Option<(u32, CpuSet)> {
    CONFINED.get()
}

/// The calling thread was made, or brought, where another one is confined that [`confined`] told this.
#[cfg(feature = "sentry")]
pub(crate) fn adopt(confined: Option<(u32, CpuSet)>) {
    CONFINED.set(confined);
}

/// The CPUs of a platform, and what its contexts do with them.
#[derive(Debug)]
pub(crate) struct Cpus {
    all: CpuSet,
    /// Who keeps a CPU busy; empty if there is nothing to choose between.
    busy: Box<[Sign]>,
    /// Where those are that mostly wait.
    home: AtomicU32,
    home_sign: Sign,
    started: Instant,
}

/// Who was last seen somewhere, and when: the upper 24 bits of a word, and microseconds in the lower 40.
#[derive(Debug, Default)]
struct Sign(AtomicU64);

const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;

impl Sign {
    /// Leaves a sign, if there is no fresh one of somebody else. Returns whether the place is the caller's.
    fn leave(&self, who: u32, now: u64) -> bool {
        let (owner, age) = self.read(now);
        let own = owner == who & 0xff_ffff;
        if !own && age < FRESH_US {
            return false;
        }
        if !own || age >= REPEAT_US {
            self.0.store(u64::from(who) << TIME_BITS | now & TIME, Ordering::Relaxed);
        }
        true
    }

    fn is_fresh(&self, now: u64) -> bool {
        self.read(now).1 < FRESH_US
    }

    fn read(&self, now: u64) -> (u32, u64) {
        let sign = self.0.load(Ordering::Relaxed);
        ((sign >> TIME_BITS) as u32, now.wrapping_sub(sign) & TIME)
    }
}

impl Cpus {
    /// Those that the calling thread may use; `wanted` says whether to choose between them at all.
    pub(crate) fn detect(wanted: bool) -> Self {
        let all = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let usable = |cpu: &usize| all.is_set(*cpu).unwrap_or(false);
        let count = (0..CpuSet::count()).filter(usable).count();
        let last = (0..CpuSet::count()).rev().find(usable).unwrap_or(0);
        let signs = if wanted && count > 1 { last + 1 } else { 0 };
        Self {
            all,
            busy: (0..signs).map(|_| Sign::default()).collect(),
            home: AtomicU32::new(NOWHERE),
            home_sign: Sign::default(),
            started: Instant::now(),
        }
    }

    /// Whether there is anything to choose between.
    pub(super) fn several(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Microseconds since the platform was made, and a while before: no sign is fresh in the beginning.
    pub(super) fn now(&self) -> u64 {
        FRESH_US + u64::try_from(self.started.elapsed().as_micros()).unwrap_or(0)
    }

    /// Confines the calling thread, which is the side of stub thread `who`, and says where.
    pub(super) fn settle(&self, who: u32, busy: bool, now: u64) -> Option<u32> {
        let confined = CONFINED.get().map(|(cpu, _)| cpu);
        let here = match confined {
            Some(cpu) => cpu,
            None => u32::try_from(sched_getcpu().ok()?).ok()?,
        };
        let cpu = if busy { self.for_busy(who, here, now) } else { self.for_quiet(here, now) };
        if confined != Some(cpu) {
            confine(0, cpu)?;
            CONFINED.set(Some((cpu, self.all)));
        }
        Some(cpu)
    }

    /// The sign of `who` stays while the calling thread is confined; whether it may stay, too.
    pub(super) fn stays(&self, who: u32, busy: bool, now: u64) -> Option<u32> {
        let (cpu, _) = CONFINED.get()?;
        let own = if busy { self.busy.get(cpu as usize)?.leave(who, now) } else { self.at_home(cpu, now) };
        own.then_some(cpu)
    }

    fn at_home(&self, cpu: u32, now: u64) -> bool {
        self.home_sign.leave(0, now);
        self.home.load(Ordering::Relaxed) == cpu
    }

    fn for_busy(&self, who: u32, here: u32, now: u64) -> u32 {
        let free = |cpu: &u32| {
            self.is_usable(*cpu) && self.busy.get(*cpu as usize).is_some_and(|sign| sign.leave(who, now))
        };
        std::iter::once(here).chain(0..self.busy.len() as u32).find(free).unwrap_or(here)
    }

    fn for_quiet(&self, here: u32, now: u64) -> u32 {
        let home = self.home.load(Ordering::Relaxed);
        let taken = |cpu: u32| self.busy.get(cpu as usize).is_none_or(|sign| sign.is_fresh(now));
        let awake = self.home_sign.is_fresh(now);
        self.home_sign.leave(0, now);
        if home != NOWHERE && awake && !taken(home) {
            return home;
        }
        let others = 0..self.busy.len() as u32;
        let new = std::iter::once(here).chain(others).find(|cpu| self.is_usable(*cpu) && !taken(*cpu));
        let new = new.unwrap_or(here);
        self.home.store(new, Ordering::Relaxed);
        new
    }

    fn is_usable(&self, cpu: u32) -> bool {
        self.all.is_set(cpu as usize).unwrap_or(false)
    }

    /// Moves the calling thread away from the CPU it is on, and lets it run anywhere from there.
    pub(super) fn part(&self) {
        CONFINED.set(None);
        let mut others = self.all;
        if sched_getcpu().and_then(|cpu| others.unset(cpu)).is_ok() {
            let _ = sched_setaffinity(Pid::from_raw(0), &others);
        }
        let _ = sched_setaffinity(Pid::from_raw(0), &self.all);
    }
}

impl Subprocess {
    /// Confines one of its threads: their ids are their own as long as the process lives, for no thread ends alone.
    pub(super) fn confine(&self, tid: i32, cpu: u32) -> Option<()> {
        let _alive = self.hold_alive().ok()?;
        confine(tid, cpu)
    }

    /// Lets one of its threads run anywhere.
    pub(super) fn let_roam(&self, tid: i32, cpus: &Cpus) {
        if let Ok(_alive) = self.hold_alive() {
            let _ = sched_setaffinity(Pid::from_raw(tid), &cpus.all);
        }
    }
}

/// Confines a thread of this process; 0 is the calling one.
pub(crate) fn confine(tid: i32, cpu: u32) -> Option<()> {
    let mut one = CpuSet::new();
    one.set(cpu as usize).ok()?;
    sched_setaffinity(Pid::from_raw(tid), &one).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the machine had CPUs 0 to 3.
    fn four() -> Cpus {
        let mut all = CpuSet::new();
        (0..4).for_each(|cpu| all.set(cpu).expect("a small number"));
        Cpus {
            all,
            busy: (0..4).map(|_| Sign::default()).collect(),
            home: AtomicU32::new(NOWHERE),
            home_sign: Sign::default(),
            started: Instant::now(),
        }
    }

    #[test]
    fn a_sign_keeps_others_away_while_it_is_fresh() {
        let sign = Sign::default();
        let now = 1_000_000;
        assert!(!sign.is_fresh(now));
        assert!(sign.leave(7, now));
        assert!(sign.leave(7, now + 1));
        assert!(!sign.leave(8, now + FRESH_US - 1));
        assert!(sign.leave(8, now + FRESH_US));
        assert!(!sign.leave(7, now + FRESH_US + 1));
    }

    #[test]
    fn a_sign_knows_its_owner_by_24_bits_and_outlives_40_bits_of_time() {
        let sign = Sign::default();
        assert!(sign.leave(0x1200_0007, TIME));
        assert!(sign.leave(0x7, TIME + 1), "the same in 24 bits");
        assert!(!sign.leave(9, TIME + 2), "fresh, although the clock went round");
    }

    #[test]
    fn those_that_wait_follow_each_other_and_those_that_work_part() {
        let cpus = four();
        let now = cpus.now();
        assert_eq!(cpus.for_quiet(2, now), 2, "nobody is awake anywhere else");
        assert_eq!(cpus.for_quiet(1, now + 1), 2);
        assert_eq!(cpus.for_quiet(3, now + 2 * FRESH_US), 3, "CPU 2 has gone to sleep");
        assert_eq!(cpus.for_busy(7, 0, now), 0);
        assert_eq!(cpus.for_busy(8, 0, now), 1);
        assert_eq!(cpus.for_busy(9, 0, now), 2);
        assert_eq!(cpus.for_busy(7, 0, now), 0, "its own");
        assert_eq!(cpus.for_busy(10, 3, now), 3);
        assert_eq!(cpus.for_busy(11, 2, now), 2, "all are taken: it stays where it is");
    }

    #[test]
    fn those_that_wait_keep_away_from_those_that_work() {
        let cpus = four();
        let now = cpus.now();
        assert_eq!(cpus.for_quiet(1, now), 1);
        assert_eq!(cpus.for_busy(7, 1, now), 1);
        assert_eq!(cpus.for_quiet(1, now), 0);
        assert_eq!(cpus.for_quiet(1, now + 1), 0);
    }

    #[test]
    fn a_confined_thread_roams_again() {
        // A thread of its own: the affinity is the thread's.
        let thread = std::thread::spawn(|| {
            let affinity = || sched_getaffinity(Pid::from_raw(0)).expect("of this thread");
            let before = affinity();
            let cpus = Cpus::detect(true);
            if !cpus.several() {
                println!("one CPU only: nothing to choose between");
                return;
            }
            let cpu = cpus.settle(7, false, cpus.now()).expect("a CPU");
            let mut one = CpuSet::new();
            one.set(cpu as usize).expect("a CPU");
            assert_eq!(affinity(), one);
            roam();
            assert_eq!(affinity(), before);
            cpus.settle(7, true, cpus.now()).expect("a CPU");
            cpus.part();
            assert_eq!(affinity(), before);
            assert!(!Cpus::detect(false).several());
        });
        thread.join().expect("the thread's checks");
    }
}
