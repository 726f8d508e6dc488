//! Whatever a guest leaves behind, `systrap run` leaves nothing: no process, no thread, no descriptor, also when it is
//! killed itself.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Processes started by this test carry a mark in their environment; stub processes keep the supervisor's.
fn marked(mark: &str) -> HashSet<u32> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.insert(pid);
        }
    }
    found
}

/// Processes that hold this file open: everything that descends from the command inherits it.
fn holders(path: &std::path::Path) -> HashSet<u32> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let descriptors = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        if pid != std::process::id()
            && descriptors
                .into_iter()
                .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path))
        {
            found.insert(pid);
        }
    }
    found
}

/// Fails unless all of these end, and all that carry the mark, within a time that is more than enough.
fn assert_gone(what: &str, mark: &str, pids: &HashSet<u32>, file: Option<&std::path::Path>) {
    let start = Instant::now();
    loop {
        let mut left: Vec<u32> = marked(mark).into_iter().collect();
        // A number of a process that has ended may be given to a stranger, but hardly within seconds; zombies of ours
        // count as there.
        left.extend(pids.iter().filter(|pid| std::path::Path::new(&format!("/proc/{pid}/stat")).exists()));
        left.extend(file.into_iter().flat_map(holders));
        if left.is_empty() {
            return;
        }
        let seconds = start.elapsed();
        assert!(seconds < Duration::from_secs(20), "{what}: still there: {}", names(&left));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn names(pids: &[u32]) -> String {
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    pids.iter().map(|pid| name(pid).chars().take(60).collect::<String>()).collect::<Vec<_>>().join("; ")
}

/// Guests that leave something behind.
const MESSES: &[(&str, &str)] = &[
    ("nothing special", "echo ready"),
    ("a background process", "sleep 1000 & echo ready"),
    ("a process in another session", "setsid sleep 1000 & echo ready"),
    (
        "one that ignores every signal",
        "(trap '' HUP INT QUIT TERM PIPE; while :; do sleep 1; done) & echo ready",
    ),
    ("a stopped process", "sleep 1000 & kill -STOP $!; echo ready"),
    ("an orphan of an orphan", "sh -c '(sleep 1000 & sleep 1000) & exit' & echo ready; wait $!"),
    ("a reader of a pipe that never ends", "mkfifo fifo; cat fifo & echo ready"),
    ("a killed shell", "sleep 1000 & echo ready; kill -9 $$"),
];

/// The last exit of the first process ends the run: what it started goes with it, as with the init of a container; or
/// the run lasts as long as anybody is there. Either way nobody is left when `systrap run` has ended.
#[test]
fn the_end_of_the_run_is_the_end_of_every_process() {
    for (index, (what, script)) in MESSES.iter().enumerate() {
        for mode in cli::MODES {
            let mark = format!("SYSTRAP_LEFTOVER={}-{index}{mode}", std::process::id());
            let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
            let (name, value) = mark.split_once('=').expect("a variable");
            let mut command = bounded::command(Some(mode), &cli::program("sh"), &["-c", script]);
            command
                .env(name, value)
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            let mut guest = bounded::Kept(command.spawn().expect("systrap starts"));
            let mut line = String::new();
            BufReader::new(guest.0.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
            assert_eq!(line, "ready\n", "{mode}: {what}");
            let family: HashSet<u32> = bounded::family(guest.0.id()).into_iter().collect();
            // Where the run goes on as long as anybody is there, a shell's Ctrl-C and then SIGKILL end it.
            let start = Instant::now();
            while guest.0.try_wait().expect("a child").is_none() {
                if start.elapsed() > Duration::from_secs(1) {
                    guest.0.kill().expect("it is there");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_gone(&format!("{mode}: {what}"), &mark, &family, None);
        }
    }
}

/// A tree of processes with threads, in all kinds of waits; prints a line when it is complete.
const TREE: &str = "import os, threading, time, signal, sys\n\
    def wait_in_thread(): threading.Thread(target=time.sleep, args=(1000,)).start()\n\
    r, w = os.pipe()\n\
    for n in range(6):\n\
    \x20   if os.fork() == 0:\n\
    \x20       if n == 1: os.setsid()\n\
    \x20       if n == 2: [signal.signal(s, signal.SIG_IGN) for s in range(1, 32) if s not in (9, 19)]\n\
    \x20       if n == 3 and os.fork() == 0: os.fork()\n\
    \x20       wait_in_thread()\n\
    \x20       os.write(w, b'x')\n\
    \x20       if n == 4: os.kill(os.getpid(), signal.SIGSTOP)\n\
    \x20       if n == 5:\n\
    \x20           while True: pass\n\
    \x20       os.read(r, 0) if n == 0 else time.sleep(1000)\n\
    seen = 0\n\
    while seen < 8: seen += len(os.read(r, 100))\n\
    print('ready', flush=True)\n\
    time.sleep(1000)\n";

fn start_tree(mode: &str, mark: &str, file: &std::path::Path) -> bounded::Kept {
    let (name, value) = mark.split_once('=').expect("a variable");
    let mut command = bounded::command(Some(mode), &cli::python(), &["-c", TREE]);
    command.env(name, value).stdin(std::fs::File::create(file).expect("made")).stdout(Stdio::piped());
    let mut guest = bounded::Kept(command.spawn().expect("systrap starts"));
    let mut line = String::new();
    BufReader::new(guest.0.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
    assert_eq!(line, "ready\n", "{mode}");
    guest
}

#[test]
fn a_killed_supervisor_leaves_nobody() {
    for mode in cli::MODES {
        for signo in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
            let mark = format!("SYSTRAP_LEFTOVER={}-killed{mode}{signo}", std::process::id());
            let file = cli::scratch().join(format!("held{mode}{signo}"));
            let mut guest = start_tree(mode, &mark, &file);
            let mut family: HashSet<u32> = bounded::family(guest.0.id()).into_iter().collect();
            family.extend(marked(&mark));
            family.extend(holders(&file));
            assert!(family.len() >= 8, "{mode}: a process for each of the guest's: {family:?}");
            kill(Pid::from_raw(guest.0.id().cast_signed()), signo).expect("it is there");
            // Its own zombie is this test's to reap.
            let start = Instant::now();
            while guest.0.try_wait().expect("a child").is_none() {
                // The guest's first process may ignore what is not SIGKILL, or end alone.
                if start.elapsed() > Duration::from_secs(1) {
                    guest.0.kill().expect("it is there");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_gone(&format!("{mode}: {signo}"), &mark, &family, Some(&file));
        }
    }
}

/// While it runs, the supervisor holds no more for the thousandth process or thread than for the tenth.
#[test]
fn processes_that_are_gone_cost_the_supervisor_nothing() {
    let script = "import os, sys, threading\n\
        def batch():\n\
        \x20   for _ in range(40):\n\
        \x20       if (pid := os.fork()) == 0: os._exit(0)\n\
        \x20       os.waitpid(pid, 0)\n\
        \x20       t = threading.Thread(target=int); t.start(); t.join()\n\
        for _ in sys.stdin: batch(); print('done', flush=True)\n";
    for mode in cli::MODES {
        let mut command = bounded::command(Some(mode), &cli::python(), &["-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guest = bounded::Kept(command.spawn().expect("systrap starts"));
        let mut input = guest.0.stdin.take().expect("piped");
        let mut output = BufReader::new(guest.0.stdout.take().expect("piped"));
        let pid = guest.0.id();
        let count =
            |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("it is there").count();
        let mut batch = || {
            std::io::Write::write_all(&mut input, b"next\n").expect("the guest reads");
            let mut line = String::new();
            output.read_line(&mut line).expect("the guest answers");
            assert_eq!(line, "done\n", "{mode}");
            // Pooled threads and descriptors may be there; what is on its way out is given time.
            std::thread::sleep(Duration::from_millis(200));
            (count("fd"), count("task"), bounded::family(pid).len())
        };
        batch();
        let first = batch();
        let last = (0..4).map(|_| batch()).last().expect("four");
        // 160 more processes and threads: one tenth of that would show a leak as well.
        let grown =
            [last.0 as i64 - first.0 as i64, last.1 as i64 - first.1 as i64, last.2 as i64 - first.2 as i64];
        assert!(
            grown.iter().all(|more| *more < 16),
            "{mode}: descriptors, threads, processes: {first:?}, then {last:?}"
        );
        drop(input);
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut output, &mut rest).expect("it ends");
    }
}
