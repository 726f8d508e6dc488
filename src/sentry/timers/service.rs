//! The queue of timers that wait on clocks of the host, and the thread that sleeps until the earliest is due.

use super::clock::Base;
use crate::sentry::abi::{Pollfd, Timespec};
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::kernel::Kernel;
use crate::sentry::process::{Process, lock};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// What is due.
#[derive(Clone)]
pub(super) enum Due {
    /// `ITIMER_REAL` of a process.
    Alarm(Weak<Process>),
    /// A POSIX timer of a process.
    Posix(Weak<Process>, i32),
    /// A look at clocks of processor time.
    Sample,
}

/// Names an entry of the queue. No two are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    base: Base,
    expires: i64,
    serial: u64,
}

/// The timers of all processes of a guest.
#[derive(Default)]
pub(crate) struct Timers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    gone: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: [BTreeMap<(i64, u64), Due>; 3],
    serial: u64,
    /// One host timer for each base; made with the first guest timer.
    host: Option<Arc<HostTimers>>,
    /// When each host timer goes off.
    programmed: [Option<i64>; 3],
    /// Processes whose processor time matters.
    sampled: Vec<Weak<Process>>,
    sample: Option<Key>,
}

struct HostTimers {
    clocks: [OwnedFd; 3],
    /// Ends the thread.
    stop: OwnedFd,
}

impl HostTimers {
    fn new() -> Result<Self, Errno> {
        let make = |base: Base| host::timerfd_create(base.id(), libc::TFD_CLOEXEC | libc::TFD_NONBLOCK);
        let [a, b, c] = Base::ALL.map(make);
        Ok(Self { clocks: [a?, b?, c?], stop: host::eventfd2(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)? })
    }
}

impl Queue {
    fn insert(&mut self, base: Base, expires: i64, due: Due) -> Key {
        self.serial += 1;
        let key = Key { base, expires, serial: self.serial };
        if let Some(waiting) = self.waiting.get_mut(base as usize) {
            waiting.insert((expires, self.serial), due);
        }
        key
    }

    fn remove(&mut self, key: Key) -> Option<Due> {
        self.waiting.get_mut(key.base as usize)?.remove(&(key.expires, key.serial))
    }

    /// Sets the host timer if it would go off too late. One that goes off too early is left: timers are taken back
    /// more often than they expire.
    fn program(&mut self, base: Base) {
        let index = base as usize;
        let first = self.waiting.get(index).and_then(|waiting| waiting.first_key_value());
        let first = first.map(|((expires, _), _)| *expires);
        let (Some(programmed), Some(host)) = (self.programmed.get_mut(index), &self.host) else { return };
        let late = match (first, *programmed) {
            (Some(first), Some(programmed)) => first < programmed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if late && let (Some(timer), Some(first)) = (host.clocks.get(index), first) {
            *programmed = Some(first);
            // Zero would disarm it.
            set(timer, first.max(1));
        }
    }

    /// Takes what is due by now. The host timer has gone off.
    fn take_due(&mut self, base: Base, now: i64) -> Vec<(Key, Due)> {
        let Some(waiting) = self.waiting.get_mut(base as usize) else { return Vec::new() };
        let later = match now.checked_add(1) {
            Some(next) => waiting.split_off(&(next, 0)),
            None => BTreeMap::new(),
        };
        let due = std::mem::replace(waiting, later);
        if let (Some(programmed), Some(host)) = (self.programmed.get_mut(base as usize), &self.host) {
            *programmed = None;
            if let Some(timer) = host.clocks.get(base as usize) {
                // It stays readable until it is set.
                set(timer, 0);
            }
        }
        self.program(base);
        due.into_iter().map(|((expires, serial), due)| (Key { base, expires, serial }, due)).collect()
    }
}

fn set(timer: &OwnedFd, expires: i64) {
    let Timespec { sec, nsec } = super::to_timespec(expires);
    let value: [u8; 32] = zerocopy::transmute!([0_i64, 0, sec, nsec]);
    // The time is normalised and the descriptor a timer's: nothing can be wrong with it.
    let _ = host::timerfd_settime(timer.as_fd(), libc::TFD_TIMER_ABSTIME, &value, None);
}

impl Timers {
    /// Has [`Kernel::expire`] called when the clock has reached `expires`.
    pub(super) fn arm(&self, kernel: &Arc<Kernel>, base: Base, expires: i64, due: Due) -> Result<Key, Errno> {
        let mut queue = lock(&self.shared.queue);
        self.start(&mut queue, kernel)?;
        let key = queue.insert(base, expires, due);
        queue.program(base);
        Ok(key)
    }

    /// Takes a timer back. What has been taken out already goes by its own key and finds the timer changed.
    pub(super) fn disarm(&self, key: Key) {
        lock(&self.shared.queue).remove(key);
    }

    /// Has the processor time of a process looked at, soon for the first time.
    pub(super) fn sample(&self, process: &Arc<Process>, is_new: bool) -> Result<(), Errno> {
        let mut queue = lock(&self.shared.queue);
        self.start(&mut queue, &process.kernel)?;
        if is_new {
            queue.sampled.push(Arc::downgrade(process));
        }
        queue.sample_at(Base::Monotonic.now());
        Ok(())
    }

    /// The processes to look at; they are put back with [`Timers::look_again`].
    pub(super) fn take_sampled(&self) -> Vec<Weak<Process>> {
        let mut queue = lock(&self.shared.queue);
        queue.sample = None;
        std::mem::take(&mut queue.sampled)
    }

    pub(super) fn look_again(&self, processes: Vec<Weak<Process>>, after_ns: i64) {
        if processes.is_empty() {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        queue.sampled.extend(processes);
        queue.sample_at(Base::Monotonic.now().saturating_add(after_ns));
    }

    fn start(&self, queue: &mut Queue, kernel: &Arc<Kernel>) -> Result<(), Errno> {
        if queue.host.is_some() {
            return Ok(());
        }
        let host = Arc::new(HostTimers::new()?);
        let (kernel, shared, timers) = (Arc::downgrade(kernel), Arc::clone(&self.shared), Arc::clone(&host));
        crate::subprocess::roam();
        std::thread::Builder::new()
            .name("systrap-timers".to_owned())
            .spawn(move || serve(&kernel, &shared, &timers))?;
        queue.host = Some(host);
        Ok(())
    }
}

impl Queue {
    /// Moves the next look at processor time forward.
    fn sample_at(&mut self, time: i64) {
        if self.sample.is_some_and(|sample| sample.expires <= time) {
            return;
        }
        if let Some(later) = self.sample.take() {
            self.remove(later);
        }
        self.sample = Some(self.insert(Base::Monotonic, time, Due::Sample));
        self.program(Base::Monotonic);
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        if let Some(host) = &lock(&self.shared.queue).host {
            let _ = host::write(host.stop.as_fd(), &1_u64.to_ne_bytes()[..]);
        }
    }
}

fn serve(kernel: &Weak<Kernel>, shared: &Shared, host: &HostTimers) {
    let entry = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    const _: () = assert!(size_of::<Pollfd>() == size_of::<libc::pollfd>(), "the same structure");
    loop {
        let [realtime, monotonic, boottime] = &host.clocks;
        let mut fds = [entry(realtime), entry(monotonic), entry(boottime), entry(&host.stop)];
        let polled = host::poll_now(&mut fds[..], -1);
        if shared.gone.load(Ordering::SeqCst) {
            return;
        }
        if polled.is_err() {
            continue; // a signal for the supervisor
        }
        let Some(kernel) = kernel.upgrade() else { return };
        for (base, polled) in Base::ALL.into_iter().zip(&fds) {
            if polled.revents == 0 {
                continue;
            }
            let due = lock(&shared.queue).take_due(base, base.now());
            for (key, due) in due {
                kernel.expire(due, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_once() {
        let mut queue = Queue::default();
        let late = queue.insert(Base::Monotonic, 30, Due::Sample);
        let early = queue.insert(Base::Monotonic, 10, Due::Sample);
        let same = queue.insert(Base::Monotonic, 10, Due::Sample);
        let other = queue.insert(Base::Realtime, 5, Due::Sample);
        let gone = queue.insert(Base::Monotonic, 1, Due::Sample);
        assert!(queue.remove(gone).is_some());
        assert!(queue.remove(gone).is_none());
        let keys = |due: Vec<(Key, Due)>| due.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(queue.take_due(Base::Monotonic, 9)), []);
        assert_eq!(keys(queue.take_due(Base::Monotonic, 10)), [early, same]);
        assert_eq!(keys(queue.take_due(Base::Monotonic, i64::MAX)), [late]);
        assert_eq!(keys(queue.take_due(Base::Realtime, 5)), [other]);
    }

    #[test]
    fn the_host_timer_stands_at_the_earliest() {
        let mut queue = Queue { host: Some(Arc::new(HostTimers::new().unwrap())), ..Queue::default() };
        let now = Base::Monotonic.now();
        let far = now + 1_000_000_000_000;
        queue.insert(Base::Monotonic, far, Due::Sample);
        queue.program(Base::Monotonic);
        assert_eq!(queue.programmed[1], Some(far));
        queue.insert(Base::Monotonic, far + 1, Due::Sample);
        queue.program(Base::Monotonic);
        assert_eq!(queue.programmed[1], Some(far));
        queue.insert(Base::Monotonic, 0, Due::Sample);
        queue.program(Base::Monotonic);
        let host = Arc::clone(queue.host.as_ref().unwrap());
        let mut fds = [libc::pollfd { fd: host.clocks[1].as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        assert_eq!(host::poll_now(&mut fds[..], 60_000), Ok(1));
        assert_eq!(queue.take_due(Base::Monotonic, now).len(), 1);
        assert_eq!(queue.programmed[1], Some(far));
        assert_eq!(host::poll_now(&mut fds[..], 0), Ok(0), "it has been set again");
    }
}
