//! Copies to and from guest memory stop exactly where the guest itself could not go on: by the host's process_vm
//! calls, and by the stub's own hand where the host denies those.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use systrap::{AddressSpace, CopyError, GuestAddr, Options, PAGE_SIZE, Protection, Sharing, Systrap};

const PAGE: usize = PAGE_SIZE as usize;
const BASE: u64 = 0x2000_0000;
const HOLE: u64 = 0x1400_0000;

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

fn read(space: &AddressSpace, addr: GuestAddr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    space.read(addr, &mut bytes).expect("readable memory");
    bytes
}

/// Runs a test as it is, and again in a thread to which process_vm_readv(2) and process_vm_writev(2) are denied, as
/// Yama's `ptrace_scope` 2 and 3 do.
fn both_ways(test: fn()) {
    test();
    let denied = [libc::SYS_process_vm_readv, libc::SYS_process_vm_writev].map(|nr| (nr, Vec::new()));
    let filter = SeccompFilter::new(
        denied.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        TargetArch::x86_64,
    );
    let program = BpfProgram::try_from(filter.expect("a filter")).expect("a program");
    let denied = thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("seccomp");
        let remote = nix::sys::uio::RemoteIoVec { base: 0, len: 1 };
        let attempt = nix::sys::uio::process_vm_readv(nix::unistd::getpid(), &mut [], &[remote]);
        assert_eq!(attempt, Err(nix::errno::Errno::EPERM), "the calls are denied");
        test();
    });
    if let Err(panic) = denied.join() {
        println!("where process_vm calls are denied:");
        std::panic::resume_unwind(panic);
    }
}

fn three_page_file() -> File {
    let mut file = File::from(memfd_create("copies-test", MFdFlags::empty()).expect("a memfd"));
    file.write_all(&[5; 3 * PAGE]).expect("room");
    file
}

/// A copy of any length from any offset before a boundary moves exactly the bytes before the boundary.
fn assert_stops_at(space: &AddressSpace, boundary: u64, readable: bool, what: &str) {
    for before in [0_u64, 1, 7, 8, 100, 4095, 4096, 4097, 5000, 2 * PAGE_SIZE] {
        for behind in [1_usize, 8, 100, PAGE, PAGE + 1, 5 * PAGE] {
            let start = GuestAddr::new(boundary - before);
            let mut buf = vec![0xee; before as usize + behind];
            if !readable {
                let result = space.read(start, &mut buf);
                assert_eq!(
                    result,
                    Err(CopyError { copied: before as usize }),
                    "read {before}+{behind}, {what}"
                );
                assert!(
                    buf[before as usize..].iter().all(|&byte| byte == 0xee),
                    "the rest is untouched, {what}"
                );
            }
            let result = space.write(start, &vec![0x33; before as usize + behind]);
            assert_eq!(result, Err(CopyError { copied: before as usize }), "write {before}+{behind}, {what}");
            assert_eq!(read(space, start, before as usize), vec![0x33; before as usize], "{what}");
        }
    }
}

#[test]
fn copies_stop_at_a_hole() {
    both_ways(|| {
        let space = with_pages(9);
        space.unmap(at(3 * PAGE_SIZE), PAGE_SIZE).expect("a range");
        assert_stops_at(&space, BASE + 3 * PAGE_SIZE, false, "a hole");
        assert_eq!(
            read(&space, at(4 * PAGE_SIZE), 5 * PAGE),
            [0; 5 * PAGE],
            "nothing behind the hole was written"
        );
        assert_eq!(
            space.write(at(3 * PAGE_SIZE), &[1; 2 * PAGE]),
            Err(CopyError { copied: 0 }),
            "from within it"
        );
    });
}

#[test]
fn copies_stop_at_a_page_without_access() {
    both_ways(|| {
        let space = with_pages(9);
        space.protect(at(3 * PAGE_SIZE), PAGE_SIZE, Protection::NONE).expect("a mapping");
        assert_stops_at(&space, BASE + 3 * PAGE_SIZE, false, "a page without access");
    });
}

#[test]
fn writes_stop_at_a_read_only_page_that_reads_pass() {
    both_ways(|| {
        let space = with_pages(9);
        space.protect(at(3 * PAGE_SIZE), PAGE_SIZE, Protection::READ).expect("a mapping");
        assert_stops_at(&space, BASE + 3 * PAGE_SIZE, true, "a read-only page");
        assert_eq!(read(&space, at(3 * PAGE_SIZE), PAGE), [0; PAGE], "it is unchanged");
        assert_eq!(read(&space, at(0), 9 * PAGE).len(), 9 * PAGE);
    });
}

#[test]
fn copies_stop_behind_the_end_of_a_mapped_file() {
    both_ways(|| {
        let space = space();
        let file = three_page_file();
        space
            .map_file(at(0), 8 * PAGE_SIZE, file.as_fd(), 0, Protection::READ_WRITE, Sharing::Private)
            .expect("a mapping may be longer than its file");
        assert_stops_at(&space, BASE + 3 * PAGE_SIZE, false, "the end of a file");
    });
}

#[test]
fn copies_stop_at_the_end_of_the_guests_addresses() {
    both_ways(|| {
        let platform = Systrap::new(Options::new()).expect("a platform");
        let space = platform.new_address_space().expect("an address space");
        let end = platform.max_user_address().raw();
        space
            .map_anonymous(GuestAddr::new(end - 4 * PAGE_SIZE), 4 * PAGE_SIZE, Protection::READ_WRITE)
            .expect("the last pages");
        assert_stops_at(&space, end, false, "the end of the address space");
        let stub = platform.vdso().map_or(end, |vdso| vdso.start.raw());
        for beyond in [end, stub, 0x7fff_ffff_f000, 1 << 47, 1 << 63, u64::MAX - 7, u64::MAX] {
            let beyond = GuestAddr::new(beyond);
            assert_eq!(space.read(beyond, &mut [0; 8]), Err(CopyError { copied: 0 }), "{beyond}");
            assert_eq!(space.write(beyond, &[0; 8]), Err(CopyError { copied: 0 }), "{beyond}");
        }
    });
}

#[test]
fn a_copy_of_nothing_succeeds_anywhere() {
    both_ways(|| {
        let space = with_pages(1);
        for addr in [0, BASE, BASE + 1, HOLE, 1 << 47, u64::MAX] {
            assert_eq!(space.read(addr.into(), &mut []), Ok(()), "{addr:#x}");
            assert_eq!(space.write(addr.into(), &[]), Ok(()), "{addr:#x}");
        }
    });
}

#[test]
fn large_copies_arrive_whole() {
    both_ways(|| {
        let len = 20 << 20;
        let space = with_pages(len / PAGE_SIZE + 1);
        let bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        space.write(at(3), &bytes).expect("writable");
        assert!(read(&space, at(3), bytes.len()) == bytes, "what was written is read");
    });
}
