//! Calls that the stub passes on to the host kernel without its supervisor: only those that were asked for, with native
//! results; and an interrupt finds the guest at its `syscall`, never inside the stub.
#![allow(unsafe_code)]

#[path = "common/small_guest.rs"]
mod small_guest;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{eax, r10, r12, r13, r14, r15, rax, rdi, rdx, rsi};
use small_guest::{CODE, DATA, assemble, load, next_call, peek, poke, start};
use systrap::{AddressSpace, Context, Entry, Event, GuestAddr, Options, PassedCalls, Patching, Systrap};

const FUTEX: u32 = libc::SYS_futex as u32;
const REPORT: u32 = 1000;
const PRIVATE: i32 = libc::FUTEX_PRIVATE_FLAG;
const WAIT: i32 = libc::FUTEX_WAIT | PRIVATE;
const WAKE: i32 = libc::FUTEX_WAKE | PRIVATE;
/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest that for ever calls `nr` with (r12, r13, r14, r15) and reports (result, carry flag) by another call.
fn code(nr: u32) -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            // Something to decode in front of the sites, by which the planner proves where instructions begin.
            for _ in 0..64 {
                a.nop()?;
            }
            a.set_label(&mut again)?;
            a.mov(rdi, r12)?;
            a.mov(rsi, r13)?;
            a.mov(rdx, r14)?;
            a.mov(r10, r15)?;
            a.stc()?;
            a.mov(eax, nr)?;
            a.syscall()?;
            a.sbb(rsi, rsi)?;
            a.mov(rdi, rax)?;
            a.mov(eax, REPORT)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

struct Futexer {
    space: AddressSpace,
    context: Context,
}

impl Futexer {
    /// A guest thread that waits with a report; both of its sites are patched.
    fn new(platform: &Systrap, space: &AddressSpace) -> Self {
        let mut context = start(platform);
        context.registers_mut().r12 = DATA.raw();
        context.registers_mut().r13 = WAKE as u64;
        let mut reports = 0;
        loop {
            let call = next_call(&mut context, space);
            reports += u32::from(call.nr == REPORT);
            if reports == 3 {
                assert_eq!(call.entry, Entry::Patched);
                return Self { space: space.clone(), context };
            }
        }
    }

    fn alone(nr: u32) -> (Systrap, Self) {
        let platform = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
        let space = platform.new_address_space().expect("an address space");
        load(&space, &code(nr));
        let futexer = Self::new(&platform, &space);
        (platform, futexer)
    }

    fn arguments(&mut self, op: i32, value: u64, timeout: u64) {
        self.context.pull_full_state().expect("the state");
        let regs = self.context.registers_mut();
        (regs.r13, regs.r14, regs.r15) = (op as u64, value, timeout);
    }

    /// Goes on to the report; gives the result of the call, which nobody may see.
    fn unseen(&mut self) -> i64 {
        let call = next_call(&mut self.context, &self.space);
        assert_eq!(
            (call.nr, call.args[1]),
            (REPORT, u64::MAX),
            "the call was passed on, and left the flags alone"
        );
        call.args[0] as i64
    }

    /// Goes on to the call, which the supervisor has to see.
    fn seen(&mut self) -> systrap::Syscall {
        let call = next_call(&mut self.context, &self.space);
        assert_eq!(call.nr, FUTEX);
        self.context.set_return(77);
        let report = next_call(&mut self.context, &self.space);
        assert_eq!((report.nr, report.args[0]), (REPORT, 77));
        call
    }
}

/// Waits until all threads of the stub process sleep.
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

#[test]
fn passed_futex_calls_have_native_results_and_are_not_seen() {
    let (platform, mut guest) = Futexer::alone(FUTEX);
    guest.seen();
    guest.context.pass_in_stub(PassedCalls::ALL);
    let before = platform.stats().answered;
    assert_eq!(guest.unseen(), 0, "nobody waits");
    guest.arguments(WAIT, 1, 0);
    assert_eq!(guest.unseen(), -i64::from(libc::EAGAIN));
    guest.context.pull_full_state().expect("the state");
    guest.context.registers_mut().r12 = 0x1000;
    assert_eq!(guest.unseen(), -i64::from(libc::EFAULT));
    guest.context.count_answers();
    assert_eq!(platform.stats().answered - before, 3);
    guest.context.pass_in_stub(PassedCalls::default());
    guest.seen();
}

#[test]
fn only_what_was_asked_for_is_passed() {
    let (_platform, mut guest) = Futexer::alone(FUTEX);
    guest.context.pass_in_stub(PassedCalls::ALL);
    let timeout = DATA.raw() + 64;
    let clocked = libc::FUTEX_WAIT_BITSET | PRIVATE | libc::FUTEX_CLOCK_REALTIME;
    let seen = [
        (libc::FUTEX_WAKE, 0),
        (libc::FUTEX_WAIT, 0),
        (libc::FUTEX_LOCK_PI | PRIVATE, 0),
        (libc::FUTEX_CMP_REQUEUE_PI | PRIVATE, 0),
        (clocked, timeout),
        (WAIT, timeout),
        (PRIVATE | 31, 0),
        (PRIVATE | 32, 0),
        (WAKE | 1 << 30, 0),
    ];
    for (op, timeout) in seen {
        guest.arguments(op, 1, timeout);
        let call = guest.seen();
        assert_eq!((call.args[1], call.args[3]), (op as u64, timeout));
    }
    let mut only_wakes = PassedCalls::default();
    only_wakes.futex_wakes = true;
    guest.context.pass_in_stub(only_wakes);
    guest.arguments(WAIT, 1, 0);
    guest.seen();
    guest.arguments(WAKE, 1, 0);
    assert_eq!(guest.unseen(), 0);
    guest.context.answer_in_stub(FUTEX, Some(5)).expect("a number of the table");
    assert_eq!(guest.unseen(), 5, "an answer comes before");
    guest.context.answer_in_stub(FUTEX, None).expect("a number of the table");
    assert_eq!(guest.unseen(), 0);
}

#[test]
fn yields_are_passed() {
    let (platform, mut guest) = Futexer::alone(libc::SYS_sched_yield as u32);
    guest.context.pass_in_stub(PassedCalls::ALL);
    assert_eq!(guest.unseen(), 0);
    // A context takes it along to another address space.
    guest.space = guest.space.fork().expect("a fork");
    assert_eq!(guest.unseen(), 0);
    drop(platform);
}

/// The guest sleeps in a passed wait when the interrupt comes.
#[test]
fn an_interrupt_finds_the_guest_at_its_call() {
    let (_platform, mut guest) = Futexer::alone(FUTEX);
    guest.context.pass_in_stub(PassedCalls::ALL);
    guest.arguments(WAIT, 0, 0);
    for go_on in [false, true] {
        let interrupter = guest.context.interrupter();
        thread::scope(|scope| {
            scope.spawn(|| {
                wait_until_asleep(&guest.space);
                interrupter.interrupt();
            });
            assert_eq!(guest.context.switch(&guest.space).expect("a switch"), Event::Interrupted);
        });
        assert_eq!(guest.context.executed(), None);
        if !go_on {
            guest.context.pull_full_state().expect("the state");
            let regs = *guest.context.registers();
            let mut at = [0; 2];
            guest.space.read(GuestAddr::new(regs.rip), &mut at).expect("code");
            assert_eq!(at, [0x0f, 0x05], "the guest stands at its `syscall`");
            assert_eq!((regs.rax, regs.rdi, regs.rsi), (FUTEX.into(), DATA.raw(), WAIT as u64));
            assert_eq!((regs.rdx, regs.r10, regs.rflags & 1), (0, 0, 1));
        }
        // The call is made again: by the `syscall` behind the jump, which traps.
        let call = next_call(&mut guest.context, &guest.space);
        assert_eq!((call.nr, call.entry), (FUTEX, Entry::Trapped));
        assert_eq!(call.args[..4], [DATA.raw(), WAIT as u64, 0, 0]);
        assert_eq!(next_call(&mut guest.context, &guest.space).args[0] as i64, -i64::from(libc::ENOSYS));
    }
}

#[test]
fn a_passed_wait_outlives_stops_and_the_loss_of_its_patch() {
    let (platform, mut guest) = Futexer::alone(FUTEX);
    let mut waker = Futexer::new(&platform, &guest.space);
    guest.context.pass_in_stub(PassedCalls::ALL);
    let forever = libc::FUTEX_WAIT_BITSET | PRIVATE;
    guest.context.pull_full_state().expect("the state");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let timeout = DATA.raw() + 64;
    poke(&guest.space, GuestAddr::new(timeout), now.tv_sec() as u64 + PATIENCE.as_secs());
    guest.arguments(forever, 0, timeout);
    guest.context.registers_mut().r9 = u64::from(u32::MAX);
    thread::scope(|scope| {
        let space = guest.space.clone();
        let waited = scope.spawn(move || guest.unseen());
        wait_until_asleep(&space);
        for _ in 0..20 {
            for signal in [libc::SIGSTOP, libc::SIGCONT] {
                // SAFETY: a signal to our own stub process, which lives.
                assert_eq!(unsafe { libc::kill(space.pid(), signal) }, 0);
                thread::sleep(Duration::from_millis(2));
            }
        }
        space.roll_back_patches();
        assert!(!waited.is_finished(), "the wait ended for no reason");
        waker.context.pass_in_stub(PassedCalls::ALL);
        waker.arguments(WAKE, 1, 0);
        let call = next_call(&mut waker.context, &space);
        assert_eq!(call.nr, FUTEX, "its patch is gone: it traps");
        assert!(waker.context.execute_futex(call.args));
        assert_eq!(next_call(&mut waker.context, &space).args[0], 1);
        assert_eq!(waited.join().expect("the waiter"), 0);
    });
}

/// Two guest threads hand a turn to and fro by passed futex calls, while interrupts rain on both.
#[test]
fn no_wake_up_is_lost_between_interrupts_of_passed_waits() {
    const TURNS: u64 = 20_000;
    let (platform, one) = Futexer::alone(FUTEX);
    let two = Futexer::new(&platform, &one.space);
    let space = one.space.clone();
    let end = CODE.raw() + code(FUTEX).len() as u64;
    let interrupters = [one.context.interrupter(), two.context.interrupter()];
    let (done, progress, at_calls) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let interrupting = scope.spawn(|| {
            let mut wait = 1;
            while !done.load(Ordering::SeqCst) {
                wait = wait * 7 % 1_009;
                thread::sleep(Duration::from_micros(wait));
                interrupters[wait as usize % 2].interrupt();
            }
        });
        let players: Vec<_> = [one, two]
            .into_iter()
            .enumerate()
            .map(|(me, mut guest)| {
                let (progress, at_calls) = (&progress, &at_calls);
                scope.spawn(move || {
                    guest.context.pass_in_stub(PassedCalls::ALL);
                    let mut turn = me as u64;
                    let mut last = false;
                    while !last {
                        // The word counts turns; player `me` makes those of its parity, and wakes the other at the end.
                        let now = peek(&guest.space, DATA);
                        if now == turn && turn < TURNS {
                            poke(&guest.space, DATA, turn + 1);
                            progress.fetch_add(1, Ordering::SeqCst);
                            turn += 2;
                            guest.arguments(WAKE, 1, 0);
                        } else if turn < TURNS {
                            guest.arguments(WAIT, now, 0);
                        } else {
                            last = true;
                            guest.arguments(WAKE, 1, 0);
                        }
                        loop {
                            match guest.context.switch(&guest.space).expect("a switch") {
                                Event::Syscall(call) if call.nr == REPORT => break,
                                // Rolled back: it comes as a trapped call.
                                Event::Syscall(call) => assert!(guest.context.execute_futex(call.args)),
                                Event::Interrupted => {
                                    guest.context.pull_full_state().expect("the state");
                                    let rip = guest.context.registers().rip;
                                    assert!((CODE.raw()..end).contains(&rip), "{rip:#x} is not the guest's");
                                    let mut at = [0; 2];
                                    guest.space.read(GuestAddr::new(rip), &mut at).expect("code");
                                    at_calls.fetch_add(u64::from(at == [0x0f, 0x05]), Ordering::SeqCst);
                                }
                                other => panic!("nothing raises {other:?}"),
                            }
                        }
                    }
                })
            })
            .collect();
        let mut seen = 0;
        let ended = || players.iter().all(thread::ScopedJoinHandle::is_finished);
        while !ended() {
            let begun = Instant::now();
            while progress.load(Ordering::SeqCst) == seen && !ended() {
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
    assert_eq!(peek(&space, DATA), TURNS);
    let at_calls = at_calls.load(Ordering::SeqCst);
    println!("{at_calls} interrupts met a passed wait");
    assert!(at_calls > 0, "no interrupt met a passed wait: the test shows nothing");
}
