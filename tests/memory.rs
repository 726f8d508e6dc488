//! A guest's memory: mappings of files and of nothing, shared and private, protection, removal, moves, advice; and
//! copies in and out that stop exactly where the guest itself could not go on.

mod common {
    pub mod fixture;
    pub mod guest;
}

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use common::fixture::{DATA, Fixture, HOLE};
use common::guest::Guest;
use iced_x86::code_asm::*;
use nix::sys::memfd::{MFdFlags, memfd_create};
use systrap::{
    AccessType, AddressSpace, Advice, CopyError, Event, GuestAddr, MapError, Options, PAGE_SIZE, Protection,
    Sharing, Systrap,
};

const PAGE: usize = PAGE_SIZE as usize;
const BASE: u64 = 0x2000_0000;

fn at(offset: u64) -> GuestAddr {
    GuestAddr::new(BASE + offset)
}

fn space() -> AddressSpace {
    Systrap::new(Options::new()).expect("a platform").new_address_space().expect("an address space")
}

/// An address space with `pages` pages of private memory at [`BASE`].
fn with_pages(pages: u64) -> AddressSpace {
    let space = space();
    space.map_anonymous(at(0), pages * PAGE_SIZE, Protection::READ_WRITE).expect("free memory");
    space
}

fn file_with(contents: &[u8]) -> File {
    let mut file = File::from(memfd_create("memory-test", MFdFlags::empty()).expect("a memfd"));
    file.write_all(contents).expect("room");
    file
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut contents = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("a seekable file");
    file.read_to_end(&mut contents).expect("a readable file");
    contents
}

fn read(space: &AddressSpace, addr: GuestAddr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    space.read(addr, &mut bytes).expect("readable memory");
    bytes
}

/// Stores rsi at [`DATA`] and makes a call with what it finds at `DATA + 8`, again and again.
fn store_and_tell() -> Fixture {
    Fixture::new(|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.mov(qword_ptr(DATA), rsi)?;
        asm.mov(rdi, qword_ptr(DATA + 8))?;
        asm.mov(eax, 500)?;
        asm.syscall()?;
        asm.mov(rsi, rax)?;
        asm.jmp(again)
    })
}

#[test]
fn stores_to_a_shared_file_mapping_are_seen_by_the_other_address_space_and_the_file() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let file = file_with(&[0; 2 * PAGE]);
    let mut one = Guest::on(&platform, &store_and_tell());
    let mut two = Guest::on(&platform, &store_and_tell());
    for guest in [&one, &two] {
        let data = GuestAddr::new(DATA);
        guest
            .space
            .map_file(data, PAGE_SIZE, file.as_fd(), PAGE_SIZE, Protection::READ_WRITE, Sharing::Shared)
            .unwrap();
    }
    one.context.registers_mut().rsi = 0x1111;
    one.call();
    assert_eq!(
        read(&two.space, GuestAddr::new(DATA), 2),
        [0x11, 0x11],
        "a store of the guest, read in the other"
    );
    two.space.write(GuestAddr::new(DATA + 8), &0x2222_u64.to_le_bytes()).expect("writable");
    one.context.set_return(0x3333);
    assert_eq!(one.call().args[0], 0x2222, "a store into the other, read by the guest");
    two.context.registers_mut().rsi = 0x4444;
    assert_eq!(two.call().args[0], 0x2222);
    one.context.set_return(0x5555);
    one.call();
    assert_eq!(contents(&file)[PAGE..PAGE + 2], [0x55, 0x55], "and in the file");
    assert_eq!(contents(&file)[..PAGE], [0; PAGE], "at the offset of the mapping");
}

#[test]
fn stores_to_a_private_file_mapping_stay_in_their_address_space() {
    let file = file_with(&[7; PAGE]);
    let platform = Systrap::new(Options::new()).expect("a platform");
    let spaces = [(); 2].map(|()| platform.new_address_space().expect("an address space"));
    for space in &spaces {
        space
            .map_file(at(0), PAGE_SIZE, file.as_fd(), 0, Protection::READ_WRITE, Sharing::Private)
            .expect("a mapping");
    }
    spaces[0].write(at(5), &[9]).expect("writable");
    assert_eq!(read(&spaces[0], at(4), 3), [7, 9, 7]);
    assert_eq!(read(&spaces[1], at(4), 3), [7, 7, 7]);
    assert_eq!(contents(&file), [7; PAGE]);
    // The file's later changes are seen where nothing was stored.
    let mut writer = &file;
    writer.seek(SeekFrom::Start(0)).and_then(|_| writer.write_all(&[8])).expect("writable");
    assert_eq!(read(&spaces[1], at(0), 1), [8]);
}

#[test]
fn a_shared_mapping_of_a_read_only_file_cannot_be_made_writable() {
    let path = std::env::current_exe().expect("a path");
    let file = File::open(path).expect("readable");
    let space = space();
    let error = space
        .map_file(at(0), PAGE_SIZE, file.as_fd(), 0, Protection::READ_WRITE, Sharing::Shared)
        .expect_err("the descriptor is read-only");
    assert_eq!(error.errno(), libc::EACCES, "{error}");
    space.map_file(at(0), PAGE_SIZE, file.as_fd(), 0, Protection::READ, Sharing::Shared).expect("a mapping");
    assert_eq!(read(&space, at(0), 4), *b"\x7fELF");
    assert_eq!(space.protect(at(0), PAGE_SIZE, Protection::READ_WRITE).unwrap_err().errno(), libc::EACCES);
    assert_eq!(space.write(at(0), &[1]), Err(CopyError { copied: 0 }));
}

#[test]
fn unmap_and_protect_take_effect_for_a_guest_between_two_of_its_instructions() {
    let mut guest = Guest::new(&store_and_tell());
    let data = GuestAddr::new(DATA);
    guest.space.map_anonymous(data, PAGE_SIZE, Protection::READ_WRITE).expect("free memory");
    guest.call();
    guest.space.protect(data, PAGE_SIZE, Protection::READ).expect("a mapping");
    let signal = guest.signal();
    assert_eq!(
        (signal.code, signal.addr, signal.access()),
        (2, data, Some(AccessType::Write)),
        "SEGV_ACCERR"
    );
    guest.space.protect(data, PAGE_SIZE, Protection::READ_WRITE).expect("a mapping");
    guest.call();
    guest.space.unmap(data, PAGE_SIZE).expect("a range");
    let signal = guest.signal();
    assert_eq!(
        (signal.code, signal.addr, signal.access()),
        (1, data, Some(AccessType::Write)),
        "SEGV_MAPERR"
    );
    guest.space.map_anonymous(data, PAGE_SIZE, Protection::READ_WRITE).expect("free memory");
    assert!(matches!(guest.switch(), Event::Syscall(call) if call.args[0] == 0), "new memory is zero");
}

#[test]
fn protect_reports_a_hole_and_unmap_does_not() {
    let space = with_pages(1);
    assert_eq!(space.protect(at(0), 2 * PAGE_SIZE, Protection::READ).unwrap_err().errno(), libc::ENOMEM);
    space.unmap(at(0), 16 * PAGE_SIZE).expect("nothing there is no error");
    space.unmap(at(0), 16 * PAGE_SIZE).expect("nothing there is no error");
}

#[test]
fn a_mapping_replaces_what_is_there() {
    let space = with_pages(3);
    space.write(at(0), &[1; 3 * PAGE]).expect("writable");
    space.map_anonymous(at(PAGE_SIZE), 1, Protection::READ_WRITE).expect("a length is rounded up to a page");
    let bytes = read(&space, at(0), 3 * PAGE);
    assert_eq!(bytes[..PAGE], [1; PAGE]);
    assert_eq!(bytes[PAGE..2 * PAGE], [0; PAGE]);
    assert_eq!(bytes[2 * PAGE..], [1; PAGE]);
}

#[test]
fn remap_grows_shrinks_and_moves() {
    let space = with_pages(2);
    space.write(at(0), &[4; 2 * PAGE]).expect("writable");
    space.remap(at(0), 2 * PAGE_SIZE, at(0), 4 * PAGE_SIZE).expect("room to grow");
    assert_eq!(read(&space, at(0), 2 * PAGE), [4; 2 * PAGE]);
    assert_eq!(read(&space, at(2 * PAGE_SIZE), 2 * PAGE), [0; 2 * PAGE]);
    space.remap(at(0), 4 * PAGE_SIZE, at(0), PAGE_SIZE).expect("shrinking");
    assert_eq!(space.read(at(0), &mut [0; 2 * PAGE]), Err(CopyError { copied: PAGE }));
    space.map_anonymous(at(PAGE_SIZE), PAGE_SIZE, Protection::NONE).expect("free memory");
    assert_eq!(
        space.remap(at(0), PAGE_SIZE, at(0), 2 * PAGE_SIZE).unwrap_err().errno(),
        libc::ENOMEM,
        "no room"
    );
    space.remap(at(0), PAGE_SIZE, at(0x10_0000), 2 * PAGE_SIZE).expect("a move");
    assert_eq!(read(&space, at(0x10_0000), PAGE), [4; PAGE]);
    assert_eq!(space.read(at(0), &mut [0]), Err(CopyError { copied: 0 }), "the old place is free");
    assert_eq!(space.remap(HOLE.into(), PAGE_SIZE, at(0), PAGE_SIZE).unwrap_err().errno(), libc::EFAULT);
}

#[test]
fn advice_is_followed() {
    let space = with_pages(4);
    space.write(at(0), &[6; 4 * PAGE]).expect("writable");
    for advice in [
        Advice::Normal,
        Advice::Random,
        Advice::Sequential,
        Advice::WillNeed,
        Advice::HugePage,
        Advice::NoHugePage,
        Advice::PopulateRead,
        Advice::PopulateWrite,
    ] {
        match space.advise(at(0), 4 * PAGE_SIZE, advice) {
            Ok(()) => {}
            // Huge pages are a build option of the kernel, population is there since 5.14.
            Err(error) => assert_eq!(error.errno(), libc::EINVAL, "{advice:?}: {error}"),
        }
    }
    assert_eq!(read(&space, at(0), 4 * PAGE), [6; 4 * PAGE], "the contents stand");
    space.advise(at(PAGE_SIZE), PAGE_SIZE, Advice::DontNeed).expect("a mapping");
    assert_eq!(read(&space, at(PAGE_SIZE), PAGE), [0; PAGE], "dropped");
    assert_eq!(read(&space, at(2 * PAGE_SIZE), PAGE), [6; PAGE], "and nothing else");
    space.advise(at(0), PAGE_SIZE, Advice::Free).expect("a mapping");
    assert_eq!(space.advise(HOLE.into(), PAGE_SIZE, Advice::DontNeed).unwrap_err().errno(), libc::ENOMEM);
}

#[test]
fn bad_ranges_are_refused_and_harm_nobody() {
    let space = with_pages(1);
    let file = file_with(&[1; PAGE]);
    let max = 0x7700_0000_0000_u64;
    for (addr, len) in [
        (BASE, 0),
        (BASE + 1, PAGE_SIZE),
        (BASE + 0x800, PAGE_SIZE),
        (max, PAGE_SIZE),
        (max - PAGE_SIZE, 2 * PAGE_SIZE),
        (BASE, max),
        (BASE, u64::MAX),
        (BASE, u64::MAX - BASE),
        (1 << 47, PAGE_SIZE),
        (!0xfff, PAGE_SIZE),
        (!0xfff, 2 * PAGE_SIZE),
    ] {
        let to = GuestAddr::new(addr);
        let rw = Protection::READ_WRITE;
        for (what, result) in [
            ("map", space.map_anonymous(to, len, rw)),
            ("map_file", space.map_file(to, len, file.as_fd(), 0, rw, Sharing::Private)),
            ("unmap", space.unmap(to, len)),
            ("protect", space.protect(to, len, rw)),
            ("advise", space.advise(to, len, Advice::DontNeed)),
            ("remap from", space.remap(to, len, at(0x10_0000), PAGE_SIZE)),
            ("remap to", space.remap(at(0), PAGE_SIZE, to, len)),
        ] {
            assert!(
                matches!(result, Err(MapError::BadRange { .. })),
                "{what} {addr:#x}+{len:#x}: {result:?}"
            );
            assert_eq!(result.unwrap_err().errno(), libc::EINVAL);
        }
    }
    let offset = space.map_file(at(0), PAGE_SIZE, file.as_fd(), 1, Protection::READ, Sharing::Private);
    assert_eq!(offset.unwrap_err().errno(), libc::EINVAL, "an offset that is no multiple of a page");
    assert_eq!(read(&space, at(0), 1), [0], "the address space lives and is unchanged");
    assert_eq!(space.stub_exit(), None);
}

#[test]
fn the_lowest_page_cannot_be_mapped() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let min = platform.min_user_address();
    let space = platform.new_address_space().expect("an address space");
    space.map_anonymous(min, PAGE_SIZE, Protection::READ_WRITE).expect("the lowest address there is");
    if min > GuestAddr::NULL {
        let error = space.map_anonymous(GuestAddr::NULL, PAGE_SIZE, Protection::READ_WRITE).unwrap_err();
        assert_eq!(error.errno(), libc::EPERM, "{error}");
    } else {
        println!("NOT RUN: vm.mmap_min_addr is 0 here, so that page 0 can be mapped");
    }
}

/// Longer than one host call of the stub may name.
#[test]
fn ranges_of_many_tebibytes_work_in_parts() {
    let space = with_pages(1);
    let (start, len) = (GuestAddr::new(0x1000_0000_0000), 0x2000_0000_0000_u64);
    space.map_anonymous(start, len, Protection::NONE).expect("nothing of it is touched");
    let late = GuestAddr::new(0x2fff_ffff_f000);
    space.protect(late, PAGE_SIZE, Protection::READ_WRITE).expect("it is mapped to its end");
    space.write(late, &[3]).expect("writable");
    let moved = space.remap(start, len, GuestAddr::new(0x4000_0000_0000), len);
    assert_eq!(moved.unwrap_err().errno(), libc::ENOMEM, "a move that long is refused");
    assert_eq!(space.stub_exit(), None, "and kills nobody");
    space.unmap(GuestAddr::new(0x1_0000), 0x7700_0000_0000 - 0x1_0000).expect("everything");
    for gone in [at(0), late] {
        assert_eq!(space.read(gone, &mut [0]), Err(CopyError { copied: 0 }));
    }
}

/// More than the leader's answers have sequence numbers.
#[test]
fn mappings_change_thousands_of_times() {
    let space = with_pages(1);
    for turn in 0..3_000 {
        let prot = if turn % 2 == 0 { Protection::READ } else { Protection::READ_WRITE };
        space.protect(at(0), PAGE_SIZE, prot).unwrap_or_else(|error| panic!("change {turn}: {error}"));
    }
}
