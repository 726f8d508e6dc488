//! Interval timers (kernel/time/itimer.c): one each for real time, the process's own time, and all of its time.

use super::TICK_NS;
use super::arithmetic::forward;
use super::clock::Base;
use super::cpu::Share;
use super::service::{Due, Key, Timers};
use crate::sentry::errno::Errno;
use crate::sentry::kernel::Target;
use crate::sentry::process::Process;
use crate::sentry::signals::SigInfo;
use std::sync::Arc;

/// Which interval timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    Real,
    Virtual,
    Prof,
}

impl Which {
    pub(crate) fn from_raw(which: i32) -> Result<Self, Errno> {
        match which {
            libc::ITIMER_REAL => Ok(Which::Real),
            libc::ITIMER_VIRTUAL => Ok(Which::Virtual),
            libc::ITIMER_PROF => Ok(Which::Prof),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What a timer stands at: the time that is left, 0 for none, and its period, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Setting {
    pub(crate) value: i64,
    pub(crate) interval: i64,
}

/// `ITIMER_REAL`.
#[derive(Default)]
pub(super) struct RealTimer {
    /// Its place in the queue while it runs.
    armed: Option<Key>,
    /// When it is due, or was due last.
    expires: i64,
    interval: i64,
    /// It has sent its signal and goes on when that is taken.
    sent: bool,
}

impl RealTimer {
    pub(super) fn disarm(&mut self, timers: &Timers) {
        if let Some(key) = self.armed.take() {
            timers.disarm(key);
        }
        self.interval = 0;
        self.sent = false;
    }

    fn setting(&self, now: i64) -> Setting {
        let value = match self.armed {
            // What is about to expire is not "none".
            Some(_) => self.expires.saturating_sub(now).max(1000),
            None => 0,
        };
        Setting { value, interval: self.interval }
    }
}

/// `ITIMER_VIRTUAL` or `ITIMER_PROF`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CpuTimer {
    /// The time on the process's clock.
    pub(super) expires: Option<i64>,
    interval: i64,
}

impl CpuTimer {
    fn setting(&self, now: i64) -> Setting {
        let value = self.expires.map_or(0, |expires| match expires.saturating_sub(now) {
            left if left > 0 => left,
            _ => TICK_NS,
        });
        Setting { value, interval: self.interval }
    }

    /// Whether it has expired by `now`; it then stands at its next time.
    pub(super) fn take_expired(&mut self, now: i64) -> bool {
        let Some(expires) = self.expires.filter(|expires| *expires <= now) else { return false };
        self.expires = (self.interval > 0).then(|| forward(expires, self.interval, now).0);
        true
    }
}

/// What the two timers of processor time count, and what they send.
pub(super) const CPU_TIMERS: [(Share, i32); 2] =
    [(Share::User, libc::SIGVTALRM), (Share::Both, libc::SIGPROF)];

impl Process {
    /// `getitimer`.
    pub(crate) fn interval_timer(&self, which: Which) -> Setting {
        match which {
            Which::Real => self.timers().real.setting(Base::Monotonic.now()),
            Which::Virtual => self.cpu_timer(0),
            Which::Prof => self.cpu_timer(1),
        }
    }

    fn cpu_timer(&self, index: usize) -> Setting {
        let Some((share, _)) = CPU_TIMERS.get(index) else { return Setting::default() };
        let now = share.of(self.cpu_usage());
        self.timers().cpu.get(index).map(|timer| timer.setting(now)).unwrap_or_default()
    }

    /// `setitimer`; returns what the timer stood at.
    pub(crate) fn set_interval_timer(self: &Arc<Self>, which: Which, new: Setting) -> Result<Setting, Errno> {
        match which {
            Which::Real => self.set_real_timer(new),
            Which::Virtual => self.set_cpu_timer(0, new),
            Which::Prof => self.set_cpu_timer(1, new),
        }
    }

    fn set_real_timer(self: &Arc<Self>, new: Setting) -> Result<Setting, Errno> {
        let now = Base::Monotonic.now();
        let mut timers = self.timers();
        let old = timers.real.setting(now);
        timers.real.disarm(&self.kernel.timers);
        if new.value > 0 && !timers.closed {
            let expires = now.saturating_add(new.value);
            self.arm_real_timer(&mut timers.real, expires)?;
            timers.real.interval = new.interval;
        }
        Ok(old)
    }

    fn arm_real_timer(self: &Arc<Self>, timer: &mut RealTimer, expires: i64) -> Result<(), Errno> {
        let due = Due::Alarm(Arc::downgrade(self));
        timer.armed = Some(self.kernel.timers.arm(&self.kernel, Base::Monotonic, expires, due)?);
        timer.expires = expires;
        timer.sent = false;
        Ok(())
    }

    /// `ITIMER_REAL` is due.
    pub(super) fn alarm_expired(self: &Arc<Self>, key: Key) {
        let mut tree = self.kernel.tree();
        {
            let mut timers = self.timers();
            if timers.real.armed != Some(key) {
                return; // it has been set again meanwhile
            }
            timers.real.armed = None;
            timers.real.sent = timers.real.interval > 0;
        }
        let _ = tree.send(Target::Process(self), SigInfo::from_kernel(libc::SIGALRM));
        if !self.pending().set().contains(libc::SIGALRM) {
            // Ignored, or taken already.
            self.alarm_taken(TICK_NS);
        }
    }

    /// The signal of `ITIMER_REAL` has been taken: a periodic timer goes on, not sooner than `delay` from now.
    pub(super) fn alarm_taken(self: &Arc<Self>, delay: i64) {
        let mut timers = self.timers();
        if timers.real.sent && !timers.closed {
            let now = Base::Monotonic.now().saturating_add(delay);
            let (next, _) = forward(timers.real.expires, timers.real.interval, now);
            // Without a host timer, which it had a moment ago, it ends.
            let _ = self.arm_real_timer(&mut timers.real, next);
        }
    }

    fn set_cpu_timer(self: &Arc<Self>, index: usize, new: Setting) -> Result<Setting, Errno> {
        let Some((share, _)) = CPU_TIMERS.get(index) else { return Err(Errno::EINVAL) };
        let now = share.of(self.cpu_usage());
        let old = {
            let mut timers = self.timers();
            let closed = timers.closed;
            let Some(timer) = timers.cpu.get_mut(index) else { return Err(Errno::EINVAL) };
            let old = timer.setting(now);
            timer.expires = (new.value > 0 && !closed).then(|| now.saturating_add(new.value));
            timer.interval = new.interval;
            old
        };
        if new.value > 0 {
            self.sample_cpu_time()?;
        }
        Ok(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_timer_expires_once_for_all_periods_that_have_passed() {
        let mut timer = CpuTimer { expires: Some(100), interval: 10 };
        assert!(!timer.take_expired(99));
        assert!(timer.take_expired(135));
        assert_eq!(timer.expires, Some(140));
        assert_eq!(timer.setting(135), Setting { value: 5, interval: 10 });
        assert_eq!(timer.setting(150), Setting { value: TICK_NS, interval: 10 });
        let mut once = CpuTimer { expires: Some(5), interval: 0 };
        assert!(once.take_expired(5));
        assert_eq!((once.expires, once.take_expired(i64::MAX)), (None, false));
    }

    #[test]
    fn names_of_timers() {
        assert_eq!(Which::from_raw(2), Ok(Which::Prof));
        assert_eq!([3, -1].map(Which::from_raw), [Err(Errno::EINVAL); 2]);
    }
}
