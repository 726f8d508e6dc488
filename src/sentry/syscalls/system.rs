//! The machine: names, numbers, limits, scheduling.

use super::SysResult;
use super::args::{OutBytes, RandomFlags, Resource};
use crate::GuestAddr;
use crate::sentry::abi::Rlimit;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use zerocopy::IntoBytes as _;

pub(super) fn uname(task: &mut Task, buf: GuestAddr) -> SysResult {
    let mut bytes = [0; 390];
    host::uname(&mut bytes)?;
    task.memory().write_object(buf, &bytes).map(|()| 0)
}

pub(super) fn sysinfo(task: &mut Task, buf: GuestAddr) -> SysResult {
    let mut bytes = [0; 112];
    host::sysinfo(&mut bytes)?;
    task.memory().write_object(buf, &bytes).map(|()| 0)
}

pub(super) fn getrandom(task: &mut Task, buf: OutBytes, count: usize, flags: RandomFlags) -> SysResult {
    const PIECE: usize = 256;
    let count = count.min(crate::sentry::abi::MAX_RW_COUNT);
    let mut bytes = [0; PIECE];
    let mut done = 0;
    loop {
        let part = &mut bytes[..PIECE.min(count - done)];
        let len = match host::getrandom(part, flags.0) {
            Ok(len) => len,
            Err(_) if done > 0 => return Ok(done as i64),
            Err(errno) => return Err(errno),
        };
        let to = buf.0.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        match task.memory().write(to, &bytes[..len]) {
            Ok(()) => done += len,
            Err(stopped) if done + stopped.copied > 0 => return Ok((done + stopped.copied) as i64),
            Err(stopped) => return Err(stopped.into()),
        }
        if done == count || len == 0 {
            return Ok(done as i64);
        }
    }
}

fn own_pid(task: &Task, pid: i32) -> Result<(), Errno> {
    if pid == 0 || pid == task.process.pid || pid == task.tid() { Ok(()) } else { Err(Errno::ESRCH) }
}

pub(super) fn getrlimit(task: &mut Task, which: Resource, limit: GuestAddr) -> SysResult {
    let current = task.process.limits().get(which.0)?;
    task.give(limit, current.as_bytes()).map(|()| 0)
}

pub(super) fn setrlimit(task: &mut Task, which: Resource, limit: GuestAddr) -> SysResult {
    prlimit64(task, 0, which, limit, GuestAddr::NULL)
}

pub(super) fn prlimit64(
    task: &mut Task,
    pid: i32,
    which: Resource,
    new: GuestAddr,
    old: GuestAddr,
) -> SysResult {
    own_pid(task, pid)?;
    let new = task.memory().read_optional::<Rlimit>(new)?;
    let current = task.process.limits().get(which.0)?;
    if let Some(new) = new {
        let mut limits = task.process.limits();
        limits.set(which.0, new)?;
        let descriptors = limits.descriptors();
        drop(limits);
        if which.0 == libc::RLIMIT_CPU {
            task.process.sample_if_limited();
        }
        task.files().set_limit(descriptors);
    }
    task.give_optional(old, &current).map(|()| 0)
}

pub(super) fn getrusage(task: &mut Task, who: i32, usage: GuestAddr) -> SysResult {
    let mut bytes = [0; 144];
    host::getrusage(who, &mut bytes)?;
    if who == libc::RUSAGE_SELF || who == libc::RUSAGE_THREAD {
        let used = if who == libc::RUSAGE_SELF { task.process.cpu_usage() } else { task.handle.cpu_usage() };
        for (slot, ns) in bytes.chunks_exact_mut(16).zip([used.user_ns, used.system_ns]) {
            let time = crate::sentry::timers::to_timeval(i64::try_from(ns).unwrap_or(i64::MAX));
            slot.copy_from_slice(time.as_bytes());
        }
    }
    task.give(usage, &bytes).map(|()| 0)
}

pub(super) fn sched_getaffinity(task: &mut Task, pid: i32, size: usize, mask: GuestAddr) -> SysResult {
    own_pid(task, pid)?;
    let mut bytes = [0; 1024];
    let size = size.min(bytes.len());
    let len = host::sched_getaffinity(0, size, &mut bytes)?;
    task.memory().write(mask, &bytes[..len.min(size)])?;
    Ok(len as i64)
}

/// Accepted and not acted on: where the guest runs is the platform's choice.
pub(super) fn sched_setaffinity(task: &mut Task, pid: i32, _size: usize, _mask: GuestAddr) -> SysResult {
    own_pid(task, pid).map(|()| 0)
}

pub(super) fn sched_getscheduler(task: &mut Task, pid: i32) -> SysResult {
    own_pid(task, pid)?;
    host::sched_getscheduler(0).map(|policy| policy as i64)
}

pub(super) fn sched_getparam(task: &mut Task, pid: i32, param: GuestAddr) -> SysResult {
    own_pid(task, pid)?;
    let mut bytes = [0; 4];
    host::sched_getparam(0, &mut bytes)?;
    task.memory().write_object(param, &bytes).map(|()| 0)
}

pub(super) fn sched_setscheduler(task: &mut Task, pid: i32, policy: i32, _param: GuestAddr) -> SysResult {
    own_pid(task, pid)?;
    if policy == libc::SCHED_OTHER { Ok(0) } else { Err(Errno::EPERM) }
}

pub(super) fn sched_get_priority_max(_: &mut Task, policy: i32) -> SysResult {
    host::sched_get_priority_max(policy).map(|priority| priority as i64)
}

pub(super) fn sched_get_priority_min(_: &mut Task, policy: i32) -> SysResult {
    host::sched_get_priority_min(policy).map(|priority| priority as i64)
}

pub(super) fn sched_rr_get_interval(task: &mut Task, pid: i32, time: GuestAddr) -> SysResult {
    own_pid(task, pid)?;
    let mut bytes = [0; 16];
    host::sched_rr_get_interval(0, &mut bytes)?;
    task.memory().write_object(time, &bytes).map(|()| 0)
}

pub(super) fn sched_yield(_: &mut Task) -> SysResult {
    host::sched_yield().map(|_| 0)
}

pub(super) fn getcpu(task: &mut Task, cpu: GuestAddr, node: GuestAddr, _cache: GuestAddr) -> SysResult {
    let (mut host_cpu, mut host_node) = ([0], [0]);
    host::getcpu(&mut host_cpu, &mut host_node)?;
    task.memory().write_optional(cpu, &host_cpu)?;
    task.memory().write_optional(node, &host_node).map(|()| 0)
}

pub(super) fn getpriority(_: &mut Task, which: i32, who: i32) -> SysResult {
    host::getpriority(which, who).map(|priority| priority as i64)
}

pub(super) fn setpriority(_: &mut Task, which: i32, who: i32, nice: i32) -> SysResult {
    host::setpriority(which, who, nice).map(|_| 0)
}

pub(super) fn ioprio_get(_: &mut Task, which: i32, who: i32) -> SysResult {
    host::ioprio_get(which, who).map(|priority| priority as i64)
}

/// One thread is always ordered with itself; the commands that register succeed, the query says what there is.
pub(super) fn membarrier(_: &mut Task, command: i32, flags: u32, cpu: i32) -> SysResult {
    const QUERY: i32 = 0;
    let offered = host::membarrier(QUERY, 0, 0)? as i64;
    match command {
        QUERY => Ok(offered),
        command if command > 0 && flags == 0 && cpu == 0 && offered & i64::from(command) != 0 => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
