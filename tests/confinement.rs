//! A supervisor that confines itself with `syscall_filters()`, any other call being death, and then does everything
//! that a supervisor does.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use small_guest::{DATA, counting_code, endless_code, guest, next_count, peek, poke, start};
use systrap::{
    Context, Event, GuestAddr, Options, PAGE_SIZE, Patching, Protection, Sharing, Systrap, seccomp,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn only_if(arg: u8, value: i32) -> SeccompRule {
    let (len, value) = (SeccompCmpArgLen::Dword, u64::from(value as u32));
    let condition = SeccompCondition::new(arg, len, SeccompCmpOp::Eq, value).expect("a condition");
    SeccompRule::new(vec![condition]).expect("a rule")
}

/// What this test needs besides the platform: the allocator, its threads, and what it prints.
fn needs_of_the_test() -> Rules {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let any = Vec::new;
    BTreeMap::from([
        // The C library's allocator: its heap, its arenas, large pieces.
        (libc::SYS_brk, any()),
        (
            libc::SYS_mmap,
            vec![
                only_if(3, private),
                only_if(3, private | libc::MAP_NORESERVE),
                only_if(3, private | libc::MAP_STACK),
            ],
        ),
        (libc::SYS_munmap, any()),
        (libc::SYS_mremap, any()),
        (libc::SYS_mprotect, any()),
        // The standard library's start of a thread.
        (libc::SYS_clone3, any()),
        (libc::SYS_set_robust_list, any()),
        (libc::SYS_rseq, any()),
        (libc::SYS_prctl, vec![only_if(0, libc::PR_SET_NAME)]),
        (libc::SYS_gettid, any()),
        (libc::SYS_sched_getaffinity, any()),
        (libc::SYS_sigaltstack, any()),
        (libc::SYS_rt_sigprocmask, any()),
        // What it prints, and its end.
        (libc::SYS_write, vec![only_if(0, 1), only_if(0, 2)]),
        (libc::SYS_exit_group, any()),
    ])
}

/// Confines all threads of this process.
fn confine(platforms: &[&Systrap]) {
    let mut rules = needs_of_the_test();
    for (nr, more) in platforms.iter().flat_map(|platform| platform.syscall_filters()) {
        match rules.get_mut(&nr) {
            // No rules at all admit all arguments.
            Some(known) if known.is_empty() => {}
            Some(known) if more.is_empty() => known.clear(),
            Some(known) => known.extend(more),
            None => drop(rules.insert(nr, more)),
        }
    }
    let (mismatch, matched) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64).expect("a filter");
    let program = BpfProgram::try_from(filter).expect("the filter compiles");
    seccompiler::apply_filter_all_threads(&program).expect("the filter is installed");
}

/// Runs `body` in a process of its own that it is to confine; the process ends with 0 right behind it, for the
/// harness would need more calls than the platform.
fn confined(name: &str, body: impl FnOnce()) {
    if alone::role().is_some() {
        body();
        println!("CONFINED AND DONE");
        std::process::exit(0);
    }
    let output = alone::command(name, "confined").output().expect("the test binary can be started again");
    alone::print(&output);
    assert!(output.status.success(), "{name} in its own process: {}", output.status);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("CONFINED AND DONE"), "{name} is a test that ran to its end");
}

fn interrupt_soon(context: &mut Context, space: &systrap::AddressSpace) {
    let interrupter = context.interrupter();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(3));
        interrupter.interrupt();
    });
    assert_eq!(context.switch(space).expect("the stub process lives"), Event::Interrupted);
    thread.join().expect("the interrupting thread ended");
    context.pull_full_state().expect("the stub process lives");
}

/// Everything that a supervisor does with a platform.
fn everything(platform: &Systrap, file: &std::fs::File) {
    use std::os::fd::AsFd;
    assert!(platform.min_user_address() < platform.max_user_address());
    let (space, mut context) = guest(platform, &counting_code());
    for count in 1..50 {
        next_count(&mut context, &space, count);
    }
    // Mappings of all kinds, and copies with and without holes.
    let area = GuestAddr::new(0x60_0000);
    let shared = (Protection::READ_WRITE, Sharing::Shared);
    space.map_file(area, PAGE_SIZE, file.as_fd(), 0, shared.0, shared.1).expect("a file is mapped");
    poke(&space, area, 99);
    space.protect(area, PAGE_SIZE, Protection::READ).expect("protected");
    assert!(space.write(area, &[0]).is_err());
    space.unmap(area, PAGE_SIZE).expect("unmapped");
    assert!(space.read(area, &mut [0]).is_err());
    // Forks, and guests in them.
    poke(&space, DATA, 7);
    let fork = space.fork().expect("a fork").fork().expect("a fork of a fork");
    assert_eq!(peek(&fork, DATA), 7);
    let mut in_fork = start(platform);
    assert_eq!(next_count(&mut in_fork, &fork, 1), 7);
    // Sleep, interrupts, moves, more stub threads than slots exist at first.
    context.prepare_sleep();
    thread::sleep(Duration::from_millis(2));
    let (endless, mut runner) = guest(platform, &endless_code());
    for _ in 0..3 {
        interrupt_soon(&mut runner, &endless);
    }
    let mut crowd: Vec<_> = (0..40).map(|_| start(platform)).collect();
    for context in &mut crowd {
        next_count(context, &space, 1);
    }
    context.release().expect("released");
    next_count(&mut context, &fork, 50);
    // Deaths: a guest that ends its own process is killed by release, another by its last handle.
    platform.global_memory_barrier().expect("a barrier");
    space.release().expect("released");
    assert!(crowd[0].switch(&fork).is_err(), "its state was lost with its stub process");
    drop((crowd, fork, in_fork, context));
    interrupt_soon(&mut runner, &endless);
    for _ in 0..50 {
        drop(guest(platform, &counting_code()));
    }
}

fn memfd() -> std::fs::File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = std::fs::File::from(memfd_create("shared", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(PAGE_SIZE).expect("one page");
    file
}

#[test]
fn a_confined_supervisor_does_everything_and_ends_normally() {
    confined("a_confined_supervisor_does_everything_and_ends_normally", || {
        let file = memfd();
        let platform = Systrap::new(Options::new().co_location(true)).expect("a platform");
        confine(&[&platform]);
        everything(&platform, &file);
        assert!(platform.stats().calls > 0);
        drop(platform);
    });
}

#[test]
fn code_is_mapped_and_its_file_scanned_in_confinement() {
    confined("code_is_mapped_and_its_file_scanned_in_confinement", || {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/sites/windows.elf");
        let file = std::fs::File::open(path).expect("the fixture is there");
        let platform = Systrap::new(Options::new().patching(Patching::Eager)).expect("a platform");
        confine(&[&platform]);
        let space = platform.new_address_space().expect("an address space");
        let (prot, fd) = (Protection::READ_EXECUTE, std::os::fd::AsFd::as_fd(&file));
        space
            .map_file(GuestAddr::new(0x40_0000), 2 * PAGE_SIZE, fd, 0, prot, Sharing::Private)
            .expect("mapped");
        assert!(space.patched_sites() > 0);
    });
}

#[test]
fn address_spaces_made_before_the_confinement_go_on() {
    confined("address_spaces_made_before_the_confinement_go_on", || {
        let file = memfd();
        let platform = Systrap::new(Options::new()).expect("a platform");
        let (space, mut context) = guest(&platform, &counting_code());
        next_count(&mut context, &space, 1);
        confine(&[&platform]);
        next_count(&mut context, &space, 2);
        everything(&platform, &file);
        next_count(&mut context, &space, 3);
    });
}

#[test]
fn two_platforms_share_a_confinement() {
    confined("two_platforms_share_a_confinement", || {
        let file = memfd();
        let platforms = [(); 2].map(|()| Systrap::new(Options::new()).expect("a platform"));
        confine(&[&platforms[0], &platforms[1]]);
        for platform in platforms {
            everything(&platform, &file);
        }
    });
}

/// The child ends with SIGSYS at `call`, which no row admits.
fn is_killed_at(name: &str, call: impl FnOnce(&Systrap)) {
    if alone::role().is_some() {
        let platform = Systrap::new(Options::new()).expect("a platform");
        confine(&[&platform]);
        println!("CONFINED");
        call(&platform);
        println!("ALIVE");
        std::process::exit(0);
    }
    let output = alone::command(name, "confined").output().expect("the test binary can be started again");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("CONFINED") && !stdout.contains("ALIVE"), "{stdout}");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{}", output.status);
}

#[test]
fn a_confined_supervisor_is_killed_at_another_call() {
    is_killed_at("a_confined_supervisor_is_killed_at_another_call", |_| {
        drop(std::fs::File::open("/dev/null"));
    });
}

#[test]
fn a_confined_supervisor_is_killed_at_other_arguments() {
    is_killed_at("a_confined_supervisor_is_killed_at_other_arguments", |platform| {
        let space = platform.new_address_space().expect("an address space");
        // A thread's signal, but not the one that interrupts guests.
        // SAFETY: takes values only.
        unsafe { libc::syscall(libc::SYS_tgkill, space.pid(), space.pid(), libc::SIGKILL) };
    });
}

#[test]
fn every_row_says_what_it_is_for() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let rows = seccomp::supervisor_rows(&platform);
    for row in &rows {
        assert!(!row.why.is_empty(), "{row}");
        println!("{row}");
    }
    let filters = platform.syscall_filters();
    assert!(rows.iter().all(|row| filters.contains_key(&row.nr)), "every row is in the filter");
    // What would make the list worthless is not in it.
    for nr in [libc::SYS_execve, libc::SYS_openat, libc::SYS_ptrace, libc::SYS_clone, libc::SYS_socket] {
        assert!(!filters.contains_key(&nr), "call {nr} is admitted");
    }
}
