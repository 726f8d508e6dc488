//! Copies where the host denies process_vm_readv(2): a supervisor that is not dumpable, as an ordinary user. The
//! kernel then answers EPERM as it does under Yama's ptrace_scope 2 and 3.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/small_guest.rs"]
mod small_guest;

use alone::{alone, become_ordinary_user};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use small_guest::{CODE, DATA, counting_code, guest, next_count, peek, poke};
use systrap::{AddressSpace, GuestAddr, Options, PAGE_SIZE, Protection, Systrap};

const PAGE: usize = PAGE_SIZE as usize;
/// Three pages of which the middle one is taken out by some tests.
const AREA: GuestAddr = GuestAddr::new(0x60_0000);

/// Runs `body` in a process that may not look into its stub processes, after having made sure of that.
fn without_rights(name: &str, body: impl FnOnce(&Systrap, &AddressSpace)) {
    alone(name, || {
        become_ordinary_user();
        // SAFETY: takes values only.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }, 0);
        let platform = Systrap::new(Options::new()).expect("a platform");
        let space = platform.new_address_space().expect("an address space");
        space.map_anonymous(AREA, 3 * PAGE_SIZE, Protection::READ_WRITE).expect("mapped");
        let remote = RemoteIoVec { base: AREA.raw() as usize, len: 1 };
        let direct = process_vm_readv(
            Pid::from_raw(space.pid()),
            &mut [std::io::IoSliceMut::new(&mut [0])],
            &[remote],
        );
        assert_eq!(direct, Err(Errno::EPERM), "the host denies it, or this test shows nothing");
        body(&platform, &space);
    });
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn at(offset: u64) -> GuestAddr {
    AREA.checked_add(offset).expect("a small offset")
}

#[test]
fn what_is_written_is_read_back_across_pages_and_at_odd_places() {
    without_rights("what_is_written_is_read_back_across_pages_and_at_odd_places", |_, space| {
        for (offset, len) in
            [(0, 1), (1, 7), (3, 8), (4090, 12), (5, PAGE), (1, 2 * PAGE + 77), (0, 3 * PAGE)]
        {
            let written = pattern(len);
            space.write(at(offset), &written).expect("written");
            let mut read = vec![0; len];
            space.read(at(offset), &mut read).expect("read");
            assert!(read == written, "{len} bytes at {offset}");
        }
        space.read(AREA, &mut []).expect("nothing to copy");
    });
}

/// Everything up to the hole is copied, nothing behind it, and the error says how much that was.
fn assert_stops_at_second_page(space: &AddressSpace, reads: bool, writes: bool) {
    for start in [0_u64, 1, 100, PAGE_SIZE - 1] {
        let reachable = PAGE - start as usize;
        let mut buf = vec![0xee; 2 * PAGE];
        let read = space.read(at(start), &mut buf);
        if reads {
            assert_eq!(read.map_err(|error| error.copied), Err(reachable), "read from {start}");
            assert!(buf[reachable..].iter().all(|byte| *byte == 0xee), "nothing behind the hole");
        }
        if writes {
            let written = space.write(at(start), &vec![9; 2 * PAGE]);
            assert_eq!(written.map_err(|error| error.copied), Err(reachable), "write from {start}");
        }
    }
}

#[test]
fn copies_stop_at_an_unmapped_page() {
    without_rights("copies_stop_at_an_unmapped_page", |_, space| {
        space.unmap(at(PAGE_SIZE), PAGE_SIZE).expect("unmapped");
        assert_stops_at_second_page(space, true, true);
        assert_eq!(space.read(at(PAGE_SIZE), &mut [0; 8]).map_err(|error| error.copied), Err(0));
        assert_eq!(space.write(at(PAGE_SIZE + 8), &[0; 8]).map_err(|error| error.copied), Err(0));
    });
}

#[test]
fn copies_stop_where_the_guest_itself_may_not_go() {
    without_rights("copies_stop_where_the_guest_itself_may_not_go", |_, space| {
        space.protect(at(PAGE_SIZE), PAGE_SIZE, Protection::READ).expect("protected");
        assert_stops_at_second_page(space, false, true);
        space.read(AREA, &mut vec![0; 3 * PAGE]).expect("it is readable");
        space.protect(at(PAGE_SIZE), PAGE_SIZE, Protection::NONE).expect("protected");
        assert_stops_at_second_page(space, true, true);
    });
}

#[test]
fn copies_stop_at_the_end_of_a_file() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::AsFd;
    without_rights("copies_stop_at_the_end_of_a_file", |_, space| {
        let file = std::fs::File::from(memfd_create("short", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(PAGE_SIZE).expect("one page");
        space
            .map_file(AREA, 3 * PAGE_SIZE, file.as_fd(), 0, Protection::READ_WRITE, systrap::Sharing::Shared)
            .expect("mapped");
        // Behind it is SIGBUS.
        assert_stops_at_second_page(space, true, true);
    });
}

#[test]
fn the_stub_is_out_of_reach() {
    without_rights("the_stub_is_out_of_reach", |platform, space| {
        let vdso = platform.vdso().expect("this host has a vdso").base;
        for addr in [vdso, platform.max_user_address(), GuestAddr::new(u64::MAX - 7)] {
            assert_eq!(space.read(addr, &mut [0; 8]).map_err(|error| error.copied), Err(0), "{addr}");
            assert_eq!(space.write(addr, &[0; 8]).map_err(|error| error.copied), Err(0), "{addr}");
        }
    });
}

#[test]
fn guests_run_while_their_memory_is_copied() {
    without_rights("guests_run_while_their_memory_is_copied", |platform, _| {
        let (space, mut context) = guest(platform, &counting_code());
        for count in 1..200 {
            poke(&space, DATA, count * 3);
            assert_eq!(next_count(&mut context, &space, count), count * 3);
            assert_eq!(peek(&space, DATA), count * 3);
        }
        let fork = space.fork().expect("a fork");
        poke(&fork, DATA, 1);
        assert_eq!(peek(&space, DATA), 199 * 3);
        assert!(space.write(CODE, &[0]).is_err(), "the guest's text is not writable for it");
    });
}

#[test]
fn a_dead_stub_process_reads_as_no_memory() {
    without_rights("a_dead_stub_process_reads_as_no_memory", |_, space| {
        space.clone().release().expect("released");
        assert_eq!(space.read(AREA, &mut [0; 8]).map_err(|error| error.copied), Err(0));
        assert_eq!(space.write(AREA, &[0; 8]).map_err(|error| error.copied), Err(0));
    });
}
