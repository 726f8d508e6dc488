//! A guest that waits costs nothing: neither its stub process nor the supervisor uses the CPU meanwhile.

mod common {
    pub mod cli;
}

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::cli;

/// How long the guest is watched, and how long it is given to start up before.
const START: Duration = Duration::from_millis(700);
const WATCH: Duration = Duration::from_secs(2);
/// CPU time in clock ticks (10 ms) that all processes together may use meanwhile: 5 % of one CPU. A side that spun would
/// use twenty times as much.
const LIMIT_TICKS: u64 = 10;

/// User and system time in ticks of a process and its children, from `/proc/PID/stat`.
fn ticks(pid: u32) -> u64 {
    let own = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: state, ppid, …; utime and stime are fields 14 and 15 of the whole.
    let fields = own.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
    let time = |i: usize| fields.as_ref().and_then(|f| f.get(i)?.parse::<u64>().ok()).unwrap_or(0);
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    time(11) + time(12) + children.into_iter().map(ticks).sum::<u64>()
}

fn watch(what: &str, guest: &Child) {
    sleep(START);
    let before = ticks(guest.id());
    sleep(WATCH);
    let used = ticks(guest.id()) - before;
    println!("{what}: {used} ticks in {WATCH:?}");
    assert!(used <= LIMIT_TICKS, "{what} used {used} ticks of CPU time while it waited");
}

fn start(program: &str, args: &[&str]) -> Child {
    start_at(&cli::program(program), args)
}

fn start_at(program: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(cli::SYSTRAP);
    command.args(["run", "--"]).arg(program).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("systrap starts")
}

#[test]
fn a_sleeping_guest_uses_no_cpu() {
    let mut guest = start("sleep", &["4"]);
    watch("sleep", &guest);
    assert!(guest.wait().expect("a child").success());
}

#[test]
fn a_guest_blocked_in_read_uses_no_cpu() {
    let mut guest = start("cat", &[]);
    watch("cat", &guest);
    guest.stdin.take().expect("a pipe").write_all(b"now\n").expect("a reader");
    assert!(guest.wait().expect("a child").success());
}

#[test]
fn a_guest_with_timers_that_are_not_due_uses_no_cpu() {
    let mut guest = start_at(&cli::fixture("timer_details", &[]), &["idle"]);
    watch("timers", &guest);
    assert!(guest.wait().expect("a child").success());
}
