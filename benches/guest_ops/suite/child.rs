//! One run of a command: its end, its output, its time.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::UsageWho;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::load::cpu;

/// What came of a run.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// From before its start until its end was known.
    pub wall: Duration,
    /// User and system time of it and of all its descendants that were waited for.
    pub cpu: Duration,
}

impl Finished {
    /// How it ended and the first thing it said about it, for a run that failed.
    pub fn complaint(&self) -> String {
        let end = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("status {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        };
        match self.stderr.lines().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("{end}: {line}"),
            None => end,
        }
    }
}

/// A process group of its own that nothing is left of when this is dropped.
#[derive(Debug)]
pub struct Group {
    pub child: Child,
    ended: bool,
}

impl Group {
    /// Starts the command. Output goes to files: a pipe that a stray descendant holds would never end.
    pub fn start(command: &mut Command, stdout: &File, stderr: &File) -> Result<Self, String> {
        let copy = |file: &File| file.try_clone().map_err(|error| format!("dup: {error}"));
        command.stdin(Stdio::null()).stdout(copy(stdout)?).stderr(copy(stderr)?).process_group(0);
        let child =
            command.spawn().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        Ok(Self { child, ended: false })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits for its end without reaping it, so that its id stays its own: how long after `begun` that was.
    fn end(&self, begun: Instant, patience: Duration) -> Option<Duration> {
        let pid = self.pid();
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            scope.spawn(move || {
                let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
                let _ = sender.send(begun.elapsed());
            });
            let end = receiver.recv_timeout(patience).ok();
            if end.is_none() {
                // The waiting thread ends with it.
                let _ = killpg(pid, Signal::SIGKILL);
            }
            end
        })
    }

    fn reap(&mut self) -> Result<ExitStatus, String> {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        self.ended = true;
        self.child.wait().map_err(|error| format!("wait: {error}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.reap();
        }
    }
}

/// A file for output, without a name.
pub fn output_file() -> Result<File, String> {
    tempfile::tempfile().map_err(|error| format!("a temporary file: {error}"))
}

/// What was written to it.
pub fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn children_cpu() -> Result<Duration, String> {
    cpu(UsageWho::RUSAGE_CHILDREN).ok_or_else(|| "getrusage failed".to_owned())
}

/// Runs the command to its end, or kills it when `patience` is over.
pub fn run(command: &mut Command, patience: Duration) -> Result<Finished, String> {
    let (mut stdout, mut stderr) = (output_file()?, output_file()?);
    let cpu_before = children_cpu()?;
    let begun = Instant::now();
    let mut group = Group::start(command, &stdout, &stderr)?;
    let wall = group.end(begun, patience);
    let status = group.reap()?;
    let cpu = children_cpu()?.saturating_sub(cpu_before);
    let wall = wall.ok_or_else(|| format!("no end within {patience:?}"))?;
    Ok(Finished { status, stdout: contents(&mut stdout), stderr: contents(&mut stderr), wall, cpu })
}
