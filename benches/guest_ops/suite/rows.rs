//! What is measured, and what it is to cost.

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// Short, without spaces; an operation's is the one that the C program knows.
    pub name: &'static str,
    /// What a reader is told.
    pub what: &'static str,
    /// How it is measured.
    pub measured: Measured,
    /// What it is to cost; some rows only help to understand others.
    pub goal: Option<Goal>,
}

/// How a row is measured.
#[derive(Debug, Clone, Copy)]
pub enum Measured {
    /// By the C program, from inside; nanoseconds.
    Operation,
    /// From outside, from start to end of a command; nanoseconds. `@NAME` is a file of [`super::Programs`].
    Command(&'static [&'static str]),
    /// By a command that prints how many nanoseconds each of its requests took.
    Reported(&'static [&'static str]),
    /// Proportional set size of all processes of an idle static guest; bytes.
    IdleMemory,
    /// CPU time of the same; per cent of one CPU.
    IdleCpu,
}

/// What a figure under systrap is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yardstick {
    /// As a multiple of the native figure.
    TimesNative,
    /// The native figure taken away.
    MoreThanNative,
    /// Itself: memory and CPU that a native program does not need at all.
    Nothing,
}

/// The most that a row may cost under systrap with its defaults.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// What it is compared with.
    pub yardstick: Yardstick,
    /// The most that comes of the comparison.
    pub most: f64,
    /// gVisor's systrap on the same kind of machine.
    pub gvisor: Option<f64>,
}

const fn times(most: f64, gvisor: f64) -> Option<Goal> {
    Some(Goal { yardstick: Yardstick::TimesNative, most, gvisor: Some(gvisor) })
}

/// For what nobody has a figure of gVisor's for.
const fn at_most(most: f64) -> Option<Goal> {
    Some(Goal { yardstick: Yardstick::TimesNative, most, gvisor: None })
}

const fn operation(name: &'static str, what: &'static str, goal: Option<Goal>) -> Row {
    Row { name, what, measured: Measured::Operation, goal }
}

const fn command(
    name: &'static str,
    what: &'static str,
    argv: &'static [&'static str],
    goal: Option<Goal>,
) -> Row {
    Row { name, what, measured: Measured::Command(argv), goal }
}

const fn reported(
    name: &'static str,
    what: &'static str,
    argv: &'static [&'static str],
    goal: Option<Goal>,
) -> Row {
    Row { name, what, measured: Measured::Reported(argv), goal }
}

const HUNDRED_TRUE: &str = "i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done";

/// All rows.
pub const ROWS: &[Row] = &[
    operation("getpid", "getpid (answered in the stub)", times(0.3, 20.0)),
    operation("close-bad", "close(-1), a null call", times(3.0, 18.0)),
    operation("read-1", "1-byte read of /dev/zero", times(5.0, 31.0)),
    operation("write-1", "1-byte write to /dev/null", times(5.0, 17.0)),
    operation("stat", "stat", times(4.0, 64.0)),
    operation("open-close", "open + close", times(4.0, 58.0)),
    operation("pread-4k", "4 KiB pread", times(6.0, 38.0)),
    operation("poll-ready", "poll of a ready pipe", None),
    operation("page-touch", "first touch of a page", times(1.1, 1.6)),
    operation("mmap-touch-munmap", "mmap + touch + munmap", times(1.5, 54.0)),
    operation("signal-self", "signal to self", times(8.0, 15.0)),
    operation("segv-mprotect", "SIGSEGV handler with mprotect", times(4.0, 36.0)),
    operation("thread-create-join", "thread create + join", times(3.0, 6.0)),
    operation("fork-exit-wait", "fork + exit + wait", times(5.0, 17.0)),
    operation("fork-exec-wait", "fork + exec + wait, static", times(3.0, 9.0)),
    operation("futex-wake-nobody", "private futex wake, no waiter", None),
    operation("futex-threads", "futex ping-pong, two threads", None),
    operation("futex-processes", "futex ping-pong, two processes", None),
    operation("pipe-threads", "pipe ping-pong, two threads", None),
    operation("pipe-processes", "pipe ping-pong, two processes", None),
    operation("mutex", "uncontended mutex (control)", None),
    operation("tcp-threads", "TCP round trip, two threads", at_most(3.0)),
    operation("tcp-processes", "TCP round trip, two processes", at_most(3.0)),
    operation("epoll-ready", "epoll_wait of a ready pipe", at_most(5.0)),
    command(
        "python-imports",
        "python3, import json,re,os",
        &["python3", "-c", "import json,re,os"],
        times(1.5, 3.0),
    ),
    command(
        "find-wc",
        "find /usr/share/doc … | wc -l",
        &["sh", "-c", "find /usr/share/doc /usr/include | wc -l"],
        times(1.5, 3.2),
    ),
    command("true-100", "shell loop, 100 x /bin/true", &["sh", "-c", HUNDRED_TRUE], times(2.5, 6.8)),
    command(
        "true-start",
        "start of /bin/true",
        &["/bin/true"],
        Some(Goal { yardstick: Yardstick::MoreThanNative, most: 5e6, gvisor: Some(82e6) }),
    ),
    command("java-hello", "java, hello world", &["java", "-cp", "@classes", "Hello"], at_most(1.5)),
    command(
        "gcc-2000-lines",
        "gcc -O2, 2,000 lines",
        &["gcc", "-O2", "-c", "@lines.c", "-o", "@lines.o"],
        at_most(1.25),
    ),
    // Half of the native throughput, and 40 % of it.
    reported("node-http", "node, an HTTP request", &["node", "@http.js", "@requests"], at_most(2.0)),
    reported("redis-set", "redis-benchmark, a SET", &["sh", "@redis.sh", "@sets"], at_most(2.5)),
    Row {
        name: "idle-pss",
        what: "idle static guest: PSS in all",
        measured: Measured::IdleMemory,
        goal: Some(Goal { yardstick: Yardstick::Nothing, most: 6e6, gvisor: Some(44e6) }),
    },
    Row {
        name: "idle-cpu",
        what: "idle static guest: CPU",
        measured: Measured::IdleCpu,
        // Nothing, to a tenth of a per cent: waits with a time-out look up now and then.
        goal: Some(Goal { yardstick: Yardstick::Nothing, most: 0.05, gvisor: None }),
    },
];
