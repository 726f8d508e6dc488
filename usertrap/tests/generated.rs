//! Plans of generated windows are held against the truth about them.

mod support;

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use support::memory::{Blocks, Guest};
use support::rng::Rng;
use support::windows::{DATA_OFFSET, SHAPES, Window, generate};
use usertrap::*;

const PER_SHAPE: usize = 420;
const SYSHANDLER: SyshandlerAddr = SyshandlerAddr::new(0x7f12_3456_7000);

#[test]
fn plans_hold_against_the_truth() {
    let mut rng = Rng::new(0x5157_a9ed);
    let mut histogram = BTreeMap::<_, [usize; 5]>::new();
    let mut late = 0;
    for shape in SHAPES {
        for _ in 0..PER_SHAPE {
            let window = generate(*shape, &mut rng);
            let base = GuestAddr::new(0x40_0000 + 16 * rng.below(64) as u64);
            let knows_function = rng.below(2) == 0;
            let tier = check(&window, base, knows_function, &mut late);
            histogram.entry(shape).or_default()[tier] += 1;
        }
    }
    let total: usize = histogram.values().flatten().sum();
    println!("{:<20} tier 1 tier 2 tier 3 tier 4", "shape");
    for (shape, [_, one, two, three, four]) in &histogram {
        println!("{:<20} {one:6} {two:6} {three:6} {four:6}", format!("{shape:?}"));
        assert!(one + two + three + four >= 200);
    }
    println!("{total} windows, {late} with a late entry");
    assert!(total >= 10_000);
    for tier in 1..=4 {
        assert!(histogram.values().map(|h| h[tier]).sum::<usize>() >= 200, "tier {tier} is hardly tested");
    }
}

fn check(truth: &Window, base: GuestAddr, knows_function: bool, late: &mut usize) -> usize {
    let at = |offset: usize| base.wrapping_offset(offset as i64);
    let window = CodeWindow::new(base, &truth.code, at(truth.site)).expect("the site is in the code");
    let function = KnownFunction { start: at(truth.function.0), end: Some(at(truth.function.1)) };
    let function = knows_function.then_some(function);
    let hints = Hints { site_executed: true, function, targets_complete: true, ..Hints::default() };
    let moved = base.wrapping_offset(0x7f00_1234_5000);
    let moved_function = function.map(|f| KnownFunction {
        start: f.start.wrapping_offset(0x7f00_1234_5000),
        end: f.end.map(|e| e.wrapping_offset(0x7f00_1234_5000)),
    });
    let elsewhere = CodeWindow::new(moved, &truth.code, moved.wrapping_offset(truth.site as i64)).unwrap();
    let planned = plan(&window, &hints);
    assert_eq!(
        planned,
        plan(&elsewhere, &Hints { function: moved_function, ..hints }),
        "a plan depends on the load address"
    );
    let Ok(plan) = planned else { return 4 };
    *late += usize::from(plan.late_entry().is_some());
    boundaries_hold(truth, &plan);
    for mode in [WriteMode::Atomic, WriteMode::Breakpoint, WriteMode::Stopped] {
        patch_and_undo(truth, &plan, &window, mode);
        patch_and_undo(truth, &plan, &elsewhere, mode);
    }
    plan.tier().number().into()
}

fn boundaries_hold(truth: &Window, plan: &Plan) {
    let at = |offset: i32| (truth.site as i64 + i64::from(offset)) as usize;
    let head = at(plan.head());
    // What is copied is exactly the line of real instructions up to the site.
    let line: Vec<usize> = plan.relocated().iter().map(|r| at(r.offset)).collect();
    let mut real: Vec<usize> =
        truth.boundaries.iter().copied().filter(|b| (head..truth.site).contains(b)).collect();
    real.sort_unstable();
    let into_lock = truth.shape == support::windows::Shape::BranchIntoReplaced;
    if !into_lock {
        assert_eq!(line, real, "{truth:x?}");
    }
    let inside = head + 1..head + JUMP_LEN;
    let lost: Vec<usize> = truth.boundaries.iter().copied().filter(|b| inside.contains(b)).collect();
    match plan.tier() {
        Tier::OneInstruction => assert!(lost.is_empty(), "a boundary is lost: {truth:x?} {plan:?}"),
        Tier::Padding { offset, .. } => {
            let (from, to) = (at(*offset), at(*offset) + JUMP_LEN);
            let unreachable = truth.padding.iter().any(|(a, b)| *a <= from && to <= *b);
            assert!(unreachable, "padding that is executed: {truth:x?} {plan:?}");
            assert!(truth.targets.iter().all(|t| !(from..to).contains(t)));
        }
        Tier::Relocated { vanishing } => {
            let vanishing: Vec<usize> = vanishing.iter().map(|v| at(*v)).collect();
            assert_eq!(vanishing, lost, "{truth:x?}");
            assert!(truth.targets.iter().all(|t| !inside.contains(t)), "jumped into: {truth:x?} {plan:?}");
        }
        other => panic!("unknown tier {other:?}"),
    }
}

fn patch_and_undo(truth: &Window, plan: &Plan, window: &CodeWindow<'_>, mode: WriteMode) {
    let site = window.site();
    let base = window.addr(window.first());
    let original = Guest { base, bytes: truth.code.clone() };
    let mut guest = original.clone();
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let made = map.prepare(plan, window, SYSHANDLER, mode, &mut memory);
    let installation = match made {
        Ok(installation) => installation,
        Err(InstallError::WrongMode) => {
            assert_ne!(plan.write_mode(site), mode);
            let atomic_misfit = mode == WriteMode::Atomic;
            assert!(atomic_misfit || plan.needs_stopped_threads());
            return assert!(
                map.is_empty() && memory.live.is_empty(),
                "a refused patch left something behind"
            );
        }
        Err(other) => panic!("{other:?}: {truth:x?} {plan:?}"),
    };
    let mut seen_by_threads = vec![];
    for step in &installation.steps {
        guest.make(step);
        seen_by_threads.push(guest.clone());
    }
    assert!(map.commit(site));
    unchanged_elsewhere(plan, site, &original, &guest);
    leads_to_trampoline(plan, site, &guest, &installation.trampoline);
    copies_mean_the_same(truth, base, &installation.trampoline, plan);
    positions_are_known(&map, plan, &installation.trampoline);
    if mode == WriteMode::Atomic {
        let words = installation.steps.iter().filter(|s| matches!(s, Step::Word { .. })).count();
        assert_eq!(words, 1, "{:?}", installation.steps);
    }
    if mode == WriteMode::Breakpoint {
        no_torn_instruction(plan, site, &original, &guest, &seen_by_threads);
    }
    // The books know the original, and undoing restores it.
    let mut overlaid = guest.bytes.clone();
    map.overlay_original(base, &mut overlaid);
    assert_eq!(overlaid, original.bytes);
    let removal = map.remove(site, mode).expect("patched");
    guest.make_all(&removal.steps);
    guest.make_all(&map.reclaim(&mut memory));
    assert_eq!(guest, original, "undo restores exactly");
    assert!(memory.live.is_empty() && map.is_empty() && map.trampoline_bytes() == 0);
}

fn unchanged_elsewhere(plan: &Plan, site: GuestAddr, original: &Guest, guest: &Guest) {
    let head = GuestRange::of_len(site.wrapping_offset(plan.head().into()), JUMP_LEN as u64);
    let short = GuestRange::of_len(site, 2);
    let allowed: Vec<GuestRange> = match plan.padding(site) {
        Some(padding) => vec![padding, short],
        None => vec![head],
    };
    for (i, (a, b)) in original.bytes.iter().zip(&guest.bytes).enumerate() {
        let at = original.base.wrapping_offset(i as i64);
        assert!(a == b || allowed.iter().any(|r| r.contains(at)), "{at} changed");
    }
}

/// Follows the jumps from the head.
fn leads_to_trampoline(plan: &Plan, site: GuestAddr, guest: &Guest, trampoline: &Trampoline) {
    let mut at = site.wrapping_offset(plan.head().into());
    for _ in 0..2 {
        let from = guest.base.distance_to(at) as usize;
        let jump = Decoder::with_ip(64, &guest.bytes[from..], at.raw(), DecoderOptions::NONE).decode();
        assert!(jump.is_jmp_short_or_near(), "{jump}");
        at = GuestAddr::new(jump.near_branch_target());
        if at == trampoline.at().as_rip() {
            return;
        }
        assert_eq!(Some(at), plan.padding(site).map(|p| p.start));
    }
    panic!("the jump does not lead to the trampoline");
}

/// Compares the text of each copy with that of its original: with addresses in place of displacements.
fn copies_mean_the_same(truth: &Window, base: GuestAddr, trampoline: &Trampoline, plan: &Plan) {
    let mut formatter = NasmFormatter::new();
    let mut text = |bytes: &[u8], ip: u64| {
        let instr = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
        let mut out = String::new();
        formatter.format(&instr, &mut out);
        (out.replace(" short ", " ").replace(" near ", " "), instr.len(), instr)
    };
    let (code, mut ip) = (trampoline.code(), trampoline.at().raw());
    let mut done = 0;
    for r in plan.relocated() {
        let original = truth.site as i64 + i64::from(r.offset);
        let (wanted, len, _) = text(&truth.code[original as usize..], base.wrapping_offset(original).raw());
        assert_eq!(len, r.len as usize);
        let (got, len, _) = text(&code[done..], ip);
        assert_eq!(got, wanted);
        (done, ip) = (done + len, ip + len as u64);
    }
    let (_, len, lea) = text(&code[done..], ip);
    assert_eq!(lea.mnemonic(), iced_x86::Mnemonic::Lea);
    assert_eq!(lea.op0_register(), iced_x86::Register::RCX);
    assert_eq!(
        lea.ip_rel_memory_address(),
        trampoline.site().raw() + 2,
        "rcx is the address behind the syscall"
    );
    (done, ip) = (done + len, ip + len as u64);
    let (_, len, jmp) = text(&code[done..], ip);
    assert!(jmp.is_jmp_near_indirect());
    assert_eq!(done + len, code.len());
    let word = (jmp.ip_rel_memory_address() - trampoline.at().raw()) as usize;
    assert_eq!(trampoline.bytes()[word..], SYSHANDLER.raw().to_le_bytes());
    assert!(jmp.ip_rel_memory_address().is_multiple_of(8), "the load does not straddle");
    assert!(trampoline.bytes().len() <= Trampoline::max_len(plan));
    assert!(truth.code.len() < DATA_OFFSET);
}

fn positions_are_known(map: &PatchMap, plan: &Plan, trampoline: &Trampoline) {
    let site = trampoline.site();
    let mut met = vec![];
    for offset in 0..trampoline.bytes().len() as i64 {
        let rip = trampoline.at().wrapping_offset(offset).as_rip();
        match map.locate(rip) {
            RipMeaning::Ours(GuestPosition::At(at)) => {
                met.push(at);
                assert_eq!(trampoline.copy_of(at).map(TrampolineAddr::as_rip), Some(rip));
            }
            RipMeaning::Ours(GuestPosition::Call { site: s, ret }) => {
                assert_eq!((s, ret), (site, site.wrapping_offset(2)));
            }
            RipMeaning::Astray => {}
            RipMeaning::Guest => panic!("a rip in a trampoline taken for the guest's"),
        }
    }
    let line = plan.relocated().iter().map(|r| site.wrapping_offset(r.offset.into())).chain([site]);
    assert_eq!(met, line.collect::<Vec<_>>());
    assert_eq!(map.locate(site), RipMeaning::Guest);
    if let Some(padding) = plan.padding(site) {
        assert_eq!(map.locate(padding.start), RipMeaning::Ours(GuestPosition::At(site)));
    }
    for offset in plan.head()..=2 {
        let at = site.wrapping_offset(offset.into());
        let vanished = matches!(plan.tier(), Tier::Relocated { vanishing } if vanishing.contains(&offset));
        let resumed = map.resume_at(at);
        let copy = trampoline.copy_of(at).map(TrampolineAddr::as_rip);
        assert_eq!(Some(resumed), if vanished { copy } else { Some(at) });
    }
}

/// Whoever looks at the head between two steps sees the old bytes, an int3, or the new bytes.
fn no_torn_instruction(plan: &Plan, site: GuestAddr, before: &Guest, after: &Guest, seen: &[Guest]) {
    let (at, len) = if plan.padding(site).is_some() { (0, 2) } else { (plan.head(), JUMP_LEN) };
    let from = before.base.distance_to(site.wrapping_offset(at.into())) as usize;
    for guest in seen {
        let now = &guest.bytes[from..from + len];
        let whole = now == &before.bytes[from..from + len] || now == &after.bytes[from..from + len];
        assert!(whole || now[0] == 0xcc, "{now:x?}");
    }
}
