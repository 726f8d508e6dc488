//! Hosts that lack something: the error says which thing and what to do, nothing leaks, nothing panics, and the
//! platform works again when there is enough.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::collections::BTreeMap;
use std::time::Duration;

use alone::{Holdings, alone, become_ordinary_user, eventually};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use small_guest::{counting_code, guest, next_count, start};
use systrap::{Error, Options, Patching, Systrap};

const LIMIT: Duration = Duration::from_secs(10);

fn limit(resource: libc::__rlimit_resource_t, soft: u64) {
    let mut limits = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes the structure given.
    let results = unsafe {
        let got = libc::getrlimit64(resource, &raw mut limits);
        limits.rlim_cur = soft.min(limits.rlim_max);
        (got, libc::setrlimit64(resource, &raw const limits))
    };
    assert_eq!(results, (0, 0), "the limit can be set");
}

fn unlimit(resource: libc::__rlimit_resource_t) {
    limit(resource, u64::MAX);
}

fn open_descriptors() -> u64 {
    // Without the one that lists them.
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count() as u64 - 1
}

fn assert_says(error: &Error, words: &[&str]) {
    let text = error.to_string();
    println!("{text}");
    for word in words {
        assert!(text.contains(word), "the message has to say \"{word}\": {text}");
    }
}

/// A guest runs in a new platform: whatever was missing is there now, and nothing is left of earlier failures.
fn works() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, mut context) = guest(&platform, &counting_code());
    next_count(&mut context, &space, 1);
    next_count(&mut start(&platform), &space.fork().expect("a fork"), 1);
}

/// Tries to make a platform with ever more of something, from nothing to enough. Every failure has to say one of
/// `words`; each has to leave nothing.
fn make_with_more_and_more(words: &[&str], steps: impl Iterator<Item = u64>, set: impl Fn(u64)) {
    works();
    let before = Holdings::now();
    let mut failures = 0;
    for step in steps {
        set(step);
        let made = Systrap::new(Options::new());
        set(u64::MAX);
        match made {
            Ok(platform) => drop(platform),
            Err(error) => {
                failures += 1;
                let text = error.to_string();
                println!("{step}: {text}");
                assert!(words.iter().any(|word| text.contains(word)), "with {step}: {text}");
            }
        }
        assert_eq!(Holdings::now(), before, "with {step}");
    }
    assert!(failures > 0, "it was never short");
    works();
}

#[test]
fn too_few_open_files_for_a_platform() {
    alone("too_few_open_files_for_a_platform", || {
        let used = open_descriptors();
        make_with_more_and_more(&["ulimit -n"], used..used + 12, |count| limit(libc::RLIMIT_NOFILE, count));
    });
}

#[test]
fn too_few_open_files_for_another_address_space() {
    alone("too_few_open_files_for_another_address_space", || {
        let platform = Systrap::new(Options::new()).expect("a platform");
        let (first, mut context) = guest(&platform, &counting_code());
        next_count(&mut context, &first, 1);
        let before = Holdings::now();
        for spare in 0..6 {
            limit(libc::RLIMIT_NOFILE, open_descriptors() + spare);
            let mut made = Vec::new();
            let error = loop {
                match if made.len() % 2 == 0 { platform.new_address_space() } else { first.fork() } {
                    Ok(space) => made.push(space),
                    Err(error) => break error,
                }
                assert!(made.len() < 10, "the limit holds");
            };
            assert_says(&error, &["Too many open files", "ulimit -n"]);
            // Trying on and on does not fill the host with processes that nobody knows.
            for _ in 0..20 {
                assert!(platform.new_address_space().is_err());
            }
            next_count(&mut context, &first, 2 + spare);
            assert_eq!(platform.stub_process_count(), 2 + made.len());
            drop(made);
            unlimit(libc::RLIMIT_NOFILE);
            eventually("everything is given back", LIMIT, || Holdings::now() == before);
        }
        next_count(&mut context, &first, 8);
        drop(guest(&platform, &counting_code()));
    });
}

/// Takes a user id of this process alone, so that only its processes are counted. False for an ordinary user, who
/// cannot do so and whose other processes count as well.
fn become_a_user_of_its_own() -> bool {
    // SAFETY: takes values only.
    if unsafe { libc::geteuid() } != 0 {
        return false;
    }
    let id = 2_000_000_000 + std::process::id();
    // SAFETY: takes values only.
    assert_eq!(unsafe { (libc::setresgid(id, id, id), libc::setresuid(id, id, id)) }, (0, 0));
    true
}

/// Sets how many processes and threads their user may have for the processes `pids` to make another.
fn limit_processes(pids: &[i32], soft: u64) {
    for pid in pids {
        let mut limits = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: reads and writes the structure given.
        let results = unsafe {
            let got = libc::prlimit64(*pid, libc::RLIMIT_NPROC, std::ptr::null(), &raw mut limits);
            limits.rlim_cur = soft.min(limits.rlim_max);
            (got, libc::prlimit64(*pid, libc::RLIMIT_NPROC, &raw const limits, std::ptr::null_mut()))
        };
        assert_eq!(results, (0, 0), "the limit of stub process {pid} can be set");
    }
}

#[test]
fn too_many_processes_of_an_ordinary_user() {
    alone("too_many_processes_of_an_ordinary_user", || {
        let alone_with_its_id = become_a_user_of_its_own();
        let words = ["ulimit -u"];
        if alone_with_its_id {
            // The threads of this process count as well.
            make_with_more_and_more(&words, 0..6, |count| limit(libc::RLIMIT_NPROC, count));
        } else {
            eprintln!(
                "NOT RUN: making a platform with too few processes: an ordinary user's others count too"
            );
        }
        // The patcher would have read the code through a thread of its own, which the pool keeps.
        let options = Options::new().patching(Patching::Off);
        let platform = Systrap::new(options).expect("a platform");
        let (space, mut context) = guest(&platform, &counting_code());
        next_count(&mut context, &space, 1);
        let before = Holdings::now();
        // A limit is inherited when a process is cloned; those that are here have theirs already.
        let stubs = alone::children();
        limit_processes(&stubs, 1);
        assert_says(&platform.new_address_space().expect_err("no process more"), &words);
        assert_says(&space.fork().expect_err("no process more"), &words);
        // More often than an address space has room for threads.
        for _ in 0..4_100 {
            let error = start(&platform).switch(&space).expect_err("no thread more");
            assert!(error.to_string().contains(words[0]), "{error}");
        }
        next_count(&mut context, &space, 2);
        eventually("nothing is left", LIMIT, || Holdings::now() == before);
        limit_processes(&stubs, 1_000);
        next_count(&mut start(&platform), &space, 1);
    });
}

#[test]
fn too_little_address_space() {
    alone("too_little_address_space", || {
        const MIB: u64 = 1 << 20;
        let sizes = [64, 96, 128, 200, 300, 350, 400, 500, 600, 700, 800].map(|size| size * MIB);
        make_with_more_and_more(&["ulimit -v"], sizes.into_iter(), |size| limit(libc::RLIMIT_AS, size));
        let platform = Systrap::new(Options::new()).expect("a platform");
        let before = Holdings::now();
        limit(libc::RLIMIT_AS, 1500 * MIB);
        let mut made = Vec::new();
        let error = loop {
            match platform.new_address_space() {
                Ok(space) => made.push(space),
                Err(error) => break error,
            }
            assert!(made.len() < 10, "the limit holds");
        };
        assert_says(&error, &["ulimit -v"]);
        drop(made);
        unlimit(libc::RLIMIT_AS);
        eventually("everything is given back", LIMIT, || Holdings::now() == before);
        drop(guest(&platform, &counting_code()));
    });
}

/// Denies host calls to this process and its children, as a container's profile does.
fn deny(calls: &[i64], errno: i32) {
    let rules: BTreeMap<_, _> = calls.iter().map(|nr| (*nr, Vec::new())).collect();
    let (allow, error) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
    let filter = SeccompFilter::new(rules, allow, error, TargetArch::x86_64).expect("a filter");
    let program = BpfProgram::try_from(filter).expect("the filter compiles");
    seccompiler::apply_filter_all_threads(&program).expect("the filter is installed");
}

/// `Systrap::new` where a call is denied, by each errno that a profile may give.
fn denied(name: &str, call: i64, words: &'static [&'static str]) {
    alone(name, || {
        works();
        let before = Holdings::now();
        for errno in [libc::EPERM, libc::ENOSYS] {
            // The filter that comes last decides between two errnos.
            deny(&[call], errno);
            for _ in 0..3 {
                let error = Systrap::new(Options::new()).expect_err("it cannot do without");
                assert_says(&error, words);
                assert_eq!(Holdings::now(), before);
            }
        }
    });
}

macro_rules! denied {
    ($($name:ident: $call:ident, $words:expr;)*) => {$(
        #[test]
        fn $name() {
            denied(stringify!($name), libc::$call, &$words);
        }
    )*};
}

// seccomp(2) has a test of its own: where it is denied no second filter can be installed.
denied! {
    memfd_create_denied: SYS_memfd_create, ["memfd_create", "seccomp"];
    pidfd_open_denied: SYS_pidfd_open, ["pidfd_open", "profile"];
    futex_waitv_denied: SYS_futex_waitv, ["futex_waitv", "Linux 5.16"];
    epoll_denied: SYS_epoll_create1, ["epoll_create", "seccomp"];
    eventfd_denied: SYS_eventfd2, ["eventfd", "seccomp"];
    epoll_ctl_denied: SYS_epoll_ctl, ["epoll_ctl", "seccomp"];
    clone_denied: SYS_clone, ["forking the template", "seccomp"];
    capset_denied: SYS_capset, ["capset", "seccomp", "profile"];
}

#[test]
fn seccomp_denied() {
    alone("seccomp_denied", || {
        works();
        let before = Holdings::now();
        deny(&[libc::SYS_seccomp], libc::EPERM);
        for _ in 0..3 {
            let error = Systrap::new(Options::new()).expect_err("it cannot do without");
            assert_says(&error, &["seccomp filters", "CONFIG_SECCOMP_FILTER", "profile"]);
            assert_eq!(Holdings::now(), before);
        }
    });
}

#[test]
fn copies_go_on_where_process_vm_calls_are_denied() {
    alone("copies_go_on_where_process_vm_calls_are_denied", || {
        deny(&[libc::SYS_process_vm_readv, libc::SYS_process_vm_writev], libc::ENOSYS);
        works();
    });
}

#[test]
fn an_ordinary_user_needs_no_privilege() {
    alone("an_ordinary_user_needs_no_privilege", || {
        become_ordinary_user();
        works();
    });
}
