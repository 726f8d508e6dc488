//! The clocks that a guest can name.

use super::cpu::Share;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::process::Process;
use crate::sentry::task::{Task, TaskHandle};
use std::sync::{Arc, Weak};

/// The clocks of the host that timers wait on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Realtime = 0,
    Monotonic = 1,
    Boottime = 2,
}

impl Base {
    pub(crate) const ALL: [Base; 3] = [Base::Realtime, Base::Monotonic, Base::Boottime];

    pub(crate) fn id(self) -> i32 {
        match self {
            Base::Realtime => libc::CLOCK_REALTIME,
            Base::Monotonic => libc::CLOCK_MONOTONIC,
            Base::Boottime => libc::CLOCK_BOOTTIME,
        }
    }

    pub(crate) fn now(self) -> i64 {
        read_ns(self.id())
    }
}

fn read_ns(clock: i32) -> i64 {
    let mut time = [0; 16];
    // These clocks are always there.
    let _ = host::clock_gettime(clock, &mut time);
    super::from_timespec(Timespec::from_array(time)).unwrap_or(0)
}

/// A clock of the host on which a guest may have timers and sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostClock {
    Of(Base),
    /// International atomic time: the real time and a number of seconds.
    Tai,
}

impl HostClock {
    /// Not every clock that can be read can have timers: `EOPNOTSUPP` for the others, `EPERM` for those that wake the
    /// machine up, `EINVAL` for what is no clock.
    pub(crate) fn for_timers(id: i32) -> Result<Self, Errno> {
        match id {
            libc::CLOCK_REALTIME => Ok(HostClock::Of(Base::Realtime)),
            libc::CLOCK_MONOTONIC => Ok(HostClock::Of(Base::Monotonic)),
            libc::CLOCK_BOOTTIME => Ok(HostClock::Of(Base::Boottime)),
            libc::CLOCK_TAI => Ok(HostClock::Tai),
            libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_MONOTONIC_COARSE => {
                Err(Errno::EOPNOTSUPP)
            }
            libc::CLOCK_REALTIME_ALARM | libc::CLOCK_BOOTTIME_ALARM => Err(Errno::EPERM),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The clock that a time counts on. Setting the real time moves absolute times only.
    pub(crate) fn base(self, absolute: bool) -> Base {
        match self {
            HostClock::Of(Base::Realtime) | HostClock::Tai if !absolute => Base::Monotonic,
            HostClock::Of(base) => base,
            HostClock::Tai => Base::Realtime,
        }
    }

    /// An absolute time of this clock on its base.
    pub(crate) fn to_base(self, time: i64) -> i64 {
        match self {
            HostClock::Of(_) => time,
            HostClock::Tai => {
                let ahead = read_ns(libc::CLOCK_TAI).saturating_sub(read_ns(libc::CLOCK_REALTIME));
                // The two readings are some nanoseconds apart; the difference is whole seconds.
                const SECOND: i64 = 1_000_000_000;
                time.saturating_sub((ahead.saturating_add(SECOND / 2) / SECOND).saturating_mul(SECOND)).max(0)
            }
        }
    }
}

/// Whose processor time a clock counts.
#[derive(Clone)]
enum Who {
    Process(Weak<Process>),
    Thread(Weak<TaskHandle>),
}

/// A clock of processor time.
#[derive(Clone)]
pub(crate) struct CpuClock {
    who: Who,
    share: Share,
}

impl CpuClock {
    pub(crate) fn of_process(process: &Arc<Process>) -> Self {
        Self { who: Who::Process(Arc::downgrade(process)), share: Share::Both }
    }

    fn of_thread(thread: &Arc<TaskHandle>) -> Self {
        Self { who: Who::Thread(Arc::downgrade(thread)), share: Share::Both }
    }

    /// `None` when who it counts for is gone.
    pub(crate) fn now(&self) -> Option<i64> {
        let usage = match &self.who {
            Who::Process(process) => process.upgrade()?.cpu_usage(),
            Who::Thread(thread) => thread.upgrade()?.cpu_usage(),
        };
        Some(self.share.of(usage))
    }

    /// Whether it is that thread's own.
    pub(crate) fn is_of_thread(&self, thread: &Arc<TaskHandle>) -> bool {
        matches!(&self.who, Who::Thread(who) if std::ptr::eq(who.as_ptr(), Arc::as_ptr(thread)))
    }
}

/// A clock of a guest.
#[derive(Clone)]
pub(crate) enum Clock {
    /// The host's, by its number.
    Host(i32),
    Cpu(CpuClock),
}

impl Clock {
    /// What a clock id stands for; ids below zero name the clock of a process or thread, or of a device
    /// (include/linux/posix-timers.h). `EINVAL` if there is no such process.
    pub(crate) fn decode(task: &Task, id: i32) -> Result<Self, Errno> {
        const PER_THREAD: i32 = 4;
        match id {
            libc::CLOCK_PROCESS_CPUTIME_ID => return Ok(Clock::Cpu(CpuClock::of_process(&task.process))),
            libc::CLOCK_THREAD_CPUTIME_ID => return Ok(Clock::Cpu(CpuClock::of_thread(&task.handle))),
            0.. => return Ok(Clock::Host(id)),
            _ => {}
        }
        let share = match id & 3 {
            0 => Share::Both,
            1 => Share::User,
            2 => Share::Both,
            _ => return Err(Errno::EINVAL), // a device of the guest's: none is offered
        };
        let pid = !(id >> 3);
        let tree = task.kernel().tree();
        let clock = if id & PER_THREAD != 0 {
            let thread = match pid {
                0 => Some(&task.handle),
                tid => tree.thread(tid).filter(|thread| Arc::ptr_eq(&thread.process, &task.process)),
            };
            CpuClock::of_thread(thread.ok_or(Errno::EINVAL)?)
        } else if pid == 0 || pid == task.tid() {
            CpuClock::of_process(&task.process)
        } else {
            CpuClock::of_process(&tree.node(pid).ok_or(Errno::EINVAL)?.process)
        };
        Ok(Clock::Cpu(CpuClock { share, ..clock }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_for_timers() {
        assert_eq!(HostClock::for_timers(libc::CLOCK_TAI), Ok(HostClock::Tai));
        assert_eq!(HostClock::for_timers(libc::CLOCK_MONOTONIC_RAW), Err(Errno::EOPNOTSUPP));
        assert_eq!(HostClock::for_timers(libc::CLOCK_BOOTTIME_ALARM), Err(Errno::EPERM));
        assert_eq!(HostClock::for_timers(10), Err(Errno::EINVAL));
        assert_eq!(HostClock::for_timers(77), Err(Errno::EINVAL));
    }

    #[test]
    fn relative_times_do_not_follow_the_real_time() {
        assert_eq!(HostClock::Of(Base::Realtime).base(false), Base::Monotonic);
        assert_eq!(HostClock::Of(Base::Realtime).base(true), Base::Realtime);
        assert_eq!(HostClock::Tai.base(true), Base::Realtime);
        assert_eq!(HostClock::Of(Base::Boottime).base(false), Base::Boottime);
    }

    #[test]
    fn atomic_time_is_whole_seconds_ahead() {
        let moved = HostClock::Tai.to_base(1_000_000_000_000_000_000);
        assert_eq!(moved % 1_000_000_000, 0);
        assert_eq!(HostClock::Tai.to_base(0), 0);
    }
}
