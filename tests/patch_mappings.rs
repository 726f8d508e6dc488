//! Patches and the mappings that hold them: shared text, moves, changes of protection, mappings over trampolines, sites
//! that lose half of themselves; and no change of any byte where patching is off.

#[path = "common/patch_guest.rs"]
mod patch_guest;
#[path = "common/patch_lab.rs"]
mod patch_lab;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use patch_guest::{CODE, LEAD, at, functions, guest, guest_in, mappings, round, trampolines};
use patch_lab::{bytes_at, first_difference, platform, put_code};
use systrap::{PAGE_SIZE, Patching, Protection, Sharing};

fn memfd(contents: &[u8]) -> File {
    let mut file = File::from(memfd_create("patch-test", MFdFlags::empty()).expect("a memfd"));
    file.write_all(contents).expect("room");
    file
}

fn file_contents(file: &File, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut contents = vec![0; len];
    file.read_exact_at(&mut contents, 0).expect("readable");
    contents
}

#[test]
fn a_shared_text_is_never_patched() {
    let platform = platform(Patching::Lazy);
    let code = functions(5, 1_100);
    let file = memfd(&code);
    let space = platform.new_address_space().expect("an address space");
    let rx = Protection::READ_EXECUTE;
    space.map_file(at(CODE), PAGE_SIZE, file.as_fd(), 0, rx, Sharing::Shared).expect("a mapping");
    let mut context = guest_in(&platform, &space, CODE);
    for _ in 0..5 {
        assert_eq!(round(&mut context, &space, CODE, 5, 1_100), 0);
    }
    assert_eq!((space.patched_sites(), file_contents(&file, code.len())), (0, code.clone()));
    // The same file mapped privately is, and the file does not notice.
    let private = CODE + 0x10_0000;
    space.map_file(at(private), PAGE_SIZE, file.as_fd(), 0, rx, Sharing::Private).expect("a mapping");
    context.pull_full_state().expect("the state");
    context.registers_mut().rip = private;
    assert_eq!(round(&mut context, &space, private, 5, 1_100), 0);
    assert_eq!(round(&mut context, &space, private, 5, 1_100), 5);
    assert_eq!(file_contents(&file, code.len()), code);
    assert_eq!(bytes_at(&space, CODE, code.len()), code);
    // A shared mapping moved over private text is shared still.
    space.remap(at(CODE), PAGE_SIZE, at(private), PAGE_SIZE).expect("a move");
    for _ in 0..3 {
        assert_eq!(round(&mut context, &space, private, 5, 1_100), 0);
    }
    assert_eq!((space.patched_sites(), file_contents(&file, code.len())), (0, code));
}

#[test]
fn text_that_moves_is_restored_and_patched_anew() {
    let platform = platform(Patching::Lazy);
    let code = functions(6, 1_200);
    let (space, mut context) = guest(&platform, &code);
    let mut place = CODE;
    for turn in 1..=20 {
        assert_eq!(round(&mut context, &space, place, 6, 1_200), 0);
        assert_eq!(round(&mut context, &space, place, 6, 1_200), 6);
        // Near and far.
        let next = if turn % 2 == 0 { CODE + turn * 0x1_0000 } else { 0x1234_0000_0000 + turn * 0x1_0000 };
        space.remap(at(place), PAGE_SIZE, at(next), PAGE_SIZE).expect("a move");
        place = next;
        assert_eq!((space.patched_sites(), bytes_at(&space, place, code.len())), (0, code.clone()));
        context.pull_full_state().expect("the state");
        context.registers_mut().rip = place;
    }
}

#[test]
fn the_guest_maps_over_trampolines() {
    let platform = platform(Patching::Lazy);
    let code = functions(6, 1_300);
    let (space, mut context) = guest(&platform, &code);
    for turn in 0..10 {
        assert_eq!(round(&mut context, &space, CODE, 6, 1_300), 0);
        assert_eq!(round(&mut context, &space, CODE, 6, 1_300), 6);
        let blocks = trampolines(&space);
        assert_eq!(blocks.len(), 1);
        let (block, len) = blocks[0];
        if turn % 2 == 0 {
            space
                .map_anonymous(at(block + len - PAGE_SIZE), PAGE_SIZE, Protection::READ_WRITE)
                .expect("a mapping");
            assert_eq!(bytes_at(&space, block + len - PAGE_SIZE, 8), [0; 8]);
        } else {
            space.unmap(at(block), len).expect("an unmapping");
        }
        assert_eq!(bytes_at(&space, CODE, code.len()), code);
    }
}

/// A site whose bytes lie in two pages loses one of them.
#[test]
fn half_of_a_straddling_site_is_unmapped() {
    let platform = platform(Patching::Lazy);
    // mov eax, imm32 begins one to four bytes in front of the page's end.
    for inside in 1..=4 {
        for lost in [0, PAGE_SIZE] {
            let before = PAGE_SIZE as usize - LEAD - 15 - inside;
            let mut code = vec![0x90; before];
            code.extend(functions(2, 1_400));
            let (space, mut context) = guest(&platform, &code);
            let start = CODE + before as u64;
            context.registers_mut().rip = start;
            round(&mut context, &space, start, 2, 1_400);
            assert_eq!(round(&mut context, &space, start, 2, 1_400), 2);
            space.unmap(at(CODE + lost), PAGE_SIZE).expect("an unmapping");
            let kept = if lost == 0 { PAGE_SIZE as usize..code.len() } else { 0..PAGE_SIZE as usize };
            let found = bytes_at(&space, CODE + kept.start as u64, kept.len());
            let known_sites = space.patched_sites();
            space.roll_back_patches();
            let rolled_back = bytes_at(&space, CODE + kept.start as u64, kept.len());
            assert_eq!(
                first_difference(&rolled_back, &code[kept.clone()]),
                None,
                "{inside} bytes, {lost:#x} lost"
            );
            // The second function lies in the second page and may stay as it is.
            assert!(known_sites == u64::from(lost == 0), "{known_sites} sites, {found:x?}");
            let (page, len) = patch_lab::pages(CODE, code.len());
            put_code(&space, page, &code);
            assert_eq!(len, 2 * PAGE_SIZE);
            assert_eq!(round(&mut context, &space, start, 2, 1_400), 0);
            assert_eq!(round(&mut context, &space, start, 2, 1_400), 2);
        }
    }
}

#[test]
fn with_patching_off_no_byte_of_the_guest_changes() {
    let code = functions(50, 1_500);
    for by_option in [true, false] {
        let platform = platform(if by_option { Patching::Off } else { Patching::Lazy });
        let file = memfd(&code);
        let space = platform.new_address_space().expect("an address space");
        space.set_patching(Patching::Off);
        let rx = Protection::READ_EXECUTE;
        space.map_file(at(CODE), PAGE_SIZE, file.as_fd(), 0, rx, Sharing::Private).expect("a mapping");
        let mut context = guest_in(&platform, &space, CODE);
        let mapped = mappings(&space);
        for _ in 0..10 {
            assert_eq!(round(&mut context, &space, CODE, 50, 1_500), 0);
            assert_eq!(bytes_at(&space, CODE, code.len()), file_contents(&file, code.len()));
        }
        assert_eq!((space.patched_sites(), trampolines(&space)), (0, vec![]));
        assert_eq!(mappings(&space), mapped, "and nothing is mapped");
        // Nobody ever wrote to the private pages: none of them is a copy.
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", space.pid())).expect("smaps");
        let text = smaps.split("patch-test").nth(1).expect("the mapping of the file");
        let copied = text.lines().find(|line| line.starts_with("Anonymous:")).expect("a count");
        assert_eq!(copied.split_whitespace().nth(1), Some("0"), "{copied}");
    }
}

/// What may not be written to cannot be restored later: a roll-back in between must not leave a jump to nowhere.
#[test]
fn text_that_is_not_executable_for_a_while() {
    let platform = platform(Patching::Lazy);
    let code = functions(4, 1_600);
    let (space, mut context) = guest(&platform, &code);
    let read_execute = Protection::READ_EXECUTE;
    for (turn, between) in
        [Protection::NONE, Protection::READ, read_execute].into_iter().cycle().take(9).enumerate()
    {
        round(&mut context, &space, CODE, 4, 1_600);
        assert_eq!(round(&mut context, &space, CODE, 4, 1_600), 4, "turn {turn}");
        space.protect(at(CODE), PAGE_SIZE, between).expect("a change of protection");
        if turn % 2 == 0 {
            space.roll_back_patches();
        }
        space.protect(at(CODE), PAGE_SIZE, read_execute).expect("a change of protection");
        let kept = turn % 2 == 1 && between == read_execute;
        assert_eq!(round(&mut context, &space, CODE, 4, 1_600), if kept { 4 } else { 0 }, "turn {turn}");
    }
}

/// A change that the host refuses makes nothing patchable that is not.
#[test]
fn a_refused_change_of_mappings_is_not_believed() {
    let platform = platform(Patching::Lazy);
    let code = functions(4, 1_700);
    let (space, mut context) = guest(&platform, &code);
    let all = Protection { read: true, write: true, execute: true };
    space.protect(at(CODE), PAGE_SIZE, all).expect("a change of protection");
    // A range that ends in nothing, and does not even begin to change on some kernels.
    let file = memfd(&code);
    space.unmap(at(CODE + 2 * PAGE_SIZE), PAGE_SIZE).expect("nothing there");
    let refused =
        space.map_file(at(CODE), PAGE_SIZE, file.as_fd(), 7, Protection::READ_EXECUTE, Sharing::Private);
    assert_eq!(refused.expect_err("an offset within a page").errno(), libc::EINVAL);
    for _ in 0..3 {
        assert_eq!(round(&mut context, &space, CODE, 4, 1_700), 0);
    }
    assert_eq!(space.patched_sites(), 0, "the text is writable still");
    space.write(at(CODE), &code).expect("as the guest itself may write to it");
}
