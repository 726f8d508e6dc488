//! What a hook sees of a guest and what it can do about it.

#![allow(unsafe_code)]

#[path = "common/alone.rs"]
mod alone;
#[path = "common/cli.rs"]
mod cli;

use alone::alone;
use cli::{fixture, scratch};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use systrap::sentry::{
    ArgValue, Call, CallEnd, CallSet, DeliveredSignal, Errno, ExitStatus, Guest, Hook, Outcome, RunError,
    TaskId, Verdict,
};
use systrap::{Options, Patching};

fn guest(args: &[&str]) -> Guest {
    let program = fixture("hooked", &["-pthread"]);
    let path = CString::new(program.as_os_str().as_bytes()).expect("no zero byte");
    let args = args.iter().map(|arg| CString::new(*arg).expect("no zero byte"));
    Guest::new(path.clone()).args(std::iter::once(path).chain(args).collect::<Vec<_>>())
}

fn shell(script: &str) -> Guest {
    let script = CString::new(script).expect("no zero byte");
    Guest::new(c"/bin/sh").args([c"sh".to_owned(), c"-c".to_owned(), script])
}

fn ends_well(outcome: Result<Outcome, RunError>) -> Outcome {
    let outcome = outcome.expect("the guest runs");
    assert_eq!(outcome.status, ExitStatus::Exited(0));
    outcome
}

fn count_of(outcome: &Outcome, name: &str) -> u64 {
    outcome.counts.by_name.iter().find(|(found, _)| found == name).map_or(0, |(_, count)| *count)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Counts the calls that it wants to see.
struct Counter {
    calls: CallSet,
    seen: Mutex<BTreeMap<String, u64>>,
    ended: AtomicU64,
}

impl Counter {
    fn of(calls: CallSet) -> Arc<Self> {
        Arc::new(Self { calls, seen: Mutex::default(), ended: AtomicU64::new(0) })
    }

    fn seen(&self, name: &str) -> u64 {
        self.seen.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

impl Hook for Counter {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        self.calls
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        *self.seen.lock().unwrap().entry(call.name().to_owned()).or_default() += 1;
        Verdict::Proceed
    }

    fn after(&self, (): &mut (), _: &mut Call<'_>) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_hook_takes_its_calls_from_the_stub_and_leaves_the_others_there() {
    alone("a_hook_takes_its_calls_from_the_stub_and_leaves_the_others_there", || {
        const ROUNDS: u64 = 2000;
        let cases = [
            (CallSet::numbered([libc::SYS_getppid]), [false, false, true]),
            (CallSet::numbered([libc::SYS_getpid]), [true, false, false]),
            (CallSet::numbered([libc::SYS_sched_yield]), [false, true, false]),
            (CallSet::ALL, [true, true, true]),
        ];
        for (calls, wanted) in cases {
            let counter = Counter::of(calls);
            let run = guest(&["often", "2000"])
                .options(Options::new().patching(Patching::Lazy))
                .hook(Arc::clone(&counter))
                .run();
            let outcome = ends_well(run);
            for (name, wanted) in ["getpid", "sched_yield", "getppid"].into_iter().zip(wanted) {
                let (seen, arrived) = (counter.seen(name), count_of(&outcome, name));
                if wanted {
                    assert!(seen >= ROUNDS, "{name} was seen {seen} times with {calls:?}");
                } else {
                    assert_eq!(seen, 0, "{name} with {calls:?}");
                }
                if !wanted && name != "getppid" {
                    assert!(arrived < ROUNDS / 4, "{name} arrived {arrived} times with {calls:?}");
                }
            }
        }
    });
}

#[test]
fn threads_wait_for_each_other_while_every_call_is_seen() {
    alone("threads_wait_for_each_other_while_every_call_is_seen", || {
        let counter = Counter::of(CallSet::ALL);
        ends_well(guest(&["threads", "300"]).hook(Arc::clone(&counter)).run());
        let begun: u64 = counter.seen.lock().unwrap().values().sum();
        assert_eq!(counter.ended.load(Ordering::Relaxed), begun, "each call that was begun ends");
        assert!(counter.seen("getppid") == 1200 && counter.seen("getpid") >= 2400, "{:?}", counter.seen);
    });
}

/// Keeps a count for each task, which begins with its parent's name.
#[derive(Default)]
struct PerTask {
    lines: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Own {
    parent: Option<i32>,
    tid: i32,
    calls: u64,
}

impl Hook for PerTask {
    type TaskState = Own;

    fn calls(&self) -> CallSet {
        CallSet::numbered([libc::SYS_getppid])
    }

    fn task_started(&self, task: TaskId, own: &mut Own, parent: Option<&Own>) {
        *own = Own { parent: parent.map(|parent| parent.tid), tid: task.tid, calls: 0 };
    }

    fn before(&self, own: &mut Own, call: &mut Call<'_>) -> Verdict {
        assert_eq!(call.task().tid, own.tid);
        own.calls += 1;
        Verdict::Proceed
    }

    fn task_ended(&self, task: TaskId, own: &mut Own, status: ExitStatus) {
        let kind = match (own.parent, task.pid == task.tid) {
            (None, _) => "first",
            (Some(parent), false) if parent == task.pid => "thread",
            _ => "child",
        };
        self.lines.lock().unwrap().push(format!("{kind}: {} calls, {status:?}", own.calls));
    }
}

#[test]
fn each_task_has_a_state_that_lives_as_long_as_it_does() {
    alone("each_task_has_a_state_that_lives_as_long_as_it_does", || {
        let hook = Arc::new(PerTask::default());
        ends_well(guest(&["threads", "100"]).hook(Arc::clone(&hook)).run());
        let mut lines = hook.lines.lock().unwrap().clone();
        lines.sort();
        let thread = "thread: 100 calls, Exited(0)".to_owned();
        let first = "first: 0 calls, Exited(0)".to_owned();
        assert_eq!(lines, [first, thread.clone(), thread.clone(), thread.clone(), thread]);
    });
}

/// Denies what names a secret; answers getpgrp and an unknown call; records what it saw.
#[derive(Default)]
struct Judge {
    seen: Mutex<Vec<String>>,
    denied: AtomicU64,
}

impl Hook for Judge {
    type TaskState = ();

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        match (call.number(), call.arg(1).map(|path| path.value())) {
            (libc::SYS_openat, Some(ArgValue::Path(path))) if path.to_bytes().ends_with(b"secret") => {
                self.denied.fetch_add(1, Ordering::Relaxed);
                Verdict::Deny(Errno::EACCES)
            }
            (libc::SYS_openat, Some(ArgValue::Unreadable(_))) => Verdict::Proceed,
            (libc::SYS_getpgrp, _) => Verdict::Answer(4711),
            (600, _) => Verdict::Answer(call.arg(2).map_or(0, |arg| arg.raw() as i64)),
            _ => Verdict::Proceed,
        }
    }

    fn after(&self, (): &mut (), call: &mut Call<'_>) {
        if [600, libc::SYS_getpgrp].contains(&call.number()) || call.to_string().contains("0x8,") {
            self.seen.lock().unwrap().push(format!("{call} {:?}", call.end()));
        }
    }
}

#[test]
fn calls_are_denied_and_answered_whatever_their_number() {
    alone("calls_are_denied_and_answered_whatever_their_number", || {
        let (out, trace) = (scratch().join("out"), scratch().join("trace"));
        let hook = Arc::new(Judge::default());
        let program = fixture("hooked", &["-pthread"]);
        let script = format!("{} errors > {}", program.display(), out.display());
        let log = std::fs::File::create(&trace).unwrap();
        ends_well(shell(&script).trace(log).hook(Arc::clone(&hook)).run());
        assert_eq!(read(&out), "3 0 -1 14 4711\n");
        let seen = hook.seen.lock().unwrap().clone();
        assert!(seen.iter().any(|line| line == "getpgrp() Some(Returned(Ok(4711)))"), "{seen:?}");
        let failed = "openat(AT_FDCWD, 0x8, O_RDONLY, 000) Some(Returned(Err(EFAULT)))";
        assert!(seen.iter().any(|line| line == failed), "{seen:?}");
        assert!(seen.iter().any(|line| line.starts_with("syscall_0x258(0x1, 0x2, 0x3,")), "{seen:?}");
        // The trace is outside of the hook: it shows what the guest got.
        let lines = read(&trace);
        assert!(lines.lines().any(|line| line.contains("getpgrp()") && line.ends_with("= 4711")), "{lines}");
    });
}

#[test]
fn a_path_that_changes_while_it_is_judged_is_used_as_judged() {
    alone("a_path_that_changes_while_it_is_judged_is_used_as_judged", || {
        let (public, secret) = (scratch().join("public"), scratch().join("secret"));
        std::fs::write(&public, "p").unwrap();
        std::fs::write(&secret, "s").unwrap();
        let out = scratch().join("raced");
        let program = fixture("hooked", &["-pthread"]);
        let script = format!(
            "{} race {} {} 3000 > {}",
            program.display(),
            public.display(),
            secret.display(),
            out.display()
        );
        let hook = Arc::new(Judge::default());
        ends_well(shell(&script).hook(Arc::clone(&hook)).run());
        assert!(hook.denied.load(Ordering::Relaxed) > 0, "the path never changed");
        assert_eq!(read(&out), "public some secret 0\n");
    });
}

/// Sends every write to a descriptor that is not there, or kills the writer.
struct Writes(Verdict);

impl Hook for Writes {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::numbered([libc::SYS_write])
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        // The shells may say what has happened.
        if call.arg(0).map(|fd| fd.value()) == Some(ArgValue::Fd(libc::STDERR_FILENO)) {
            return Verdict::Proceed;
        }
        if self.0 == Verdict::Proceed {
            call.set_raw(0, 99).expect("write has arguments");
        }
        self.0
    }
}

#[test]
fn a_changed_argument_is_the_one_that_counts() {
    alone("a_changed_argument_is_the_one_that_counts", || {
        let out = scratch().join("changed");
        let script = format!("echo lost > {} 2> /dev/null; test $? != 0", out.display());
        ends_well(shell(&script).hook(Writes(Verdict::Proceed)).run());
        assert_eq!(read(&out), "");
    });
}

#[test]
fn a_hook_kills_the_process_that_makes_a_call_and_no_other() {
    alone("a_hook_kills_the_process_that_makes_a_call_and_no_other", || {
        // The inner shell dies of SIGKILL; the outer one, which writes nothing, tells how.
        ends_well(shell("(echo inner); test $? = 137").hook(Writes(Verdict::Kill)).run());
    });
}

/// Panics where it is told to.
struct Panics(&'static str);

impl Hook for Panics {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        assert!(self.0 != "calls", "in calls");
        CallSet::numbered([libc::SYS_getppid])
    }

    fn task_started(&self, _: TaskId, (): &mut (), parent: Option<&()>) {
        assert!(self.0 != "first task" || parent.is_some(), "in first task");
        assert!(self.0 != "thread" || parent.is_none(), "in thread");
    }

    fn before(&self, (): &mut (), _: &mut Call<'_>) -> Verdict {
        assert!(self.0 != "before", "in {}", self.0);
        Verdict::Proceed
    }

    fn after(&self, (): &mut (), _: &mut Call<'_>) {
        assert!(self.0 != "after", "in after");
    }

    fn program_started(&self, _: TaskId, (): &mut (), _: &Path) {
        assert!(self.0 != "program", "in program");
    }
}

#[test]
fn a_hook_that_panics_ends_the_guest_and_the_run_says_so() {
    alone("a_hook_that_panics_ends_the_guest_and_the_run_says_so", || {
        for place in ["calls", "first task", "thread", "before", "after", "program"] {
            match guest(&["last_words"]).hook(Panics(place)).run() {
                Err(RunError::Hook { message }) => assert_eq!(message, format!("in {place}")),
                other => panic!("{place}: {other:?}"),
            }
        }
    });
}

/// Notes programs and signals.
#[derive(Default)]
struct Lives {
    notes: Mutex<Vec<String>>,
}

impl Hook for Lives {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::NONE
    }

    fn program_started(&self, _: TaskId, (): &mut (), executable: &Path) {
        let name = executable.file_name().map(|name| name.to_string_lossy().into_owned());
        self.notes.lock().unwrap().push(format!("runs {}", name.unwrap_or_default()));
    }

    fn signal(&self, _: TaskId, (): &mut (), signal: &DeliveredSignal) {
        self.notes.lock().unwrap().push(format!("signal {}", signal.signo));
    }

    fn task_ended(&self, _: TaskId, (): &mut (), status: ExitStatus) {
        self.notes.lock().unwrap().push(format!("{status:?}"));
    }
}

#[test]
fn programs_signals_and_ends_are_told_of() {
    alone("programs_signals_and_ends_are_told_of", || {
        let hook = Arc::new(Lives::default());
        ends_well(shell("trap 'exec /bin/true' USR1; kill -USR1 $$; sleep 9").hook(Arc::clone(&hook)).run());
        let notes = hook.notes.lock().unwrap().clone();
        let shell =
            std::fs::canonicalize("/bin/sh").unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(
            notes,
            [format!("runs {shell}"), "signal 10".into(), "runs true".into(), "Exited(0)".into()]
        );
    });
}

/// Says who sees a call in which order.
struct Layer(&'static str, Arc<Mutex<Vec<String>>>, AtomicBool);

impl Hook for Layer {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::numbered([libc::SYS_getppid])
    }

    fn before(&self, (): &mut (), _: &mut Call<'_>) -> Verdict {
        self.1.lock().unwrap().push(format!("{} before", self.0));
        if self.2.load(Ordering::Relaxed) { Verdict::Answer(5) } else { Verdict::Proceed }
    }

    fn after(&self, (): &mut (), call: &mut Call<'_>) {
        let Some(CallEnd::Returned(Ok(value))) = call.end() else { panic!("{call:?}") };
        self.1.lock().unwrap().push(format!("{} after {value}", self.0));
        call.set_result(Ok(value + 1));
    }
}

#[test]
fn hooks_are_nested() {
    alone("hooks_are_nested", || {
        let log = Arc::new(Mutex::new(Vec::new()));
        let layer = |name, decides| Layer(name, Arc::clone(&log), AtomicBool::new(decides));
        let run = guest(&["often", "1"])
            .hook(layer("a", false))
            .hook(layer("b", true))
            .hook(layer("c", false))
            .run();
        ends_well(run);
        assert_eq!(*log.lock().unwrap(), ["a before", "b before", "b after 5", "a after 6"]);
    });
}

/// A trace that cannot be written changes nothing; a writer that panics ends the guest as a hook does.
struct BadWriter;

impl Write for BadWriter {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        panic!("no paper")
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_trace_whose_writer_panics_ends_the_guest() {
    alone("a_trace_whose_writer_panics_ends_the_guest", || {
        match guest(&["often", "1"]).trace(BadWriter).run() {
            Err(RunError::Hook { message }) => assert_eq!(message, "no paper"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn what_embedders_hold_may_cross_threads() {
    fn sends<T: Send>() {}
    fn shares<T: Send + Sync>() {}
    sends::<Guest>();
    sends::<systrap::Context>();
    shares::<systrap::Systrap>();
    shares::<systrap::AddressSpace>();
    shares::<systrap::Interrupter>();
    shares::<Outcome>();
    shares::<RunError>();
    shares::<CallSet>();
    shares::<Arc<Counter>>();
}
