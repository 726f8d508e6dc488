//! Clocks and sleeping.

use super::SysResult;
use super::args::{ClockId, InTimespec, OutTimespec};
use crate::GuestAddr;
use crate::sentry::abi::{Timespec, Timeval};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::{Restart, Task};
use crate::sentry::timers::{self, Base, Clock, CpuClock, HostClock};
use zerocopy::IntoBytes as _;

fn read_clock(clock: i32) -> Result<Timespec, Errno> {
    let mut bytes = [0; 16];
    host::clock_gettime(clock, &mut bytes)?;
    Ok(Timespec::from_array(bytes))
}

pub(super) fn clock_gettime(task: &mut Task, clock: ClockId, time: OutTimespec) -> SysResult {
    let now = match Clock::decode(task, clock.0)? {
        Clock::Host(id) => read_clock(id)?,
        Clock::Cpu(clock) => timers::to_timespec(clock.now().ok_or(Errno::EINVAL)?),
    };
    task.give(time.0, now.as_bytes()).map(|()| 0)
}

pub(super) fn clock_getres(task: &mut Task, clock: ClockId, time: OutTimespec) -> SysResult {
    let mut bytes = [0; 16];
    match Clock::decode(task, clock.0)? {
        Clock::Host(id) => {
            host::clock_getres(id, Some(&mut bytes))?;
        }
        Clock::Cpu(_) => bytes = timers::to_timespec(1).to_array(),
    }
    task.give_optional(time.0, &bytes).map(|()| 0)
}

/// The time is the host's: whoever may not set it natively may not here.
pub(super) fn clock_settime(task: &mut Task, clock: ClockId, time: InTimespec) -> SysResult {
    match Clock::decode(task, clock.0)? {
        // The numbers of one's own clocks have nothing to set, the others may not be.
        Clock::Cpu(_) if clock.0 < 0 => Err(Errno::EPERM),
        Clock::Host(libc::CLOCK_REALTIME) => {
            let time: Timespec = task.memory().read_object(time.0)?;
            timers::from_timespec(time).ok_or(Errno::EINVAL)?;
            Err(Errno::EPERM)
        }
        Clock::Host(_) | Clock::Cpu(_) => Err(Errno::EINVAL),
    }
}

pub(super) fn gettimeofday(task: &mut Task, time: GuestAddr, zone: GuestAddr) -> SysResult {
    let now = read_clock(libc::CLOCK_REALTIME)?;
    task.memory().write_optional(zone, &[0_i32; 2])?;
    task.give_optional(time, &Timeval { sec: now.sec, usec: now.nsec / 1000 }).map(|()| 0)
}

pub(super) fn time(task: &mut Task, result: GuestAddr) -> SysResult {
    let now = read_clock(libc::CLOCK_REALTIME)?;
    task.memory().write_optional(result, &now.sec)?;
    Ok(now.sec)
}

/// Sleeps until a time of a host clock. A relative sleep that was interrupted goes on where it was, unless a handler
/// runs: then `remaining` says what is left.
fn sleep_until(
    task: &mut Task,
    base: Base,
    deadline: i64,
    absolute: bool,
    remaining: GuestAddr,
) -> SysResult {
    let until = timers::to_timespec(deadline).to_array();
    let result = task
        .wait(|_, attention| host::wait_nanosleep(attention, base.id(), libc::TIMER_ABSTIME, &until, None));
    match result {
        Err(Errno::ERESTARTSYS) if absolute => Err(Errno::ERESTARTNOHAND),
        Err(Errno::ERESTARTSYS) => {
            let left = deadline.saturating_sub(base.now());
            let restart = Restart::Sleep { base, deadline, remaining };
            interrupted(task, left, remaining, restart)
        }
        other => other.map(|_| 0),
    }
}

/// A relative sleep was interrupted.
fn interrupted(task: &mut Task, left: i64, remaining: GuestAddr, restart: Restart) -> SysResult {
    if left <= 0 {
        return Ok(0);
    }
    task.memory().write_optional(remaining, &timers::to_timespec(left))?;
    task.restart = Some(restart);
    Err(Errno::ERESTART_RESTARTBLOCK)
}

/// Sleeps until a clock of processor time has reached a time. Such a clock wakes nobody: it is looked at as often as
/// it could be due, and never busily.
fn sleep_on_cpu_clock(
    task: &mut Task,
    clock: CpuClock,
    deadline: i64,
    absolute: bool,
    remaining: GuestAddr,
) -> SysResult {
    const RARE_NS: i64 = 50_000_000;
    loop {
        // A process that has ended has no more time.
        let Some(now) = clock.now() else { return Err(Errno::EINVAL) };
        let left = deadline.saturating_sub(now);
        if left <= 0 {
            return Ok(0);
        }
        let look = Base::Monotonic.now().saturating_add(timers::least_wait_ns(left).min(RARE_NS));
        let look = timers::to_timespec(look).to_array();
        let result = task.wait(|_, attention| {
            host::wait_nanosleep(attention, libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &look, None)
        });
        match result {
            Err(Errno::ERESTARTSYS) if absolute => return Err(Errno::ERESTARTNOHAND),
            Err(Errno::ERESTARTSYS) => {
                let left = deadline.saturating_sub(clock.now().unwrap_or(0));
                let restart = Restart::CpuSleep { clock, deadline, remaining };
                return interrupted(task, left, remaining, restart);
            }
            other => other?,
        };
    }
}

pub(super) fn nanosleep(task: &mut Task, request: InTimespec, remaining: GuestAddr) -> SysResult {
    clock_nanosleep(task, ClockId(libc::CLOCK_MONOTONIC), 0, request, remaining)
}

pub(super) fn clock_nanosleep(
    task: &mut Task,
    clock: ClockId,
    flags: i32,
    request: InTimespec,
    remaining: GuestAddr,
) -> SysResult {
    let absolute = flags & libc::TIMER_ABSTIME != 0;
    let clock = Clock::decode(task, clock.0)?;
    let clock = match clock {
        Clock::Host(id) => Err(HostClock::for_timers(id)?),
        Clock::Cpu(clock) => Ok(clock),
    };
    let request: Timespec = task.memory().read_object(request.0)?;
    let request = timers::from_timespec(request).ok_or(Errno::EINVAL)?;
    match clock {
        Err(clock) => {
            let base = clock.base(absolute);
            let deadline = if absolute { clock.to_base(request) } else { base.now().saturating_add(request) };
            sleep_until(task, base, deadline, absolute, remaining)
        }
        // Its own clock stands still meanwhile.
        Ok(clock) if clock.is_of_thread(&task.handle) => Err(Errno::EINVAL),
        Ok(clock) => {
            let now = clock.now().ok_or(Errno::EINVAL)?;
            let deadline = if absolute { request } else { now.saturating_add(request) };
            sleep_on_cpu_clock(task, clock, deadline, absolute, remaining)
        }
    }
}

/// Goes on with a call that a signal without a handler interrupted. The guest does not make this call itself: delivery
/// puts its number into rax.
pub(super) fn restart_syscall(task: &mut Task) -> SysResult {
    match task.restart.take() {
        None => Err(Errno::EINTR),
        Some(Restart::Sleep { base, deadline, remaining }) => {
            sleep_until(task, base, deadline, false, remaining)
        }
        Some(Restart::CpuSleep { clock, deadline, remaining }) => {
            sleep_on_cpu_clock(task, clock, deadline, false, remaining)
        }
        Some(Restart::Poll { fds, count, deadline }) => super::poll::poll_again(task, fds, count, deadline),
        Some(Restart::Futex { addr, key, value, deadline }) => {
            super::futex::wait_again(task, addr, key, value, deadline)
        }
    }
}
