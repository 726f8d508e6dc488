//! Timers and the processor time of a guest: interval timers, POSIX timers, `RLIMIT_CPU`.
//!
//! Timers on the clocks of the host wait in one queue for each clock; one thread of the supervisor sleeps on host
//! timers that stand at the earliest of them. Nothing wakes it while none is armed, and there is no such thread before
//! the first is. Timers on processor time have no host timer behind them (a guest process's time is that of its stub
//! process and of the supervisor's threads that serve it): while any is armed the same thread looks at the clocks, as
//! often as they could be due.
//!
//! As in the kernel a periodic timer is armed again when its signal is taken, not when it is sent: a guest that
//! blocks the signal costs nothing, and what was missed is its overrun.

mod arithmetic;
mod clock;
mod cpu;
mod itimer;
mod posix;
mod sampling;
mod service;

pub(crate) use arithmetic::{from_timespec, from_timeval, to_timespec, to_timeval};
pub(crate) use clock::{Base, Clock, CpuClock, HostClock};
pub(crate) use cpu::{ProcessClock, TaskClock};
pub(crate) use itimer::{Setting, Which};
pub(crate) use posix::{Notify, Recipient};
pub(crate) use sampling::least_wait_ns;
pub(crate) use service::Timers;

use super::kernel::Kernel;
use super::kernel::tree::Usage;
use super::process::Process;
use super::signals::SigInfo;
use std::sync::Arc;

/// A timer that sent a signal nobody wants is armed again not sooner than this: the guest cannot keep the thread busy.
const TICK_NS: i64 = 4_000_000;

/// The timers of one process. A leaf lock but for the service's queue.
#[derive(Default)]
pub(crate) struct ProcessTimers {
    real: itimer::RealTimer,
    /// `ITIMER_VIRTUAL`, `ITIMER_PROF`.
    cpu: [itimer::CpuTimer; 2],
    posix: posix::PosixTimers,
    /// The process is on the service's list of those whose processor time matters.
    sampled: bool,
    /// How often a look was asked for.
    requests: u64,
    /// What it had used when it was looked at last.
    last_sample: Usage,
    /// The process has ended.
    closed: bool,
}

impl Process {
    /// A signal has been taken from a queue to be delivered or read: the timer behind it, if any, goes on.
    pub(crate) fn signal_taken(self: &Arc<Self>, mut info: SigInfo) -> SigInfo {
        if info.is_from_timer() {
            self.posix_signal_taken(&mut info);
        } else if info.signo() == libc::SIGALRM {
            self.alarm_taken(0);
        }
        info
    }

    /// `execve`: POSIX timers are deleted, interval timers go on.
    pub(crate) fn delete_posix_timers(&self) {
        let tree = self.kernel.tree();
        let mut timers = self.timers();
        timers.posix.clear(&self.kernel.timers);
        drop(timers);
        self.discard_timer_signals(None);
        drop(tree);
    }

    /// The process has ended: nothing is armed any more, nor will be.
    pub(crate) fn close_timers(&self) {
        let mut timers = self.timers();
        timers.closed = true;
        timers.posix.clear(&self.kernel.timers);
        timers.real.disarm(&self.kernel.timers);
        timers.cpu = Default::default();
    }

    /// Takes signals of one timer (of all: `None`) out of the queues.
    fn discard_timer_signals(&self, id: Option<i32>) {
        self.pending().discard_timer(id);
        for thread in &*self.threads() {
            thread.pending().discard_timer(id);
        }
    }
}

impl Kernel {
    /// What a timer of the queue that is due stands for.
    fn expire(self: &Arc<Self>, due: service::Due, key: service::Key) {
        match due {
            service::Due::Alarm(process) => {
                if let Some(process) = process.upgrade() {
                    process.alarm_expired(key);
                }
            }
            service::Due::Posix(process, id) => {
                if let Some(process) = process.upgrade() {
                    process.posix_expired(id, key);
                }
            }
            service::Due::Sample => self.sample_cpu_timers(),
        }
    }
}
