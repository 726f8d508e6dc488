//! Code that was patched before it ran does what the original does on the host: generated windows as the text of an ELF
//! file that is mapped with eager patching. Whole functions are in sight then, so that windows are relocated (tier 3),
//! too.

#[path = "common/native_lab.rs"]
mod native_lab;
#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "../usertrap/tests/support/mod.rs"]
mod support;
#[path = "common/window_file.rs"]
mod window_file;
#[path = "common/window_lab.rs"]
mod window_lab;

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use patch_lab::platform;
use support::rng::Rng;
use systrap::{GuestAddr, PAGE_SIZE, Patching, Protection, Sharing, Systrap};
use usertrap::{Plan, Tier};
use window_lab::{Guest, Histogram, Lab, Placed, batches};

const PER_SHAPE: usize = 250;

/// Maps a batch as a linker maps text and data.
fn load(platform: &Systrap, batch: &[Placed]) -> (Guest, HashMap<u64, Plan>) {
    let guest = Guest::new(platform, Patching::Eager);
    let file = window_file::write(batch);
    let len = 2 * PAGE_SIZE * batch.len() as u64;
    let fd = file.as_file().as_fd();
    let (text, prot) = (window_file::TEXT_OFFSET, Protection::READ_EXECUTE);
    let mapped = guest.space.map_file(window_file::TEXT, len, fd, text, prot, Sharing::Private);
    mapped.expect("the text is mapped");
    for placed in batch {
        let data = GuestAddr::new(placed.page + PAGE_SIZE);
        guest.space.map_anonymous(data, PAGE_SIZE, Protection::READ_WRITE).expect("the data is mapped");
    }
    let image = window_file::image(batch);
    let scan = usertrap::scan(&image).expect("an ELF file");
    let planned = scan.sites.into_iter().filter_map(|site| Some((site.site.raw(), site.result.ok()?)));
    (guest, planned.collect())
}

/// Runs a window from everywhere. Gives the tier of its site.
fn check(lab: &mut Lab, placed: &Placed, plans: &HashMap<u64, Plan>, rng: &mut Rng) -> (usize, usize) {
    let site = placed.window.site;
    let Some(plan) = plans.get(&placed.at(site)) else {
        lab.compare(placed, placed.window.function.0, rng.next());
        return (4, 0);
    };
    let head = site.checked_add_signed(plan.head() as isize).expect("a jump in the window");
    assert_ne!(
        lab.patched.code(placed)[head],
        placed.window.code[head],
        "planned, but not patched: {plan:?}"
    );
    lab.compare_from_everywhere(placed, head, rng);
    let vanished = match plan.tier() {
        Tier::Relocated { vanishing } => vanishing.len(),
        _ => 0,
    };
    (plan.tier().number().into(), vanished)
}

#[test]
fn generated_windows_run_the_same_natively_and_patched_before_they_ran() {
    let platform = platform(Patching::Off);
    let mut lab = Lab::new(&platform, Guest::new(&platform, Patching::Eager));
    let mut rng = Rng::new(0x7143_0e93);
    let mut histogram = Histogram::default();
    let mut vanished = 0;
    for batch in batches(PER_SHAPE, &mut rng) {
        lab.load(&batch);
        let (guest, plans) = load(&platform, &batch);
        lab.patched = guest;
        assert_eq!(lab.patched.space.patched_sites(), plans.len() as u64, "all that is planned is patched");
        for placed in &batch {
            let (tier, gone) = check(&mut lab, placed, &plans, &mut rng);
            histogram.count(placed.window.shape, tier - 1);
            vanished += gone;
        }
        lab.patched.space.roll_back_patches();
        for placed in &batch {
            assert_eq!(lab.patched.code(placed), placed.window.code, "rolled back: {:x?}", placed.window);
        }
    }
    histogram.print(["tier 1", "tier 2", "tier 3", "tier 4"], 200);
    let total: usize = (0..4).map(|i| histogram.column(i)).sum();
    println!(
        "{total} windows, {vanished} entries at boundaries that vanished; {} triples of runs equal, {:?}",
        lab.entries, lab.ways
    );
    assert!(total >= 6_000);
    assert!(histogram.column(0) >= 3_000 && histogram.column(1) >= 200 && histogram.column(2) >= 200);
    assert!(vanished >= 250 && lab.ways.patched > 8_000 && lab.ways.restarted > 1_000);
}
