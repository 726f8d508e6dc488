//! Private futexes that the stub threads of a guest use on the host kernel for it: results, wake-ups, time-outs, and
//! interrupts that always get through and never cost a wake-up.
#![allow(unsafe_code)]

#[path = "common/small_guest.rs"]
mod small_guest;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{eax, qword_ptr, r12, rax, rdi, rsi};
use small_guest::{DATA, assemble, load, next_call, peek, poke, start};
use systrap::{
    AddressSpace, Context, Entry, Event, Executed, GuestAddr, Options, PAGE_SIZE, Patching, Systrap,
};

const PRIVATE: i32 = libc::FUTEX_PRIVATE_FLAG;
const WAIT: u64 = (libc::FUTEX_WAIT | PRIVATE) as u64;
const WAKE: u64 = (libc::FUTEX_WAKE | PRIVATE) as u64;
const WAIT_BITSET: u64 = (libc::FUTEX_WAIT_BITSET | PRIVATE) as u64;
/// The number of the calls that the guests make; what is executed for them is the test's choice.
const NR: u32 = 1000;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest that calls for ever, with (what the last call returned, the word at [`DATA`]).
fn reporting_code() -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            a.mov(r12, DATA.raw())?;
            // Something to decode in front of the site, by which the planner proves where instructions begin.
            for _ in 0..64 {
                a.nop()?;
            }
            a.set_label(&mut again)?;
            a.mov(rdi, rax)?;
            a.mov(rsi, qword_ptr(r12))?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

fn platform(entry: Entry) -> Systrap {
    let patching = if entry == Entry::Patched { Patching::Lazy } else { Patching::Off };
    Systrap::new(Options::new().patching(patching)).expect("a platform")
}

fn space(platform: &Systrap) -> AddressSpace {
    let space = platform.new_address_space().expect("an address space");
    load(&space, &reporting_code());
    space
}

/// A guest thread that waits with a call, which came in the given way.
fn waiting(platform: &Systrap, space: &AddressSpace, entry: Entry) -> Context {
    let mut context = start(platform);
    let mut call = next_call(&mut context, space);
    if call.entry != entry {
        call = next_call(&mut context, space);
    }
    assert_eq!(call.entry, entry);
    context
}

/// Goes on; gives what the call before returned.
fn result(context: &mut Context, space: &AddressSpace) -> i64 {
    next_call(context, space).args[0] as i64
}

fn futex(op: u64, value: u64, timeout: u64) -> [u64; 6] {
    [DATA.raw(), op, value, timeout, 0, u64::from(u32::MAX)]
}

/// Waits until the stub threads sleep: all threads of the process do, the leader among them.
fn wait_until_asleep(space: &AddressSpace) {
    let begun = Instant::now();
    let tasks = format!("/proc/{}/task", space.pid());
    loop {
        let asleep = std::fs::read_dir(&tasks).expect("the process lives").all(|task| {
            let stat = std::fs::read_to_string(task.expect("a task").path().join("stat")).expect("its state");
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
        });
        if asleep {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the stub threads never slept");
        thread::sleep(Duration::from_millis(1));
    }
}

const WAYS: [Entry; 2] = [Entry::Trapped, Entry::Patched];

#[test]
fn a_wait_on_another_value_ends_at_once_without_an_event() {
    for entry in WAYS {
        let platform = platform(entry);
        let space = space(&platform);
        let mut context = waiting(&platform, &space, entry);
        poke(&space, DATA, 1);
        assert!(context.execute_futex(futex(WAIT, 0, 0)));
        assert_eq!(result(&mut context, &space), -i64::from(libc::EAGAIN));
        assert!(context.execute_futex(futex(WAKE, 1, 0)));
        assert_eq!(result(&mut context, &space), 0, "nobody waits");
        let bad = [PAGE_SIZE, WAIT, 0, 0, 0, 0];
        assert!(context.execute_futex(bad));
        assert_eq!(result(&mut context, &space), -i64::from(libc::EFAULT));
        assert!(context.execute_yield());
        assert_eq!(result(&mut context, &space), 0);
    }
}

#[test]
fn one_guest_thread_wakes_another() {
    for entry in WAYS {
        let platform = platform(entry);
        let space = space(&platform);
        let mut waiter = waiting(&platform, &space, entry);
        let mut waker = waiting(&platform, &space, entry);
        thread::scope(|scope| {
            let waited = scope.spawn(|| {
                assert!(waiter.execute_futex(futex(WAIT, 0, 0)));
                result(&mut waiter, &space)
            });
            let begun = Instant::now();
            let woken = loop {
                assert!(waker.execute_futex(futex(WAKE, 5, 0)));
                let woken = result(&mut waker, &space);
                if woken != 0 || begun.elapsed() > PATIENCE {
                    break woken;
                }
            };
            assert_eq!(woken, 1, "one thread was asleep");
            assert_eq!(waited.join().expect("the waiter"), 0);
        });
    }
}

#[test]
fn waits_end_by_the_clock() {
    for entry in WAYS {
        let platform = platform(entry);
        let space = space(&platform);
        let mut context = waiting(&platform, &space, entry);
        let timeout = DATA.raw() + 64;
        poke(&space, GuestAddr::new(timeout), 0);
        poke(&space, GuestAddr::new(timeout + 8), 20_000_000);
        let begun = Instant::now();
        assert!(context.execute_futex(futex(WAIT, 0, timeout)));
        assert_eq!(result(&mut context, &space), -i64::from(libc::ETIMEDOUT));
        assert!(begun.elapsed() >= Duration::from_millis(20), "{:?}", begun.elapsed());
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
        let deadline = Duration::from(now) + Duration::from_millis(20);
        for op in [WAIT, WAIT_BITSET] {
            assert!(context.execute_futex_until(futex(op, 0, 0), deadline));
            assert_eq!(result(&mut context, &space), -i64::from(libc::ETIMEDOUT));
            let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
            assert!(Duration::from(now) >= deadline);
        }
        assert!(!context.execute_futex_until(futex(WAKE, 1, 0), deadline), "a wake has none");
    }
}

#[test]
fn what_reaches_others_or_changes_priorities_is_not_executed() {
    let platform = platform(Entry::Trapped);
    let space = space(&platform);
    let mut context = waiting(&platform, &space, Entry::Trapped);
    let shared = [libc::FUTEX_WAIT, libc::FUTEX_WAKE, libc::FUTEX_WAKE_OP, libc::FUTEX_CMP_REQUEUE];
    let priorities = [
        libc::FUTEX_LOCK_PI,
        libc::FUTEX_UNLOCK_PI,
        libc::FUTEX_TRYLOCK_PI,
        libc::FUTEX_WAIT_REQUEUE_PI,
        libc::FUTEX_CMP_REQUEUE_PI,
    ];
    let unknown = [PRIVATE | 64, PRIVATE | libc::FUTEX_FD, PRIVATE | libc::FUTEX_WAKE | 1 << 20];
    let all = shared.into_iter().chain(priorities.map(|op| op | PRIVATE)).chain(unknown);
    for op in all {
        assert!(!context.execute_futex(futex(op as u64, 0, 0)), "{op:#x}");
    }
    let mut elsewhere = platform.new_context().expect("a context");
    assert!(!elsewhere.execute_futex(futex(WAKE, 1, 0)), "it waits with no call");
    context.pull_full_state().expect("the state");
    context.full_state_changed();
    assert!(!context.execute_futex(futex(WAKE, 1, 0)), "its state has to be loaded first");
}

/// Waits with an interrupt on the way; gives what the supervisor was told.
fn interrupted_wait(context: &mut Context, space: &AddressSpace, asleep: bool) -> Option<Executed> {
    let interrupter = context.interrupter();
    assert!(context.execute_futex(futex(WAIT, 0, 0)));
    if !asleep {
        interrupter.interrupt();
        assert_eq!(context.switch(space).expect("a switch"), Event::Interrupted);
        return context.executed();
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_until_asleep(space);
            interrupter.interrupt();
        });
        assert_eq!(context.switch(space).expect("a switch"), Event::Interrupted);
    });
    context.executed()
}

#[test]
fn an_interrupt_ends_a_wait() {
    for entry in WAYS {
        for asleep in [false, true] {
            let platform = platform(entry);
            let space = space(&platform);
            let mut context = waiting(&platform, &space, entry);
            assert_eq!(interrupted_wait(&mut context, &space, asleep), Some(Executed::Interrupted));
            assert!(!context.interrupter().is_pending());
            assert_eq!(result(&mut context, &space), -i64::from(libc::EINTR), "the result if none is set");
            assert_eq!(context.executed(), None);
            assert_eq!(interrupted_wait(&mut context, &space, asleep), Some(Executed::Interrupted));
            context.set_return(3);
            assert_eq!(result(&mut context, &space), 3);
        }
    }
}

#[test]
fn an_interrupted_wait_can_be_restarted_as_a_call() {
    for entry in WAYS {
        for asleep in [false, true] {
            let platform = platform(entry);
            let space = space(&platform);
            let mut context = waiting(&platform, &space, entry);
            assert_eq!(interrupted_wait(&mut context, &space, asleep), Some(Executed::Interrupted));
            context.pull_full_state().expect("the state");
            let regs = context.registers_mut();
            assert_eq!(regs.rax as i64, -i64::from(libc::EINTR));
            assert_eq!(regs.rcx, regs.rip, "as behind a call");
            regs.rip -= 2;
            regs.rax = NR.into();
            let before = regs.rdi;
            let call = next_call(&mut context, &space);
            assert_eq!((call.nr, call.args[0]), (NR, before), "the same call once more");
            assert!(context.execute_futex(futex(WAKE, 1, 0)));
            assert_eq!(result(&mut context, &space), 0);
        }
    }
}

#[test]
fn an_interrupt_swallows_no_call_that_does_not_wait() {
    for entry in WAYS {
        let platform = platform(entry);
        let space = space(&platform);
        let mut context = waiting(&platform, &space, entry);
        assert!(context.execute_futex(futex(WAKE, 1, 0)));
        context.interrupter().interrupt();
        assert_eq!(context.switch(&space).expect("a switch"), Event::Interrupted);
        assert_eq!(context.executed(), None, "it was made");
        assert_eq!(result(&mut context, &space), 0);
    }
}

/// Stops and continues the whole stub process while its thread sleeps in a wait, then wakes it.
#[test]
fn a_wait_goes_on_after_a_stop() {
    for entry in WAYS {
        for timed in [false, true] {
            let platform = platform(entry);
            let space = space(&platform);
            let mut waiter = waiting(&platform, &space, entry);
            let mut waker = waiting(&platform, &space, entry);
            let timeout = DATA.raw() + 64;
            poke(&space, GuestAddr::new(timeout), PATIENCE.as_secs());
            poke(&space, GuestAddr::new(timeout + 8), 0);
            thread::scope(|scope| {
                let waited = scope.spawn(|| {
                    let timeout = if timed { timeout } else { 0 };
                    assert!(waiter.execute_futex(futex(WAIT, 0, timeout)));
                    result(&mut waiter, &space)
                });
                wait_until_asleep(&space);
                for _ in 0..20 {
                    for signal in [libc::SIGSTOP, libc::SIGCONT] {
                        // SAFETY: a signal to our own stub process, which lives.
                        assert_eq!(unsafe { libc::kill(space.pid(), signal) }, 0);
                        thread::sleep(Duration::from_millis(2));
                    }
                }
                assert!(!waited.is_finished(), "the wait ended for no reason");
                assert!(waker.execute_futex(futex(WAKE, 1, 0)));
                assert_eq!(result(&mut waker, &space), 1);
                assert_eq!(waited.join().expect("the waiter"), 0);
            });
        }
    }
}

/// Two guest threads hand a turn to and fro by futexes that their stub threads execute, while interrupts rain on both.
#[test]
fn no_wake_up_is_lost_between_interrupts() {
    const TURNS: u64 = 20_000;
    for entry in WAYS {
        let platform = platform(entry);
        let space = space(&platform);
        let contexts = [(); 2].map(|()| waiting(&platform, &space, entry));
        let interrupters: Vec<_> = contexts.iter().map(Context::interrupter).collect();
        let (done, progress, interrupted) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            let interrupting = scope.spawn(|| {
                let mut wait = 1;
                while !done.load(Ordering::SeqCst) {
                    wait = wait * 7 % 1_009;
                    thread::sleep(Duration::from_micros(wait));
                    interrupters[wait as usize % 2].interrupt();
                }
            });
            let players: Vec<_> = contexts
                .into_iter()
                .enumerate()
                .map(|(me, mut context)| {
                    let (space, progress, interrupted) = (&space, &progress, &interrupted);
                    scope.spawn(move || {
                        let mut turn = me as u64;
                        while turn < TURNS {
                            // The word counts turns; player `me` makes those of its parity.
                            let now = peek(space, DATA);
                            if now == turn {
                                poke(space, DATA, turn + 1);
                                progress.fetch_add(1, Ordering::SeqCst);
                                turn += 2;
                                assert!(context.execute_futex(futex(WAKE, 1, 0)));
                            } else {
                                assert!(context.execute_futex(futex(WAIT, now, 0)));
                            }
                            loop {
                                match context.switch(space).expect("a switch") {
                                    Event::Syscall(_) => break,
                                    Event::Interrupted => {
                                        let by = context.executed();
                                        interrupted.fetch_add(u32::from(by.is_some()), Ordering::SeqCst);
                                    }
                                    other => panic!("nothing raises {other:?}"),
                                }
                            }
                        }
                        // The other may sleep still.
                        assert!(context.execute_futex(futex(WAKE, 1, 0)));
                        while !matches!(context.switch(space).expect("a switch"), Event::Syscall(_)) {}
                    })
                })
                .collect();
            let mut seen = 0;
            while !players.iter().all(thread::ScopedJoinHandle::is_finished) {
                let begun = Instant::now();
                while progress.load(Ordering::SeqCst) == seen
                    && !players.iter().all(thread::ScopedJoinHandle::is_finished)
                {
                    if begun.elapsed() > PATIENCE {
                        eprintln!("both guest threads sleep after {seen} turns");
                        std::process::abort();
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                seen = progress.load(Ordering::SeqCst);
            }
            done.store(true, Ordering::SeqCst);
            interrupting.join().expect("the interrupter");
        });
        let interrupted = interrupted.load(Ordering::SeqCst);
        assert_eq!(peek(&space, DATA), TURNS);
        println!("{entry:?}: {interrupted} waits were interrupted");
        assert!(interrupted > 0, "no interrupt met a wait: the test shows nothing");
    }
}

/// What the filter's rows rely on: keys of private operations never meet those of shared ones, on one and the same word.
#[test]
fn private_operations_do_not_reach_sleepers_on_shared_words() {
    // SAFETY: a new shared mapping, zeroed.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE_SIZE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: the mapping is never removed, aligned, and only used through the atomics.
    let words: &'static [AtomicU32; 2] = unsafe { &*map.cast() };
    let call = |op: i32, value: u32| {
        // Compared with the word by CMP_REQUEUE; "store 0, then wake if it was 0" for WAKE_OP; the bits otherwise.
        let value3 = if op & !PRIVATE == libc::FUTEX_WAKE_OP { 0 } else { u32::MAX };
        let [one, two] = words;
        // SAFETY: both words live for ever; `value2` of the requeue operations is passed as the fourth argument.
        unsafe {
            libc::syscall(libc::SYS_futex, one.as_ptr(), op, value, i32::MAX as usize, two.as_ptr(), value3)
        }
    };
    let sleeper = thread::spawn(move || {
        let [one, _] = words;
        // SAFETY: as above; no time-out.
        unsafe { libc::syscall(libc::SYS_futex, one.as_ptr(), libc::FUTEX_WAIT, 0, std::ptr::null::<u8>()) }
    });
    thread::sleep(Duration::from_millis(50));
    let private = [
        libc::FUTEX_WAKE,
        libc::FUTEX_WAKE_BITSET,
        libc::FUTEX_REQUEUE,
        libc::FUTEX_CMP_REQUEUE,
        libc::FUTEX_WAKE_OP,
    ];
    for op in private {
        words[0].store(if op == libc::FUTEX_CMP_REQUEUE { u32::MAX } else { 0 }, Ordering::SeqCst);
        assert_eq!(call(op | PRIVATE, 1), 0, "private operation {op} met a shared sleeper");
    }
    assert!(!sleeper.is_finished());
    let begun = Instant::now();
    while call(libc::FUTEX_WAKE, 1) == 0 {
        assert!(begun.elapsed() < PATIENCE, "the sleeper was moved away");
    }
    assert_eq!(sleeper.join().expect("the sleeper"), 0);
}
