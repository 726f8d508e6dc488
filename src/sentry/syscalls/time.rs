//! Clocks, sleeping and timers.

use super::SysResult;
use super::args::{ClockId, InTimespec, OutTimespec};
use crate::GuestAddr;
use crate::sentry::abi::{Timespec, Timeval};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::time::Duration;

/// The processor time of the stub process: what the guest's own code has used.
///
/// The clock of another process: `MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)`, include/linux/posix-timers.h.
pub(super) fn stub_time(task: &Task) -> Duration {
    const CPUCLOCK_SCHED: i32 = 2;
    let clock = !task.memory().pid() << 3 | CPUCLOCK_SCHED;
    read_clock(clock).ok().and_then(Timespec::to_duration).unwrap_or_default()
}

/// The processor time of the supervisor: what serving the guest's calls has used.
pub(super) fn supervisor_time() -> Duration {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID).ok().and_then(Timespec::to_duration).unwrap_or_default()
}

fn read_clock(clock: i32) -> Result<Timespec, Errno> {
    let mut bytes = [0; 16];
    host::clock_gettime(clock, &mut bytes)?;
    Ok(Timespec::from_array(bytes))
}

fn guest_clock(task: &Task, clock: i32) -> Result<Timespec, Errno> {
    match clock {
        libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID => {
            Ok(Timespec::from_duration(stub_time(task) + supervisor_time()))
        }
        // Negative numbers name the clocks of other processes and of devices.
        clock if clock < 0 => Err(Errno::EINVAL),
        clock => read_clock(clock),
    }
}

pub(super) fn clock_gettime(task: &mut Task, clock: ClockId, time: OutTimespec) -> SysResult {
    let now = guest_clock(task, clock.0)?;
    task.memory().write_object(time.0, &now).map(|()| 0)
}

pub(super) fn clock_getres(task: &mut Task, clock: ClockId, time: OutTimespec) -> SysResult {
    let mut bytes = [0; 16];
    if clock.0 < 0 {
        return Err(Errno::EINVAL);
    }
    host::clock_getres(clock.0, Some(&mut bytes))?;
    task.memory().write_optional(time.0, &bytes).map(|()| 0)
}

pub(super) fn clock_settime(_: &mut Task, _clock: ClockId, _time: InTimespec) -> SysResult {
    Err(Errno::EPERM)
}

pub(super) fn gettimeofday(task: &mut Task, time: GuestAddr, zone: GuestAddr) -> SysResult {
    let now = read_clock(libc::CLOCK_REALTIME)?;
    task.memory().write_optional(time, &Timeval { sec: now.sec, usec: now.nsec / 1000 })?;
    task.memory().write_optional(zone, &[0_i32; 2]).map(|()| 0)
}

pub(super) fn time(task: &mut Task, result: GuestAddr) -> SysResult {
    let now = read_clock(libc::CLOCK_REALTIME)?;
    task.memory().write_optional(result, &now.sec)?;
    Ok(now.sec)
}

/// Sleeps; an interrupted relative sleep reports what is left.
fn sleep(task: &mut Task, clock: i32, flags: i32, request: InTimespec, remaining: GuestAddr) -> SysResult {
    let request: Timespec = task.memory().read_object(request.0)?;
    request.to_duration().ok_or(Errno::EINVAL)?;
    let absolute = flags & libc::TIMER_ABSTIME != 0;
    let mut left = request.to_array();
    let result = task.wait(|_, attention| {
        let wanted = left;
        host::wait_nanosleep(attention, clock, flags, &wanted, if absolute { None } else { Some(&mut left) })
    });
    match result {
        Err(Errno::ERESTARTSYS) => {
            if !absolute {
                task.memory().write_optional(remaining, &left)?;
            }
            Err(Errno::ERESTARTNOHAND)
        }
        other => other.map(|_| 0),
    }
}

pub(super) fn nanosleep(task: &mut Task, request: InTimespec, remaining: GuestAddr) -> SysResult {
    sleep(task, libc::CLOCK_MONOTONIC, 0, request, remaining)
}

pub(super) fn clock_nanosleep(
    task: &mut Task,
    clock: ClockId,
    flags: i32,
    request: InTimespec,
    remaining: GuestAddr,
) -> SysResult {
    if clock.0 < 0 || clock.0 == libc::CLOCK_THREAD_CPUTIME_ID {
        return Err(Errno::EINVAL);
    }
    sleep(task, clock.0, flags, request, remaining)
}

/// Only the real-time timer is offered: the others count the time of a process that the host sees as two.
fn check_timer(which: i32) -> Result<(), Errno> {
    match which {
        libc::ITIMER_REAL => Ok(()),
        libc::ITIMER_VIRTUAL | libc::ITIMER_PROF => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn setitimer(task: &mut Task, which: i32, new: GuestAddr, old: GuestAddr) -> SysResult {
    check_timer(which)?;
    let new = task.memory().read_optional::<[u8; 32]>(new)?.unwrap_or_default();
    let mut previous = [0; 32];
    // The supervisor's own timer: its SIGALRM is forwarded to the guest like any other signal.
    host::setitimer(which, &new, &mut previous)?;
    task.memory().write_optional(old, &previous).map(|()| 0)
}

pub(super) fn getitimer(task: &mut Task, which: i32, value: GuestAddr) -> SysResult {
    check_timer(which)?;
    let mut current = [0; 32];
    host::getitimer(which, &mut current)?;
    task.memory().write_object(value, &current).map(|()| 0)
}

pub(super) fn alarm(_: &mut Task, seconds: u32) -> SysResult {
    let new: [u8; 32] = zerocopy::transmute!([0, 0, i64::from(seconds), 0]);
    let mut old = [0; 32];
    host::setitimer(libc::ITIMER_REAL, &new, &mut old)?;
    let [_, _, sec, usec]: [i64; 4] = zerocopy::transmute!(old);
    // As the kernel: rounded, but never to "none" while one was set.
    Ok(if sec == 0 && usec > 0 || usec >= 500_000 { sec + 1 } else { sec })
}
