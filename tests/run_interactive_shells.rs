//! Interactive shells: every dialogue goes the same way, to the byte, natively and under systrap.

mod common {
    pub mod cli;
    pub mod dialogue;
    pub mod terminal;
}

use common::cli;
use common::dialogue::Dialogue;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

const PROMPT: &str = "@> ";
const INTERRUPT: &str = "\x03";
const QUIT: &str = "\x1c";
const SUSPEND: &str = "\x1a";
const END_OF_FILE: &str = "\x04";
/// Says when it runs, so that it can be typed at; the command as it is echoed does not contain the text.
const WAITER: &str = "sh -c 'echo sta''rted; exec sleep 1000'\n";

/// An environment in which nothing is configured.
fn plain(mut command: Command) -> Command {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs([("PS1", PROMPT), ("TERM", "dumb"), ("LC_ALL", "C"), ("HISTFILE", ""), ("HOME", "/")]);
    command
}

const SHELL: [&str; 4] = ["--norc", "--noprofile", "--noediting", "-i"];

/// Without what a shell says of a stopped job whenever it comes to notice, now before and now after another line; the
/// dialogues wait for it where it matters.
fn without_notices(shown: &str) -> String {
    let is_notice = |line: &str| line.starts_with('[') && line.contains("  Stopped   ");
    shown
        .lines()
        .filter(|line| !line.is_empty() && !is_notice(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Plays the dialogue natively and under systrap in every mode.
fn compare(program: &Path, args: &[&str], play: impl Fn(&mut Dialogue)) {
    let run = |command: Command| -> (String, ExitStatus) {
        let mut dialogue = Dialogue::start(plain(command));
        play(&mut dialogue);
        let (shown, status) = dialogue.finish();
        (without_notices(&shown), status)
    };
    let mut native = Command::new(program);
    native.args(args);
    let (native, native_status) = run(native);
    for mode in cli::MODES {
        let (guest, status) = run(cli::systrap(&[mode], program, args));
        assert_eq!(guest, native, "{mode}: what the terminal showed\nguest:\n{guest}\nnative:\n{native}");
        let code = |status: ExitStatus| status.code().or(status.signal().map(|signo| 128 + signo));
        assert_eq!(code(status), code(native_status), "{mode}: status");
    }
}

/// Waits for a prompt and types a command.
fn command<'a>(user: &'a mut Dialogue, line: &str) -> &'a mut Dialogue {
    user.expect(PROMPT).keys(line).keys("\n")
}

/// A shell function that waits until its jobs are as said: what a shell notices by itself comes at any prompt.
const SETTLE: &str = "settle() { until [[ $(jobs -l) == *\"$1\"* ]]; do sleep 0.1; done; jobs -l; }";

/// Job control as a user of a shell knows it.
fn everyday(user: &mut Dialogue) {
    command(user, SETTLE);
    command(user, "ulimit -c 0; echo $((6*7))").expect("\n42");
    // Stop, look, continue, interrupt.
    command(user, "cat").expect("cat\r\n").keys("hello\n").expect("hello\r\nhello\r\n").keys(SUSPEND);
    user.expect("Stopped");
    command(user, "jobs -l").expect("Stopped");
    command(user, "fg").expect("cat\r\n").keys("again\n").expect("again\r\nagain\r\n").keys(INTERRUPT);
    command(user, "echo status $?").expect("status 130");
    user.expect(PROMPT).keys(WAITER).expect("started").keys(QUIT);
    command(user, "echo status $?").expect("status 131");
    // A pipeline stops and goes on as one.
    command(user, "sh -c 'echo sta''rted; exec cat' | sed -u s/^/x/").expect("xstarted").keys(SUSPEND);
    user.expect("Stopped");
    command(user, "fg").expect("s/^/x/\r\n").keys("line\n").expect("xline").keys(END_OF_FILE);
    // In the background.
    command(user, "sleep 1000 & settle Running").expect("Running");
    command(user, "kill -STOP %1; settle Stopped").expect("Stopped (signal)");
    command(user, "bg %1; settle Running").expect("Running");
    command(user, "kill %1; wait %1; echo status $?").expect("status 143");
    // Reading in the background stops, and goes on in the foreground.
    command(user, "cat & settle Stopped").expect("Stopped (tty input)");
    command(user, "fg").expect("cat\r\n").keys("late\n").expect("late\r\nlate\r\n").keys(END_OF_FILE);
    // Writing only if the terminal says so.
    command(user, "stty tostop; echo output & settle Stopped").expect("Stopped (tty output)");
    command(user, "stty -tostop; fg").expect("\noutput");
    // Changing the terminal's settings in the background stops, too.
    command(user, "stty erase ^H & settle Stopped").expect("Stopped (tty output)");
    command(user, "fg; echo status $?").expect("status 0");
}

/// The controlling terminal.
fn terminal(user: &mut Dialogue) {
    command(user, "echo text > /dev/tty").expect("\ntext");
    command(user, "setsid -w sh -c 'echo text > /dev/tty'; echo status $?").expect("status ");
    command(user, "tty | sed 's/[0-9].*//'").expect("/dev/pts/");
}

/// A new size reaches the foreground.
fn resizing(user: &mut Dialogue) {
    let waits = "sh -c 'trap \"stty size; exit 5\" WINCH; echo sta''rted; while :; do sleep 0.1; done'";
    command(user, waits).expect("started").resize(30, 90).expect("30 90");
    command(user, "echo status $?").expect("status 5");
    user.resize(24, 200);
}

fn leave_with_stopped_job(user: &mut Dialogue) {
    command(user, "sh -c 'trap exit HUP; kill -STOP $$; sleep 1000'").expect("Stopped");
    command(user, "jobs -l").expect("Stopped (signal)");
    command(user, "true");
    command(user, "exit").expect("There are stopped jobs.");
    command(user, "exit 7");
}

#[test]
fn an_interactive_shell_controls_its_jobs() {
    compare(&cli::program("bash"), &SHELL, |user| {
        everyday(user);
        terminal(user);
        resizing(user);
        leave_with_stopped_job(user);
    });
}

#[test]
fn a_shell_that_does_not_lead_its_session_controls_its_jobs() {
    let line = format!("bash {}; echo outer $?", SHELL.join(" "));
    compare(&cli::program("dash"), &["-c", &line], |user| {
        everyday(user);
        leave_with_stopped_job(user);
        user.expect("outer 7");
    });
}

#[test]
fn a_shell_at_a_terminal_made_by_a_guest_controls_its_jobs() {
    // As `script` does it.
    let program = "import os, pty, sys\n\
        sys.exit(os.waitstatus_to_exitcode(pty.spawn(['bash', *sys.argv[1:]])))";
    compare(&cli::python(), &[&["-c", program][..], &SHELL].concat(), |user| {
        everyday(user);
        terminal(user);
        leave_with_stopped_job(user);
    });
}

/// A native shell that runs `$RUN …`, which is the program itself or systrap with it. The program may say that it
/// runs by making the file `$MARK`.
fn compare_from_outside(name: &str, play: impl Fn(&mut Dialogue)) {
    let mark = cli::scratch().join(name);
    let run = |prefix: &str| {
        let mut shell = plain(Command::new(cli::program("bash")));
        shell.args(SHELL).env("RUN", prefix).env("MARK", &mark);
        let mut dialogue = Dialogue::start(shell);
        command(&mut dialogue, SETTLE);
        command(&mut dialogue, "marked() { until [ -e $MARK ]; do sleep 0.1; done; rm $MARK; }");
        play(&mut dialogue);
        let (shown, status) = dialogue.finish();
        (without_notices(&shown), status)
    };
    let native = run("env");
    for mode in cli::MODES {
        let env = cli::program("env");
        let guest = run(&format!("{} run {mode} -- {}", cli::SYSTRAP, env.display()));
        assert_eq!(
            guest, native,
            "{mode}: what the terminal showed\nguest:\n{}\nnative:\n{}",
            guest.0, native.0
        );
    }
}

#[test]
fn a_shell_outside_controls_a_guest_as_any_job() {
    compare_from_outside("controls", |user| {
        command(user, "ulimit -c 0; $RUN cat").expect("cat\r\n").keys("hello\n").expect("hello\r\nhello\r\n");
        user.keys(SUSPEND).expect("Stopped");
        command(user, "jobs -l").expect("Stopped");
        command(user, "fg").expect("cat\r\n").keys("again\n").expect("again\r\nagain\r\n").keys(SUSPEND);
        user.expect("Stopped");
        command(user, "bg; settle input").expect("Stopped (tty input)");
        command(user, "fg").expect("cat\r\n").keys("late\n").expect("late\r\nlate\r\n").keys(END_OF_FILE);
        command(user, "echo status $?").expect("status 0");
        for (key, status) in [(INTERRUPT, "status 130"), (QUIT, "status 131")] {
            user.expect(PROMPT).keys("$RUN ").keys(WAITER).expect("started").keys(key);
            command(user, "echo status $?").expect(status);
        }
        // A handler of the guest's runs.
        let waits = "$RUN sh -c 'trap \"exit 3\" TERM; : >$MARK; while :; do :; done' & marked";
        command(user, waits);
        command(user, "kill %1; wait %1; echo status $?").expect("status 3");
        // Stopped and continued by a command.
        command(user, "$RUN sh -c ': >$MARK; exec sleep 1000' & marked");
        command(user, "kill -STOP %1; settle Stopped").expect("Stopped (signal)");
        command(user, "bg; settle Running").expect("Running");
        command(user, "kill %1; wait %1; echo status $?").expect("status 143");
        // Started in the background, it stops when it reads.
        command(user, "$RUN sh -c 'cat; exit 4' & settle Stopped").expect("Stopped (tty input)");
        command(user, "fg").expect("exit 4'\r\n").keys("line\n").expect("line\r\nline\r\n").keys(END_OF_FILE);
        command(user, "echo status $?").expect("status 4");
        command(user, "exit");
    });
}

#[test]
fn a_shell_inside_and_one_outside_take_turns() {
    compare_from_outside("turns", |user| {
        command(user, &format!("$RUN bash {}", SHELL.join(" ")));
        command(user, "cat").expect("cat\r\n").keys("hello\n").expect("hello\r\nhello\r\n").keys(SUSPEND);
        user.expect("Stopped");
        command(user, "suspend").expect("Stopped");
        command(user, "jobs -l").expect("Stopped (signal)");
        command(user, "fg").expect("$RUN");
        command(user, "jobs -l").expect("Stopped");
        command(user, "fg").expect("cat\r\n").keys("again\n").expect("again\r\nagain\r\n").keys(END_OF_FILE);
        command(user, "exit 5").expect("exit");
        command(user, "echo status $?").expect("status 5");
        command(user, "exit");
    });
}

#[test]
fn sessions_take_share_and_give_up_terminals_as_natively() {
    // In a session of its own, which has no terminal.
    let program = cli::fixture("sessions", &[]);
    let arguments = ["-w".as_ref(), program.as_os_str()];
    let setsid = cli::program("setsid");
    let run = |mut command: Command| {
        command.process_group(0);
        cli::output(command, b"")
    };
    let mut native = Command::new(&setsid);
    native.args(arguments);
    let native = run(native);
    assert!(native.stdout.ends_with(b"ends 0\n"), "{native:?}");
    for mode in cli::MODES {
        let guest = run(cli::systrap(&[mode], &setsid, &arguments));
        cli::assert_same(&format!("{mode} -- setsid -w sessions"), &native, &guest);
        // The supervisor itself in such a session.
        let mut outer = Command::new(&setsid);
        outer.args(["-w", cli::SYSTRAP, "run", mode, "--"]).arg(&program);
        cli::assert_same(&format!("setsid -w systrap run {mode} -- sessions"), &native, &run(outer));
    }
}

#[test]
fn a_terminal_that_hangs_up_ends_the_shell_and_its_jobs() {
    let run = |command: Command| {
        let mut user = Dialogue::start(plain(command));
        let user_ref = &mut user;
        self::command(user_ref, "sleep 1000 &").expect("[1]");
        user_ref.expect(PROMPT).keys(WAITER).expect("started");
        let status = user.hang_up();
        status.code().or(status.signal().map(|signo| 128 + signo))
    };
    let bash = cli::program("bash");
    let mut native = Command::new(&bash);
    native.args(SHELL);
    let native = run(native);
    assert_eq!(native, Some(129));
    for mode in cli::MODES {
        // The supervisor ends when the last of the guest's processes has.
        assert_eq!(run(cli::systrap(&[mode], &bash, &SHELL)), native, "{mode}");
    }
}

/// The processes named so whose parent is `parent`.
fn children_named(parent: u32, name: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let Some((pid, comm)) = head.split_once(" (") else { continue };
        if comm == name && tail.split_whitespace().nth(1) == Some(&parent.to_string()) {
            found.extend(pid.parse::<i32>());
        }
    }
    found
}

#[test]
fn no_session_outlives_its_leader_or_the_supervisor() {
    let program = "import os, sys, fcntl, termios, time\n\
        for round in range(30):\n\
        \x20   master, slave = os.openpty()\n\
        \x20   if (child := os.fork()) == 0:\n\
        \x20       os.setsid(); fcntl.ioctl(slave, termios.TIOCSCTTY, 0)\n\
        \x20       assert os.tcgetpgrp(slave) == os.getpid()\n\
        \x20       if round < 29: os._exit(0)\n\
        \x20       print('ready', flush=True); time.sleep(1000)\n\
        \x20   if round < 29: assert os.waitpid(child, 0)[1] == 0\n\
        \x20   os.close(master); os.close(slave)\n\
        os.waitpid(child, 0)\n"
        .replace("os.close(master); os.close(slave)", "if round < 29: os.close(master); os.close(slave)");
    let mut command = cli::systrap(&[], &cli::python(), &["-c", &program]);
    let mut supervisor = command.stdout(std::process::Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let mut output = BufReader::new(supervisor.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let keepers = children_named(supervisor.id(), "systrap-session");
    assert_eq!(keepers.len(), 1, "one session with a terminal is alive: {keepers:?}");
    supervisor.kill().expect("it is there");
    supervisor.wait().expect("it ends");
    let started = Instant::now();
    while Path::new(&format!("/proc/{}", keepers[0])).exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the keeper lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}
