//! Stressors of stress-ng, which check what they do (`--verify`). `SYSTRAP_STRESS_SECONDS` says how long each runs.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::time::Duration;

fn seconds() -> u64 {
    std::env::var("SYSTRAP_STRESS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Runs two workers of a stressor in one mode; `name` is what stress-ng calls it.
fn stress(name: &str, mode: Option<&str>, seconds: u64) -> u64 {
    let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
    let (stressor, time) = (format!("--{name}"), format!("{seconds}s"));
    let args =
        [&stressor, "2", "--timeout", &time, "--verify", "--metrics-brief", "--oomable", "--temp-path", "."];
    let mut command = bounded::command(mode, &cli::program("stress-ng"), &args);
    command.current_dir(directory.path());
    let limit = Duration::from_secs(10 * seconds).max(bounded::limit());
    let output =
        bounded::try_output(command, b"", limit).unwrap_or_else(|hung| panic!("{name} {mode:?}: {hung}"));
    // stress-ng writes all it says to standard error or output, by version.
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {mode:?}: {}\n{said}", output.status);
    // "stress-ng: metrc: [PID] fork  1234  3.00 ..."
    let operations = said.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != name).skip(1);
        words.next()?.parse::<u64>().ok()
    });
    println!("{name} {mode:?}: {operations:?} operations in {seconds} s");
    assert!(!said.contains("fail:"), "{name} {mode:?}:\n{said}");
    operations.unwrap_or_else(|| panic!("{name} {mode:?} does not say what it did:\n{said}"))
}

/// As natively, and something was done; some stressors take seconds for one round.
fn stress_guest(name: &str, mode: &str, seconds: u64, native: u64) {
    const MANY: u64 = 10;
    let done = stress(name, Some(mode), seconds);
    assert!(done > 0 || native < MANY, "{name} {mode} did nothing, natively {native} in a second");
}

macro_rules! stressors {
    ($($test:ident: $name:literal $(, $off:literal)?;)*) => {
        $(
            #[test]
            fn $test() {
                // That it works here at all.
                let native = stress($name, None, 1);
                stress_guest($name, "--patching=lazy", seconds(), native);
                $(stress_guest($name, $off, seconds().min(2), native);)?
            }
        )*
    };
}

stressors! {
    forks: "fork", "--patching=off";
    vforks: "vfork";
    clones: "clone";
    threads: "pthread", "--patching=off";
    signals: "signal", "--patching=off";
    faults: "sigsegv";
    queued_signals: "sigq";
    futexes: "futex", "--patching=off";
    mappings: "mmap", "--patching=off";
    moved_mappings: "mremap";
    protections: "mprotect";
    pipes: "pipe";
    polls: "poll";
    context_switches: "switch";
    stream_sockets: "sock", "--patching=off";
    datagrams: "udp";
    socket_pairs: "sockpair";
    event_polls: "epoll";
    event_counters: "eventfd";
    timer_descriptors: "timerfd";
    file_watches: "inotify";
    passed_descriptors: "sockfd";
    semaphores: "sem-sysv";
    shared_segments: "shm-sysv";
    message_queues: "msg";
    posix_queues: "mq";
}
