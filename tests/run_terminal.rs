//! A program that talks to a terminal, under a pty.
#![allow(unsafe_code)]

#[path = "common/cli.rs"]
mod cli;

use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Reads until the text has arrived.
fn read_until(master: &mut File, seen: &mut String, expected: &str) {
    let mut buf = [0; 4096];
    while !seen.contains(expected) {
        match master.read(&mut buf) {
            Ok(0) | Err(_) => panic!("the terminal closed before {expected:?}: {seen:?}"),
            Ok(len) => seen.push_str(&String::from_utf8_lossy(&buf[..len])),
        }
    }
}

/// Plays the user of `terminal.c`; returns what the terminal showed and the exit status.
fn session(mut command: Command) -> (String, Option<i32>) {
    let pty = openpty(Some(&size(33, 77)), None).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(slave()).stdout(slave()).stderr(slave());
    // SAFETY: setsid and ioctl are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    drop(pty.slave);
    drop(command);
    let mut master = File::from(pty.master);
    let mut seen = String::new();
    read_until(&mut master, &mut seen, "ready");
    master.write_all(b"hello\n").unwrap();
    read_until(&mut master, &mut seen, "line hello");
    // Ctrl-C interrupts the next read.
    std::thread::sleep(std::time::Duration::from_millis(300));
    master.write_all(b"\x03").unwrap();
    read_until(&mut master, &mut seen, "interrupted");
    std::thread::sleep(std::time::Duration::from_millis(300));
    // SAFETY: the descriptor is the master's, the structure outlives the call.
    let resized = unsafe { nix::libc::ioctl(master.as_raw_fd(), nix::libc::TIOCSWINSZ, &size(10, 20)) };
    assert_eq!(resized, 0);
    read_until(&mut master, &mut seen, "size 10");
    let status = child.wait().unwrap();
    (seen, status.code())
}

#[test]
fn a_terminal_program_behaves_as_natively() {
    let program = cli::fixture("terminal", &[]);
    let native = session(Command::new(&program));
    assert!(native.0.contains("tty 1 1 1\r\nsize 33 77\r\nforeground 1"), "{native:?}");
    assert!(native.0.contains("read -1 interrupted 2"), "{native:?}");
    for mode in cli::MODES {
        assert_eq!(session(cli::systrap(&[mode], &program, &[""; 0])), native, "{mode}");
    }
}
