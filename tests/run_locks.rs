//! Record locks keep guest processes apart from each other, and from processes outside.

#[path = "common/cli.rs"]
mod cli;

use cli::{MODES, compare, fixture, scratch, systrap};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

#[test]
fn record_locks_are_those_of_processes() {
    let file = scratch().join("locked");
    let native = compare(&fixture("record_locks", &["-pthread"]), &[file.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&native.stdout);
    assert!(text.contains("the one that closes the circle: EDEADLK"), "{text}");
}

/// Starts a process that holds a lock and waits until it says so.
fn holder(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "done\n");
    child
}

fn write_lock_now(file: &std::fs::File) -> std::io::Result<()> {
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 7, l_len: 1, l_pid: 0 };
    let result = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETLK(&lock));
    result.map(drop).map_err(std::io::Error::from)
}

#[test]
fn a_guest_and_a_process_outside_exclude_each_other() {
    let program = fixture("record_locks", &["-pthread"]);
    let path = scratch().join("outside");
    for mode in MODES {
        let mut guest = holder(systrap(&[mode], &program, &[path.to_str().unwrap(), "hold"]));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let refused = write_lock_now(&file).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{mode}: {refused}");
        drop(guest.stdin.take());
        assert!(guest.wait().unwrap().success());
        write_lock_now(&file).unwrap();
    }
    // The other way round.
    let mut native = Command::new(&program);
    native.arg(&path).arg("hold");
    let mut native = holder(native);
    let guest = cli::output(systrap(&[], &program, &[path.to_str().unwrap(), "hold"]), b"");
    assert_eq!(String::from_utf8_lossy(&guest.stdout), "EAGAIN\n");
    drop(native.stdin.take());
    assert!(native.wait().unwrap().success());
}
