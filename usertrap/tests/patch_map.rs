//! The books of an address space: what is remembered, given back, restored and refused.

mod support;

use support::memory::{Blocks, Guest};
use usertrap::*;

const SYSHANDLER: SyshandlerAddr = SyshandlerAddr::new(0x7f00_0000_0000);
const BASE: u64 = 0x40_0000;

/// mov eax, imm; syscall; ret; then padding up to 16 bytes.
fn wrapper(number: u32) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    code.extend([0x0f, 0x05, 0xc3, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]);
    code
}

/// `n` wrappers, 16 bytes apart.
fn guest(n: u32) -> Guest {
    Guest { base: GuestAddr::new(BASE), bytes: (0..n).flat_map(wrapper).collect() }
}

fn site(i: u64) -> GuestAddr {
    GuestAddr::new(BASE + 16 * i + 5)
}

/// Plans as a caller does: on a window of the original bytes.
fn plan_at(map: &PatchMap, guest: &Guest, site: GuestAddr) -> (Plan, Vec<u8>, GuestAddr) {
    let start = GuestAddr::new((site.raw() - 128).max(BASE));
    let from = offset_in_guest(start);
    let mut bytes = guest.bytes[from..(from + 320).min(guest.bytes.len())].to_vec();
    map.overlay_original(start, &mut bytes);
    let window = CodeWindow::new(start, &bytes, site).unwrap();
    let function =
        KnownFunction { start: GuestAddr::new(site.raw() - 5), end: Some(site.wrapping_offset(3)) };
    let occupied = map.occupied_near(site);
    let hints =
        Hints { site_executed: true, function: Some(function), occupied: &occupied, ..Hints::default() };
    (plan(&window, &hints).unwrap(), bytes, start)
}

fn offset_in_guest(at: GuestAddr) -> usize {
    (at.raw() - BASE) as usize
}

fn patch(
    map: &mut PatchMap,
    guest: &mut Guest,
    site: GuestAddr,
    mode: WriteMode,
    memory: &mut Blocks,
) -> Result<Installation, InstallError<std::convert::Infallible>> {
    let (plan, bytes, start) = plan_at(map, guest, site);
    let window = CodeWindow::new(start, &bytes, site).unwrap();
    let made = map.prepare(&plan, &window, SYSHANDLER, mode, memory)?;
    guest.make_all(&made.steps);
    assert!(map.commit(site));
    Ok(made)
}

#[test]
fn five_thousand_sites_are_patched_and_all_memory_comes_back() {
    let mut guest = guest(5_000);
    let original = guest.clone();
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    for i in 0..5_000 {
        patch(&mut map, &mut guest, site(i), WriteMode::Atomic, &mut memory).unwrap();
    }
    assert_eq!(map.len(), 5_000);
    assert!(map.trampoline_bytes() <= 5_000 * 64 + 64 * 1024, "{}", map.trampoline_bytes());
    for removal in map.remove_all(WriteMode::Atomic) {
        guest.make_all(&removal.steps);
    }
    guest.make_all(&map.reclaim(&mut memory));
    assert_eq!((guest, memory.live.len(), map.trampoline_bytes()), (original, 0, 0));
}

#[test]
fn mapping_patching_and_unmapping_does_not_grow() {
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    for _ in 0..10_000 {
        let mut guest = guest(2);
        patch(&mut map, &mut guest, site(1), WriteMode::Breakpoint, &mut memory).unwrap();
        map.refuse(site(0), Refusal::NotSyscall);
        let range = GuestRange::of_len(GuestAddr::new(BASE), 4096);
        let gone = map.invalidate(range, Loss::Unmapped, WriteMode::Atomic);
        assert!(gone.removals.iter().all(|r| r.steps.is_empty()), "stores to unmapped memory: {gone:?}");
        map.reclaim(&mut memory);
        assert!(map.is_empty() && map.trampoline_bytes() == 0 && memory.live.is_empty());
        assert_eq!(map.refusal(site(0)), None);
        assert_eq!(map.own_breakpoint(site(1).wrapping_offset(-4)), None);
    }
}

#[test]
fn caps_hold_and_eviction_makes_room() {
    let limits = Limits { max_sites: 10, max_trampoline_bytes: 8192, max_refusals: 16 };
    let mut guest = guest(1_000);
    let (mut map, mut memory) = (PatchMap::new(limits), Blocks::default());
    for i in 0..1_000 {
        match patch(&mut map, &mut guest, site(i), WriteMode::Atomic, &mut memory) {
            Ok(_) => {}
            Err(InstallError::TooManySites) => {
                let oldest = map.evict_oldest(WriteMode::Atomic).expect("something to evict");
                assert_eq!(oldest.site, site(i - 10), "the oldest goes first");
                guest.make_all(&oldest.steps);
                map.reclaim(&mut memory);
                patch(&mut map, &mut guest, site(i), WriteMode::Atomic, &mut memory).unwrap();
            }
            Err(other) => panic!("{other:?}"),
        }
        map.refuse(GuestAddr::new(i), Refusal::NotSyscall);
        assert!(map.len() <= 10 && map.trampoline_bytes() <= 8192);
    }
    let kept = (0..1_000).filter(|i| map.refusal(GuestAddr::new(*i)).is_some()).count();
    assert_eq!(kept, 16);
}

#[test]
fn retired_trampolines_count_until_they_are_reclaimed() {
    let limits = Limits { max_trampoline_bytes: 4096, ..Limits::default() };
    let mut guest = guest(2);
    let (mut map, mut memory) = (PatchMap::new(limits), Blocks::default());
    let full = (0..1000).find_map(|_| {
        let made = patch(&mut map, &mut guest, site(1), WriteMode::Atomic, &mut memory);
        let removal = map.remove(site(1), WriteMode::Atomic);
        removal.iter().for_each(|r| guest.make_all(&r.steps));
        made.err()
    });
    assert_eq!(full, Some(InstallError::Arena(ArenaError::Full { max_bytes: 4096 })));
    map.reclaim(&mut memory);
    patch(&mut map, &mut guest, site(1), WriteMode::Atomic, &mut memory).unwrap();
}

#[test]
fn the_race_of_two_first_calls_is_harmless() {
    let guest = guest(4);
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let (plan, _, _) = plan_at(&map, &guest, site(2));
    let window = CodeWindow::new(guest.base, &guest.bytes, site(2)).unwrap();
    let mut prepare = || map.prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut memory);
    prepare().unwrap();
    assert_eq!(prepare().unwrap_err(), InstallError::AlreadyPatched);
    assert_eq!(map.len(), 1);
}

#[test]
fn changed_bytes_are_not_patched() {
    let mut guest = guest(4);
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let (plan, _, _) = plan_at(&map, &guest, site(2));
    guest.bytes[33] = 7; // the number in the mov
    let window = CodeWindow::new(guest.base, &guest.bytes, site(2)).unwrap();
    let made = map.prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut memory);
    assert_eq!(made.unwrap_err(), InstallError::BytesChanged);
    assert_eq!(memory.given, 0);
}

#[test]
fn a_cancelled_patch_leaves_nothing() {
    let guest = guest(4);
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let (plan, _, _) = plan_at(&map, &guest, site(2));
    let window = CodeWindow::new(guest.base, &guest.bytes, site(2)).unwrap();
    map.prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut memory).unwrap();
    assert_eq!(map.fork().unwrap_err().site, site(2));
    assert_eq!(map.evict_oldest(WriteMode::Atomic), None, "a patch being written is not evicted");
    assert!(map.cancel(site(2), &mut memory));
    assert!(!map.cancel(site(2), &mut memory) && !map.commit(site(2)));
    assert!(map.is_empty() && memory.live.is_empty());
}

#[test]
fn memory_that_was_never_executed_needs_no_barrier() {
    let guest = guest(4);
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let window = |n| CodeWindow::new(guest.base, &guest.bytes, site(n)).unwrap();
    let plan = |map: &PatchMap, n| plan_at(map, &guest, site(n)).0;
    // The first keeps the block; the second is given up before anything executes it, the third takes its place.
    let first = plan(&map, 1);
    map.prepare(&first, &window(1), SYSHANDLER, WriteMode::Atomic, &mut memory).unwrap();
    let second = plan(&map, 2);
    let given_up = map.prepare(&second, &window(2), SYSHANDLER, WriteMode::Atomic, &mut memory).unwrap();
    assert!(map.cancel(site(2), &mut memory));
    let again = map.prepare(&second, &window(2), SYSHANDLER, WriteMode::Atomic, &mut memory).unwrap();
    assert_eq!(again.trampoline.at(), given_up.trampoline.at());
    assert!(!again.steps.contains(&Step::Barrier), "{:?}", again.steps);
}

#[test]
fn parent_and_forked_child_go_on_apart() {
    let mut parent_guest = guest(4);
    let (mut parent, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let made = patch(&mut parent, &mut parent_guest, site(1), WriteMode::Atomic, &mut memory).unwrap();
    let (mut child, mut child_guest) = (parent.fork().unwrap(), parent_guest.clone());
    let mut child_memory = Blocks::default();
    child_memory.live.clone_from(&memory.live);
    // The child's trampoline is where the parent's is.
    assert_eq!(child.locate(made.trampoline.at().as_rip()), parent.locate(made.trampoline.at().as_rip()));
    patch(&mut child, &mut child_guest, site(2), WriteMode::Atomic, &mut child_memory).unwrap();
    assert_eq!((parent.len(), child.len()), (1, 2));
    for removal in child.remove_all(WriteMode::Atomic) {
        child_guest.make_all(&removal.steps);
    }
    child.reclaim(&mut child_memory);
    assert!(child_memory.live.is_empty());
    assert_eq!(child_guest, guest(4));
    assert_ne!(parent_guest, guest(4));
    assert!(parent.find(site(1)).is_some());
}

#[test]
fn a_patch_half_unmapped_is_restored_in_the_other_half() {
    // The mov lies across a page: two bytes in front, three behind.
    let base = GuestAddr::new(BASE + 0xfee);
    let mut code: Vec<u8> = [0x48, 0x89, 0xf7].repeat(5);
    code.push(0x57);
    code.extend(wrapper(39));
    let original = Guest { base, bytes: code };
    let site = base.wrapping_offset(16 + 5);
    let function = KnownFunction { start: base, end: None };
    let hints = Hints { site_executed: true, function: Some(function), ..Hints::default() };
    let pages = [BASE, BASE + 0x1000].map(|p| GuestRange::of_len(GuestAddr::new(p), 0x1000));
    for gone in pages {
        let mut guest = original.clone();
        let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
        let window = CodeWindow::new(base, &original.bytes, site).unwrap();
        let plan = plan(&window, &hints).unwrap();
        let refused = map.prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut memory);
        assert_eq!(refused.unwrap_err(), InstallError::WrongMode, "it straddles");
        assert!(memory.live.is_empty());
        let made = map.prepare(&plan, &window, SYSHANDLER, WriteMode::Breakpoint, &mut memory).unwrap();
        guest.make_all(&made.steps);
        map.commit(site);
        let done = map.invalidate(gone, Loss::Unmapped, WriteMode::Atomic);
        for step in done.removals.iter().flat_map(|r| &r.steps) {
            let Step::Bytes { addr, .. } = step else { panic!("{step:?}") };
            assert!(!gone.contains(*addr), "a store into the unmapped page");
            guest.make(step);
        }
        for (i, byte) in guest.bytes.iter().enumerate() {
            let at = base.wrapping_offset(i as i64);
            assert!(gone.contains(at) || *byte == original.bytes[i], "{at} is not restored");
        }
        assert!(map.is_empty());
    }
}

/// xor eax, eax at a loop head, with int3 padding in front: tier 2.
fn padded() -> (Guest, GuestAddr, Hints<'static>) {
    let base = GuestAddr::new(BASE);
    let mut code = vec![0x85, 0xff, 0x75, 0x06, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc];
    code.extend([0x0f, 0x05, 0xc3, 0x53, 0x53, 0x53]);
    let function = KnownFunction { start: base, end: None };
    let hints = Hints { site_executed: true, function: Some(function), ..Hints::default() };
    (Guest { base, bytes: code }, base.wrapping_offset(10), hints)
}

#[test]
fn padding_is_restored_only_when_nobody_can_be_there() {
    let (original, site, hints) = padded();
    for (loss, mode) in [(Loss::Restored, WriteMode::Atomic), (Loss::Restored, WriteMode::Breakpoint)] {
        let mut guest = original.clone();
        let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
        let window = CodeWindow::new(original.base, &original.bytes, site).unwrap();
        let plan = plan(&window, &hints).unwrap();
        assert!(matches!(plan.tier(), Tier::Padding { offset: -5, kind: Padding::Breakpoints }), "{plan:?}");
        let made = map.prepare(&plan, &window, SYSHANDLER, mode, &mut memory).unwrap();
        // The padding is complete, and everyone has seen it, before the site leads there.
        assert!(matches!(&made.steps[1], Step::Bytes { new, .. } if new.len() == JUMP_LEN));
        assert_eq!(made.steps[2], Step::Barrier);
        guest.make_all(&made.steps);
        map.commit(site);
        let padding = plan.padding(site).unwrap().start;
        assert!(!map.is_retired(padding));
        let done = map.invalidate(GuestRange::of_len(original.base, 4096), loss, mode);
        done.removals.iter().for_each(|r| guest.make_all(&r.steps));
        assert_eq!(guest.bytes[10..12], [0x0f, 0x05], "the site is restored at once");
        assert_eq!(guest.bytes[5], 0xe9, "a thread may stand here still");
        assert!(map.is_retired(made.trampoline.at().as_rip()));
        assert!(map.is_retired(padding), "known until everyone has left");
        assert_eq!(map.locate(padding), RipMeaning::Ours(GuestPosition::At(site)));
        guest.make_all(&done.when_left);
        assert_eq!(guest, original);
        assert!(map.reclaim(&mut memory).is_empty());
        assert!(memory.live.is_empty());
        assert_eq!(map.locate(padding), RipMeaning::Guest);
    }
}

#[test]
fn a_breakpoint_of_ours_is_known_until_reclaimed() {
    let (original, site, hints) = padded();
    let mut guest = original.clone();
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let window = CodeWindow::new(original.base, &original.bytes, site).unwrap();
    let plan = plan(&window, &hints).unwrap();
    assert_eq!(map.own_breakpoint(site.wrapping_offset(1)), None);
    let made = map.prepare(&plan, &window, SYSHANDLER, WriteMode::Breakpoint, &mut memory).unwrap();
    assert_eq!(map.own_breakpoint(site.wrapping_offset(1)), Some(site));
    guest.make_all(&made.steps);
    map.commit(site);
    assert_eq!(map.own_breakpoint(site.wrapping_offset(1)), Some(site), "a late SIGTRAP");
    map.remove(site, WriteMode::Atomic).iter().for_each(|r| guest.make_all(&r.steps));
    assert_eq!(map.own_breakpoint(site.wrapping_offset(1)), Some(site));
    guest.make_all(&map.reclaim(&mut memory));
    assert_eq!((map.own_breakpoint(site.wrapping_offset(1)), guest), (None, original));
}

#[test]
fn two_patches_in_one_word_keep_each_other() {
    // Sites whose movs share aligned words: 7 bytes apart.
    let base = GuestAddr::new(BASE);
    let code: Vec<u8> = (0..40).flat_map(|n| [0xb8, n, 0, 0, 0, 0x0f, 0x05]).collect();
    let original = Guest { base, bytes: code };
    let mut guest = original.clone();
    let function = KnownFunction { start: base, end: None };
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let sites: Vec<GuestAddr> = (0..40).map(|i| base.wrapping_offset(7 * i + 5)).collect();
    let mut atomic = 0;
    for site in &sites {
        let window = CodeWindow::new(base, &original.bytes, *site).unwrap();
        let occupied = map.occupied_near(*site);
        let hints = Hints { function: Some(function), occupied: &occupied, ..Hints::default() };
        let plan = plan(&window, &hints).unwrap();
        let made = map
            .prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut memory)
            .inspect(|_| atomic += 1)
            .or_else(|_| map.prepare(&plan, &window, SYSHANDLER, WriteMode::Breakpoint, &mut memory));
        guest.make_all(&made.unwrap().steps);
        map.commit(*site);
    }
    assert!(atomic >= 10, "{atomic}");
    for (i, site) in sites.iter().enumerate().rev().filter(|(i, _)| i % 2 == 0) {
        let removal = map.remove(*site, WriteMode::Atomic).unwrap();
        guest.make_all(&removal.steps);
        assert_eq!(guest.bytes[7 * i..7 * i + 7], original.bytes[7 * i..7 * i + 7]);
    }
    map.remove_all(WriteMode::Atomic).iter().for_each(|r| guest.make_all(&r.steps));
    assert_eq!(guest, original);
}

#[test]
fn memory_in_the_wrong_place_is_given_back() {
    struct Far(Vec<TrampolineAddr>);
    impl TrampolineMemory for Far {
        type Error = &'static str;
        fn allocate(&mut self, _: usize, _: Reach) -> Result<TrampolineAddr, Self::Error> {
            self.0.push(TrampolineAddr::new(0x7fff_0000_0000));
            Ok(TrampolineAddr::new(0x7fff_0000_0000))
        }
        fn free(&mut self, at: TrampolineAddr, _: usize) {
            assert_eq!(self.0.pop(), Some(at));
        }
    }
    struct NoMemory;
    impl TrampolineMemory for NoMemory {
        type Error = &'static str;
        fn allocate(&mut self, _: usize, _: Reach) -> Result<TrampolineAddr, Self::Error> {
            Err("no room")
        }
        fn free(&mut self, _: TrampolineAddr, _: usize) {}
    }
    let guest = guest(4);
    let mut map = PatchMap::new(Limits::default());
    let (plan, _, _) = plan_at(&map, &guest, site(2));
    let window = CodeWindow::new(guest.base, &guest.bytes, site(2)).unwrap();
    let mut far = Far(vec![]);
    let made = map.prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut far);
    assert!(matches!(made, Err(InstallError::Arena(ArenaError::Misplaced { .. }))));
    assert!(far.0.is_empty());
    let made = map.prepare(&plan, &window, SYSHANDLER, WriteMode::Atomic, &mut NoMemory);
    assert_eq!(made.unwrap_err(), InstallError::Arena(ArenaError::Memory("no room")));
    assert!(map.is_empty());
}

#[test]
fn the_plan_cache_serves_any_load_address_and_stays_small() {
    let mut cache = PlanCache::new(100);
    let guest = guest(4);
    let map = PatchMap::new(Limits::default());
    let file = |offset| FileSite { device: 1, inode: 2, size_bytes: 3, mtime_ns: 4, offset };
    let (plan, _, _) = plan_at(&map, &guest, site(2));
    cache.insert(file(0), Ok(std::sync::Arc::new(plan.clone())));
    for i in 1..10_000 {
        assert!(cache.get(&file(0)).is_some());
        cache.insert(file(i), Err(Refusal::NotSyscall));
        assert!(cache.len() <= 100);
    }
    assert_eq!(cache.get(&FileSite { inode: 5, ..file(0) }), None);
    // The same file mapped elsewhere.
    let elsewhere = GuestAddr::new(0x7f55_5555_0000);
    let moved = elsewhere.wrapping_offset(2 * 16 + 5);
    let window = CodeWindow::new(elsewhere, &guest.bytes, moved).unwrap();
    let cached = cache.get(&file(0)).unwrap().unwrap();
    assert!(cached.matches(&window));
    let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
    let made = map.prepare(&cached, &window, SYSHANDLER, WriteMode::Atomic, &mut memory).unwrap();
    assert_eq!(
        made.trampoline.guest_position(made.trampoline.at().as_rip()).unwrap(),
        GuestPosition::At(moved.wrapping_offset(-5))
    );
}
