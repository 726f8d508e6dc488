//! Address spaces: what a fork shares and what not, and that nothing of them stays behind.

#[path = "common/alone.rs"]
mod alone;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use alone::{Holdings, alone, eventually};
use nix::sys::memfd::{MFdFlags, memfd_create};
use small_guest::{DATA, counting_code, guest, next_count, peek, poke};
use systrap::{AddressSpace, GuestAddr, Options, PAGE_SIZE, Protection, Sharing, StubExit, Systrap};

const FILE: GuestAddr = GuestAddr::new(0x60_0000);
const LIMIT: Duration = Duration::from_secs(10);

fn platform() -> Systrap {
    Systrap::new(Options::new()).expect("a platform")
}

fn shared_file() -> File {
    let file = File::from(memfd_create("shared", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(PAGE_SIZE).expect("a page");
    file
}

fn map(space: &AddressSpace, file: &File, prot: Protection, sharing: Sharing) {
    space.map_file(FILE, PAGE_SIZE, file.as_fd(), 0, prot, sharing).expect("the file is mapped");
}

#[test]
fn fork_isolates_memory_both_ways() {
    let platform = platform();
    let (parent, _context) = guest(&platform, &counting_code());
    poke(&parent, DATA, 1);
    let child = parent.fork().expect("a fork");
    assert_eq!(peek(&child, DATA), 1, "the child has the parent's memory");
    poke(&child, DATA, 2);
    assert_eq!(peek(&parent, DATA), 1, "the child's store does not reach the parent");
    poke(&parent, DATA, 3);
    assert_eq!(peek(&child, DATA), 2, "the parent's store does not reach the child");
}

#[test]
fn fork_isolates_mappings_both_ways() {
    let platform = platform();
    let (parent, _context) = guest(&platform, &counting_code());
    let child = parent.fork().expect("a fork");
    parent.unmap(DATA, PAGE_SIZE).expect("unmapped");
    assert_eq!(peek(&child, DATA), 0, "the child's mapping stays");
    child.map_anonymous(FILE, PAGE_SIZE, Protection::READ_WRITE).expect("mapped");
    poke(&child, FILE, 1);
    assert!(parent.read(FILE, &mut [0]).is_err(), "the child's new mapping is not the parent's");
    assert!(parent.read(DATA, &mut [0]).is_err(), "the parent's mapping is gone");
}

#[test]
fn guests_of_a_fork_run_on_with_their_own_memory() {
    let platform = platform();
    let (parent, mut context) = guest(&platform, &counting_code());
    poke(&parent, DATA, 100);
    assert_eq!(next_count(&mut context, &parent, 1), 100);
    let child = parent.fork().expect("a fork");
    context.pull_full_state().expect("the stub process lives");
    let mut child_context = context.duplicate().expect("a context");
    poke(&child, DATA, 200);
    for count in 2..20 {
        assert_eq!(next_count(&mut context, &parent, count), 100);
        assert_eq!(next_count(&mut child_context, &child, count), 200);
    }
}

#[test]
fn forks_of_forks_are_isolated_from_each_other() {
    let platform = platform();
    let (first, _context) = guest(&platform, &counting_code());
    poke(&first, DATA, 1);
    let mut spaces = vec![first];
    for generation in 2..=8_u64 {
        let fork = spaces[spaces.len() - 1].fork().expect("a fork of a fork");
        assert_eq!(peek(&fork, DATA), generation - 1, "inherited");
        poke(&fork, DATA, generation);
        spaces.push(fork);
    }
    // The middle of the chain may go; its descendants stay.
    let middle = spaces.remove(3);
    middle.release().expect("released");
    for (space, expected) in spaces.iter().zip([1, 2, 3, 5, 6, 7, 8]) {
        assert_eq!(peek(space, DATA), expected);
        let mut context = small_guest::start(&platform);
        assert_eq!(next_count(&mut context, space, 1), expected, "a guest in it sees the same");
    }
}

#[test]
fn shared_file_mappings_stay_shared_in_a_fork_and_private_ones_do_not() {
    let platform = platform();
    let (parent, _context) = guest(&platform, &counting_code());
    let mut file = shared_file();
    map(&parent, &file, Protection::READ_WRITE, Sharing::Shared);
    let child = parent.fork().expect("a fork");
    poke(&child, FILE, 7);
    assert_eq!(peek(&parent, FILE), 7, "child to parent");
    poke(&parent, FILE, 8);
    assert_eq!(peek(&child, FILE), 8, "parent to child");
    let other = platform.new_address_space().expect("an address space");
    map(&other, &file, Protection::READ, Sharing::Shared);
    assert_eq!(peek(&other, FILE), 8, "and to an address space that is no relative");
    let mut word = [0; 8];
    file.rewind().expect("rewound");
    file.read_exact(&mut word).expect("read");
    assert_eq!(u64::from_le_bytes(word), 8, "and to the file");

    map(&child, &file, Protection::READ_WRITE, Sharing::Private);
    let grandchild = child.fork().expect("a fork");
    poke(&grandchild, FILE, 9);
    assert_eq!([&parent, &child, &grandchild].map(|space| peek(space, FILE)), [8, 8, 9]);
}

/// Guest threads store and call all the time while their address space is forked again and again.
#[test]
fn an_address_space_is_forked_while_its_threads_run() {
    let platform = platform();
    let code = small_guest::assemble(|a| {
        use iced_x86::code_asm::{eax, ecx, qword_ptr, r12, rax};
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        (|| {
            a.set_label(&mut again)?;
            a.mov(ecx, 2_000)?;
            a.mov(rax, DATA.raw())?;
            a.set_label(&mut inner)?;
            a.inc(r12)?;
            a.mov(qword_ptr(rax), r12)?;
            a.dec(ecx)?;
            a.jne(inner)?;
            a.mov(eax, 1000)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    });
    let (space, _context) = guest(&platform, &code);
    let stop = AtomicBool::new(false);
    let calls = thread::scope(|scope| {
        let threads = [(); 2].map(|()| {
            scope.spawn(|| {
                let mut context = small_guest::start(&platform);
                let mut calls = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    small_guest::next_call(&mut context, &space);
                    calls += 1;
                }
                calls
            })
        });
        eventually("the guests store", LIMIT, || peek(&space, DATA) != 0);
        for _ in 0..50 {
            let fork = space.fork().expect("a fork");
            let frozen = peek(&fork, DATA);
            assert!(frozen > 0, "the fork has what was stored before");
            // What the threads store from now on is not in it, and none of them runs in it.
            let before = peek(&space, DATA);
            eventually("the guests go on", LIMIT, || peek(&space, DATA) != before);
            assert_eq!(peek(&fork, DATA), frozen);
            small_guest::next_call(&mut small_guest::start(&platform), &fork);
            assert_eq!(peek(&fork, DATA), 2_000, "one turn of a guest of its own");
        }
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().expect("the supervising thread ended"))
    });
    assert!(calls.iter().all(|calls| *calls > 0), "both guests ran: {calls:?}");
}

#[test]
fn a_released_address_space_is_dead_and_says_so() {
    let platform = platform();
    let (space, mut context) = guest(&platform, &counting_code());
    next_count(&mut context, &space, 1);
    let other_handle = space.clone();
    space.release().expect("released");
    assert_eq!(other_handle.stub_exit(), Some(StubExit::Signal(libc::SIGKILL)));
    assert!(context.switch(&other_handle).is_err());
    assert!(other_handle.fork().is_err());
    assert!(other_handle.map_anonymous(DATA, PAGE_SIZE, Protection::READ).is_err());
    assert_eq!(other_handle.read(DATA, &mut [0]).map_err(|error| error.copied), Err(0));
}

/// Settles what is only made at the first use: a thread's stack that the allocator caches, its arena.
fn warm_up(platform: &Systrap) {
    for _ in 0..3 {
        let (space, mut context) = guest(platform, &counting_code());
        next_count(&mut context, &space, 1);
        let fork = space.fork().expect("a fork");
        fork.release().expect("released");
    }
    eventually("the warm-up's processes are gone", LIMIT, || platform.stub_process_count() == 1);
}

#[test]
fn a_thousand_address_spaces_leave_nothing_behind() {
    alone("a_thousand_address_spaces_leave_nothing_behind", || {
        let platform = platform();
        warm_up(&platform);
        let before = Holdings::now();
        let mappings = alone::mapping_count();
        assert_eq!(before.children.len(), 1, "the template is the only stub process: there is no pool");
        let mut waiting = Vec::new();
        for number in 0..1_000 {
            let (space, mut context) = guest(&platform, &counting_code());
            if number % 4 == 0 {
                next_count(&mut context, &space, 1);
            }
            let space = if number % 8 == 0 { space.fork().expect("a fork") } else { space };
            match number % 3 {
                0 => space.release().expect("released"),
                1 => drop(space),
                // Some live at the same time as others.
                _ => waiting.push((space, context)),
            }
            if waiting.len() == 20 {
                waiting.clear();
            }
        }
        drop(waiting);
        eventually("1,000 address spaces are gone", LIMIT, || Holdings::now() == before);
        assert_eq!(platform.stub_process_count(), 1);
        let grown = alone::mapping_count().saturating_sub(mappings);
        assert!(grown < 20, "{grown} more mappings than before 1,000 address spaces");
    });
}

#[test]
fn a_platform_leaves_nothing_behind() {
    alone("a_platform_leaves_nothing_behind", || {
        let one_life = || {
            let platform = platform();
            let (space, mut context) = guest(&platform, &counting_code());
            next_count(&mut context, &space, 1);
            let fork = space.fork().expect("a fork");
            // Handles may go in any order; the platform's own first, here.
            drop(platform);
            next_count(&mut context, &space, 2);
            drop((fork, context));
            drop(space);
        };
        one_life();
        let before = Holdings::now();
        assert_eq!(
            before.children,
            Vec::<i32>::new(),
            "dropping the last handle waits for the stub processes"
        );
        let mappings = alone::mapping_count();
        for _ in 0..50 {
            one_life();
            assert_eq!(Holdings::now(), before);
        }
        let grown = alone::mapping_count().saturating_sub(mappings);
        assert!(grown < 5, "{grown} more mappings than before 50 platforms");
    });
}
