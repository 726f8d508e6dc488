//! Arbitrary bytes: no panic, no plan that its own bytes do not bear out, no unbounded time or memory.

mod support;

use std::path::Path;

use support::memory::{Blocks, Guest};
use support::rng::Rng;
use support::windows::{SHAPES, generate};
use usertrap::*;

/// Bytes that mean something to the planner.
const SPICE: &[&[u8]] = &[
    &[0x0f, 0x05],
    &[0xb8, 1, 0, 0, 0],
    &[0xe9],
    &[0xeb],
    &[0x74],
    &[0xc3],
    &[0xcc],
    &[0x90],
    &[0xe8],
    &[0x0f, 0x1f, 0x44, 0, 0],
    &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    &[0xf3, 0x0f, 0x1e, 0xfa],
    &[0xf0],
    &[0x48],
    &[0x67],
    &[0xe2],
    &[0x06],
    &[0x62],
    &[0xc4],
    &[0xc5],
    &[0x48, 0x8b, 0x05],
    &[0xff, 0x25],
];

fn bytes(rng: &mut Rng) -> Vec<u8> {
    let len = rng.below(400);
    let mut out = vec![];
    while out.len() < len {
        match rng.below(3) {
            0 => out.push(rng.next() as u8),
            1 => out.extend(rng.pick(SPICE)),
            _ => out.extend([0x48, 0x89, 0xc0 | rng.next() as u8]),
        }
    }
    out
}

#[test]
fn arbitrary_windows_never_panic_and_plans_check_out() {
    let mut rng = Rng::new(1);
    let (mut planned, mut refused) = (0, 0);
    for round in 0..30_000 {
        let mut code = bytes(&mut rng);
        if round % 3 == 0 {
            // Real-looking code with a few bytes changed.
            code = generate(rng.pick(SHAPES), &mut rng).code;
            for _ in 0..rng.below(6) {
                let at = rng.below(code.len());
                code[at] = rng.next() as u8;
            }
        }
        let sites: Vec<usize> =
            code.windows(2).enumerate().filter(|(_, w)| *w == [0x0f, 0x05]).map(|(i, _)| i).collect();
        let base =
            GuestAddr::new(rng.pick(&[0, 0x1000, 0x40_0000, u64::MAX - 300, 1 << 46, (1 << 47) - 200]));
        for site in sites {
            let at = base.wrapping_offset(site as i64);
            let Ok(window) = CodeWindow::new(base, &code, at) else { continue };
            let anywhere = |rng: &mut Rng| base.wrapping_offset(rng.below(500) as i64 - 50);
            let targets = [anywhere(&mut rng), GuestAddr::new(rng.next())];
            let ends = [None, Some(anywhere(&mut rng)), Some(GuestAddr::new(rng.next()))];
            let starts = [base, anywhere(&mut rng), GuestAddr::new(rng.next())];
            let (start, end) = (rng.pick(&starts), rng.pick(&ends));
            let function = rng.pick(&[None, Some(KnownFunction { start, end })]);
            let occupied = [GuestRange::of_len(anywhere(&mut rng), rng.next() % 16)];
            let site_executed = rng.below(2) == 0;
            let data = [anywhere(&mut rng)];
            let targets_complete = rng.below(2) == 0;
            let hints = Hints {
                site_executed,
                function,
                targets: &targets,
                targets_complete,
                data: &data,
                occupied: &occupied,
            };
            match plan(&window, &hints) {
                Ok(plan) => {
                    planned += 1;
                    plan_checks_out(&plan, &window, &hints, &code);
                }
                Err(refusal) => {
                    refused += 1;
                    assert!(!refusal.to_string().is_empty());
                }
            }
        }
    }
    println!("{planned} planned, {refused} refused");
    assert!(planned > 1_000 && refused > 1_000);
}

/// What can be checked without knowing the truth: the plan agrees with its bytes, its hints, and itself.
fn plan_checks_out(plan: &Plan, window: &CodeWindow<'_>, hints: &Hints<'_>, code: &[u8]) {
    let site = window.site();
    assert!(plan.matches(window));
    let used: Vec<GuestRange> =
        [Some(plan.footprint(site)), plan.padding(site)].into_iter().flatten().collect();
    for range in &used {
        assert!(hints.occupied.iter().all(|o| !o.overlaps(range)), "{plan:?} overlaps another patch");
    }
    let head = plan.head();
    for range in &used {
        assert!(hints.data.iter().all(|d| !range.contains(*d)), "{plan:?} changes data");
    }
    if let Tier::Padding { offset, .. } = plan.tier() {
        assert!((-126..=129).contains(offset));
        for target in hints.targets {
            assert!(!used[1].contains(*target), "{plan:?} uses padding that is entered");
        }
    } else {
        let mut next = head;
        for r in plan.relocated() {
            assert_eq!(r.offset, next, "{plan:?}: copies without gaps");
            next += i32::from(r.len);
        }
        assert_eq!(next, 0);
        let inside = GuestRange::new(
            site.wrapping_offset(i64::from(head) + 1),
            site.wrapping_offset(i64::from(head) + JUMP_LEN as i64),
        );
        assert!(hints.targets.iter().all(|t| !inside.contains(*t)), "{plan:?} is entered in the middle");
    }
    match plan.witness() {
        Witness::Vote { voters } | Witness::VoteAndFunction { voters } => assert!(voters >= 16),
        Witness::Function { .. } => assert!(hints.function.is_some()),
        other => panic!("unknown witness {other:?}"),
    }
    let base = window.addr(window.first());
    let mut guest = Guest { base, bytes: code.to_vec() };
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let syshandler = SyshandlerAddr::new(0x7f00_0000_0000);
    let made = map.prepare(plan, window, syshandler, WriteMode::Stopped, &mut memory);
    let made = match made {
        Err(InstallError::OutOfReach) => return assert_eq!(plan.reach(site), None),
        made => made.unwrap_or_else(|e| panic!("{e:?} {plan:?}")),
    };
    guest.make_all(&made.steps);
    map.commit(site);
    map.remove(site, WriteMode::Stopped).iter().for_each(|r| guest.make_all(&r.steps));
    guest.make_all(&map.reclaim(&mut memory));
    assert_eq!(guest.bytes, code);
}

#[test]
fn damaged_elf_files_are_refused_or_scanned() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sites");
    let mut rng = Rng::new(2);
    let (mut scanned, mut refused) = (0, 0);
    for name in ["branches", "padding", "stripped_data", "windows"] {
        let good = std::fs::read(directory.join(name).with_extension("elf")).unwrap();
        for round in 0..150 {
            let mut bad = good.clone();
            match round % 3 {
                0 => bad.truncate(rng.below(good.len())),
                // Headers and tables, where it hurts most.
                1 => (0..1 + rng.below(8)).for_each(|_| bad[rng.below(64 + 4 * 56)] = rng.next() as u8),
                _ => (0..1 + rng.below(200)).for_each(|_| bad[rng.below(good.len())] = rng.next() as u8),
            }
            match scan(&bad) {
                Ok(scan) => {
                    scanned += 1;
                    for site in &scan.sites {
                        let at = TrampolineAddr::new(0x1000_0000);
                        assert!(!scan.describe(site, at, SyshandlerAddr::new(1)).is_empty());
                    }
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
    println!("{scanned} scanned, {refused} refused");
    assert!(scanned > 50 && refused > 50);
    assert!(scan(&[]).is_err());
}

#[test]
fn a_file_full_of_sites_is_scanned_in_bounded_time() {
    // One section of 50,000 times `syscall`, within one function as far as anyone knows.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/sites");
    let mut file = std::fs::read(directory.join("stripped_data.elf")).unwrap();
    let at = file.len().next_multiple_of(16);
    file.resize(at, 0);
    file.extend([0x0f, 0x05].repeat(50_000));
    // The section header table goes; the only executable segment becomes the new bytes.
    file[0x28..0x30].fill(0);
    file[0x3a..0x40].fill(0);
    let headers = u16::from_le_bytes([file[0x38], file[0x39]]) as usize;
    for header in (0..headers).map(|i| 64 + 56 * i) {
        file[header + 8..header + 16].copy_from_slice(&(at as u64).to_le_bytes());
        file[header + 32..header + 40].copy_from_slice(&100_000u64.to_le_bytes());
        file[header + 4] |= 1;
    }
    let begun = std::time::Instant::now();
    let scan = scan(&file).unwrap();
    println!("{} sites in {:?}", scan.sites.len(), begun.elapsed());
    assert!(scan.truncated, "the cap is reached");
    assert!(scan.sites.len() + scan.not_instructions.len() <= 16 * 1024);
    assert!(begun.elapsed().as_secs() < 120, "{:?}", begun.elapsed());
}
