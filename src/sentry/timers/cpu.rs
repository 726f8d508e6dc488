//! Processor time of guest processes and threads: what the guest's code has used is user time, what serving its calls
//! has used is system time.

use crate::sentry::host;
use crate::sentry::kernel::tree::Usage;
use crate::sentry::process::{Process, lock};
use crate::sentry::task::TaskHandle;
use std::sync::Arc;

/// Which part of the time a clock counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    User,
    Both,
}

impl Share {
    pub(super) fn of(self, usage: Usage) -> i64 {
        let ns = match self {
            Share::User => usage.user_ns,
            Share::Both => usage.user_ns.saturating_add(usage.system_ns),
        };
        i64::try_from(ns).unwrap_or(i64::MAX)
    }
}

/// A clock that is put together from several must not go back because they were read one after the other.
fn never_back(shown: &mut Usage, now: Usage) -> Usage {
    shown.user_ns = shown.user_ns.max(now.user_ns);
    shown.system_ns = shown.system_ns.max(now.system_ns);
    *shown
}

/// What is known of the time of a process.
#[derive(Debug, Default)]
pub(crate) struct ProcessClock {
    /// What its threads that have ended, and programs that it ran before, have used.
    used: Usage,
    /// The stub process; 0 when there is none.
    stub_pid: i32,
    /// What the stub process had used when this process came to it: `vfork` shares the parent's.
    stub_base_ns: u64,
    shown: Usage,
}

impl ProcessClock {
    fn stub_ns(&self) -> u64 {
        if self.stub_pid == 0 {
            0
        } else {
            host::process_time_ns(self.stub_pid).saturating_sub(self.stub_base_ns)
        }
    }

    fn look(&mut self, threads: &[Arc<TaskHandle>]) -> Usage {
        let system_ns = threads.iter().map(|thread| thread.serving_ns()).sum();
        let running = Usage { user_ns: self.stub_ns(), system_ns, ..Usage::default() };
        let now = self.used.plus(running);
        never_back(&mut self.shown, now)
    }
}

impl Process {
    /// What the process has used so far.
    pub(crate) fn cpu_usage(&self) -> Usage {
        let threads = self.threads().clone();
        lock(&self.clock).look(&threads)
    }

    /// A thread is about to end: its time becomes the process's. Returns what the process has used in all.
    pub(crate) fn add_thread_usage(&self, thread: &TaskHandle) -> Usage {
        let threads = self.threads().clone();
        let mut clock = lock(&self.clock);
        let system_ns = thread.stop_clock();
        clock.used = clock.used.plus(Usage { system_ns, ..Usage::default() });
        clock.look(&threads)
    }

    /// The process has ended and this is what it has used.
    pub(crate) fn close_clock(&self, usage: Usage) {
        let mut clock = lock(&self.clock);
        *clock = ProcessClock { used: usage, ..ProcessClock::default() };
    }

    /// The stub process that runs the process's code.
    pub(crate) fn stub_pid(&self) -> i32 {
        lock(&self.clock).stub_pid
    }

    /// The process starts in a stub process that may have served others before.
    pub(crate) fn set_stub_pid(&self, pid: i32) {
        let mut clock = lock(&self.clock);
        clock.stub_pid = pid;
        clock.stub_base_ns = host::process_time_ns(pid);
    }

    /// `execve`: the process goes on in another stub process. `alone`: no other process runs in the old one.
    pub(crate) fn change_stub(&self, pid: i32, alone: bool) {
        let mut clock = lock(&self.clock);
        let user_ns = if alone { clock.stub_ns() } else { 0 };
        clock.used = clock.used.plus(Usage { user_ns, ..Usage::default() });
        clock.stub_pid = pid;
        clock.stub_base_ns = host::process_time_ns(pid);
    }
}

/// What is known of the time of a thread.
#[derive(Debug, Default)]
pub(crate) struct TaskClock {
    /// The supervisor's thread serves it.
    runs: bool,
    /// What that thread had used before, for others.
    serving_base_ns: u64,
    /// What the stub process had used when the thread began.
    stub_base_ns: u64,
    /// What it used in other stub processes, before it executed a program.
    earlier_ns: u64,
    shown: Usage,
}

impl TaskHandle {
    /// The calling thread of the supervisor begins to run the task.
    pub(crate) fn start_clock(&self) {
        // The process's clock is locked before its threads', never after.
        let stub_base_ns = host::process_time_ns(self.process.stub_pid());
        let mut clock = lock(&self.clock);
        clock.serving_base_ns = host::thread_time_ns();
        clock.stub_base_ns = stub_base_ns;
        clock.runs = true;
    }

    /// The calling thread has served the task to its end; returns what it used for that.
    fn stop_clock(&self) -> u64 {
        let mut clock = lock(&self.clock);
        clock.runs = false;
        host::thread_time_ns().saturating_sub(clock.serving_base_ns)
    }

    /// `execve` is about to change the stub process.
    pub(crate) fn leave_stub(&self) {
        let stub_pid = self.process.stub_pid();
        let mut clock = lock(&self.clock);
        clock.earlier_ns += self.stub_ns(&clock, stub_pid);
    }

    /// The thread goes on in the process's new stub process.
    pub(crate) fn enter_stub(&self) {
        let stub_pid = self.process.stub_pid();
        lock(&self.clock).stub_base_ns = host::process_time_ns(stub_pid);
    }

    /// What serving the task's calls has used.
    fn serving_ns(&self) -> u64 {
        let clock = lock(&self.clock);
        match clock.runs {
            true => host::thread_time_ns_of(self.host_tid()).saturating_sub(clock.serving_base_ns),
            false => 0,
        }
    }

    /// What the guest's code has used in this thread.
    ///
    /// The host tells the time of single threads of another process only in /proc, and as of the last tick. Stub
    /// threads are used again; the time that all of the stub process have used since this one began is the most it can
    /// be, and exact for a process with one thread.
    fn stub_ns(&self, clock: &TaskClock, stub_pid: i32) -> u64 {
        if stub_pid == 0 {
            return 0;
        }
        let most = host::process_time_ns(stub_pid).saturating_sub(clock.stub_base_ns);
        if self.process.threads().len() <= 1 {
            return most;
        }
        let own = self.stub_thread().and_then(|tid| run_time_ns(stub_pid, tid));
        own.map_or(most, |own| own.min(most))
    }

    /// What the thread has used so far.
    pub(crate) fn cpu_usage(&self) -> Usage {
        let stub_pid = self.process.stub_pid();
        let system_ns = self.serving_ns();
        let mut clock = lock(&self.clock);
        let user_ns = clock.earlier_ns + self.stub_ns(&clock, stub_pid);
        never_back(&mut clock.shown, Usage { user_ns, system_ns, ..Usage::default() })
    }
}

/// The time that a thread of a stub process has run, from its `schedstat`.
fn run_time_ns(pid: i32, tid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_put_together_does_not_go_back() {
        let usage = |user_ns, system_ns| Usage { user_ns, system_ns, ..Usage::default() };
        let mut shown = usage(10, 20);
        assert_eq!(never_back(&mut shown, usage(9, 25)), usage(10, 25));
        assert_eq!(Share::User.of(usage(3, 4)), 3);
        assert_eq!(Share::Both.of(usage(3, 4)), 7);
        assert_eq!(Share::Both.of(usage(u64::MAX, 1)), i64::MAX);
    }

    #[test]
    fn the_time_of_a_thread_is_in_proc() {
        let before = run_time_ns(std::process::id() as i32, host::gettid()).expect("schedstat");
        let start = host::thread_time_ns();
        while host::thread_time_ns() - start < 20_000_000 {}
        let after = run_time_ns(std::process::id() as i32, host::gettid()).expect("schedstat");
        assert!(after > before);
    }
}
