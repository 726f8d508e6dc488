//! Who the guest is: process ids, users and groups.

use super::SysResult;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::kernel::Node;
use crate::sentry::task::Task;
use crate::{GuestAddr, PassedCalls};
use zerocopy::IntoBytes as _;

pub(super) fn getpid(task: &mut Task) -> SysResult {
    Ok(i64::from(task.process.pid))
}

pub(super) fn gettid(task: &mut Task) -> SysResult {
    Ok(i64::from(task.tid()))
}

/// A parent outside the guest: the supervisor's for the first process, process 1 for an orphan.
pub(super) fn getppid(task: &mut Task) -> SysResult {
    match task.with_node(|node| node.parent) {
        Some(0) | None if task.process.pid == task.kernel().first_pid => {
            host::getppid().map(|pid| pid as i64)
        }
        Some(0) | None => Ok(1),
        Some(parent) => Ok(i64::from(parent)),
    }
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
    /// Lets the stub answer the calls whose results never change, and pass on those that concern only the guest's own
    /// threads, unless somebody wants to see them.
    pub(crate) fn publish_answers(&mut self) {
        let wanted = *self.observer.hooks.wanted();
        // Harmless whoever makes them, and nobody's business but the guest's own threads'.
        let mut passed = PassedCalls::ALL;
        if wanted.contains(libc::SYS_futex) {
            (passed.futex_waits, passed.futex_wakes) = (false, false);
        }
        passed.yields = !wanted.contains(libc::SYS_sched_yield);
        self.context.pass_in_stub(passed);
        type Handler = fn(&mut Task) -> SysResult;
        let constant: [(i64, Handler); 6] = [
            (libc::SYS_getpid, getpid),
            (libc::SYS_gettid, gettid),
            (libc::SYS_getuid, getuid),
            (libc::SYS_geteuid, geteuid),
            (libc::SYS_getgid, getgid),
            (libc::SYS_getegid, getegid),
        ];
        for (nr, handler) in constant.into_iter().filter(|(nr, _)| !wanted.contains(*nr)) {
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

pub(super) fn getpgrp(task: &mut Task) -> SysResult {
    getpgid(task, 0)
}

/// The node of a process id argument; 0 is the caller's.
fn look<T>(task: &Task, pid: i32, look: impl FnOnce(&Node) -> T) -> Result<T, Errno> {
    let pid = if pid == 0 { task.process.pid } else { pid };
    let tree = task.kernel().tree();
    let pid = tree.process_of(pid).map_or(pid, |process| process.pid);
    tree.node(pid).map(look).ok_or(Errno::ESRCH)
}

pub(super) fn getpgid(task: &mut Task, pid: i32) -> SysResult {
    match look(task, pid, |node| node.group) {
        Err(Errno::ESRCH) => host::getpgid(pid).map(|group| group as i64),
        group => group.map(i64::from),
    }
}

pub(super) fn setpgid(task: &mut Task, pid: i32, group: i32) -> SysResult {
    if pid < 0 {
        return Err(Errno::EINVAL);
    }
    task.kernel().tree().set_group(task.process.pid, pid, group).map(|()| 0)
}

pub(super) fn getsid(task: &mut Task, pid: i32) -> SysResult {
    match look(task, pid, |node| node.session) {
        Err(Errno::ESRCH) => host::getsid(pid).map(|session| session as i64),
        session => session.map(i64::from),
    }
}

pub(super) fn setsid(task: &mut Task) -> SysResult {
    task.kernel().tree().new_session(task.process.pid).map(i64::from)
}
