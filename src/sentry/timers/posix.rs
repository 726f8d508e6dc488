//! POSIX timers of a process (kernel/time/posix-timers.c).

use super::TICK_NS;
use super::arithmetic::{forward, overrun_to_int};
use super::clock::{Clock, CpuClock, HostClock};
use super::itimer::Setting;
use super::service::{Due, Key, Timers};
use crate::sentry::errno::Errno;
use crate::sentry::kernel::Target;
use crate::sentry::process::Process;
use crate::sentry::signals::SigInfo;
use crate::sentry::task::TaskHandle;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Who is told that a timer has expired.
#[derive(Clone)]
pub(crate) enum Recipient {
    Process,
    /// `SIGEV_THREAD_ID`. A thread that has ended is told nothing.
    Thread(Weak<TaskHandle>),
}

/// What happens when a timer expires.
#[derive(Clone)]
pub(crate) enum Notify {
    /// `SIGEV_NONE`: it can be asked for the time that is left.
    Nothing,
    /// A signal with that value; without one, with the timer's number.
    Signal { signo: i32, value: Option<u64>, to: Recipient },
}

/// The clock of a timer.
#[derive(Clone)]
enum TimerClock {
    Host(HostClock),
    Cpu(CpuClock),
}

struct Timer {
    clock: TimerClock,
    notify: Notify,
    interval: i64,
    /// When it is due, or was due last, on its clock or on that clock's base. `None`: it does not run.
    expires: Option<i64>,
    /// The last `timer_settime` gave an absolute time.
    absolute: bool,
    /// Its place in the queue.
    armed: Option<Key>,
    /// It has sent its signal and goes on when that is taken.
    sent: bool,
    /// `timer_getoverrun`.
    overrun: i32,
}

/// The timers of a process.
#[derive(Default)]
pub(super) struct PosixTimers {
    by_id: BTreeMap<i32, Timer>,
    next_id: i32,
}

impl Timer {
    /// The present on the scale of `expires`.
    fn now(&self) -> Option<i64> {
        match &self.clock {
            TimerClock::Host(clock) => Some(clock.base(self.absolute).now()),
            TimerClock::Cpu(clock) => clock.now(),
        }
    }

    fn disarm(&mut self, timers: &Timers) {
        if let Some(key) = self.armed.take() {
            timers.disarm(key);
        }
    }

    /// `timer_gettime` (`common_timer_get`).
    fn setting(&self) -> Setting {
        let (Some(expires), Some(now)) = (self.expires, self.now()) else {
            return Setting { value: 0, interval: self.interval };
        };
        let silent = matches!(self.notify, Notify::Nothing);
        let next = if self.sent || silent { forward(expires, self.interval, now).0 } else { expires };
        let left = next.saturating_sub(now);
        let value = match left {
            1.. => left,
            // One that sends a signal and has not done so yet still runs.
            _ if silent || self.sent => 0,
            _ => 1,
        };
        Setting { value, interval: self.interval }
    }

    /// A periodic timer goes on from its last time; returns how many periods were missed.
    fn go_on(&mut self, now: i64) -> i64 {
        let Some(expires) = self.expires else { return 0 };
        let (next, count) = forward(expires, self.interval, now);
        self.expires = Some(next);
        // The first is the one that the signal was sent for.
        count - 1
    }

    /// The signal, and who it is for; `None` if there is nobody any more.
    fn signal<'a>(&self, id: i32, process: &'a Arc<Process>) -> Option<(Told<'a>, SigInfo)> {
        let Notify::Signal { signo, value, to } = &self.notify else { return None };
        let told = match to {
            Recipient::Process => Told::Process(process),
            Recipient::Thread(thread) => Told::Thread(thread.upgrade()?),
        };
        Some((told, SigInfo::from_timer(*signo, id, value.unwrap_or(id as u64))))
    }
}

enum Told<'a> {
    Process(&'a Arc<Process>),
    Thread(Arc<TaskHandle>),
}

impl Told<'_> {
    fn target(&self) -> Target<'_> {
        match self {
            Told::Process(process) => Target::Process(process),
            Told::Thread(thread) => Target::Thread(thread),
        }
    }

    fn has_pending(&self, signo: i32) -> bool {
        match self {
            Told::Process(process) => process.pending().set().contains(signo),
            Told::Thread(thread) => thread.pending().set().contains(signo),
        }
    }
}

impl PosixTimers {
    pub(super) fn clear(&mut self, timers: &Timers) {
        for timer in self.by_id.values_mut() {
            timer.disarm(timers);
        }
        self.by_id.clear();
    }

    fn get(&mut self, id: i32) -> Result<&mut Timer, Errno> {
        self.by_id.get_mut(&id).ok_or(Errno::EINVAL)
    }

    /// Numbers go up from 0 and start again at the end.
    fn new_id(&mut self) -> i32 {
        while self.by_id.contains_key(&self.next_id) {
            self.next_id = self.next_id.checked_add(1).unwrap_or(0);
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(0);
        id
    }
}

impl Process {
    /// `timer_create`. As many as signals may be queued (`RLIMIT_SIGPENDING`), each may have one.
    pub(crate) fn create_timer(&self, clock: Clock, notify: Notify) -> Result<i32, Errno> {
        const MOST: u64 = 1 << 16;
        let clock = match clock {
            Clock::Host(id) => TimerClock::Host(HostClock::for_timers(id)?),
            Clock::Cpu(clock) => TimerClock::Cpu(clock),
        };
        let most = self.limits().get(libc::RLIMIT_SIGPENDING).map_or(MOST, |limit| limit.soft.min(MOST));
        let mut timers = self.timers();
        if timers.posix.by_id.len() as u64 >= most {
            return Err(Errno::EAGAIN);
        }
        let id = timers.posix.new_id();
        let timer = Timer {
            clock,
            notify,
            interval: 0,
            expires: None,
            absolute: false,
            armed: None,
            sent: false,
            overrun: 0,
        };
        timers.posix.by_id.insert(id, timer);
        Ok(id)
    }

    /// `timer_delete`.
    pub(crate) fn delete_timer(&self, id: i32) -> Result<(), Errno> {
        // Sending is under this lock: no signal of the timer comes after its end.
        let _tree = self.kernel.tree();
        let removed = self.timers().posix.by_id.remove(&id);
        let mut timer = removed.ok_or(Errno::EINVAL)?;
        timer.disarm(&self.kernel.timers);
        if timer.sent {
            self.discard_timer_signals(Some(id));
        }
        Ok(())
    }

    /// `timer_gettime`.
    pub(crate) fn timer_setting(&self, id: i32) -> Result<Setting, Errno> {
        self.timers().posix.get(id).map(|timer| timer.setting())
    }

    /// `timer_getoverrun`.
    pub(crate) fn timer_overrun(&self, id: i32) -> Result<i32, Errno> {
        self.timers().posix.get(id).map(|timer| timer.overrun)
    }

    /// `timer_settime`; returns what the timer stood at.
    pub(crate) fn set_timer(
        self: &Arc<Self>,
        id: i32,
        new: Setting,
        absolute: bool,
    ) -> Result<Setting, Errno> {
        let tree = self.kernel.tree();
        let mut timers = self.timers();
        let timer = timers.posix.get(id)?;
        let old = timer.setting();
        timer.disarm(&self.kernel.timers);
        let had_sent = std::mem::take(&mut timer.sent);
        timer.overrun = 0;
        timer.expires = None;
        timer.interval = 0;
        timer.absolute = absolute;
        let mut samples = false;
        if new.value > 0 {
            timer.interval = new.interval;
            let expires = match (&timer.clock, absolute) {
                (TimerClock::Host(clock), true) => clock.to_base(new.value),
                (TimerClock::Cpu(_), true) => new.value,
                (_, false) => timer.now().unwrap_or(0).saturating_add(new.value),
            };
            timer.expires = Some(expires);
            samples = matches!(timer.clock, TimerClock::Cpu(_)) && !matches!(timer.notify, Notify::Nothing);
            self.arm_timer(id, timer)?;
        }
        drop(timers);
        if had_sent {
            self.discard_timer_signals(Some(id));
        }
        drop(tree);
        if samples {
            self.sample_cpu_time()?;
        }
        Ok(old)
    }

    /// Puts a timer on a clock of the host into the queue.
    fn arm_timer(self: &Arc<Self>, id: i32, timer: &mut Timer) -> Result<(), Errno> {
        timer.sent = false;
        if let (TimerClock::Host(clock), Notify::Signal { .. }, Some(expires)) =
            (&timer.clock, &timer.notify, timer.expires)
        {
            let due = Due::Posix(Arc::downgrade(self), id);
            let base = clock.base(timer.absolute);
            timer.armed = Some(self.kernel.timers.arm(&self.kernel, base, expires, due)?);
        }
        Ok(())
    }

    /// A timer in the queue is due.
    pub(super) fn posix_expired(self: &Arc<Self>, id: i32, key: Key) {
        self.send_for_timer(id, |timer| timer.armed.take_if(|armed| *armed == key).is_some());
    }

    /// Sends a timer's signal if `is_due` still says so.
    fn send_for_timer(self: &Arc<Self>, id: i32, is_due: impl FnOnce(&mut Timer) -> bool) {
        let mut tree = self.kernel.tree();
        let told = {
            let mut timers = self.timers();
            let Ok(timer) = timers.posix.get(id) else { return };
            if !is_due(timer) {
                return;
            }
            timer.sent = true;
            timer.signal(id, self)
        };
        let Some((told, info)) = told else { return };
        let _ = tree.send(told.target(), info);
        if !told.has_pending(info.signo()) {
            // Ignored, or taken already.
            self.timer_goes_on(id, TICK_NS);
        }
    }

    /// A timer's signal is not pending any more: a periodic timer is armed again, not sooner than `delay` from now.
    /// Returns how many periods were missed, `None` if the timer was not waiting for that.
    fn timer_goes_on(self: &Arc<Self>, id: i32, delay: i64) -> Option<i32> {
        let mut timers = self.timers();
        if timers.closed {
            return None;
        }
        let timer = timers.posix.get(id).ok().filter(|timer| timer.sent)?;
        timer.overrun = 0;
        let now = timer.now().filter(|_| timer.interval > 0);
        let Some(now) = now else {
            timer.sent = false;
            timer.expires = None;
            return Some(0);
        };
        let missed = timer.go_on(now.saturating_add(delay));
        timer.overrun = overrun_to_int(missed);
        let overrun = timer.overrun;
        // Without a host timer, which it had a moment ago, it ends.
        let _ = self.arm_timer(id, timer);
        let samples = matches!(timer.clock, TimerClock::Cpu(_));
        drop(timers);
        if samples {
            let _ = self.sample_cpu_time();
        }
        Some(overrun)
    }

    /// The signal of a POSIX timer has been taken from its queue.
    pub(super) fn posix_signal_taken(self: &Arc<Self>, info: &mut SigInfo) {
        let overrun = self.timer_goes_on(info.timer_id(), 0).unwrap_or(0);
        info.finish_timer(overrun);
    }

    /// Sends what is due of the timers on processor time; returns how far the next is away.
    pub(super) fn look_at_posix_cpu_timers(self: &Arc<Self>) -> Option<i64> {
        let waiting: Vec<(i32, CpuClock, i64)> = {
            let timers = self.timers();
            let of_cpu = |(id, timer): (&i32, &Timer)| match (&timer.clock, timer.expires) {
                (TimerClock::Cpu(clock), Some(expires))
                    if !timer.sent && !matches!(timer.notify, Notify::Nothing) =>
                {
                    Some((*id, clock.clone(), expires))
                }
                _ => None,
            };
            timers.posix.by_id.iter().filter_map(of_cpu).collect()
        };
        let mut nearest: Option<i64> = None;
        for (id, clock, expires) in waiting {
            let Some(now) = clock.now() else { continue };
            let mut left = expires.saturating_sub(now);
            if left <= 0 {
                self.send_for_timer(id, |timer| !timer.sent && timer.expires == Some(expires));
                left = 0;
            }
            nearest = Some(nearest.map_or(left, |nearest| nearest.min(left)));
        }
        nearest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentry::timers::Base;

    fn timer(expires: Option<i64>, interval: i64) -> Timer {
        Timer {
            clock: TimerClock::Host(HostClock::Of(Base::Monotonic)),
            notify: Notify::Signal { signo: 34, value: None, to: Recipient::Process },
            interval,
            expires,
            absolute: true,
            armed: None,
            sent: false,
            overrun: 0,
        }
    }

    #[test]
    fn missed_periods_are_the_overrun() {
        let mut timer = timer(Some(100), 10);
        assert_eq!(timer.go_on(100), 0);
        assert_eq!(timer.expires, Some(110));
        assert_eq!(timer.go_on(145), 3);
        assert_eq!(timer.expires, Some(150));
    }

    #[test]
    fn what_is_left_of_a_timer() {
        let hour = 3_600_000_000_000;
        assert_eq!(timer(None, 7).setting(), Setting { value: 0, interval: 7 });
        // Due, and its signal has not been sent: about to expire.
        assert_eq!(timer(Some(1), 0).setting().value, 1);
        let periodic = Timer { sent: true, ..timer(Some(1), hour) };
        assert!((1..=hour).contains(&periodic.setting().value));
        let silent = Timer { notify: Notify::Nothing, ..timer(Some(1), 0) };
        assert_eq!(silent.setting().value, 0);
        assert!(timer(Some(i64::MAX), 0).setting().value > hour);
    }

    #[test]
    fn numbers_of_timers_are_not_used_twice() {
        let mut timers = PosixTimers::default();
        for expected in 0..3 {
            let id = timers.new_id();
            assert_eq!(id, expected);
            timers.by_id.insert(id, timer(None, 0));
        }
        timers.by_id.remove(&1);
        assert_eq!(timers.new_id(), 3);
        timers.next_id = i32::MAX;
        assert_eq!([timers.new_id(), timers.new_id()], [i32::MAX, 1]);
    }
}
