//! Interrupts: each is reported once, whatever the guest is doing, and leaves no trace in the guest.

#![allow(unsafe_code)]

#[path = "common/invariant_guest.rs"]
mod invariant_guest;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use invariant_guest::Guest;
use systrap::{Event, Interrupter, Options, Systrap};

/// How many interrupts; fewer by this environment variable, for a slow machine or an emulator.
const COUNT_VARIABLE: &str = "SYSTRAP_TEST_INTERRUPTS";

fn interrupt_count() -> u64 {
    match std::env::var(COUNT_VARIABLE) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{COUNT_VARIABLE} is no number: {text}")),
        Err(_) => 100_000,
    }
}

/// xorshift64: reproducible from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn spin(turns: u64) {
    for _ in 0..turns {
        std::hint::spin_loop();
    }
}

/// Set when dropped: the supervising thread has ended, however.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Raises `count` interrupts at random moments, each only after the one before was reported.
fn interrupt_at_random(interrupter: &Interrupter, count: u64, ended: &AtomicBool, mut random: Random) {
    for number in 1..=count {
        match random.below(64) {
            0..8 => thread::sleep(Duration::from_micros(random.below(300))),
            8..20 => spin(random.below(50)),
            _ => spin(random.below(3_000)),
        }
        interrupter.interrupt();
        while interrupter.is_pending() {
            assert!(
                !ended.load(Ordering::SeqCst),
                "interrupt {number} of {count} is pending, and its supervisor has failed or seen {count} already"
            );
            // Not a spin: it would take the core from the thread that has to report it.
            thread::sleep(Duration::from_micros(1));
        }
    }
}

/// What a guest and its supervisor were doing when interrupts were reported.
#[derive(Debug, Default)]
struct Seen {
    interrupts: u64,
    calls: u64,
    /// Reported without running the guest.
    not_running: u64,
    /// Of those, while the stub thread had been sent to sleep.
    asleep: u64,
    full_loads: u64,
}

impl Seen {
    /// A way that was not taken is one of which the test says nothing.
    fn assert_all_ways_were_taken(&self, count: u64) {
        let running = self.interrupts - self.not_running;
        for (what, times) in [
            ("interrupts while running", running),
            ("interrupts while not running", self.not_running),
            ("interrupts while the stub thread sleeps", self.asleep),
            ("calls between interrupts", self.calls),
            ("complete states loaded", self.full_loads),
        ] {
            assert!(times >= count / 1_000, "too few {what}: {self:?}");
        }
    }
}

/// Runs a guest until `count` interrupts were reported, in all the ways in which a supervisor can treat it.
fn supervise(guest: &mut Guest, space: &systrap::AddressSpace, count: u64, mut random: Random) -> Seen {
    let mut seen = Seen::default();
    let interrupter = guest.context.interrupter();
    let mut in_call = false;
    while seen.interrupts < count {
        let mut asleep = false;
        match random.below(64) {
            0 => {
                guest.context.prepare_sleep();
                thread::sleep(Duration::from_micros(random.below(200)));
                asleep = true;
            }
            1..8 => spin(random.below(1_000)),
            _ => {}
        }
        if in_call {
            // Short ones spend the time in the stub's code, long ones in the guest's.
            let longest = [4, 20_000, 400_000, 400_000][random.below(4) as usize];
            guest.answer(random.below(longest) as u32);
            in_call = false;
        }
        if random.one_in(4) {
            guest.check();
            if random.one_in(2) {
                guest.context.full_state_changed();
                seen.full_loads += 1;
            }
        }
        let was_pending = interrupter.is_pending();
        if guest.run(space) {
            seen.interrupts += 1;
            seen.not_running += u64::from(was_pending);
            seen.asleep += u64::from(was_pending && asleep);
        } else {
            in_call = true;
            seen.calls += 1;
        }
    }
    assert!(!interrupter.is_pending(), "as many interrupts were reported as raised");
    seen
}

/// Four guests, two of them in one address space: the interrupts of one must not reach another. Each is interrupted
/// by a thread of its own. (Several at once also because the time goes into waking threads.)
#[test]
fn every_interrupt_is_reported_once_and_no_register_is_ever_wrong() {
    const GUESTS: u64 = 4;
    let count = interrupt_count() / GUESTS;
    let platform = Systrap::new(Options::new()).expect("a platform");
    let spaces = [0, 1, 2].map(|_| platform.new_address_space().expect("an address space"));
    let ended = [const { AtomicBool::new(false) }; GUESTS as usize];
    let guests = (0..GUESTS).map(|number| {
        let (space, first) = (&spaces[number as usize % spaces.len()], number < spaces.len() as u64);
        (number, space, Guest::new(&platform, space, number, first))
    });
    thread::scope(|scope| {
        for (number, space, mut guest) in guests {
            let interrupter = guest.context.interrupter();
            let ended = &ended[number as usize];
            scope.spawn(move || interrupt_at_random(&interrupter, count, ended, Random(number + 1)));
            scope.spawn(move || {
                let _ended = Ended(ended);
                let seen = supervise(&mut guest, space, count, Random(number + 77));
                println!("guest {number}: {seen:?}");
                // All interrupts were raised and reported: nothing more may come.
                for _ in 0..1_000 {
                    guest.answer(1);
                    assert!(!guest.run(space), "an interrupt was reported that nobody asked for");
                }
                guest.check();
                seen.assert_all_ways_were_taken(count);
            });
        }
    });
}

/// The signal behind an interrupt can arrive when its interrupt has been reported already.
#[test]
fn a_late_interrupt_signal_is_no_event_and_harms_no_register() {
    const SIGNAL: i32 = libc::SIGCHLD;
    const SIGNALS: u64 = 2_000;
    const CALLS: u64 = 100;
    let platform = Systrap::new(Options::new()).expect("a platform");
    let space = platform.new_address_space().expect("an address space");
    let mut guest = Guest::new(&platform, &space, 9, true);
    assert!(!guest.run(&space));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", space.pid())).expect("the stub process lives");
    let tasks = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok());
    let thread = tasks.max().expect("the stub thread is younger than the leader");
    let (ended, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    let calls = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ended = Ended(&ended);
            let mut random = Random(5);
            let mut sent = 0;
            let enough = || calls.load(Ordering::SeqCst) >= CALLS || failed.load(Ordering::SeqCst);
            while sent < SIGNALS || !enough() {
                // SAFETY: takes values only.
                let result = unsafe { libc::syscall(libc::SYS_tgkill, space.pid(), thread, SIGNAL) };
                assert!(result == 0, "the stub thread lives");
                sent += 1;
                spin(random.below(2_000));
            }
        });
        let _failed = Ended(&failed);
        let mut random = Random(6);
        while !ended.load(Ordering::SeqCst) {
            // Long enough for most of them to find the guest in its own code.
            guest.answer(random.below(10_000_000) as u32);
            assert!(!guest.run(&space), "nobody asked for an interrupt");
            guest.check();
            calls.fetch_add(1, Ordering::SeqCst);
        }
    });
}

#[test]
fn a_pending_interrupt_swallows_others() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, mut context) = small_guest::guest(&platform, &small_guest::counting_code());
    let interrupter = context.interrupter();
    for round in 1..=100 {
        small_guest::next_count(&mut context, &space, round);
        for _ in 0..round {
            interrupter.clone().interrupt();
        }
        assert!(interrupter.is_pending());
        assert_eq!(context.switch(&space).expect("the stub process lives"), Event::Interrupted);
        assert!(!interrupter.is_pending());
    }
}

#[test]
fn an_event_of_the_guest_comes_before_an_interrupt_that_arrives_with_it() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, mut context) = small_guest::guest(&platform, &small_guest::counting_code());
    small_guest::next_count(&mut context, &space, 1);
    context.set_return(77);
    context.interrupter().interrupt();
    assert_eq!(context.switch(&space).expect("the stub process lives"), Event::Interrupted);
    context.pull_full_state().expect("the stub process lives");
    assert_eq!(
        context.registers().rax,
        77,
        "the call's result is not lost by an interrupt before the guest ran"
    );
    small_guest::next_count(&mut context, &space, 2);
}

#[test]
fn an_endless_loop_is_interrupted_by_every_thread_that_has_the_handle() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, mut context) = small_guest::guest(&platform, &small_guest::endless_code());
    for _ in 0..20 {
        let interrupter = context.interrupter();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(2));
            interrupter.interrupt();
        });
        assert_eq!(context.switch(&space).expect("the stub process lives"), Event::Interrupted);
        thread.join().expect("the interrupting thread ended");
    }
    context.pull_full_state().expect("the stub process lives");
    assert!(context.registers().r12 > 0, "the guest ran");
}
