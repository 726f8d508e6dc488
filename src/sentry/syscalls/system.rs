//! The machine: names, numbers, limits, scheduling.

use super::SysResult;
use super::args::{OutBytes, RandomFlags, Resource};
use crate::GuestAddr;
use crate::sentry::abi::Rlimit;
use crate::sentry::credentials::cap;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::sync::Arc;
use zerocopy::IntoBytes as _;

pub(super) fn uname(task: &mut Task, buf: GuestAddr) -> SysResult {
    let mut bytes = [0; 390];
    host::uname(&mut bytes)?;
    task.memory().write_object(buf, &bytes).map(|()| 0)
}

pub(super) fn sysinfo(task: &mut Task, buf: GuestAddr) -> SysResult {
    let mut bytes = [0; 112];
    host::sysinfo(&mut bytes)?;
    if let Some((all, left)) = task.memory_share() {
        limit_memory(&mut bytes, all, left);
    }
    task.memory().write_object(buf, &bytes).map(|()| 0)
}

/// Puts the guest's share of the memory in a `struct sysinfo`; what the host caches and swaps is not the guest's.
fn limit_memory(info: &mut [u8; 112], all_bytes: u64, left_bytes: u64) {
    use std::mem::offset_of;
    let unit_at = offset_of!(libc::sysinfo, mem_unit);
    let unit = info[unit_at..].first_chunk().map_or(1, |bytes| u32::from_ne_bytes(*bytes)).max(1);
    for (at, most) in [
        (offset_of!(libc::sysinfo, totalram), all_bytes),
        (offset_of!(libc::sysinfo, freeram), left_bytes),
        (offset_of!(libc::sysinfo, bufferram), 0),
        (offset_of!(libc::sysinfo, totalswap), 0),
        (offset_of!(libc::sysinfo, freeswap), 0),
    ] {
        if let Some(field) = info[at..].first_chunk_mut::<8>() {
            *field = u64::from_ne_bytes(*field).min(most / u64::from(unit)).to_ne_bytes();
        }
    }
}

pub(super) fn getrandom(task: &mut Task, buf: OutBytes, count: usize, flags: RandomFlags) -> SysResult {
    /// What comes whole (random(7)), and after how much a signal may end the call.
    const WHOLE: usize = 256;
    const PIECE: usize = 4096;
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
        let is_wanted = done > WHOLE && task.handle.attention.is_raised() && task.is_wanted();
        if done == count || len == 0 || is_wanted {
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
    let new = task.memory().read_optional::<Rlimit>(new)?;
    let credentials = task.credentials();
    let process = if pid == 0 || pid == task.tid() {
        Arc::clone(&task.process)
    } else {
        let tree = task.kernel().tree();
        let process = tree.process_of(pid).cloned().ok_or(Errno::ESRCH)?;
        if !Arc::ptr_eq(&process, &task.process) && !credentials.may_limit(&process.credentials()) {
            return Err(Errno::EPERM);
        }
        process
    };
    let current = process.change_limit(which.0, new, credentials.has(cap::SYS_RESOURCE))?;
    if which.0 == libc::RLIMIT_CPU && new.is_some() {
        process.sample_if_limited();
    }
    task.give_optional(old, &current).map(|()| 0)
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
