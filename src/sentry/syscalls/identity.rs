//! Who the guest is: process ids, users and groups.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use zerocopy::IntoBytes as _;

pub(super) fn getpid(task: &mut Task) -> SysResult {
    Ok(i64::from(task.process.pid))
}

pub(super) fn gettid(task: &mut Task) -> SysResult {
    Ok(i64::from(task.tid))
}

pub(super) fn getppid(_: &mut Task) -> SysResult {
    host::getppid().map(|pid| pid as i64)
}

pub(super) fn getuid(_: &mut Task) -> SysResult {
    host::getuid().map(|id| id as i64)
}

pub(super) fn geteuid(_: &mut Task) -> SysResult {
    host::geteuid().map(|id| id as i64)
}

pub(super) fn getgid(_: &mut Task) -> SysResult {
    host::getgid().map(|id| id as i64)
}

pub(super) fn getegid(_: &mut Task) -> SysResult {
    host::getegid().map(|id| id as i64)
}

impl Task {
    /// Lets the stub answer the calls whose results never change, unless somebody wants to see them.
    pub(crate) fn publish_answers(&mut self) {
        if self.observer.tracer.is_some() {
            return;
        }
        type Handler = fn(&mut Task) -> SysResult;
        let constant: [(i64, Handler); 6] = [
            (libc::SYS_getpid, getpid),
            (libc::SYS_gettid, gettid),
            (libc::SYS_getuid, getuid),
            (libc::SYS_geteuid, geteuid),
            (libc::SYS_getgid, getgid),
            (libc::SYS_getegid, getegid),
        ];
        for (nr, handler) in constant {
            if let Ok(result) = handler(self) {
                // A call that the stub cannot answer arrives here as any other.
                let _ = self.context.answer_in_stub(nr as u32, Some(result));
            }
        }
    }
}

/// Writes three ids as `getresuid` and `getresgid` do.
fn write_ids(task: &Task, addrs: [GuestAddr; 3], ids: [[u32; 1]; 3]) -> SysResult {
    for (addr, id) in addrs.into_iter().zip(ids) {
        task.memory().write_object(addr, &id)?;
    }
    Ok(0)
}

pub(super) fn getresuid(
    task: &mut Task,
    real: GuestAddr,
    effective: GuestAddr,
    saved: GuestAddr,
) -> SysResult {
    let (mut r, mut e, mut s) = ([0], [0], [0]);
    host::getresuid(&mut r, &mut e, &mut s)?;
    write_ids(task, [real, effective, saved], [r, e, s])
}

pub(super) fn getresgid(
    task: &mut Task,
    real: GuestAddr,
    effective: GuestAddr,
    saved: GuestAddr,
) -> SysResult {
    let (mut r, mut e, mut s) = ([0], [0], [0]);
    host::getresgid(&mut r, &mut e, &mut s)?;
    write_ids(task, [real, effective, saved], [r, e, s])
}

pub(super) fn getgroups(task: &mut Task, size: i32, list: GuestAddr) -> SysResult {
    let mut groups = [0; 1024];
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?.min(groups.len());
    let count = host::getgroups(size as i32, &mut groups)?;
    if size != 0 {
        task.memory().write(list, groups[..count.min(size)].as_bytes())?;
    }
    Ok(count as i64)
}

/// Changing an id to what it is succeeds; becoming somebody else does not.
fn change(wanted: &[u32], current: [[u32; 1]; 3]) -> SysResult {
    const UNCHANGED: u32 = u32::MAX;
    let allowed = |id: &u32| *id == UNCHANGED || current.iter().any(|own| own[0] == *id);
    if wanted.iter().all(allowed) { Ok(0) } else { Err(Errno::EPERM) }
}

fn user_ids() -> Result<[[u32; 1]; 3], Errno> {
    let (mut r, mut e, mut s) = ([0], [0], [0]);
    host::getresuid(&mut r, &mut e, &mut s)?;
    Ok([r, e, s])
}

fn group_ids() -> Result<[[u32; 1]; 3], Errno> {
    let (mut r, mut e, mut s) = ([0], [0], [0]);
    host::getresgid(&mut r, &mut e, &mut s)?;
    Ok([r, e, s])
}

pub(super) fn setuid(_: &mut Task, uid: u32) -> SysResult {
    change(&[uid], user_ids()?)
}

pub(super) fn setgid(_: &mut Task, gid: u32) -> SysResult {
    change(&[gid], group_ids()?)
}

pub(super) fn setreuid(_: &mut Task, real: u32, effective: u32) -> SysResult {
    change(&[real, effective], user_ids()?)
}

pub(super) fn setregid(_: &mut Task, real: u32, effective: u32) -> SysResult {
    change(&[real, effective], group_ids()?)
}

pub(super) fn setresuid(_: &mut Task, real: u32, effective: u32, saved: u32) -> SysResult {
    change(&[real, effective, saved], user_ids()?)
}

pub(super) fn setresgid(_: &mut Task, real: u32, effective: u32, saved: u32) -> SysResult {
    change(&[real, effective, saved], group_ids()?)
}

/// `setfsuid` has no error: it returns the old id and leaves it when it may not change it.
pub(super) fn setfsuid(_: &mut Task, _uid: u32) -> SysResult {
    host::geteuid().map(|id| id as i64)
}

pub(super) fn setfsgid(_: &mut Task, _gid: u32) -> SysResult {
    host::getegid().map(|id| id as i64)
}

/// The host's name for a process id argument of the guest.
fn host_pid(task: &Task, pid: i32) -> i32 {
    if pid == task.process.pid { 0 } else { pid }
}

pub(super) fn getpgrp(_: &mut Task) -> SysResult {
    host::getpgid(0).map(|pid| pid as i64)
}

pub(super) fn getpgid(task: &mut Task, pid: i32) -> SysResult {
    host::getpgid(host_pid(task, pid)).map(|pid| pid as i64)
}

pub(super) fn setpgid(task: &mut Task, pid: i32, pgid: i32) -> SysResult {
    host::setpgid(host_pid(task, pid), pgid).map(|_| 0)
}

pub(super) fn getsid(task: &mut Task, pid: i32) -> SysResult {
    host::getsid(host_pid(task, pid)).map(|pid| pid as i64)
}

pub(super) fn setsid(_: &mut Task) -> SysResult {
    host::setsid().map(|pid| pid as i64)
}
