//! Programs that serve, and their clients: where they can meet without meeting those of another test, and how they
//! are started and ended.
#![allow(dead_code, reason = "each test binary uses its part")]

use super::{bounded, cli};
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Runs a program in a directory filled by `prepare`, natively and in every mode; it has to succeed and to say
/// something.
pub fn compare<A: AsRef<OsStr>>(program: &Path, args: &[A], prepare: &dyn Fn(&Path)) -> Output {
    let native = bounded::compare_in(cli::MODES.as_slice(), program, args, b"", prepare);
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
    assert!(!native.stdout.is_empty(), "{} says nothing", program.display());
    native
}

/// A text file in a directory.
pub fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("the directory takes it");
}

/// An address on the loopback interface where nobody listens, for programs that want to be told one. All of 127/8 is
/// the loopback interface's, so each test process has an address of its own, and only its own tests could take a port
/// that was just found free.
pub fn address() -> SocketAddrV4 {
    let [.., high, middle, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 64 | (high & 63), middle, low.clamp(1, 254));
    let listener = TcpListener::bind((ip, 0)).expect("a port of the loopback interface");
    SocketAddrV4::new(ip, listener.local_addr().expect("it is bound").port())
}

/// A server in the background; killed, with all its descendants, if the test ends before it does.
pub struct Server {
    child: bounded::Kept,
    lines: std::sync::mpsc::Receiver<String>,
    what: String,
}

impl Server {
    /// Starts a program natively (`None`) or under systrap with an option. Its standard error goes with its output.
    pub fn start<A: AsRef<OsStr>>(mode: Option<&str>, program: &Path, args: &[A], directory: &Path) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = bounded::command(mode, program, args);
        command.current_dir(directory).stdin(Stdio::null());
        command.stdout(writer.try_clone().expect("a descriptor")).stderr(writer);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let what = format!("{command:?}");
        let child = bounded::Kept(command.spawn().unwrap_or_else(|error| panic!("{what}: {error}")));
        // The command holds the writing end, and who reads would wait for it.
        drop(command);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                // Nobody listens any more when the test is over.
                let _ = sender.send(line);
            }
        });
        Self { child, lines, what }
    }

    /// Waits for a line that contains `part` and gives it.
    pub fn line_with(&self, part: &str) -> String {
        let deadline = Instant::now() + bounded::limit();
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("{} says no {part:?} ({error}), but {before:#?}", self.what),
            }
        }
    }

    /// Sends a signal, as a user would.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.0.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("the server is there");
    }

    /// Waits for the end and gives the status that a shell would show.
    pub fn end(mut self) -> i32 {
        let deadline = Instant::now() + bounded::limit();
        while Instant::now() < deadline {
            if let Some(status) = self.child.0.try_wait().expect("the server is a child") {
                return cli::shell_status(&Output { status, stdout: Vec::new(), stderr: Vec::new() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{} does not end", self.what);
    }
}
