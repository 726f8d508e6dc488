//! A program that a signal kills: by itself, from outside, in a child, in a thread; for each signal that does.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Everything but what stops, continues or does nothing, and the first and last of the real-time ones.
fn fatal() -> impl Iterator<Item = i32> {
    (1..=31).filter(|signo| ![17, 18, 19, 20, 21, 22, 23, 28].contains(signo)).chain([34, 64])
}

#[test]
fn a_child_dies_of_each_signal() {
    let script = "import os, signal, sys, resource, threading, time\n\
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n\
        for n in map(int, sys.argv[1:]):\n\
        \x20   if n != 9: signal.signal(n, signal.SIG_DFL)\n\
        for how in ('raise', 'kill', 'thread'):\n\
        \x20   for n in map(int, sys.argv[1:]):\n\
        \x20       pid = os.fork()\n\
        \x20       if pid == 0:\n\
        \x20           if how == 'raise': signal.raise_signal(n)\n\
        \x20           if how == 'thread': threading.Thread(target=lambda: os.kill(os.getpid(), n)).start()\n\
        \x20           while True: time.sleep(1000)\n\
        \x20       if how == 'kill': os.kill(pid, n)\n\
        \x20       print(how, n, os.WTERMSIG(os.waitpid(pid, 0)[1]))\n";
    let numbers: Vec<String> = fatal().map(|signo| signo.to_string()).collect();
    let args: Vec<&str> = ["-c", script].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let native = bounded::compare(&cli::python(), &args, b"");
    assert_eq!(native.stdout.iter().filter(|byte| **byte == b'\n').count(), 3 * numbers.len());
}

#[test]
fn the_first_process_dies_of_each_signal() {
    let death = cli::fixture("death", &[]);
    for signo in fatal() {
        let native = bounded::compare(&death, &[signo.to_string()], b"");
        assert_eq!(cli::shell_status(&native), 128 + signo);
    }
}

/// `systrap run` is sent the signal, as a shell's job would be: the guest dies of it, and that is the status.
#[test]
fn a_signal_from_outside_kills_the_guest() {
    let script = "import os, signal, time\n\
        for n in (1, 2, 3, 10, 12, 14, 15): signal.signal(n, signal.SIG_DFL)\n\
        print('ready', flush=True)\n\
        while True: time.sleep(1000)\n";
    for signo in
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        for mode in cli::MODES {
            let mut command = bounded::command(Some(mode), &cli::python(), &["-c", script]);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut guest = bounded::Kept(command.spawn().expect("systrap starts"));
            let mut ready = [0; 6];
            guest.0.stdout.take().expect("piped").read_exact(&mut ready).expect("the guest is ready");
            kill(Pid::from_raw(guest.0.id().cast_signed()), signo).expect("it is there");
            let status = wait(&mut guest, &format!("{mode}: {signo}"));
            assert_eq!(status, 128 + signo as i32, "{mode}: {signo}");
        }
    }
}

fn wait(guest: &mut bounded::Kept, what: &str) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let start = Instant::now();
    loop {
        if let Some(status) = guest.0.try_wait().expect("a child") {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        }
        assert!(start.elapsed() < bounded::limit(), "{what}: the guest does not die");
        std::thread::sleep(Duration::from_millis(5));
    }
}
