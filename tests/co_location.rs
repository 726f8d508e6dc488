//! `Options::co_location`: threads that sleep share a CPU, a guest that computes is let go, nobody stays confined, and the
//! results are the same.

mod common {
    pub mod fixture;
    pub mod guest;
}

use std::thread;
use std::time::{Duration, Instant};

use common::fixture::Fixture;
use common::guest::{Guest, map, new_context};
use iced_x86::code_asm::*;
use systrap::{Event, Options, Systrap};

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes a call with a counter, then counts down from the call's result.
fn counting() -> Fixture {
    Fixture::new(|asm| {
        let (mut again, mut down) = (asm.create_label(), asm.create_label());
        asm.xor(ebx, ebx)?;
        asm.set_label(&mut again)?;
        asm.mov(rdi, rbx)?;
        asm.mov(eax, 700)?;
        asm.syscall()?;
        asm.inc(rbx)?;
        asm.mov(rcx, rax)?;
        asm.set_label(&mut down)?;
        asm.dec(rcx)?;
        asm.jns(down)?;
        asm.jmp(again)
    })
}

fn platform(on: bool) -> Systrap {
    Systrap::new(Options::new().co_location(on)).expect("a platform")
}

/// The CPUs that a thread may use, as `/proc` tells it.
fn allowed(task: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).expect("the thread lives");
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.expect("a line of it").trim().to_owned()
}

fn own() -> String {
    allowed("thread-self")
}

/// The CPUs of the guest's stub thread: the one that is not the leader.
fn of_stub_thread(guest: &Guest) -> String {
    let leader = guest.space.pid();
    let mut threads: Vec<_> = std::fs::read_dir(format!("/proc/{leader}/task"))
        .expect("the stub process lives")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a number"))
        .filter(|thread| *thread != leader.to_string())
        .collect();
    assert_eq!(threads.len(), 1, "{threads:?}");
    allowed(&threads.remove(0))
}

fn expect_call(guest: &mut Guest, counter: u64) {
    let call = guest.call();
    assert_eq!((call.nr, call.args[0]), (700, counter));
}

/// Whether there is anything to see on this machine.
fn several_cpus() -> bool {
    let several = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    if !several {
        println!("NOT TESTED: one CPU only, there is nothing to choose between");
    }
    several
}

#[test]
fn a_thread_that_drives_a_sleeping_stub_is_confined_until_it_waits_or_ends() {
    if !several_cpus() {
        return;
    }
    let before = own();
    let mut guest = Guest::on(&platform(true), &counting());
    let mut confined = 0;
    for round in 0..200 {
        expect_call(&mut guest, round);
        if own() != before {
            // On a busy machine its guest may have run for so long that it was let go.
            let of_stub = of_stub_thread(&guest);
            assert!(of_stub == own() || of_stub == before, "the one is on {}, the other on {of_stub}", own());
            confined += u32::from(of_stub == own());
        }
        guest.context.set_return(0);
        // Long enough to find the stub thread asleep the next time.
        guest.context.prepare_sleep();
        if round > 1 {
            assert_eq!(own(), before, "it waited long before, and goes to wait again");
        }
        thread::sleep(Duration::from_millis(2));
    }
    assert!(confined > 0, "the two were never together");
    expect_call(&mut guest, 200);
    drop(guest);
    assert_eq!(own(), before);
}

#[test]
fn a_guest_that_computes_may_run_anywhere() {
    if !several_cpus() {
        return;
    }
    let before = own();
    let mut guest = Guest::on(&platform(true), &counting());
    expect_call(&mut guest, 0);
    let interrupter = guest.context.interrupter();
    let space = guest.space.clone();
    let looking = thread::spawn(move || {
        let started = Instant::now();
        // A few milliseconds are enough; a busy machine may take its time.
        let leader = space.pid();
        let free = || {
            std::fs::read_dir(format!("/proc/{leader}/task")).expect("the stub process lives").all(|entry| {
                let name = entry.expect("an entry").file_name().into_string().expect("a number");
                name == leader.to_string() || allowed(&name) == before
            })
        };
        while !free() {
            assert!(started.elapsed() < LIMIT, "the guest is confined for ever");
            thread::sleep(Duration::from_millis(1));
        }
        interrupter.interrupt();
    });
    guest.context.set_return(i64::MAX);
    assert!(matches!(guest.switch(), Event::Interrupted));
    looking.join().expect("the other thread's checks");
}

#[test]
fn nothing_is_confined_unless_asked_for() {
    let before = own();
    let mut guest = Guest::on(&platform(false), &counting());
    for round in 0..50 {
        expect_call(&mut guest, round);
        assert_eq!((own(), of_stub_thread(&guest)), (before.clone(), before.clone()));
        guest.context.set_return(0);
        guest.context.prepare_sleep();
    }
}

#[test]
fn many_contexts_that_wait_and_work_in_turns_all_go_on() {
    const CONTEXTS: u64 = 24;
    const ROUNDS: u64 = 300;
    let platform = platform(true);
    let fixture = counting();
    let space = platform.new_address_space().expect("an address space");
    map(&space, &fixture);
    let started = Instant::now();
    thread::scope(|scope| {
        for id in 0..CONTEXTS {
            let (platform, space) = (&platform, &space);
            scope.spawn(move || {
                let before = own();
                let mut context = new_context(platform);
                for round in 0..ROUNDS {
                    let event = context.switch(space).expect("the guest runs");
                    let Event::Syscall(call) = event else { panic!("nothing causes {event:?}") };
                    assert_eq!(call.args[0], round);
                    // Some compute for a moment, some make quick calls, some block.
                    match (id + round / 50) % 3 {
                        0 => context.set_return(300_000),
                        1 => context.set_return(0),
                        _ => {
                            context.set_return(0);
                            context.prepare_sleep();
                            thread::sleep(Duration::from_micros(100));
                        }
                    }
                    assert!(started.elapsed() < LIMIT, "context {id} is stuck at call {round}");
                }
                drop(context);
                assert_eq!(own(), before);
            });
        }
    });
}
