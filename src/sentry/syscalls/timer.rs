//! Timers: intervals, POSIX timers, timer descriptors.

use super::SysResult;
use super::args::{ClockId, Fd};
use crate::GuestAddr;
use crate::sentry::abi::{NSIG, Timespec, Timeval};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use crate::sentry::timers::{self, Clock, Notify, Recipient, Setting, Which};
use std::os::fd::AsFd as _;
use std::sync::Arc;

/// `struct itimerval`: period, value.
type Itimerval = [[i64; 2]; 2];

fn to_itimerval(setting: Setting) -> Itimerval {
    let [interval, value] = [setting.interval, setting.value].map(timers::to_timeval);
    [[interval.sec, interval.usec], [value.sec, value.usec]]
}

fn to_itimerspec(setting: Setting) -> Itimerval {
    let [interval, value] = [setting.interval, setting.value].map(timers::to_timespec);
    [[interval.sec, interval.nsec], [value.sec, value.nsec]]
}

pub(super) fn setitimer(task: &mut Task, which: i32, new: GuestAddr, old: GuestAddr) -> SysResult {
    let [interval, value] = task.memory().read_optional::<Itimerval>(new)?.unwrap_or_default();
    let which = Which::from_raw(which)?;
    let time = |[sec, usec]: [i64; 2]| timers::from_timeval(Timeval { sec, usec }).ok_or(Errno::EINVAL);
    let new = Setting { value: time(value)?, interval: time(interval)? };
    let previous = task.process.set_interval_timer(which, new)?;
    task.memory().write_optional(old, &to_itimerval(previous)).map(|()| 0)
}

pub(super) fn getitimer(task: &mut Task, which: i32, value: GuestAddr) -> SysResult {
    let current = task.process.interval_timer(Which::from_raw(which)?);
    task.memory().write_object(value, &to_itimerval(current)).map(|()| 0)
}

pub(super) fn alarm(task: &mut Task, seconds: u32) -> SysResult {
    let seconds = i64::from(seconds.min(i32::MAX as u32));
    let new = Setting { value: seconds * 1_000_000_000, interval: 0 };
    let old = timers::to_timeval(task.process.set_interval_timer(Which::Real, new)?.value);
    // As the kernel: rounded, but never to "none" while one was set.
    Ok(if old.sec == 0 && old.usec > 0 || old.usec >= 500_000 { old.sec + 1 } else { old.sec })
}

/// `struct sigevent`: the value, then signal, kind of notification, thread.
fn read_event(task: &Task, event: GuestAddr) -> Result<Notify, Errno> {
    let Some(words) = task.memory().read_optional::<[u64; 8]>(event)? else {
        return Ok(Notify::Signal { signo: libc::SIGALRM, value: None, to: Recipient::Process });
    };
    let [value, kinds, thread, ..] = words;
    let (signo, notify, tid) = (kinds as i32, (kinds >> 32) as i32, thread as i32);
    let to = match notify {
        libc::SIGEV_NONE => return Ok(Notify::Nothing),
        libc::SIGEV_SIGNAL | libc::SIGEV_THREAD => Recipient::Process,
        libc::SIGEV_THREAD_ID => {
            let tree = task.kernel().tree();
            let thread = tree.thread(tid).filter(|thread| Arc::ptr_eq(&thread.process, &task.process));
            Recipient::Thread(Arc::downgrade(thread.ok_or(Errno::EINVAL)?))
        }
        _ => return Err(Errno::EINVAL),
    };
    if !(1..=NSIG).contains(&signo) {
        return Err(Errno::EINVAL);
    }
    Ok(Notify::Signal { signo, value: Some(value), to })
}

pub(super) fn timer_create(task: &mut Task, clock: ClockId, event: GuestAddr, timer: GuestAddr) -> SysResult {
    let notify = read_event(task, event)?;
    let clock = Clock::decode(task, clock.0)?;
    let id = task.process.create_timer(clock, notify)?;
    let written = task.memory().write_object(timer, &id);
    if written.is_err() {
        let _ = task.process.delete_timer(id);
    }
    written.map(|()| 0)
}

pub(super) fn timer_settime(
    task: &mut Task,
    timer: i32,
    flags: i32,
    new: GuestAddr,
    old: GuestAddr,
) -> SysResult {
    if new == GuestAddr::NULL {
        return Err(Errno::EINVAL);
    }
    let [interval, value] = task.memory().read_object::<Itimerval>(new)?;
    let time = |[sec, nsec]: [i64; 2]| timers::from_timespec(Timespec { sec, nsec }).ok_or(Errno::EINVAL);
    let new = Setting { value: time(value)?, interval: time(interval)? };
    let previous = task.process.set_timer(timer, new, flags & libc::TIMER_ABSTIME != 0)?;
    task.memory().write_optional(old, &to_itimerspec(previous)).map(|()| 0)
}

pub(super) fn timer_gettime(task: &mut Task, timer: i32, value: GuestAddr) -> SysResult {
    let current = task.process.timer_setting(timer)?;
    task.memory().write_object(value, &to_itimerspec(current)).map(|()| 0)
}

pub(super) fn timer_getoverrun(task: &mut Task, timer: i32) -> SysResult {
    task.process.timer_overrun(timer).map(i64::from)
}

pub(super) fn timer_delete(task: &mut Task, timer: i32) -> SysResult {
    task.process.delete_timer(timer).map(|()| 0)
}

pub(super) fn timerfd_create(task: &mut Task, clock: ClockId, flags: i32) -> SysResult {
    // The host knows no clock of a guest's process, and says EINVAL for a number below zero.
    let host = host::timerfd_create(clock.0, flags | libc::TFD_CLOEXEC)?;
    task.install(host, flags & libc::TFD_CLOEXEC != 0)
}

pub(super) fn timerfd_settime(
    task: &mut Task,
    fd: Fd,
    flags: i32,
    new: GuestAddr,
    old: GuestAddr,
) -> SysResult {
    let new: [u8; 32] = task.memory().read_object(new)?;
    let file = task.file(fd.0)?;
    let mut previous = [0; 32];
    host::timerfd_settime(file.as_fd(), flags, &new, Some(&mut previous))?;
    task.memory().write_optional(old, &previous).map(|()| 0)
}

pub(super) fn timerfd_gettime(task: &mut Task, fd: Fd, value: GuestAddr) -> SysResult {
    let mut current = [0; 32];
    host::timerfd_gettime(task.file(fd.0)?.as_fd(), &mut current)?;
    task.memory().write_object(value, &current).map(|()| 0)
}
