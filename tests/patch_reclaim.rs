//! Trampolines that nothing leads to any more are freed while threads run that may be in one: no wrong result, no crash,
//! and never more memory than the cap.

#[path = "common/patch_guest.rs"]
mod patch_guest;
#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "common/patch_race.rs"]
mod patch_race;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use patch_guest::{at, functions, guest_in, round, trampolines};
use patch_lab::{bytes_at, first_difference, put_code};
use patch_race::{CODE, THREADS, pause, program, race};
use systrap::{AddressSpace, Event, GuestAddr, Options, PAGE_SIZE, Patching, Protection, Systrap};

/// How long a race lasts.
const WHILE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(90);

/// A platform whose address spaces have so little memory for trampolines.
fn small(bytes: usize) -> Systrap {
    let options = Options::new().patching(Patching::Lazy).trampoline_bytes(bytes);
    Systrap::new(options).expect("a platform")
}

fn held(space: &AddressSpace) -> u64 {
    trampolines(space).iter().map(|(_, len)| len).sum()
}

#[test]
fn endless_roll_backs_under_eight_threads_make_do_with_one_page() {
    let sites = program().sites.len() as u64;
    let (begun, most) = (Instant::now(), Cell::new(0));
    // Each round uses a fifth of the page: what is not freed in time makes sites trap.
    let (tally, rounds) = race(&small(4096), THREADS, |space, tally, round| {
        most.set(most.get().max(held(space)));
        assert!(begun.elapsed() < LIMIT, "{} sites are patched, {tally:?}", space.patched_sites());
        if begun.elapsed() < WHILE {
            pause(round);
            space.roll_back_patches();
            return true;
        }
        // In the end all are patched again, whatever was in the way.
        thread::sleep(Duration::from_millis(5));
        space.patched_sites() < sites
    });
    println!("{rounds} rounds, {} bytes at most, {tally:?}", most.get());
    assert!(most.get() <= 4096, "{} bytes of trampolines", most.get());
    assert!(rounds > 50 && tally.patched.into_inner() > 1_000);
}

/// One thread computes and makes no calls.
#[test]
fn a_thread_that_never_comes_back_keeps_no_trampolines() {
    const COUNT: usize = 40;
    const BUSY: u64 = 0x60_0000;
    let platform = small(4096);
    let space = platform.new_address_space().expect("an address space");
    put_code(&space, patch_guest::CODE, &functions(COUNT, 1000));
    put_code(&space, BUSY, &[0x49, 0xff, 0xc4, 0xeb, 0xfb]); // inc r12; jmp back
    let mut context = guest_in(&platform, &space, patch_guest::CODE);
    let mut busy = platform.new_context().expect("a context");
    busy.registers_mut().rip = BUSY;
    let (interrupter, stop) = (busy.interrupter(), AtomicBool::new(false));
    let mut rounds = 0_u64;
    thread::scope(|scope| {
        let (space, stop) = (&space, &stop);
        let runner = scope.spawn(move || {
            let event = busy.switch(space).expect("the stub process lives");
            assert_eq!(event, Event::Interrupted);
            assert!(stop.load(Ordering::Relaxed), "nobody asked for {event:?}");
            busy.pull_full_state().expect("the state");
            busy.registers().r12
        });
        let begun = Instant::now();
        while rounds < 15 {
            // Until all are patched, which takes memory of the rounds before.
            let mut tries = 0;
            while round(&mut context, space, patch_guest::CODE, COUNT, 1000) < COUNT {
                tries += 1;
                assert!(begun.elapsed() < LIMIT, "{rounds} rounds; {tries} tries at the last");
            }
            assert!(held(space) <= 4096, "{} bytes of trampolines", held(space));
            space.roll_back_patches();
            rounds += 1;
            assert!(!runner.is_finished(), "the other thread has ended");
        }
        println!("{rounds} rounds in {:?}", begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        interrupter.interrupt();
        let counted = runner.join().expect("the other thread");
        assert!(counted > 1_000, "it has counted to {counted}");
    });
}

#[test]
fn what_is_mapped_over_trampolines_is_met_by_nobody() {
    let (begun, covered) = (Instant::now(), Cell::new(0_u64));
    let (tally, rounds) = race(&small(1 << 20), THREADS, |space, _, round| {
        pause(round);
        for (block, len) in trampolines(space) {
            // Whoever is still in there, or comes there, faults.
            space.map_anonymous(at(block), len, Protection::READ_WRITE).expect("mapped");
            space.unmap(at(block), len).expect("unmapped");
            covered.set(covered.get() + 1);
        }
        begun.elapsed() < WHILE
    });
    println!("{rounds} rounds, {} blocks covered, {tally:?}", covered.get());
    assert!(covered.get() > 20 && tally.patched.into_inner() > 1_000);
}

#[test]
fn text_that_becomes_writable_is_the_guests_to_the_last_byte() {
    let begun = Instant::now();
    let program = program();
    let (text, len) = (GuestAddr::new(CODE), (program.code.len() as u64).next_multiple_of(PAGE_SIZE));
    let all = Protection { read: true, write: true, execute: true };
    let (tally, rounds) = race(&small(1 << 20), THREADS, |space, _, round| {
        pause(round);
        space.protect(text, len, all).expect("protected");
        let found = bytes_at(space, CODE, program.code.len());
        assert_eq!(first_difference(&found, &program.code), None, "in round {round}");
        space.protect(text, len, Protection::READ_EXECUTE).expect("protected");
        begun.elapsed() < WHILE
    });
    println!("{rounds} rounds, {tally:?}");
    assert!(rounds > 50 && tally.patched.into_inner() > 1_000);
}

#[test]
fn without_memory_sites_trap() {
    let platform = small(0);
    let space = platform.new_address_space().expect("an address space");
    put_code(&space, patch_guest::CODE, &functions(8, 1000));
    let mut context = guest_in(&platform, &space, patch_guest::CODE);
    for _ in 0..100 {
        assert_eq!(round(&mut context, &space, patch_guest::CODE, 8, 1000), 0);
    }
    assert_eq!((space.patched_sites(), trampolines(&space).len()), (0, 0));
}
