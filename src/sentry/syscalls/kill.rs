//! Sending signals.

use super::SysResult;
use super::args::Signo;
use crate::GuestAddr;
use crate::sentry::abi::NSIG;
use crate::sentry::credentials::{Credentials, Ids};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::kernel::{Life, Target, Tree};
use crate::sentry::process::Process;
use crate::sentry::signals::SigInfo;
use crate::sentry::task::{Task, TaskHandle};
use std::sync::Arc;

fn check_signal(signo: i32) -> Result<(), Errno> {
    if (0..=NSIG).contains(&signo) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A signal from this task.
pub(super) fn from_task(task: &Task, signo: i32, code: i32) -> SigInfo {
    SigInfo::from_user(signo, code, task.process.pid, task.credentials().user.real)
}

/// Whether the task may send the signal to a process: to its own, to whom its credentials allow, and SIGCONT within
/// its session (`check_kill_permission`).
fn may_signal(task: &Task, tree: &Tree, target: &Process, signo: i32) -> bool {
    let session = |pid: i32| tree.node(pid).map(|node| node.session);
    target.pid == task.process.pid
        || signo == libc::SIGCONT && session(target.pid) == session(task.process.pid)
        || task.credentials().may_signal(&target.credentials())
}

/// Sends to a list of processes, as far as that is allowed; fails only if none took it (`__kill_pgrp_info`).
fn send_to_members(task: &Task, tree: &mut Tree, members: &[i32], info: SigInfo) -> SysResult {
    let mut sent = false;
    let mut result = Err(Errno::ESRCH);
    for pid in members {
        let Some(process) = tree.node(*pid).map(|node| Arc::clone(&node.process)) else { continue };
        result = match may_signal(task, tree, &process, info.signo()) {
            true => tree.send(Target::Process(&process), info),
            false => Err(Errno::EPERM),
        };
        sent |= result.is_ok();
    }
    if sent { Ok(0) } else { result.map(|()| 0) }
}

/// A process outside the guest: only what the guest may do by its own credentials, not what the supervisor may. The
/// supervisor itself, all its threads included, is not one.
fn kill_outside(task: &Task, pid: i32, signo: i32) -> SysResult {
    if task.is_of_supervisor(pid) {
        return Err(Errno::ESRCH);
    }
    let own = task.credentials();
    if *own != *task.kernel().supervisor {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| Errno::ESRCH)?;
        let ids: Vec<u32> = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect())
            .unwrap_or_default();
        let [real, _, saved, _] = ids[..] else { return Err(Errno::EPERM) };
        let target = Credentials { user: Ids { real, effective: real, saved, fs: real }, ..(*own).clone() };
        if !own.may_signal(&target) {
            return Err(Errno::EPERM);
        }
    }
    if signo != 0 && !task.kernel().signals_leave {
        // The supervisor's own filter admits no signal to others; that there is somebody may be asked.
        return host::kill(pid, 0).and(Err(Errno::EPERM));
    }
    host::kill(pid, signo).map(|_| 0)
}

/// All processes of the guest but the caller's and, as process 1 is spared outside, the first.
fn everybody_else(task: &Task, tree: &Tree) -> Vec<i32> {
    let spared = [task.process.pid, task.kernel().first_pid];
    tree.nodes()
        .filter(|node| !spared.contains(&node.process.pid) && !matches!(node.life, Life::Zombie { .. }))
        .map(|node| node.process.pid)
        .collect()
}

pub(super) fn kill(task: &mut Task, pid: i32, signo: Signo) -> SysResult {
    check_signal(signo.0)?;
    let info = from_task(task, signo.0, libc::SI_USER);
    let kernel = Arc::clone(task.kernel());
    let mut tree = kernel.tree();
    if pid > 0 {
        if let Some(process) = tree.process_of(pid).cloned() {
            if !may_signal(task, &tree, &process, signo.0) {
                return Err(Errno::EPERM);
            }
            return tree.send(Target::Process(&process), info).map(|()| 0);
        }
        drop(tree);
        return kill_outside(task, pid, signo.0);
    }
    let members = match pid {
        -1 => everybody_else(task, &tree),
        0 => {
            let group = tree.node(task.process.pid).map_or(0, |node| node.group);
            tree.group_members(group)
        }
        i32::MIN => return Err(Errno::ESRCH),
        _ => tree.group_members(-pid),
    };
    send_to_members(task, &mut tree, &members, info)
}

/// The thread of an id, of that process if one is named.
fn find_thread(tree: &Tree, tgid: Option<i32>, tid: i32) -> Result<Arc<TaskHandle>, Errno> {
    let thread = tree.thread(tid).ok_or(Errno::ESRCH)?;
    if tgid.is_some_and(|tgid| tgid != thread.process.pid) {
        return Err(Errno::ESRCH);
    }
    Ok(Arc::clone(thread))
}

fn send_to_thread(task: &Task, tgid: Option<i32>, tid: i32, info: SigInfo) -> SysResult {
    let mut tree = task.kernel().tree();
    let thread = find_thread(&tree, tgid, tid)?;
    let same_process = thread.process.pid == task.process.pid;
    if !same_process && !task.credentials().may_signal(&thread.credentials()) {
        let continues =
            info.signo() == libc::SIGCONT && may_signal(task, &tree, &thread.process, libc::SIGCONT);
        if !continues {
            return Err(Errno::EPERM);
        }
    }
    tree.send(Target::Thread(&thread), info).map(|()| 0)
}

pub(super) fn tkill(task: &mut Task, tid: i32, signo: Signo) -> SysResult {
    if tid <= 0 {
        return Err(Errno::EINVAL);
    }
    check_signal(signo.0)?;
    send_to_thread(task, None, tid, from_task(task, signo.0, libc::SI_TKILL))
}

pub(super) fn tgkill(task: &mut Task, tgid: i32, tid: i32, signo: Signo) -> SysResult {
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    check_signal(signo.0)?;
    send_to_thread(task, Some(tgid), tid, from_task(task, signo.0, libc::SI_TKILL))
}

/// `siginfo` from the guest; `own`: it is for the caller's own process. To others only codes that are not the
/// kernel's may be sent.
fn queued(task: &Task, signo: i32, info: GuestAddr, own: bool) -> Result<SigInfo, Errno> {
    let mut bytes: [u8; 128] = task.memory().read_object(info)?;
    bytes[..4].copy_from_slice(&signo.to_ne_bytes());
    let info = SigInfo(bytes).claimed_by_process();
    if !own && (info.code() >= 0 || info.code() == libc::SI_TKILL) {
        return Err(Errno::EPERM);
    }
    check_signal(signo)?;
    Ok(info)
}

pub(super) fn rt_sigqueueinfo(task: &mut Task, pid: i32, signo: Signo, info: GuestAddr) -> SysResult {
    let info = queued(task, signo.0, info, pid == task.process.pid)?;
    let mut tree = task.kernel().tree();
    let process = tree.process_of(pid).cloned().ok_or(Errno::ESRCH)?;
    if !may_signal(task, &tree, &process, signo.0) {
        return Err(Errno::EPERM);
    }
    tree.send(Target::Process(&process), info).map(|()| 0)
}

pub(super) fn rt_tgsigqueueinfo(
    task: &mut Task,
    tgid: i32,
    tid: i32,
    signo: Signo,
    info: GuestAddr,
) -> SysResult {
    if tgid <= 0 || tid <= 0 {
        return Err(Errno::EINVAL);
    }
    let info = queued(task, signo.0, info, tgid == task.process.pid)?;
    send_to_thread(task, Some(tgid), tid, info)
}
