//! What is not patched, and why: one test per promise.

mod support;

use support::rng::Rng;
use usertrap::*;

const BASE: GuestAddr = GuestAddr::new(0x40_1000);

/// Code with a site marked by the position of its only `syscall`.
fn plan_of(code: &[u8], hints: &Hints<'_>) -> Result<Plan, Refusal> {
    let at = code.windows(2).position(|w| w == SYSCALL).expect("there is a syscall");
    plan(&CodeWindow::new(BASE, code, BASE.wrapping_offset(at as i64)).unwrap(), hints)
}

fn known(len: usize) -> Option<KnownFunction> {
    Some(KnownFunction { start: BASE, end: Some(BASE.wrapping_offset(len as i64)) })
}

/// Instructions of three bytes that decodings fall into step in.
fn filler(n: usize) -> Vec<u8> {
    [0x48, 0x89, 0xf7].repeat(n)
}

fn blockers(result: Result<Plan, Refusal>) -> (Blocker, Blocker, Blocker) {
    match result {
        Err(Refusal::NoTier { one, two, three }) => (one, two, three),
        other => panic!("not refused by all tiers: {other:?}"),
    }
}

#[test]
fn a_majority_is_no_proof() {
    let mut rng = Rng::new(7);
    let mut split = 0;
    for _ in 0..10_000 {
        let mut code: Vec<u8> = (0..64).map(|_| rng.next() as u8).collect();
        code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0xc3]);
        let window = CodeWindow::new(BASE, &code, BASE.wrapping_offset(69)).unwrap();
        if let Err(Refusal::SiteUnproved(unproved)) = prove_site_of(&window, &Hints::default())
            && unproved.agreeing * 2 > unproved.voters
        {
            split += usize::from(unproved.agreeing < unproved.voters);
            assert_eq!(plan(&window, &Hints::default()), Err(Refusal::SiteUnproved(unproved)));
        }
    }
    println!("{split} split votes with a majority");
    assert!(split > 100, "{split}");
}

#[test]
fn too_few_voters_are_no_proof() {
    let mut code = filler(6);
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
    let (one, _, _) = blockers(plan_of(&code, &Hints { site_executed: true, ..Hints::default() }));
    let Blocker::Unproved { offset: -5, unproved } = one else { panic!("{one:?}") };
    assert!(unproved.agreeing == unproved.voters && unproved.voters < 16, "{unproved:?}");
}

#[test]
fn a_function_start_that_contradicts_the_vote_forbids() {
    let mut code = filler(30);
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
    assert!(plan_of(&code, &Hints::default()).is_ok());
    // The start lies in the middle of the mov: `01 00; 00 00; 0f 05`, and so do its boundaries.
    let start = BASE.wrapping_offset(90 + 2);
    let function = Some(KnownFunction { start, end: None });
    let refused = plan_of(&code, &Hints { function, ..Hints::default() });
    assert!(matches!(refused, Err(Refusal::NotAnInstruction(u)) if u.contradicted), "{refused:?}");
}

#[test]
fn behind_a_return_a_function_start_alone_is_not_believed() {
    let mut code = vec![0xc3];
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
    let refused = plan_of(&code, &Hints { function: known(8), ..Hints::default() });
    assert!(matches!(refused, Err(Refusal::SiteUnproved(_))), "{refused:?}");
}

#[test]
fn nothing_that_another_patch_uses_is_touched() {
    let mut code = filler(30);
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    for taken in 90..97 {
        let occupied = [GuestRange::of_len(BASE.wrapping_offset(taken), 1)];
        let hints = Hints { function: known(98), occupied: &occupied, ..Hints::default() };
        let (one, _, _) = blockers(plan_of(&code, &hints));
        assert!(matches!(one, Blocker::Occupied { .. }), "{taken}: {one:?}");
    }
}

#[test]
fn what_is_read_as_data_is_not_changed() {
    let mut code = filler(30);
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    let data = [BASE.wrapping_offset(91)];
    let (one, _, _) =
        blockers(plan_of(&code, &Hints { function: known(98), data: &data, ..Hints::default() }));
    assert_eq!(one, Blocker::ReadAsData { offset: -4 });
}

#[test]
fn a_known_target_in_the_middle_forbids_and_one_behind_is_reported() {
    let mut code = filler(30);
    code.extend([0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0xc3]);
    for (target, expected) in [(90, Ok(None)), (91, Err(())), (94, Err(())), (95, Ok(Some(0)))] {
        let targets = [BASE.wrapping_offset(target)];
        let planned = plan_of(
            &code,
            &Hints { function: known(98), targets: &targets, targets_complete: true, ..Hints::default() },
        );
        match expected {
            Ok(late) => assert_eq!(planned.unwrap().late_entry(), late, "{target}"),
            Err(()) => {
                let (one, _, three) = blockers(planned);
                let offset = target as i32 - 95;
                assert_eq!((one, three), (Blocker::BranchInto { offset }, Blocker::BranchInto { offset }));
            }
        }
    }
}

#[test]
fn nops_where_a_function_may_begin_are_no_padding() {
    // A function of `nop5; …` behind another one's return, for every alignment; nothing tells where functions begin.
    for shift in 0..16 {
        let mut code = filler(40);
        code.resize(code.len() + shift, 0xf8);
        code.push(0xc3);
        let nops = code.len();
        code.extend([0x0f, 0x1f, 0x44, 0, 0]);
        code.extend(filler(10));
        code.extend([0x44, 0x89, 0xe0, 0x0f, 0x05, 0xc3]);
        let planned = plan_of(&code, &Hints { site_executed: true, ..Hints::default() });
        let ends_aligned = (nops + 5).is_multiple_of(16);
        assert_eq!(planned.is_ok(), ends_aligned, "shift {shift}: {planned:?}");
        // Inside of a known function they are padding, wherever they are.
        let hints = Hints { site_executed: true, function: known(code.len()), ..Hints::default() };
        assert!(matches!(plan_of(&code, &hints).unwrap().tier(), Tier::Padding { .. }));
    }
}

#[test]
fn nops_behind_ud2_are_not_unreachable() {
    for (leaves, planned) in
        [(&[0x0f, 0x0b][..], false), (&[0xf4], false), (&[0xc3], true), (&[0xeb, 5], true)]
    {
        let mut code = filler(30);
        code.extend(leaves);
        code.extend([0xcc; 5]);
        code.extend([0x0f, 0x05, 0xc3]);
        let hints = Hints { site_executed: true, function: known(code.len()), ..Hints::default() };
        assert_eq!(plan_of(&code, &hints).is_ok(), planned, "{leaves:x?}");
    }
}

#[test]
fn tier_3_wants_to_know_every_jump() {
    let all = || Hints { targets_complete: true, ..Hints::default() };
    let code = [0x48, 0x8b, 0x53, 0x18, 0x8b, 0x03, 0x0f, 0x05, 0xc3];
    let three = |code: &[u8], hints: &Hints<'_>| blockers(plan_of(code, hints)).2;
    assert_eq!(plan_of(&code, &Hints { function: known(9), ..all() }).unwrap().tier().number(), 3);
    let endless = Some(KnownFunction { start: BASE, end: None });
    assert_eq!(three(&code, &Hints { function: endless, ..all() }), Blocker::FunctionUnknown);
    assert_eq!(three(&code, &Hints { function: known(900), ..all() }), Blocker::FunctionUnknown);
    let local = Hints { function: known(9), ..Hints::default() };
    assert_eq!(three(&code, &local), Blocker::TargetsUnknown);
    // An indirect jump behind the site.
    let mut jumps = code[..8].to_vec();
    jumps.extend([0xff, 0xe1]);
    let refused = three(&jumps, &Hints { function: known(10), ..all() });
    assert_eq!(refused, Blocker::UnknownJumps { offset: 2 });
    // A branch to the syscall, which would vanish.
    let code = [0x48, 0x89, 0xda, 0x0f, 0x05, 0xc3];
    let targets = [BASE.wrapping_offset(3)];
    let refused = three(&code, &Hints { function: known(6), targets: &targets, ..all() });
    assert_eq!(refused, Blocker::BranchInto { offset: 0 });
}

#[test]
fn a_site_that_is_no_syscall_is_refused() {
    let window = CodeWindow::new(BASE, &[0x0f, 0x34], BASE).unwrap();
    assert_eq!(plan(&window, &Hints::default()), Err(Refusal::NotSyscall));
}

/// glibc's `__read_nocancel`: in front of it lies a function that ends in a call that never returns, and padding. The
/// padding would be a fine place for a jump that nobody executes.
#[test]
fn padding_in_front_of_a_function_is_not_replaced_where_there_is_better() {
    let mut code = filler(29);
    code.extend([0xe8, 0xe8, 0xb0, 0x01, 0x00]); // call __stack_chk_fail
    code.extend([0x66, 0x90]); //                    up to a multiple of 8
    assert_eq!(code.len() % 16, 14);
    code.extend([0x0f, 0x1f, 0x80, 0, 0, 0, 0, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0, 0x66, 0x90]); // nops
    assert_eq!(code.len() % 16, 0);
    code.extend([0x31, 0xc0, 0x0f, 0x05]); //        xor eax, eax; syscall
    code.extend([0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0xc3]); // cmp, ret
    code.extend([0x0f, 0x1f, 0x44, 0x00, 0x00]); //  padding up to the next function
    assert_eq!(code.len() % 16, 0);
    code.extend(filler(8));
    let plan = plan_of(&code, &Hints { site_executed: true, ..Hints::default() }).expect("a plan");
    assert_eq!(plan.tier().number(), 2, "{plan:?}");
}
