//! What `--no-net` keeps a guest from, watched from the host's side too; what `--memory`, `--processes`, `--timeout`,
//! `--user`, `--env` and `--chdir` do; what is said of bad values.

mod common {
    pub mod cli;
    pub mod listeners;
}

use common::cli::{self, MODES, fixture, output, scratch};
use common::listeners::Listeners;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A new empty directory.
fn directory() -> PathBuf {
    tempfile::tempdir_in(scratch()).expect("a directory").keep()
}

/// The fixture's part printed good checks only.
fn assert_good(what: &str, run: &Output) {
    let (stdout, stderr) = (text(&run.stdout), text(&run.stderr));
    let bad: Vec<_> = stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(bad.is_empty() && run.status.code() == Some(0), "{what}: {:?} {bad:#?} {stderr}", run.status);
    assert!(stdout.lines().any(|line| line.starts_with("ok")), "{what} checked nothing: {stdout}{stderr}");
}

/// `systrap run --no-net` of a part of the fixture, which is told where the host listens.
fn no_network(mode: &str, part: &str, listeners: &Listeners) -> Command {
    let directory = directory();
    let args = [part, directory.to_str().expect("a plain path")];
    let mut command = cli::systrap(&[mode, "--no-net"], &fixture("no_network", &["-pthread"]), &args);
    command.envs(listeners.environment()).env("HOST_PID", std::process::id().to_string());
    command
}

/// Runs a part in every mode; nothing of it arrives at the host's sockets.
fn attempts(part: &str) {
    for mode in MODES {
        let listeners = Listeners::new(scratch());
        let run = output(no_network(mode, part, &listeners), b"");
        assert_good(&format!("{mode} {part}"), &run);
        listeners.assert_untouched(part);
    }
}

#[test]
fn sockets_of_other_families_are_not_there() {
    attempts("families");
}

#[test]
fn the_hosts_unix_sockets_refuse_connections_by_whatever_name() {
    attempts("host_names");
}

#[test]
fn datagrams_do_not_reach_the_hosts_unix_sockets() {
    attempts("host_datagrams");
}

#[test]
fn a_name_that_changes_while_it_is_used_leads_nowhere_else() {
    attempts("races");
}

#[test]
fn there_is_no_other_way_to_a_network() {
    attempts("other_ways");
}

#[test]
fn unix_sockets_work_within_the_guest() {
    attempts("among_guests");
}

/// What works between processes of a guest with the host's sockets works without, to the letter.
#[test]
fn unix_sockets_within_the_guest_are_as_natively() {
    let program = fixture("sockets", &[]);
    for part in ["paths", "descriptors"] {
        let run = |options: Option<&[&str]>| {
            let directory = directory();
            let args = [part, directory.to_str().unwrap()];
            let command = match options {
                Some(options) => cli::systrap(options, &program, &args),
                None => {
                    let mut command = Command::new(&program);
                    command.args(args);
                    command
                }
            };
            output(command, b"")
        };
        let native = run(None);
        assert_good(part, &native);
        for mode in MODES {
            let guest = run(Some(&[mode, "--no-net"]));
            let sorted = |run: &Output| {
                let mut lines: Vec<_> = text(&run.stdout).lines().map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!(sorted(&guest), sorted(&native), "{mode} {part}: {}", text(&guest.stderr));
        }
    }
}

#[test]
fn nobody_outside_reaches_what_the_guest_binds() {
    for mode in MODES {
        let listeners = Listeners::new(scratch());
        let mut command = no_network(mode, "own_names", &listeners);
        let directory = PathBuf::from(command.get_args().last().expect("the directory"));
        let mut guest = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("systrap starts");
        let mut lines = Vec::new();
        let mut stdout = BufReader::new(guest.stdout.take().expect("piped"));
        let mut names = Vec::new();
        loop {
            let mut line = String::new();
            if stdout.read_line(&mut line).expect("lines") == 0 || line.trim_end() == "READY" {
                break;
            }
            names.extend(line.trim_end().strip_prefix("NAME ").map(str::to_owned));
            lines.push(line);
        }
        assert!(names.len() >= 8, "{mode}: {lines:?}");
        for name in &names {
            let address = SocketAddr::from_abstract_name(name).expect("an abstract name");
            let error = UnixStream::connect_addr(&address).expect_err("nobody listens outside");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{mode} stream to {name}: {error}");
            let datagram = UnixDatagram::unbound().expect("a socket");
            let error = datagram.send_to_addr(b"x", &address).expect_err("nobody hears outside");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{mode} datagram to {name}: {error}");
        }
        let file = directory.join("guest.sock");
        let error = UnixStream::connect(&file).expect_err("nobody listens outside");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{mode} {}: {error}", file.display());
        drop(guest.stdin.take());
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("text");
        let run = guest.wait_with_output().expect("it ends");
        assert!(
            run.status.success() && !rest.contains("FAIL") && !lines.concat().contains("FAIL"),
            "{mode} {lines:?} {rest}"
        );
        assert!(rest.contains("ok   accept(file, NULL, NULL) says EAGAIN"), "{mode} {rest}");
    }
}

/// Runs a part with that standard input.
fn with_input(mode: &str, part: &str, input: impl Into<OwnedFd>, listeners: &Listeners) {
    let mut command = no_network(mode, part, listeners);
    let run = command.stdin(Stdio::from(input.into())).output().expect("systrap starts");
    assert_good(&format!("{mode} {part}"), &run);
    listeners.assert_untouched(part);
}

#[test]
fn a_unix_socket_that_the_guest_is_started_with_can_be_read_and_written_only() {
    for mode in MODES {
        let listeners = Listeners::new(scratch());
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        common::listeners::send_descriptor(&ours, &listeners.tcp_client());
        with_input(mode, "given_pair", theirs, &listeners);
        let mut answer = String::new();
        ours.read_to_string(&mut answer).expect("the guest's answer");
        assert_eq!(answer, "answer", "{mode}");
    }
}

#[test]
fn other_sockets_that_the_guest_is_started_with_lead_nowhere_else() {
    for mode in MODES {
        let listeners = Listeners::new(scratch());
        let listening = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = std::net::TcpStream::connect(listening.local_addr().unwrap()).expect("a connection");
        with_input(mode, "given_listener", listening, &listeners);
        drop(client);
        with_input(
            mode,
            "given_datagrams",
            std::net::UdpSocket::bind("127.0.0.1:0").expect("a port"),
            &listeners,
        );
    }
}

/// The same attempts reach the host with its network: the listeners do notice.
#[test]
fn with_the_hosts_network_the_listeners_notice() {
    let listeners = Listeners::new(scratch());
    let script = "import os, socket\n\
                  socket.create_connection(('127.0.0.1', int(os.environ['HOST_PORT'])))\n\
                  socket.socket(socket.AF_UNIX).connect('\\0' + os.environ['HOST_ABSTRACT'])\n\
                  socket.socket(socket.AF_UNIX).connect(os.environ['HOST_PATH'])\n\
                  d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                  d.sendto(b'x', os.environ['HOST_PATH_DATAGRAM']); d.sendto(b'x', '\\0' + os.environ['HOST_ABSTRACT_DATAGRAM'])";
    let mut command = cli::systrap(&[], &cli::python(), &["-c", script]);
    command.envs(listeners.environment());
    let run = output(command, b"");
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert_eq!(listeners.touched().len(), 5, "{:?}", listeners.touched());
}

/// Runs a part of the fixture about limits.
fn bounded(mode: &str, options: &[&str], part: &str, bound: u64) -> Output {
    let options = [&[mode], options].concat();
    let mut command = cli::systrap(&options, &fixture("bounds", &["-pthread"]), &[part]);
    command.env("BOUND", bound.to_string());
    output(command, b"")
}

#[test]
fn memory_is_limited_for_each_process() {
    for mode in MODES {
        let run = bounded(mode, &["--memory", "64M"], "memory", 64 << 20);
        assert_good(&format!("{mode} memory"), &run);
    }
}

#[test]
fn a_program_that_does_not_fit_cannot_be_started() {
    let run = output(cli::systrap(&["--memory=1"], &cli::program("true"), &[""; 0]), b"");
    // The stub's own needs have room; what the guest then asks for has none.
    assert!(!run.status.success(), "{run:?}");
    let run = output(cli::systrap(&["--memory=16M"], &cli::program("true"), &[""; 0]), b"");
    assert!(run.status.success(), "{run:?}");
}

#[test]
fn processes_and_threads_are_limited_together() {
    for mode in MODES {
        for part in ["processes", "threads"] {
            let run = bounded(mode, &["--processes", "12"], part, 12);
            assert_good(&format!("{mode} {part}"), &run);
        }
    }
}

/// The command ends by itself with 124, well before a generous limit; returns how long it took.
fn times_out(mode: &str, options: &[&str], part: &str) -> Duration {
    let started = Instant::now();
    let options = [&[mode], options].concat();
    let guest = cli::systrap(&options, &fixture("bounds", &["-pthread"]), &[part]);
    let run = output(guest, b"");
    let took = started.elapsed();
    assert_eq!(run.status.code(), Some(124), "{mode} {part}: {run:?}");
    assert!(took < Duration::from_secs(60), "{mode} {part}: {took:?}");
    took
}

#[test]
fn time_is_limited() {
    for mode in MODES {
        // They end when they are told to; nobody waits for the grace.
        for part in ["many_end", "stopped"] {
            let took = times_out(mode, &["--timeout", "1500ms", "--kill-after", "1000s"], part);
            assert!(took >= Duration::from_millis(1500), "{took:?}");
        }
        // It does not.
        let took = times_out(mode, &["--timeout=1", "--kill-after=0.5s", "--processes=20"], "fork_bomb");
        assert!(took >= Duration::from_millis(1500), "{took:?}");
        let run = output(cli::systrap(&[mode, "--timeout=1h"], &cli::program("sh"), &["-c", "exit 3"]), b"");
        assert_eq!(run.status.code(), Some(3));
    }
}

#[test]
fn the_environment_is_what_was_asked_for() {
    for mode in MODES {
        let options = [
            mode,
            "--clear-env",
            "--env",
            "A=1",
            "--env=B=x=y",
            "--env",
            "HOME",
            "--env=A=2",
            "--env=UNSET_HERE",
        ];
        let mut command = cli::systrap(&options, &cli::program("env"), &[""; 0]);
        command.env("HOME", "/home/of/tests").env("OTHER", "no").env_remove("UNSET_HERE");
        let run = output(command, b"");
        assert_eq!(text(&run.stdout), "A=2\nB=x=y\nHOME=/home/of/tests\n", "{mode}");
        let mut command = cli::systrap(&[mode, "--env=A=1"], &cli::program("env"), &[""; 0]);
        command.env_clear().env("A", "0").env("Z", "26");
        assert_eq!(text(&output(command, b"").stdout), "A=1\nZ=26\n", "{mode}");
    }
}

#[test]
fn a_program_is_looked_up_in_the_guests_path() {
    let bin = directory();
    std::os::unix::fs::symlink(cli::program("true"), bin.join("only-here")).expect("a link");
    let path = format!("--env=PATH={}", bin.display());
    assert_eq!(output(cli::systrap(&[&path], Path::new("only-here"), &[""; 0]), b"").status.code(), Some(0));
    assert_eq!(output(cli::systrap(&[], Path::new("only-here"), &[""; 0]), b"").status.code(), Some(127));
}

#[test]
fn the_guest_starts_in_the_directory_that_was_named() {
    let place = directory();
    std::fs::write(place.join("script"), "#!/bin/sh\npwd\n").expect("written");
    std::fs::set_permissions(place.join("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    for mode in MODES {
        let option = format!("--chdir={}", place.display());
        let run = output(cli::systrap(&[mode, &option], Path::new("./script"), &[""; 0]), b"");
        assert_eq!(text(&run.stdout).trim_end(), place.to_str().unwrap(), "{mode}: {}", text(&run.stderr));
    }
}

#[test]
fn a_guest_is_the_user_that_was_named() {
    let own = std::fs::metadata("/proc/self").expect("there");
    let (uid, gid) = (own.uid(), own.gid());
    let id = cli::program("id");
    let run = output(cli::systrap(&[&format!("--user={uid}:{gid}")], &id, &["-u"]), b"");
    assert_eq!(text(&run.stdout).trim_end(), uid.to_string(), "{}", text(&run.stderr));
    if !is_root() {
        let run = output(cli::systrap(&["--user=12345"], &id, &[""; 0]), b"");
        assert_eq!(run.status.code(), Some(125));
        let said = "systrap: user 12345, group 12345: Operation not permitted: only a privileged user can run a guest as \
                    somebody else\n";
        assert_eq!(text(&run.stderr), said);
        return;
    }
    let place = directory();
    std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    for parent in place.ancestors().take_while(|path| path.starts_with(scratch())) {
        let _ = std::fs::set_permissions(parent, std::os::unix::fs::PermissionsExt::from_mode(0o777));
    }
    let script = "id -u; id -ru; id -g; id -G; touch made; umask 0; \
                  grep -E '^(Uid|Gid|CapEff|CapPrm)' /proc/self/status; \
                  : > root-made; echo $?; echo 7 > /proc/sys/kernel/randomize_va_space; echo $?; \
                  cat /proc/sys/kernel/usermodehelper/bset; echo $?";
    std::fs::write(place.join("root-made"), "kept").expect("written");
    let before = std::fs::read("/proc/sys/kernel/randomize_va_space").expect("there");
    for mode in MODES {
        let _ = std::fs::remove_file(place.join("made"));
        let chdir = format!("--chdir={}", place.display());
        let run = output(
            cli::systrap(&[mode, "--user=12345:54321", &chdir], &cli::program("bash"), &["-c", script]),
            b"",
        );
        let expected = "12345\n12345\n54321\n54321\nUid:\t12345\t12345\t12345\t12345\nGid:\t54321\t54321\t54321\t54321\n\
                        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n1\n1\n1\n";
        assert_eq!(text(&run.stdout), expected, "{mode}: {}", text(&run.stderr));
        let made = std::fs::metadata(place.join("made")).expect("made");
        assert_eq!((made.uid(), made.gid()), (12345, 54321), "{mode}");
        assert_eq!(std::fs::read("/proc/sys/kernel/randomize_va_space").expect("there"), before, "{mode}");
    }
    // What that user may not execute or enter is not executed or entered for it.
    std::fs::copy(cli::program("true"), place.join("private")).expect("copied");
    std::fs::set_permissions(place.join("private"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("mode");
    let run = output(cli::systrap(&["--user=12345"], &place.join("private"), &[""; 0]), b"");
    assert_eq!(run.status.code(), Some(126), "{run:?}");
}

#[test]
fn bad_values_are_one_line() {
    let lines: Vec<String> = [
        "--timeout=5x",
        "--timeout=0",
        "--kill-after=-1",
        "--memory=lots",
        "--memory=0",
        "--processes=0",
        "--processes=many",
        "--user=root",
        "--user=1:",
        "--env==x",
        "--chdir=/no/such/directory",
        "--patching=sometimes",
    ]
    .map(|option| {
        let run = output(cli::systrap(&[option], &cli::program("true"), &[""; 0]), b"");
        let said = text(&run.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        format!("{:?} {}", run.status.code(), said.trim_end())
    })
    .into();
    insta::assert_snapshot!(lines.join("\n"));
}
