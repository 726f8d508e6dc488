//! A guest in a terminal is a job like any other: what the terminal and the shell send, it gets.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod terminal;
}

use common::{bounded, cli, terminal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Somebody at a terminal.
struct User {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    child: bounded::Kept,
}

impl User {
    /// Starts a command as the leader of a session with a terminal of its own.
    fn start(mut command: Command) -> Self {
        command.env("TERM", "dumb").env("PS1", "$ ").env("HISTFILE", "");
        let (keyboard, child) = terminal::start(command, (24, 80));
        let child = bounded::Kept(child);
        let mut reader = keyboard.try_clone().expect("a descriptor");
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut block) {
                if sender.send(block[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keyboard, screen, seen: String::new(), child }
    }

    fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("a terminal");
    }

    /// Waits for a text behind what was waited for before.
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(bounded::limit().saturating_sub(start.elapsed())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => {
                    panic!("{error}: no {text:?} on the terminal, but {:?}", self.seen)
                }
            }
        }
    }

    fn status(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.0.try_wait().expect("a child") {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(start.elapsed() < bounded::limit(), "it does not end; on the terminal: {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Natively and in every mode.
fn modes() -> impl Iterator<Item = Option<&'static str>> {
    std::iter::once(None).chain(cli::MODES.into_iter().map(Some))
}

fn bash(mode: Option<&str>) -> User {
    let mut user =
        User::start(bounded::command(mode, &cli::program("bash"), &["--norc", "--noprofile", "-i"]));
    user.expect("$ ");
    user.type_in("bind 'set enable-bracketed-paste off' 2>/dev/null; PS1='ready''> '\n");
    user.expect("ready> ");
    user
}

/// The whole shell is the guest: its jobs are stopped, continued and interrupted by keys.
#[test]
fn an_interactive_shell_as_guest_controls_its_jobs() {
    for mode in modes() {
        println!("{mode:?}");
        let mut user = bash(mode);
        user.type_in("cat\n");
        std::thread::sleep(Duration::from_millis(300));
        user.type_in("echoed by cat\n");
        user.expect("echoed by cat\r\nechoed by cat");
        user.type_in("\x1a");
        user.expect("Stopped");
        user.expect("ready> ");
        user.type_in("jobs | wc -l\n");
        user.expect("\n1");
        user.expect("ready> ");
        user.type_in("fg\n");
        user.expect("cat\r\n");
        std::thread::sleep(Duration::from_millis(300));
        user.type_in("again\n");
        user.expect("again\r\nagain");
        user.type_in("\x03");
        user.expect("ready> ");
        user.type_in("echo status $?\n");
        user.expect("status 130");
        user.expect("ready> ");
        user.type_in("sleep 1000 | cat\n");
        std::thread::sleep(Duration::from_millis(300));
        user.type_in("\x1c");
        user.expect("ready> ");
        user.type_in("sleep 1000 & cat &\n");
        // A background job that reads from the terminal is stopped.
        user.expect("ready> ");
        user.type_in("while ! jobs -s | grep -q cat; do sleep 0.05; done; echo cat is' 'stopped\n");
        user.expect("cat is stopped\r\n");
        user.type_in("kill -9 %1 %2; wait; stty -a | grep -c intr\n");
        user.expect("\n1");
        user.expect("ready> ");
        user.type_in("exit 7\n");
        assert_eq!(user.status(), 7, "{mode:?}");
    }
}

const WATCHER: &str = "import signal, os, sys, time, fcntl, termios, struct\n\
    def show(n, f):\n\
    \x20   rows, columns = struct.unpack('4H', fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]\n\
    \x20   print(f'got {signal.Signals(n).name} {rows}x{columns}.', flush=True)\n\
    for n in (2, 3, 15, 18, 28, 1): signal.signal(n, show)\n\
    print('watching', flush=True)\n\
    while True: time.sleep(0.05)\n";

/// `systrap run` is the job of a shell that knows nothing of it.
#[test]
fn a_guest_is_a_job_of_a_native_shell() {
    let script = cli::input("watcher.py", || WATCHER.as_bytes().to_vec());
    let python = cli::python();
    for mode in modes() {
        println!("{mode:?}");
        let mut user = bash(None);
        let run = mode.map(|mode| format!("{} run {mode} -- ", cli::SYSTRAP)).unwrap_or_default();
        user.type_in(&format!("{run}{} {}\n", python.display(), script.display()));
        user.expect("watching\r\n");
        user.type_in("\x03");
        user.expect("got SIGINT 24x80.");
        user.type_in("\x1c");
        user.expect("got SIGQUIT 24x80.");
        terminal::resize(&user.keyboard, 11, 22);
        user.expect("got SIGWINCH 11x22.");
        user.type_in("\x1a");
        user.expect("Stopped");
        user.expect("ready> ");
        user.type_in("jobs -s | wc -l\n");
        user.expect("\n1");
        user.expect("ready> ");
        user.type_in("fg\n");
        user.expect("got SIGCONT");
        user.type_in("\x1a");
        user.expect("ready> ");
        user.type_in("bg\n");
        user.expect("got SIGCONT");
        user.type_in("kill %1\n");
        user.expect("got SIGTERM");
        user.type_in("kill -9 %1; wait; echo gone\n");
        user.expect("gone\r\n");
        user.type_in("exit 3\n");
        assert_eq!(user.status(), 3, "{mode:?}");
    }
}

/// What is sent to `systrap run` with kill reaches the guest.
#[test]
fn signals_to_the_command_reach_the_guest() {
    let script = cli::input("plain_watcher.py", || {
        WATCHER.replace(
            "\x20   rows, columns = struct.unpack('4H', fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))[:2]\n",
            "\x20   rows = columns = 0\n",
        )
        .into_bytes()
    });
    for mode in modes() {
        let mut command = bounded::command(mode, &cli::python(), &[&script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut guest = bounded::Kept(command.spawn().expect("it starts"));
        let stdout = guest.0.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)).map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let pid = Pid::from_raw(guest.0.id().cast_signed());
        let next =
            || lines.recv_timeout(bounded::limit()).unwrap_or_else(|error| format!("nothing: {error}"));
        assert_eq!(next(), "watching", "{mode:?}");
        for signo in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
            kill(pid, signo).expect("it is there");
            assert_eq!(next(), format!("got {signo} 0x0."), "{mode:?}");
        }
        // Stopped, it says nothing; continued, it says so.
        kill(pid, Signal::SIGTSTP).expect("it is there");
        std::thread::sleep(Duration::from_millis(300));
        assert!(lines.try_recv().is_err(), "{mode:?}");
        kill(pid, Signal::SIGCONT).expect("it is there");
        assert_eq!(next(), "got SIGCONT 0x0.", "{mode:?}");
    }
}
