//! `--trace`, `--stats`, `--stats-json`, and signals sent to `systrap run`.

#[path = "common/cli.rs"]
mod cli;

use cli::{output, scratch, systrap};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn json(name: &str, program: &Path, args: &[&str]) -> serde_json::Value {
    let file = scratch().join(name);
    let run = output(systrap(&["--stats-json", file.to_str().unwrap()], program, args), b"");
    assert!(run.status.code().is_some(), "{run:?}");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn the_trace_shows_calls_with_decoded_arguments() {
    let file = scratch().join("trace");
    let option = format!("--trace={}", file.display());
    let run = output(systrap(&[&option], &cli::program("cat"), &["/etc/hostname", "/no/such/file"]), b"");
    assert_eq!(run.status.code(), Some(1));
    let trace = std::fs::read_to_string(file).unwrap();
    for expected in [
        "openat(AT_FDCWD, \"/etc/hostname\", O_RDONLY, 000) = ",
        "= -1 ENOENT (No such file or directory)",
        "PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0x0)",
        "exit_group(1)                           = ?",
        "+++ exited with 1 +++",
    ] {
        assert!(trace.contains(expected), "no {expected:?} in\n{trace}");
    }
    assert!(trace.lines().any(|line| line.starts_with("write(1, \"")), "{trace}");
}

#[test]
fn the_trace_goes_to_standard_error_without_a_file() {
    let run = output(systrap(&["--trace"], &cli::program("true"), &[""; 0]), b"");
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(text.ends_with("+++ exited with 0 +++\n"), "{text}");
    assert!(text.contains("execve") || text.contains("brk(NULL)"), "{text}");
}

#[test]
fn the_statistics_add_up() {
    let stats = json("stats.json", &cli::program("ls"), &["/"]);
    let number = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats}"));
    assert_eq!(number("calls"), number("trapped") + number("patched") + number("answered"));
    assert!(number("calls") > 20 && number("sites") > 5 && number("sites") <= number("calls"));
    assert!(number("sites_patched") <= number("sites"));
    let by_name = stats["by_name"].as_object().unwrap();
    let sum: u64 = by_name.values().filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(sum, number("trapped") + number("patched"));
    assert!(stats["unimplemented"].is_object());

    let run = output(systrap(&["--stats"], &cli::program("true"), &[""; 0]), b"");
    let table = String::from_utf8(run.stderr).unwrap();
    assert!(table.contains("exit_group") && table.contains("in all"), "{table}");
}

#[test]
fn an_unimplemented_call_is_counted_by_name() {
    let script = "import ctypes; l = ctypes.CDLL(None, use_errno=True); \
                  print([l.syscall(n) for n in (1000, 1000, 425, 999)], ctypes.get_errno())";
    let stats = json("unimplemented.json", &cli::python(), &["-c", script]);
    assert_eq!(stats["unimplemented"]["syscall_0x3e8"], 2, "{stats}");
    assert_eq!(stats["unimplemented"]["syscall_0x3e7"], 1);
    // What is refused on purpose is not missing.
    assert!(stats["unimplemented"]["io_uring_setup"].is_null(), "{stats}");
}

/// Waits until the guest has said that it is ready.
fn read_line(from: &mut impl std::io::Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while from.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn signals_to_systrap_reach_the_guest() {
    let python = cli::python();
    let script = "import signal, sys, time\n\
                  signal.signal(signal.SIGTERM, lambda *_: (print('caught', flush=True), sys.exit(9)))\n\
                  print('ready', flush=True)\n\
                  while True: time.sleep(100)";
    let mut child = systrap(&[], &python, &["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_line(&mut stdout), "ready");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("caught\n", Some(9)));

    // A busy guest without a handler dies; so does one that waits.
    for (program, args) in
        [(&python, &["-c", "print('ready', flush=True)\nwhile True: pass"][..]), (&cli::program("cat"), &[])]
    {
        let mut child =
            systrap(&[], program, args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        if args.is_empty() {
            std::thread::sleep(Duration::from_millis(300));
        } else {
            assert_eq!(read_line(child.stdout.as_mut().unwrap()), "ready");
        }
        let started = Instant::now();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(nix::libc::SIGINT));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
