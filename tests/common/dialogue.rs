//! Playing the user of a program at a terminal.
#![allow(unsafe_code, dead_code, reason = "each test binary uses its part")]

use super::terminal;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long an expected text may take: far longer than it ever does.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program at a terminal of its own, which leads a session.
pub struct Dialogue {
    master: File,
    child: Child,
    /// All that the terminal has shown.
    seen: String,
    /// Up to where it has been expected.
    read: usize,
}

impl Dialogue {
    /// Starts the program.
    pub fn start(command: Command) -> Self {
        let (master, child) = terminal::start(command, (24, 200));
        Self { master, child, seen: String::new(), read: 0 }
    }

    /// Types some keys.
    pub fn keys(&mut self, keys: &str) -> &mut Self {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes it");
        self
    }

    /// Waits until the terminal shows the text after what was expected before.
    pub fn expect(&mut self, text: &str) -> &mut Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen[self.read..].find(text) {
                self.read += at + text.len();
                return self;
            }
            if !self.receive(deadline) {
                panic!("{text:?} did not come; the terminal showed:\n{}", self.seen);
            }
        }
    }

    /// Changes the size of the terminal.
    pub fn resize(&mut self, rows: u16, columns: u16) -> &mut Self {
        terminal::resize(&self.master, rows, columns);
        self
    }

    /// The process that was started.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for the end: the process has ended and nobody has the terminal open.
    pub fn finish(mut self) -> (String, ExitStatus) {
        let deadline = Instant::now() + PATIENCE;
        while self.receive(deadline) {}
        assert!(Instant::now() < deadline, "the end did not come; the terminal showed:\n{}", self.seen);
        let status = self.child.wait().expect("the child ends");
        (without_ids(&self.seen), status)
    }

    /// Hangs up: closes the terminal, and waits for the program.
    pub fn hang_up(mut self) -> ExitStatus {
        self.master = File::open("/dev/null").expect("/dev/null");
        self.child.wait().expect("the child ends")
    }

    /// Receives more; `false` when the terminal is closed or the time is over.
    fn receive(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut fds = [nix::libc::pollfd {
            fd: self.master.as_fd().as_raw_fd(),
            events: nix::libc::POLLIN,
            revents: 0,
        }];
        // SAFETY: one entry, as said.
        if unsafe { nix::libc::poll(fds.as_mut_ptr(), 1, millis) } <= 0 {
            return false;
        }
        let mut buf = [0; 4096];
        match self.master.read(&mut buf) {
            Ok(0) | Err(_) => false,
            Ok(len) => {
                self.seen.push_str(&String::from_utf8_lossy(&buf[..len]));
                true
            }
        }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        // Only after a failure is it still there.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text with everything that looks like a process id replaced.
fn without_ids(text: &str) -> String {
    let mut result = String::new();
    let mut digits = String::new();
    for letter in text.chars().chain(['\0']) {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        if digits.len() < 3 {
            result.push_str(&digits);
        } else {
            // They may be padded to a width.
            result.truncate(result.trim_end_matches(' ').len());
            result.push_str(" #");
        }
        digits.clear();
        result.push(letter);
    }
    result.pop();
    result
}
