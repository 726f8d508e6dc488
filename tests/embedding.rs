//! The library inside a program that has its own children, signal handlers and threads.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use alone::{alone, eventually};
use small_guest::{DATA, counting_code, guest, next_count, peek, poke, start};
use systrap::{Error, Event, Options, SwitchError, Systrap};

const LIMIT: Duration = Duration::from_secs(10);

fn platform() -> Systrap {
    Systrap::new(Options::new()).expect("a platform")
}

/// A guest that made a call in it, and its fork, come and go; one more is killed from outside.
fn live_and_die(platform: &Systrap) {
    let (space, mut context) = guest(platform, &counting_code());
    next_count(&mut context, &space, 1);
    space.fork().expect("a fork").release().expect("released");
    let killed = space.fork().expect("a fork");
    // SAFETY: takes values only.
    assert_eq!(unsafe { libc::kill(killed.pid(), libc::SIGKILL) }, 0);
    eventually("the death is noticed", LIMIT, || killed.stub_exit().is_some());
    space.release().expect("released");
}

fn wait_for_any(options: i32) -> Result<i32, i32> {
    // SAFETY: no status is asked for.
    match unsafe { libc::waitpid(-1, std::ptr::null_mut(), options) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        pid => Ok(pid),
    }
}

#[test]
#[allow(clippy::zombie_processes, reason = "they are waited for by waitpid")]
fn the_embedder_waits_for_its_own_children_only() {
    alone("the_embedder_waits_for_its_own_children_only", || {
        let platform = platform();
        let (space, _context) = guest(&platform, &counting_code());
        assert_eq!(wait_for_any(libc::WNOHANG), Err(libc::ECHILD), "stub processes are not waited for");
        let own = Command::new("true").spawn().expect("a child").id() as i32;
        live_and_die(&platform);
        assert_eq!(wait_for_any(0), Ok(own), "the embedder's own child, and nothing else");
        assert_eq!(wait_for_any(0), Err(libc::ECHILD));
        drop(space);
        let sleeper = Command::new("sleep").arg("100").spawn().expect("a child");
        drop((platform, _context));
        assert_eq!(wait_for_any(libc::WNOHANG), Ok(0), "the embedder's child survives the platform");
        // SAFETY: takes values only.
        assert_eq!(unsafe { libc::kill(sleeper.id() as i32, libc::SIGTERM) }, 0);
        assert_eq!(wait_for_any(0), Ok(sleeper.id() as i32));
    });
}

static CHILD_SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_child_signal(_: i32) {
    CHILD_SIGNALS.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn the_embedders_child_signal_handler_hears_of_its_own_children_only() {
    alone("the_embedders_child_signal_handler_hears_of_its_own_children_only", || {
        let handler = count_child_signal as extern "C" fn(i32);
        // SAFETY: the handler only adds to an atomic.
        unsafe { libc::signal(libc::SIGCHLD, handler as libc::sighandler_t) };
        let platform = platform();
        for _ in 0..20 {
            live_and_die(&platform);
        }
        drop(platform);
        assert_eq!(CHILD_SIGNALS.load(Ordering::SeqCst), 0, "stub processes raise no SIGCHLD");
        assert!(Command::new("true").status().expect("a child").success());
        eventually("the own child is heard of", LIMIT, || CHILD_SIGNALS.load(Ordering::SeqCst) == 1);
        // SAFETY: as above; reads the action back.
        let still = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        assert_eq!(still, handler as libc::sighandler_t, "the handler is the embedder's");
    });
}

#[test]
fn a_reaper_of_all_children_does_no_harm() {
    alone("a_reaper_of_all_children_does_no_harm", || {
        let platform = platform();
        let stop = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while stop.load(Ordering::Relaxed) == 0 {
                    let _ = wait_for_any(libc::WNOHANG | libc::__WALL);
                }
            });
            for _ in 0..50 {
                live_and_die(&platform);
            }
            stop.store(1, Ordering::Relaxed);
        });
        let (space, mut context) = guest(&platform, &counting_code());
        next_count(&mut context, &space, 1);
    });
}

#[test]
fn signal_mask_and_dispositions_of_the_embedder_are_as_before() {
    alone("signal_mask_and_dispositions_of_the_embedder_are_as_before", || {
        let status = || {
            let text = std::fs::read_to_string("/proc/thread-self/status").expect("/proc is mounted");
            let lines = text.lines().filter(|line| line.starts_with("Sig") || line.starts_with("NoNewPrivs"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = status();
        let platform = platform();
        live_and_die(&platform);
        assert_eq!(status(), before);
        drop(platform);
        assert_eq!(status(), before);
    });
}

#[test]
fn one_platform_is_used_from_several_threads_at_once() {
    const THREADS: u64 = 6;
    let platform = platform();
    let (shared, _context) = guest(&platform, &counting_code());
    poke(&shared, DATA, 42);
    thread::scope(|scope| {
        for number in 1..=THREADS {
            let (platform, shared) = (&platform, &shared);
            scope.spawn(move || {
                for round in 0..5 {
                    let (own, mut own_context) = guest(platform, &counting_code());
                    poke(&own, DATA, number * 100 + round);
                    let fork = shared.fork().expect("a fork");
                    let (mut in_shared, mut in_fork) = (start(platform), start(platform));
                    for count in 1..50 {
                        assert_eq!(next_count(&mut own_context, &own, count), number * 100 + round);
                        assert_eq!(next_count(&mut in_shared, shared, count), 42);
                        assert_eq!(next_count(&mut in_fork, &fork, count), 42);
                    }
                }
            });
        }
    });
}

#[test]
fn two_platforms_exist_at_once_and_one_outlives_the_other() {
    let (first, second) = (platform(), platform());
    let (first_space, mut first_context) = guest(&first, &counting_code());
    let (second_space, mut second_context) = guest(&second, &counting_code());
    poke(&first_space, DATA, 1);
    poke(&second_space, DATA, 2);
    for count in 1..10 {
        assert_eq!(next_count(&mut first_context, &first_space, count), 1);
        assert_eq!(next_count(&mut second_context, &second_space, count), 2);
    }
    drop((first, first_space, first_context));
    let fork = second_space.fork().expect("a fork");
    assert_eq!(peek(&fork, DATA), 2);
    assert_eq!(next_count(&mut second_context, &second_space, 10), 2);
    let (newborn, mut context) = guest(&second, &counting_code());
    next_count(&mut context, &newborn, 1);
}

#[test]
fn platforms_are_made_and_dropped_by_several_threads_at_once() {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let platform = platform();
                    let (space, mut context) = guest(&platform, &counting_code());
                    next_count(&mut context, &space, 1);
                }
            });
        }
    });
}

#[test]
fn the_platform_outlives_the_thread_that_made_it() {
    let (platform, space, mut context) = thread::spawn(|| {
        let platform = platform();
        let (space, context) = guest(&platform, &counting_code());
        (platform, space, context)
    })
    .join()
    .expect("the thread ended");
    // A parent-death signal that was due would have come by now.
    thread::sleep(Duration::from_millis(50));
    next_count(&mut context, &space, 1);
    let (newborn, mut newborn_context) = guest(&platform, &counting_code());
    next_count(&mut newborn_context, &newborn, 1);
    assert!(space.stub_exit().is_none());
}

#[test]
fn an_address_space_of_another_platform_is_refused() {
    let (own, other) = (platform(), platform());
    let (own_space, mut context) = guest(&own, &counting_code());
    let (foreign_space, _foreign_context) = guest(&other, &counting_code());
    next_count(&mut context, &own_space, 1);
    context.set_return(5);
    let error = context.switch(&foreign_space).expect_err("not of this platform");
    assert!(matches!(error, SwitchError::Platform(Error::ForeignAddressSpace)), "{error:?}");
    // Nothing was lost by trying.
    context.pull_full_state().expect("the stub process lives");
    assert_eq!(context.registers().rax, 5);
    assert!(matches!(context.switch(&own_space), Ok(Event::Syscall(_))));
}
