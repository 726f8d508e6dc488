//! Sending signals to threads, processes and groups (kernel/signal.c `send_signal_locked`).

use super::{Life, Tree};
use crate::sentry::errno::Errno;
use crate::sentry::process::Process;
use crate::sentry::signals::{SigInfo, SignalSet};
use crate::sentry::task::{ExitStatus, TaskHandle};
use std::sync::Arc;

/// Who a signal is for.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// Any thread of the process.
    Process(&'a Arc<Process>),
    /// That thread.
    Thread(&'a Arc<TaskHandle>),
}

/// Signals from here on queue.
const FIRST_REAL_TIME: i32 = 32;

/// The signals that stop.
pub(crate) const STOPS: SignalSet =
    SignalSet(0).with(libc::SIGSTOP).with(libc::SIGTSTP).with(libc::SIGTTIN).with(libc::SIGTTOU);

impl Tree {
    /// Sends a signal; `EAGAIN` when a queue is full. What is ignored and not blocked is not even queued.
    pub(crate) fn send(&mut self, target: Target<'_>, info: SigInfo) -> Result<(), Errno> {
        let signo = info.signo();
        let process = match target {
            Target::Process(process) => process,
            Target::Thread(thread) => &thread.process,
        };
        if signo == 0 {
            return Ok(());
        }
        let dead = self.node(process.pid).is_none_or(|node| matches!(node.life, Life::Zombie { .. }));
        if dead || process.ending().is_some() {
            return Ok(());
        }
        if signo == libc::SIGKILL {
            // Before whatever else is pending, and before a stopped process goes on.
            process.end(ExitStatus::Signaled(signo));
        }
        self.prepare(process, signo);
        if signo == libc::SIGKILL {
            return Ok(());
        }
        let threads = process.threads().clone();
        let blocked = match target {
            Target::Thread(thread) => keeps(thread, signo),
            // As the kernel: the first thread's mask decides whether an ignored signal is worth keeping.
            Target::Process(_) => threads.first().is_some_and(|first| keeps(first, signo)),
        };
        if !blocked && process.actions().is_ignored(signo) {
            return Ok(());
        }
        if signo >= FIRST_REAL_TIME && !self.has_room(process) {
            return Err(Errno::EAGAIN);
        }
        match target {
            Target::Thread(thread) => {
                if !thread.push(info) {
                    return Err(Errno::EAGAIN);
                }
                if !thread.mask().contains(signo) {
                    thread.wake();
                }
                process.kernel.signal_files.arrived(process, std::slice::from_ref(thread), signo);
            }
            Target::Process(process) => {
                if !process.pending().push(info) {
                    return Err(Errno::EAGAIN);
                }
                wake_one(&threads, signo);
                process.kernel.signal_files.arrived(process, &threads, signo);
            }
        }
        Ok(())
    }

    /// Whether one more signal may be queued for the user of a process: `RLIMIT_SIGPENDING`.
    fn has_room(&self, process: &Arc<Process>) -> bool {
        let limit = process.limits().soft(libc::RLIMIT_SIGPENDING);
        let user = process.credentials().user.real;
        let of_user = self.nodes().filter(|node| node.process.credentials().user.real == user);
        let queued = of_user.map(|node| {
            let threads: usize = node.process.threads().iter().map(|thread| thread.pending().len()).sum();
            threads + node.process.pending().len()
        });
        (queued.sum::<usize>() as u64) < limit
    }

    /// Stop signals and SIGCONT undo each other when they are sent, not when they are delivered.
    fn prepare(&mut self, process: &Arc<Process>, signo: i32) {
        let gone = match signo {
            libc::SIGCONT | libc::SIGKILL => STOPS,
            _ if STOPS.contains(signo) => SignalSet::default().with(libc::SIGCONT),
            _ => return,
        };
        process.pending().discard(gone);
        for thread in &*process.threads() {
            thread.pending().discard(gone);
            if gone == STOPS {
                thread.set_took_stop(false);
            }
        }
        if gone == STOPS && process.is_stopped() {
            self.resume(process, signo == libc::SIGCONT);
        }
    }

    /// Sends a signal to every process of a list; `ESRCH` if there is none.
    pub(crate) fn send_to_all(&mut self, pids: &[i32], info: SigInfo) -> Result<(), Errno> {
        let mut sent = Err(Errno::ESRCH);
        for pid in pids {
            let Some(process) = self.node(*pid).map(|node| Arc::clone(&node.process)) else { continue };
            let result = self.send(Target::Process(&process), info);
            if sent.is_err() {
                sent = result;
            }
        }
        sent
    }
}

/// Whether a thread keeps even a signal that is ignored, for when it unblocks or has waited for it.
fn keeps(thread: &TaskHandle, signo: i32) -> bool {
    thread.mask().union(thread.awaited()).contains(signo)
}

/// Wakes a thread that does not block the signal, the first one by preference.
fn wake_one(threads: &[Arc<TaskHandle>], signo: i32) {
    // SIGKILL ends all; whoever takes it tells the others.
    if let Some(thread) = threads.iter().find(|thread| !thread.mask().contains(signo)) {
        thread.wake();
    }
}

impl Process {
    /// Signals for the process that a thread has just blocked are somebody else's to take
    /// (`retarget_shared_pending`).
    pub(crate) fn retarget(&self, blocked: SignalSet) {
        let waiting = SignalSet(self.pending().set().0 & blocked.0);
        let mut rest = waiting;
        while let Some(signo) = rest.first() {
            rest = rest.without(signo);
            wake_one(&self.threads().clone(), signo);
        }
    }
}
