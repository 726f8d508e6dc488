//! Tests that need a process of their own: because they count what the process has, change what it may do, or
//! kill it.

#![allow(dead_code, reason = "each test crate uses its own part of it")]
#![allow(unsafe_code)]

use std::io;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const VARIABLE: &str = "SYSTRAP_TEST_ALONE";

/// A command that runs the test `name` of this binary, and nothing else, in a process of its own. In there
/// [`role`] is `role`.
pub fn command(name: &str, role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(VARIABLE, role);
    command.stdin(Stdio::null());
    command
}

/// What this process was started as by [`command`].
pub fn role() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Runs `body` in a process of its own. `name` is the name of the calling test.
pub fn alone(name: &str, body: impl FnOnce()) {
    if role().is_some() {
        return body();
    }
    let output = command(name, "alone").output().expect("the test binary can be started again");
    print(&output);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name} in its own process: {}", output.status);
    assert!(stdout.contains("1 passed"), "no test has the name {name}");
}

/// Passes on what a child printed, so that the harness keeps it with this test.
pub fn print(output: &Output) {
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The children of this process that exist, dead and unreaped ones included, whatever signal they exit with.
pub fn children() -> Vec<i32> {
    children_of(std::process::id() as i32)
}

/// The same of another process.
pub fn children_of(own: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if parent_and_state(pid).is_some_and(|(parent, _)| parent == own) {
            found.push(pid);
        }
    }
    found
}

/// Parent and state letter of a process, from `/proc/PID/stat`; `None` if it does not exist.
pub fn parent_and_state(pid: i32) -> Option<(i32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// What a process has that it might forget to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    pub descriptors: usize,
    pub mappings: usize,
    pub children: Vec<i32>,
    pub threads: usize,
}

impl Holdings {
    /// Of this process.
    pub fn now() -> Self {
        let count = |dir: &str| std::fs::read_dir(dir).map_or(0, Iterator::count);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        Self {
            descriptors: count("/proc/self/fd"),
            // The heap's and the stacks' boundaries move with their use; what matters are files and big areas.
            mappings: maps.lines().filter(|line| line.contains("systrap")).count(),
            children: children(),
            threads: count("/proc/self/task"),
        }
    }
}

/// All mappings of this process, the allocator's included.
pub fn mapping_count() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted").lines().count()
}

/// Turns this process into an ordinary user's if it is root's.
pub fn become_ordinary_user() {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: takes values only.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    // SAFETY: no pointers but an empty list.
    let results = unsafe {
        [
            libc::setgroups(0, std::ptr::null()),
            libc::setresgid(NOBODY, NOBODY, NOBODY),
            libc::setresuid(NOBODY, NOBODY, NOBODY),
        ]
    };
    assert_eq!(results, [0; 3], "root can become nobody: {}", io::Error::last_os_error());
}
