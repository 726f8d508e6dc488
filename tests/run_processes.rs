//! Programs with processes: birth, death and waiting, groups and sessions, exec, limits, credentials, and what /proc says of them.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

use common::parts::compare;
use common::{bounded, cli};

#[test]
fn processes_are_born() {
    compare("processes");
}

#[test]
fn the_wait_family() {
    compare("waiting");
}

#[test]
fn groups_and_sessions() {
    compare("process_groups");
}

#[test]
fn descriptors_of_processes() {
    compare("pidfds");
}

#[test]
fn exec_keeps_and_drops_what_it_should() {
    compare("exec_details");
}

#[test]
fn limits_stop_what_they_limit() {
    compare("process_limits");
}

#[test]
fn credentials_are_never_those_of_another() {
    compare("credentials");
}

#[test]
fn proc_shows_processes() {
    compare("proc_files");
}

/// Natively it would reach every process of the machine.
#[test]
fn kill_minus_one_reaches_the_guest_processes_and_nobody_else() {
    let program = cli::fixture("process_groups", &[]);
    for mode in cli::MODES {
        let guest = bounded::output(bounded::command(Some(mode), &program, &["kill_minus_one"]), b"");
        let printed = String::from_utf8_lossy(&guest.stdout);
        assert!(
            guest.status.success() && printed.lines().count() == 6,
            "{mode}: {}: {printed}",
            guest.status
        );
    }
}
