//! Patched code does what the original does on the host: generated windows around a `syscall` run natively, trapped and
//! patched as they trap, from the same random state, from every instruction that a patch concerns, and everything is
//! compared afterwards.

#[path = "common/native_lab.rs"]
mod native_lab;
#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "../usertrap/tests/support/mod.rs"]
mod support;
#[path = "common/window_lab.rs"]
mod window_lab;

use patch_lab::{Made, platform, what_was_made};
use support::rng::Rng;
use systrap::Patching;
use window_lab::{Guest, Histogram, Lab, Placed, batches};

const PER_SHAPE: usize = 400;

/// Runs a window until it is patched, and then from everywhere between its jump and its site.
fn check(lab: &mut Lab, placed: &Placed, rng: &mut Rng) -> Made {
    let window = &placed.window;
    lab.compare(placed, window.function.0, rng.next());
    if lab.patched.code(placed) == window.code {
        // A conditional branch may have led around the site.
        lab.compare(placed, window.site, rng.next());
    }
    let made = what_was_made(&window.code, &lab.patched.code(placed), window.site);
    match made {
        Made::Nothing => {}
        Made::Jump(head) => lab.compare_from_everywhere(placed, head, rng),
        Made::ShortJump => lab.compare_from_everywhere(placed, window.site, rng),
    }
    made
}

#[test]
fn generated_windows_run_the_same_natively_trapped_and_patched() {
    let platform = platform(Patching::Lazy);
    let mut lab = Lab::new(&platform, Guest::new(&platform, Patching::Lazy));
    let mut rng = Rng::new(0x0f05_e9eb);
    let mut histogram = Histogram::default();
    for batch in batches(PER_SHAPE, &mut rng) {
        lab.load(&batch);
        lab.patched.load(&batch);
        for placed in &batch {
            let column = match check(&mut lab, placed, &mut rng) {
                Made::Jump(_) => 0,
                Made::ShortJump => 1,
                Made::Nothing => 2,
            };
            histogram.count(placed.window.shape, column);
        }
        lab.patched.space.roll_back_patches();
        for placed in &batch {
            assert_eq!(lab.patched.code(placed), placed.window.code, "rolled back: {:x?}", placed.window);
        }
    }
    histogram.print(["tier 1", "tier 2", "  none"], 200);
    let total: usize = (0..3).map(|i| histogram.column(i)).sum();
    println!("{total} windows, {} triples of runs equal, {:?}", lab.entries, lab.ways);
    assert!(total >= 10_000);
    assert!(histogram.column(0) >= 5_000 && histogram.column(1) >= 200, "hardly anything was patched");
    assert!(lab.ways.patched > 10_000 && lab.ways.restarted > 1_000);
}
