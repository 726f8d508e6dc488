//! The death of a stub process, of the template, and of the supervisor.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use alone::{alone, eventually};
use small_guest::{DATA, counting_code, endless_code, guest, next_count, peek, poke};
use systrap::{Error, Options, StubExit, SwitchError, Systrap};

/// What is promised; it takes about a tenth of a millisecond.
const AT_ONCE: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(10);
const KILLED: StubExit = StubExit::Signal(libc::SIGKILL);

fn platform() -> Systrap {
    Systrap::new(Options::new()).expect("a platform")
}

fn kill(pid: i32) {
    assert!(pid > 1, "{pid} is no stub process");
    // SAFETY: takes values only.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "the stub process {pid} exists");
}

#[test]
fn a_switch_ends_with_an_error_when_its_stub_process_is_killed() {
    let platform = platform();
    let mut delays = Vec::new();
    for _ in 0..11 {
        let (space, mut context) = guest(&platform, &endless_code());
        let pid = space.pid();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            kill(pid);
            Instant::now()
        });
        let result = context.switch(&space);
        let noticed = Instant::now();
        let killed = killer.join().expect("the killing thread ended");
        assert!(matches!(result, Err(SwitchError::StubDied { how: KILLED })), "{result:?}");
        delays.push(noticed.saturating_duration_since(killed));
        assert_eq!(space.stub_exit(), Some(KILLED));
    }
    delays.sort();
    println!("noticed after {delays:?}");
    // A busy machine may let one of them wait, but not most: a lost wake-up would cost each half a second.
    assert!(delays[delays.len() / 2] < AT_ONCE, "noticed only after {delays:?}");
}

#[test]
fn everything_else_goes_on_when_a_stub_process_is_killed() {
    let platform = platform();
    let (doomed, mut doomed_context) = guest(&platform, &counting_code());
    next_count(&mut doomed_context, &doomed, 1);
    poke(&doomed, DATA, 5);
    let survivor = doomed.fork().expect("a fork");
    doomed_context.pull_full_state().expect("the stub process lives");
    let mut survivor_context = doomed_context.duplicate().expect("a context");
    let (other, mut other_context) = guest(&platform, &counting_code());
    next_count(&mut other_context, &other, 1);
    kill(doomed.pid());
    eventually("the death is noticed", LIMIT, || doomed.stub_exit().is_some());

    let result = doomed_context.switch(&doomed);
    assert!(matches!(result, Err(SwitchError::StubDied { how: KILLED })), "{result:?}");
    assert_eq!(next_count(&mut survivor_context, &survivor, 2), 5, "the dead one's fork lives");
    next_count(&mut other_context, &other, 2);
    let (newborn, mut newborn_context) = guest(&platform, &counting_code());
    next_count(&mut newborn_context, &newborn, 1);
    assert_eq!(peek(&survivor.fork().expect("forks are still made"), DATA), 5);
}

#[test]
fn all_switches_in_a_killed_stub_process_end() {
    let platform = platform();
    let (space, _context) = guest(&platform, &endless_code());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    small_guest::start(&platform).switch(&space).expect_err("the guest never calls")
                })
            })
            .collect();
        // The leader, eight stub threads.
        let tasks = format!("/proc/{}/task", space.pid());
        eventually("all guests run", LIMIT, || std::fs::read_dir(&tasks).map_or(0, Iterator::count) == 9);
        kill(space.pid());
        for thread in threads {
            let error = thread.join().expect("no panic");
            assert!(matches!(error, SwitchError::StubDied { how: KILLED }), "{error:?}");
        }
    });
}

#[test]
fn a_context_with_its_state_pulled_survives_its_stub_process() {
    let platform = platform();
    let (space, mut context) = guest(&platform, &counting_code());
    next_count(&mut context, &space, 1);
    context.pull_full_state().expect("the stub process lives");
    let fork = space.fork().expect("a fork");
    kill(space.pid());
    eventually("the death is noticed", LIMIT, || space.stub_exit().is_some());
    context.release().expect("the state is here already");
    next_count(&mut context, &fork, 2);
}

#[test]
fn a_killed_template_is_a_clear_error_and_the_others_live() {
    alone("a_killed_template_is_a_clear_error_and_the_others_live", || {
        let platform = platform();
        let template = alone::children()[0];
        let (space, mut context) = guest(&platform, &counting_code());
        kill(template);
        eventually("the death is noticed", LIMIT, || platform.stub_process_count() == 1);
        let error = platform.new_address_space().expect_err("there is nothing to clone");
        assert!(matches!(error, Error::TemplateDied { how: KILLED }), "{error:?}");
        assert!(error.to_string().contains("template"), "{error}");
        next_count(&mut context, &space, 1);
        let fork = space.fork().expect("a fork needs no template");
        next_count(&mut small_guest::start(&platform), &fork, 1);
        drop((platform, space, fork, context));
        assert_eq!(alone::children(), Vec::<i32>::new());
    });
}

#[test]
fn a_template_killed_while_address_spaces_are_made_is_an_error_each_time() {
    alone("a_template_killed_while_address_spaces_are_made_is_an_error_each_time", || {
        for round in 0..120 {
            let platform = platform();
            let template = alone::children()[0];
            thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(Duration::from_micros(round * 50));
                    kill(template);
                });
                let error = loop {
                    if let Err(error) = platform.new_address_space() {
                        break error;
                    }
                };
                assert!(matches!(error, Error::TemplateDied { .. }), "{error:?}");
            });
            drop(platform);
            // Not even one that was cloned at that very moment, of which the platform was not told.
            assert_eq!(alone::children(), Vec::<i32>::new());
        }
    });
}

/// Starts a copy of this test as a supervisor, kills it when it has printed a line, and waits until every
/// process below it has ended: orphans come to this process, which is a subreaper. Returns how many it had.
fn kill_supervisor(test: &str, role: &str, delay: Duration) -> usize {
    let mut child = alone::command(test, role).stdout(Stdio::piped()).spawn().expect("a supervisor");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let ready = lines.any(|line| line.is_ok_and(|line| line.ends_with("READY")));
    assert!(ready, "the supervisor got ready");
    thread::sleep(delay);
    let pid = child.id() as i32;
    let family = alone::children_of(pid);
    kill(pid);
    child.wait().expect("the supervisor is reaped");
    eventually("every stub process has ended", LIMIT, || {
        // SAFETY: no status is asked for.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) } > 0 {}
        alone::children().is_empty()
    });
    for pid in &family {
        assert!(alone::parent_and_state(*pid).is_none(), "the stub process {pid} is left");
    }
    family.len()
}

fn become_subreaper() {
    // SAFETY: takes values only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
}

#[test]
fn no_stub_process_survives_a_killed_supervisor() {
    const NAME: &str = "no_stub_process_survives_a_killed_supervisor";
    if alone::role().as_deref() == Some("supervisor") {
        let platform = platform();
        let (space, mut context) = guest(&platform, &endless_code());
        let _forks: Vec<_> = (0..5).map(|_| space.fork().expect("a fork")).collect();
        println!("READY");
        let _ = context.switch(&space);
        return;
    }
    alone(NAME, || {
        become_subreaper();
        let had = kill_supervisor(NAME, "supervisor", Duration::from_millis(20));
        assert_eq!(had, 7, "template, address space, five forks");
    });
}

#[test]
fn no_stub_process_survives_a_supervisor_killed_while_it_makes_some() {
    const NAME: &str = "no_stub_process_survives_a_supervisor_killed_while_it_makes_some";
    if alone::role().as_deref() == Some("supervisor") {
        let platform = platform();
        let (space, _context) = guest(&platform, &counting_code());
        println!("READY");
        loop {
            let _ = (platform.new_address_space(), space.fork());
        }
    }
    alone(NAME, || {
        become_subreaper();
        for round in 0..20 {
            let had = kill_supervisor(NAME, "supervisor", Duration::from_micros(round * 217));
            assert!(had >= 2, "template, address space");
        }
    });
}

#[test]
fn no_stub_process_survives_a_supervisor_killed_while_it_makes_platforms() {
    const NAME: &str = "no_stub_process_survives_a_supervisor_killed_while_it_makes_platforms";
    if alone::role().as_deref() == Some("supervisor") {
        println!("READY");
        loop {
            drop(platform());
        }
    }
    alone(NAME, || {
        become_subreaper();
        let had: usize = (0..40)
            .map(|round| kill_supervisor(NAME, "supervisor", Duration::from_micros(round * 117)))
            .sum();
        assert!(had > 0, "it was never caught with a template");
    });
}
