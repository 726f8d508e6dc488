//! A program that talks to a terminal, under a pty.

mod common {
    pub mod cli;
    pub mod terminal;
}

use common::{cli, terminal};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Command;

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
fn session(command: Command) -> (String, Option<i32>) {
    let (mut master, mut child) = terminal::start(command, (33, 77));
    let mut seen = String::new();
    read_until(&mut master, &mut seen, "ready");
    master.write_all(b"hello\n").unwrap();
    read_until(&mut master, &mut seen, "line hello");
    // Ctrl-C interrupts the next read.
    std::thread::sleep(std::time::Duration::from_millis(300));
    master.write_all(b"\x03").unwrap();
    read_until(&mut master, &mut seen, "interrupted");
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal::resize(&master, 10, 20);
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
