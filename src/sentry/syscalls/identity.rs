//! Which process the guest is: ids, groups, sessions. Users are in `credentials`.

use super::credentials::{getegid, geteuid, getgid, getuid};
use super::{SysResult, arguments_to_send};
use crate::PassedCalls;
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::kernel::Node;
use crate::sentry::task::Task;

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

impl Task {
    /// Lets the stub answer the calls whose results only the task itself changes, and pass on those that concern only
    /// the guest's own threads, unless somebody wants to see them.
    pub(crate) fn publish_answers(&mut self) {
        let wanted = *self.observer.hooks.wanted();
        // Harmless whoever makes them, and nobody's business but the guest's own threads'.
        let mut passed = PassedCalls::ALL;
        if wanted.contains(libc::SYS_futex) {
            (passed.futex_waits, passed.futex_wakes) = (false, false);
        }
        passed.yields = !wanted.contains(libc::SYS_sched_yield);
        self.context.pass_in_stub(passed);
        self.context.send_along(arguments_to_send());
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
