//! The filter that a supervisor puts itself under when a guest starts.
#![allow(unsafe_code, reason = "a hook of the tests makes raw host calls")]

mod common {
    pub mod alone;
    pub mod cli;
}

use common::{alone, cli};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use systrap::sentry::{Call, CallSet, Guest, Hook, SupervisorFilter, Verdict};

/// How many filters a process's threads are under, without repetition; "Seccomp" and "Seccomp_filters" of each.
fn filters(pid: u32) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let mut seen: Vec<_> = tasks
        .flatten()
        .map(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            (value("Seccomp:"), value("Seccomp_filters:"))
        })
        .collect();
    seen.sort();
    seen.dedup();
    seen
}

/// The filters of `systrap run OPTIONS` while its guest waits.
fn filters_of_command(options: &[&str]) -> Vec<(String, String)> {
    let mut child = cli::systrap(options, &cli::program("sh"), &["-c", "echo ready; read line; exit 5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("systrap starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let filters = filters(child.id());
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(5), "{options:?}");
    filters
}

#[test]
fn every_thread_of_the_command_is_filtered_unless_turned_off() {
    let before = filters(std::process::id());
    let [(_, outer)] = &before[..] else { panic!("the test's own threads differ: {before:?}") };
    let outer: u32 = outer.parse().unwrap_or(0);
    assert_eq!(filters_of_command(&[]), [("2".to_owned(), (outer + 1).to_string())]);
    assert_eq!(filters_of_command(&["--no-net"]), [("2".to_owned(), (outer + 1).to_string())]);
    assert_eq!(filters_of_command(&["--no-supervisor-filter"]), before);
}

/// A supervisor that goes astray: at the guest's `getpriority` it makes a host call.
struct Astray(fn());

impl Hook for Astray {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::named(["getpriority"]).expect("there is such a call")
    }

    fn before(&self, (): &mut (), _: &mut Call<'_>) -> Verdict {
        (self.0)();
        Verdict::Proceed
    }
}

const GUEST: &std::ffi::CStr = c"/usr/bin/python3";

fn run_astray(filter: SupervisorFilter, call: fn()) {
    let script = c"import os; os.getpriority(os.PRIO_PROCESS, 0)";
    let interpreter = cli::python();
    let path = std::ffi::CString::new(interpreter.to_str().expect("a plain path")).expect("no zero");
    let outcome =
        Guest::new(path).args([GUEST, c"-c", script]).supervisor_filter(filter).hook(Astray(call)).run();
    println!("THE GUEST ENDED: {:?}", outcome.map(|outcome| outcome.status));
}

/// All ids of a process's threads.
fn threads(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// The supervisor's threads but the first, whose id is the guest's, and those of its stub processes.
fn ids_of_the_machinery(supervisor: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let stubs = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent(*pid) == Some(supervisor));
    let own = threads(supervisor).into_iter().filter(|id| *id != supervisor);
    own.chain(stubs.flat_map(threads)).collect()
}

/// Who signals the processes around it may not end the supervisor by that: not by naming a thread of it, nor by what its
/// own filter forbids.
#[test]
fn a_guest_that_signals_others_ends_nobody() {
    let mut bystander =
        std::process::Command::new(cli::program("sleep")).arg("100").spawn().expect("sleep starts");
    for options in [&[][..], &["--no-supervisor-filter"]] {
        let script =
            "echo ready; while read pid; do for s in 0 9 15; do kill -$s $pid 2>&1; done; done; echo alive";
        let mut child = cli::systrap(options, &cli::program("bash"), &["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("systrap starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        let mut ids = ids_of_the_machinery(child.id());
        assert!(ids.len() >= 4, "{ids:?}");
        let count = ids.len();
        if options.is_empty() {
            ids.push(bystander.id());
        }
        let mut input = child.stdin.take().expect("piped");
        for id in ids {
            writeln!(input, "{id}").expect("the guest reads");
        }
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).expect("text");
        let status = child.wait().expect("it ends");
        assert!(status.success() && text.ends_with("alive\n"), "{options:?}: {status}: {text}");
        assert_eq!(text.matches("No such process").count(), 3 * count, "{options:?}: {text}");
        // That there is one may be asked.
        assert_eq!(text.matches("not permitted").count(), if options.is_empty() { 2 } else { 0 }, "{text}");
    }
    assert_eq!(bystander.try_wait().expect("a child"), None);
    let _ = bystander.kill();
    let _ = bystander.wait();
}

/// Runs `body` in a process of its own: its output and the signal that killed it.
fn alone(name: &str, body: impl FnOnce()) -> Option<(String, Option<i32>)> {
    if alone::role().is_some() {
        body();
        std::process::exit(0);
    }
    let output = alone::command(name, "astray").output().expect("the test binary can be started again");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Some((text, output.status.signal()))
}

fn is_killed(name: &str, host_call: &str, call: fn()) {
    let Some((text, signal)) = alone(name, || run_astray(SupervisorFilter::new(), call)) else { return };
    assert_eq!(signal, Some(libc::SIGSYS), "{text}");
    assert!(text.contains(&format!("forbids a host call that it has made: {host_call} (")), "{text}");
    assert!(!text.contains("THE GUEST ENDED"), "{text}");
}

macro_rules! forbidden {
    ($($test:ident: $name:literal $call:expr;)*) => {$(
        #[test]
        fn $test() {
            is_killed(stringify!($test), $name, || {
                // SAFETY: numbers and null pointers only; the call is not made, and would fail if it were.
                unsafe { $call };
            });
        }
    )*};
}

forbidden! {
    tracing_is_forbidden: "ptrace" libc::syscall(libc::SYS_ptrace, 16, 1, 0, 0);
    executing_a_program_is_forbidden: "execve" libc::syscall(libc::SYS_execve, 0, 0, 0);
    mounting_is_forbidden: "mount" libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0);
    entering_a_namespace_is_forbidden: "setns" libc::syscall(libc::SYS_setns, -1, 0);
    leaving_a_namespace_is_forbidden: "unshare" libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNET | libc::CLONE_FS);
    forking_is_forbidden: "clone" libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    a_thread_in_a_namespace_of_its_own_is_forbidden: "clone" libc::syscall(libc::SYS_clone, 0x3d0f00 | libc::CLONE_NEWNS, 0, 0, 0, 0);
    executable_memory_is_forbidden: "mmap" libc::syscall(libc::SYS_mmap, 0, 4096, 7, 0x22, -1, 0);
    making_memory_executable_is_forbidden: "mprotect" libc::syscall(libc::SYS_mprotect, 0, 0, libc::PROT_EXEC);
    programs_in_the_kernel_are_forbidden: "bpf" libc::syscall(libc::SYS_bpf, 0, 0, 0);
    another_filter_is_forbidden: "seccomp" libc::syscall(libc::SYS_seccomp, 2, 0, 0);
    killing_others_is_forbidden: "kill" libc::syscall(libc::SYS_kill, libc::getppid(), libc::SIGCONT);
    limits_of_others_are_forbidden: "prlimit64" libc::syscall(libc::SYS_prlimit64, libc::getppid(), libc::RLIMIT_CPU, 1, 0);
    another_kind_of_prctl_is_forbidden: "prctl" libc::syscall(libc::SYS_prctl, libc::PR_SET_MM, 0, 0, 0, 0);
    typing_for_others_is_forbidden: "ioctl" libc::syscall(libc::SYS_ioctl, -1, libc::TIOCSTI, 0);
    io_uring_is_forbidden: "io_uring_setup" libc::syscall(libc::SYS_io_uring_setup, 0, 0);
}

#[test]
fn a_call_that_the_embedder_adds_is_admitted() {
    let name = "a_call_that_the_embedder_adds_is_admitted";
    let call = || {
        // SAFETY: reads a number.
        let old = unsafe { libc::syscall(libc::SYS_personality, u32::MAX) };
        println!("PERSONALITY {old}");
    };
    let filter = SupervisorFilter::new().allow(libc::SYS_personality);
    let Some((text, signal)) = alone(name, || run_astray(filter, call)) else { return };
    assert!(
        signal.is_none() && text.contains("PERSONALITY 0") && text.contains("Exited(0)"),
        "{signal:?} {text}"
    );
}

/// A supervisor without network cannot make other sockets either.
#[test]
fn without_network_the_supervisor_has_none() {
    let name = "without_network_the_supervisor_has_none";
    let call = || {
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0) };
    };
    let body = || {
        let path = std::ffi::CString::new(cli::python().to_str().expect("plain")).expect("no zero");
        let script = c"import os; os.getpriority(os.PRIO_PROCESS, 0)";
        let guest = Guest::new(path).args([GUEST, c"-c", script]).network(systrap::sentry::Network::None);
        let outcome = guest.supervisor_filter(SupervisorFilter::new()).hook(Astray(call)).run();
        println!("THE GUEST ENDED: {:?}", outcome.map(|outcome| outcome.status));
    };
    let Some((text, signal)) = alone(name, body) else { return };
    assert_eq!(signal, Some(libc::SIGSYS), "{text}");
    assert!(text.contains("it has made: socket ("), "{text}");
}

#[test]
fn the_list_is_to_be_read() {
    let calls: Vec<_> = SupervisorFilter::calls().collect();
    assert!(calls.contains(&"openat") && !calls.contains(&"ptrace"), "{calls:?}");
    let mut sorted = calls.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), calls.len(), "a call is listed twice: {calls:?}");
    assert!(Path::new("/proc/self/status").exists());
}
