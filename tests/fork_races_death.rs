//! An address space that is forked while its process dies gives either a whole child or none: no page is
//! shared with a later address space, and no process stays behind.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;

use std::fs;
use std::time::{Duration, Instant};

use adversary::{Random, context, expect_call, guest, platform, stub_base};
use systrap::Systrap;

/// Processes of this platform that exist, zombies included.
fn stub_processes(session: i32) -> usize {
    let session = session.to_string();
    fs::read_dir("/proc")
        .expect("all processes")
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        // After the name in parentheses: state, parent, group, session.
        .filter(|stat| {
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)) == Some(&session)
        })
        .count()
}

fn session_of(platform: &Systrap) -> i32 {
    let space = platform.new_address_space().expect("an address space");
    assert_ne!(stub_base(&space), 0);
    // SAFETY: takes a pid.
    unsafe { libc::getsid(space.pid()) }
}

#[test]
fn a_fork_of_a_dying_process_gives_a_whole_child_or_none() {
    let platform = platform();
    let session = session_of(&platform);
    let mut random = Random::new(11);
    let (mut whole, mut none) = (0, 0);
    for round in 0..400_u64 {
        let space = guest(&platform, |a| a.syscall().expect("code"));
        let pid = space.pid();
        let delay = Duration::from_nanos(random.below(400_000));
        let child = std::thread::scope(|scope| {
            scope.spawn(|| {
                let until = Instant::now() + delay;
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                // SAFETY: a child of ours that `space` keeps from being reaped twice.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            });
            space.fork()
        });
        match child {
            Ok(child) => {
                whole += 1;
                let mut context = context(&platform);
                expect_call(context.switch(&child).unwrap_or_else(|error| panic!("round {round}: {error}")));
            }
            Err(error) => {
                none += 1;
                assert!(error.to_string().contains("ended"), "round {round}: {error}");
            }
        }
        // Whoever comes next gets what the lost child had.
        let next = guest(&platform, |a| a.syscall().expect("code"));
        let mut context = context(&platform);
        expect_call(context.switch(&next).unwrap_or_else(|error| panic!("round {round}: {error}")));
    }
    println!("{whole} whole children, {none} forks without one");
    assert!(whole > 10 && none > 10, "the race was not one: {whole} whole, {none} none");
    // All handles are gone but the platform's: the template alone is left.
    let deadline = Instant::now() + Duration::from_secs(30);
    while stub_processes(session) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(stub_processes(session), 1, "processes stay behind");
}
