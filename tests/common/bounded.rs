//! Commands that may hang: each is given a time that is more than enough, then its process group is killed and the test
//! told what hung.
#![allow(dead_code, reason = "each test binary uses its part")]

use super::cli;
use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// For what takes a second or a few: ten times and more of what was ever seen. `SYSTRAP_TEST_LIMIT` gives another number of
/// seconds to somebody who looks for what hangs.
pub fn limit() -> Duration {
    let wanted = std::env::var("SYSTRAP_TEST_LIMIT").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(wanted.unwrap_or(120))
}

/// Reads in a thread of its own, for a process that escapes may keep the pipe open for ever.
fn collect(mut from: impl Read + Send + 'static, done: Sender<()>) -> Arc<Mutex<Vec<u8>>> {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let target = Arc::clone(&bytes);
    std::thread::spawn(move || {
        let mut block = [0; 65536];
        while let Ok(len @ 1..) = from.read(&mut block) {
            target.lock().expect("no reader panics").extend_from_slice(&block[..len]);
        }
        // Nobody listens any more when the time is over.
        let _ = done.send(());
    });
    bytes
}

/// The processes below one, itself included.
pub fn family(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// What each thread of these processes is doing.
fn describe(pids: &[u32]) -> String {
    let mut text = String::new();
    for pid in pids {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().take(12) {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let state =
                read("stat").rsplit_once(')').map(|(_, rest)| rest.chars().take(2).collect::<String>());
            text += &format!(
                "  {pid}/{} {} {} in {} {}\n",
                task.file_name().to_string_lossy(),
                read("comm").trim(),
                state.unwrap_or_default().trim(),
                read("wchan"),
                read("syscall").trim()
            );
        }
    }
    text
}

fn kill_all(child: &mut Child) {
    let family = family(child.id());
    let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    for pid in family {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    let _ = child.wait();
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
}

/// Runs to the end, with `input` on standard input; or tells what did not end.
pub fn try_output(mut command: Command, input: &[u8], limit: Duration) -> Result<Output, String> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let (sender, done) = channel();
    let stdout = collect(child.stdout.take().expect("piped"), sender.clone());
    let stderr = collect(child.stderr.take().expect("piped"), sender);
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A program that does not read all of its input closes the pipe early.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    let mut pause = Duration::from_millis(1);
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if start.elapsed() > limit => break None,
            None => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let ended =
        (0..2).all(|_| status.is_some() && done.recv_timeout(limit.saturating_sub(start.elapsed())).is_ok());
    let taken = |bytes: &Arc<Mutex<Vec<u8>>>| std::mem::take(&mut *bytes.lock().expect("no reader panics"));
    if let (Some(status), true) = (status, ended) {
        return Ok(Output { status, stdout: taken(&stdout), stderr: taken(&stderr) });
    }
    let state = describe(&family(child.id()));
    kill_all(&mut child);
    let what = match status {
        None => format!("did not end\n{state}"),
        Some(status) => format!("ended with {status}, but somebody keeps its output open"),
    };
    Err(format!(
        "HUNG: {command:?} had {limit:?} and {what}standard output ends with: {}\nstandard error ends with: {}",
        tail(&taken(&stdout)),
        tail(&taken(&stderr))
    ))
}

/// Runs to the end, with `input` on standard input; fails if that takes longer than [`limit`].
pub fn output(command: Command, input: &[u8]) -> Output {
    try_output(command, input, limit()).unwrap_or_else(|hung| panic!("{hung}"))
}

/// A child that is killed, with its group and its descendants, when the test is done with it.
pub struct Kept(pub Child);

impl Drop for Kept {
    fn drop(&mut self) {
        kill_all(&mut self.0);
    }
}

/// How a program is started: natively (`None`) or under systrap with an option.
pub fn command<A: AsRef<OsStr>>(mode: Option<&str>, program: &Path, args: &[A]) -> Command {
    let mut command = match mode {
        Some(mode) => cli::systrap(&[mode], program, args),
        None => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
    };
    command.env("LC_ALL", "C").env_remove("BASH_ENV").env_remove("ENV");
    command
}

/// Shells name the processes that died by their numbers, in columns.
fn without_pids(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let word =
        |word: &str| if word.bytes().all(|byte| byte.is_ascii_digit()) { "PID" } else { word }.to_owned();
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ") + "\n";
    text.lines().map(line).collect::<String>().into_bytes()
}

/// Runs a command natively and under systrap in every mode, each in an empty directory; gives the native result.
pub fn compare<A: AsRef<OsStr>>(program: &Path, args: &[A], input: &[u8]) -> Output {
    compare_in(cli::MODES.as_slice(), program, args, input, &|_| ())
}

/// The same for some modes, after `prepare` has filled the directory.
pub fn compare_in<A: AsRef<OsStr>>(
    modes: &[&str],
    program: &Path,
    args: &[A],
    input: &[u8],
    prepare: &dyn Fn(&Path),
) -> Output {
    let run = |mode: Option<&str>| {
        let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
        prepare(directory.path());
        let mut command = command(mode, program, args);
        command.current_dir(directory.path());
        let mut output = output(command, input);
        output.stderr = without_pids(&output.stderr);
        output
    };
    let shown: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    let native = run(None);
    for mode in modes {
        cli::assert_same(
            &format!("{mode} -- {} {}", program.display(), shown.join(" ")),
            &native,
            &run(Some(mode)),
        );
    }
    native
}
