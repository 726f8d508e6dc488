//! Sites that are patched and rolled back while threads run through them: no wrong result, no crash, however the
//! bytes have to be written.

#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "common/patch_race.rs"]
mod patch_race;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use patch_lab::platform;
use patch_race::{THREADS, pause, program, race};
use systrap::Patching;

#[test]
fn eight_threads_run_through_sites_that_are_patched_and_rolled_back() {
    let begun = Instant::now();
    let (tally, rounds) = race(&platform(Patching::Lazy), THREADS, |space, _, round| {
        pause(round);
        space.roll_back_patches();
        begun.elapsed() < Duration::from_secs(10)
    });
    println!("{rounds} times rolled back, {tally:?}");
    assert!(rounds > 10 && tally.patched.into_inner() > 100 && tally.trapped.into_inner() > 100);
}

/// A thread that is alone has bytes written by plain stores that others need an `int3` for.
#[test]
fn a_single_thread_has_its_sites_written_while_it_stands() {
    let begun = Instant::now();
    let (tally, rounds) = race(&platform(Patching::Lazy), 1, |space, tally, round| {
        pause(round);
        space.roll_back_patches();
        assert!(begun.elapsed() < Duration::from_secs(60), "only {tally:?}");
        round < 100 || tally.patched.load(Ordering::Relaxed) < 10_000
    });
    println!("{rounds} times rolled back, {tally:?}");
    let (trapped, patched) = (tally.trapped.into_inner(), tally.patched.into_inner());
    assert!(trapped > 50, "the sites were patched again and again");
    // Each site traps once behind each roll-back, twice if it was under way.
    assert!(trapped < (rounds + 5) * 25, "{trapped} calls trapped and {patched} came patched");
}

/// Without roll-backs: every site is patched in the end, whichever way it has to be written.
#[test]
fn all_sites_are_patched_under_eight_threads() {
    let sites = program().sites.len() as u64;
    let begun = Instant::now();
    let (tally, _) = race(&platform(Patching::Lazy), THREADS, |space, tally, _| {
        thread::sleep(Duration::from_millis(5));
        assert!(begun.elapsed() < Duration::from_secs(60), "only {tally:?}");
        space.patched_sites() < sites || tally.patched.load(Ordering::Relaxed) < 10_000
    });
    println!("{tally:?}");
    let trapped = tally.trapped.into_inner();
    assert!(trapped < 10 * THREADS * sites, "{trapped} calls trapped");
}
