//! Timers on processor time, and `RLIMIT_CPU`: looked at as often as they could be due.

use super::cpu::Share;
use super::itimer::CPU_TIMERS;
use crate::sentry::abi::Rlimit;
use crate::sentry::errno::Errno;
use crate::sentry::kernel::{Kernel, Target};
use crate::sentry::process::Process;
use crate::sentry::signals::SigInfo;
use std::sync::Arc;
use std::thread::available_parallelism;

/// The shortest time between two looks: about what a tick of the kernel is.
const SHORTEST_NS: i64 = 2_000_000;
/// While a process uses no time the looks become this rare.
const IDLE_NS: i64 = 32_000_000;
const SECOND: i64 = 1_000_000_000;

/// When a process has to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Next {
    /// The processor time until the first of its timers is due.
    left: i64,
    /// It has used time since the last look.
    busy: bool,
}

impl Next {
    /// As many CPUs as there are may work for it at the same time.
    fn delay(self, cpus: i64) -> i64 {
        (self.left / cpus.max(1)).max(if self.busy { SHORTEST_NS } else { IDLE_NS })
    }
}

/// The CPUs that the supervisor may use, not the one that the calling thread may be confined to.
fn cpus() -> i64 {
    crate::subprocess::roam();
    available_parallelism().map_or(1, |cpus| cpus.get() as i64)
}

/// How long a clock of processor time that is `left` away takes at least.
pub(crate) fn least_wait_ns(left: i64) -> i64 {
    Next { left, busy: true }.delay(cpus())
}

/// What `RLIMIT_CPU` says to a process that has used `used`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing until then.
    Until(i64),
    /// SIGXCPU; the next after another second.
    Warn,
    Kill,
}

fn judge(limit: Rlimit, used: i64) -> Option<Verdict> {
    let time = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(SECOND);
    if limit.hard != u64::MAX && used >= time(limit.hard) {
        return Some(Verdict::Kill);
    }
    if limit.soft == u64::MAX {
        return (limit.hard != u64::MAX).then(|| Verdict::Until(time(limit.hard)));
    }
    Some(if used >= time(limit.soft.max(1)) {
        Verdict::Warn
    } else {
        Verdict::Until(time(limit.soft.max(1)))
    })
}

impl Process {
    /// Has the process's time looked at, because a timer or a limit was set.
    pub(crate) fn sample_cpu_time(self: &Arc<Self>) -> Result<(), Errno> {
        let is_new = {
            let mut timers = self.timers();
            timers.requests += 1;
            !std::mem::replace(&mut timers.sampled, true)
        };
        self.kernel.timers.sample(self, is_new)
    }

    /// The same if the process, which is new, has a limit.
    pub(crate) fn sample_if_limited(self: &Arc<Self>) {
        let limited = self
            .limits()
            .get(libc::RLIMIT_CPU)
            .is_ok_and(|limit| limit.soft != u64::MAX || limit.hard != u64::MAX);
        if limited {
            // Where the host has no timer left the limit does not work.
            let _ = self.sample_cpu_time();
        }
    }

    /// Sends what is due; `None` when nothing is left to look for.
    fn look_at_cpu_time(self: &Arc<Self>) -> Option<Next> {
        let requests = self.timers().requests;
        let usage = self.cpu_usage();
        let both = Share::Both.of(usage);
        let mut left: Option<i64> = None;
        let mut earlier = |time: i64| left = Some(left.map_or(time, |left: i64| left.min(time)));
        let mut signals = Vec::new();
        {
            let mut timers = self.timers();
            for (timer, (share, signo)) in timers.cpu.iter_mut().zip(CPU_TIMERS) {
                if timer.take_expired(share.of(usage)) {
                    signals.push(signo);
                }
                if let Some(expires) = timer.expires {
                    earlier(expires.saturating_sub(share.of(usage)));
                }
            }
        }
        if let Some(posix) = self.look_at_posix_cpu_timers() {
            earlier(posix);
        }
        let limit = self.limits().get(libc::RLIMIT_CPU).ok();
        match limit.and_then(|limit| judge(limit, both)) {
            Some(Verdict::Until(time)) => earlier(time.saturating_sub(both)),
            Some(Verdict::Warn) => {
                signals.push(libc::SIGXCPU);
                // As the kernel: the soft limit moves on by a second.
                self.limits().raise_cpu();
                earlier(SECOND);
            }
            Some(Verdict::Kill) => signals.push(libc::SIGKILL),
            None => {}
        }
        if !signals.is_empty() {
            let mut tree = self.kernel.tree();
            for signo in signals {
                let _ = tree.send(Target::Process(self), SigInfo::from_kernel(signo));
            }
        }
        let mut timers = self.timers();
        let busy = timers.last_sample != usage;
        timers.last_sample = usage;
        if timers.requests != requests {
            // A timer has been set since: whoever set it relies on the process being on the list.
            left = Some(0);
        }
        timers.sampled = left.is_some() && !timers.closed;
        left.filter(|_| timers.sampled).map(|left| Next { left, busy })
    }
}

impl Kernel {
    /// Looks at the processor time of all processes that have timers on it.
    pub(super) fn sample_cpu_timers(&self) {
        let cpus = cpus();
        let mut again = Vec::new();
        let mut delay = i64::MAX;
        for process in self.timers.take_sampled() {
            let Some(next) = process.upgrade().and_then(|process| process.look_at_cpu_time()) else {
                continue;
            };
            delay = delay.min(next.delay(cpus));
            again.push(process);
        }
        self.timers.look_again(again, delay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_as_far_apart_as_nothing_can_be_due() {
        let next = |left, busy| Next { left, busy }.delay(4);
        assert_eq!(next(400_000_000, true), 100_000_000);
        assert_eq!(next(1, true), SHORTEST_NS);
        assert_eq!(next(-5, true), SHORTEST_NS);
        assert_eq!(next(1, false), IDLE_NS);
        assert_eq!(Next { left: i64::MAX, busy: false }.delay(0), i64::MAX);
    }

    #[test]
    fn limits_of_processor_time() {
        let limit = |soft, hard| Rlimit { soft, hard };
        assert_eq!(judge(limit(u64::MAX, u64::MAX), i64::MAX), None);
        assert_eq!(judge(limit(2, 5), 1), Some(Verdict::Until(2 * SECOND)));
        assert_eq!(judge(limit(2, 5), 2 * SECOND), Some(Verdict::Warn));
        assert_eq!(judge(limit(2, 5), 5 * SECOND), Some(Verdict::Kill));
        assert_eq!(judge(limit(5, 5), 5 * SECOND), Some(Verdict::Kill));
        assert_eq!(judge(limit(u64::MAX, 5), 1), Some(Verdict::Until(5 * SECOND)));
        assert_eq!(judge(limit(u64::MAX - 1, u64::MAX), 1), Some(Verdict::Until(i64::MAX)));
    }
}
