//! Priorities, policies and CPUs of tasks (kernel/sched/syscalls.c, block/ioprio.c): permissions and limits apply, and
//! what is set can be read back. What the host's scheduler does is the supervisor's affair.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::credentials::{Credentials, cap};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::kernel::Tree;
use crate::sentry::task::{Task, TaskHandle};
use std::sync::Arc;

const RESET_ON_FORK: i32 = 0x4000_0000;

/// The task of an id; 0 is the caller.
fn task_of(task: &Task, pid: i32) -> Result<Arc<TaskHandle>, Errno> {
    match pid {
        i32::MIN..0 => Err(Errno::EINVAL),
        0 => Ok(Arc::clone(&task.handle)),
        pid => task.kernel().tree().thread(pid).cloned().ok_or(Errno::ESRCH),
    }
}

/// The tasks that a priority call is about: one, those of a group, or those of a user.
fn tasks_of(task: &Task, which: i32, who: i32) -> Result<Vec<Arc<TaskHandle>>, Errno> {
    const PROCESS: i32 = 0;
    const GROUP: i32 = 1;
    const USER: i32 = 2;
    let tree = task.kernel().tree();
    let threads_of = |tree: &Tree, pid: &i32| -> Vec<Arc<TaskHandle>> {
        tree.node(*pid).map(|node| node.process.threads().clone()).unwrap_or_default()
    };
    let found = match which {
        PROCESS if who == 0 => vec![Arc::clone(&task.handle)],
        PROCESS => tree.thread(who).into_iter().cloned().collect(),
        GROUP => {
            let own = tree.node(task.process.pid).map_or(0, |node| node.group);
            let group = if who == 0 { own } else { who };
            tree.group_members(group).iter().flat_map(|pid| threads_of(&tree, pid)).collect()
        }
        USER => {
            let user = if who == 0 { task.credentials().user.real } else { who as u32 };
            let pids: Vec<i32> = tree.nodes().map(|node| node.process.pid).collect();
            let threads = pids.iter().flat_map(|pid| threads_of(&tree, pid));
            threads.filter(|thread| thread.credentials().user.real == user).collect()
        }
        _ => return Err(Errno::EINVAL),
    };
    if found.is_empty() { Err(Errno::ESRCH) } else { Ok(found) }
}

pub(super) fn getpriority(task: &mut Task, which: i32, who: i32) -> SysResult {
    let tasks = tasks_of(task, which, who)?;
    let highest = tasks.iter().map(|task| 20 - task.attributes().nice).max();
    highest.map(i64::from).ok_or(Errno::ESRCH)
}

/// Whether a task's nice value may become so low (`can_nice`).
fn may_have_nice(own: &Credentials, target: &TaskHandle, nice: i32) -> bool {
    let limit = target.process.limits().soft(libc::RLIMIT_NICE);
    u64::try_from(20 - nice).is_ok_and(|wanted| wanted <= limit) || own.has(cap::SYS_NICE)
}

pub(super) fn setpriority(task: &mut Task, which: i32, who: i32, nice: i32) -> SysResult {
    let nice = nice.clamp(-20, 19);
    let own = task.credentials();
    let mut result = Err(Errno::ESRCH);
    for target in tasks_of(task, which, who)? {
        let old = target.attributes().nice;
        let error = if !own.may_schedule(&target.credentials()) {
            Errno::EPERM
        } else if nice < old && !may_have_nice(&own, &target, nice) {
            Errno::EACCES
        } else {
            target.attributes().nice = nice;
            if result == Err(Errno::ESRCH) {
                result = Ok(0);
            }
            continue;
        };
        result = Err(error);
    }
    result
}

pub(super) fn sched_getscheduler(task: &mut Task, pid: i32) -> SysResult {
    let target = task_of(task, pid)?;
    let attributes = target.attributes();
    Ok((attributes.policy | if attributes.reset_on_fork { RESET_ON_FORK } else { 0 }).into())
}

pub(super) fn sched_getparam(task: &mut Task, pid: i32, param: GuestAddr) -> SysResult {
    let priority = task_of(task, pid)?.attributes().priority;
    task.memory().write_object(param, &priority).map(|()| 0)
}

/// The rules of `__sched_setscheduler`.
fn set_policy(
    task: &Task,
    target: &TaskHandle,
    policy: i32,
    priority: i32,
    reset_on_fork: bool,
    nice: Option<i32>,
) -> SysResult {
    let is_real_time = matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR);
    if !is_real_time && !matches!(policy, libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE) {
        // Deadlines are for who has bandwidth to give away.
        return Err(if policy == libc::SCHED_DEADLINE { Errno::EPERM } else { Errno::EINVAL });
    }
    if is_real_time != (1..=99).contains(&priority) || !is_real_time && priority != 0 {
        return Err(Errno::EINVAL);
    }
    let own = task.credentials();
    let limit = target.process.limits().soft(libc::RLIMIT_RTPRIO);
    let may_be_nicer = may_have_nice(&own, target, target.attributes().nice);
    let mut attributes = target.attributes();
    if !own.has(cap::SYS_NICE) {
        let wanted = u64::try_from(priority).unwrap_or(0);
        let refused = is_real_time && policy != attributes.policy && limit == 0
            || is_real_time && priority > attributes.priority && wanted > limit
            || attributes.policy == libc::SCHED_IDLE && policy != libc::SCHED_IDLE && !may_be_nicer
            || attributes.reset_on_fork && !reset_on_fork
            || !own.may_schedule(&target.credentials());
        if refused {
            return Err(Errno::EPERM);
        }
    }
    attributes.policy = policy;
    attributes.priority = priority;
    attributes.reset_on_fork = reset_on_fork;
    if let Some(nice) = nice.filter(|_| !is_real_time) {
        attributes.nice = nice;
    }
    Ok(0)
}

pub(super) fn sched_setscheduler(task: &mut Task, pid: i32, policy: i32, param: GuestAddr) -> SysResult {
    if policy < 0 || param == GuestAddr::NULL {
        return Err(Errno::EINVAL);
    }
    let priority: i32 = task.memory().read_object(param)?;
    let target = task_of(task, pid)?;
    set_policy(task, &target, policy & !RESET_ON_FORK, priority, policy & RESET_ON_FORK != 0, None)
}

pub(super) fn sched_setparam(task: &mut Task, pid: i32, param: GuestAddr) -> SysResult {
    if param == GuestAddr::NULL {
        return Err(Errno::EINVAL);
    }
    let priority: i32 = task.memory().read_object(param)?;
    let target = task_of(task, pid)?;
    let (policy, reset) = {
        let attributes = target.attributes();
        (attributes.policy, attributes.reset_on_fork)
    };
    set_policy(task, &target, policy, priority, reset, None)
}

/// `struct sched_attr`, its first version: size, policy, flags (two words), nice, priority, three times.
type SchedAttr = [u32; 12];

pub(super) fn sched_setattr(task: &mut Task, pid: i32, attr: GuestAddr, flags: u32) -> SysResult {
    if flags != 0 || attr == GuestAddr::NULL {
        return Err(Errno::EINVAL);
    }
    let size = match task.memory().read_object::<u32>(attr)? {
        0 => 48,
        size if size < 48 => {
            task.memory().write_object(attr, &48_u32)?;
            return Err(Errno::E2BIG);
        }
        size => size as usize,
    };
    let mut bytes = [0; 48];
    task.read_versioned(attr, size, &mut bytes)?;
    let [_, policy, flags, _, nice, priority, ..]: SchedAttr = zerocopy::transmute!(bytes);
    let target = task_of(task, pid)?;
    let own = task.credentials();
    let nice = (nice as i32).clamp(-20, 19);
    if policy == 0 && nice < target.attributes().nice && !may_have_nice(&own, &target, nice) {
        return Err(Errno::EPERM);
    }
    let (policy, priority) = (policy as i32, priority as i32);
    set_policy(task, &target, policy, priority, flags & 1 != 0, Some(nice))
}

pub(super) fn sched_getattr(task: &mut Task, pid: i32, attr: GuestAddr, size: u32, flags: u32) -> SysResult {
    if flags != 0 || attr == GuestAddr::NULL || !(48..=4096).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let target = task_of(task, pid)?;
    let shown: SchedAttr = {
        let attributes = target.attributes();
        let reset = u32::from(attributes.reset_on_fork);
        let nice = attributes.nice as u32;
        [48, attributes.policy as u32, reset, 0, nice, attributes.priority as u32, 0, 0, 0, 0, 0, 0]
    };
    task.memory().write_object(attr, &shown).map(|()| 0)
}

pub(super) fn sched_getaffinity(task: &mut Task, pid: i32, size: usize, mask: GuestAddr) -> SysResult {
    let target = task_of(task, pid)?;
    let mut bytes = [0; 1024];
    let size = size.min(bytes.len());
    // The supervisor's own, not that of the moment.
    crate::subprocess::roam();
    let len = host::sched_getaffinity(0, size, &mut bytes)?.min(size);
    if let Some(affinity) = &target.attributes().affinity {
        for (to, from) in bytes.iter_mut().zip(affinity) {
            *to = *from;
        }
    }
    task.memory().write(mask, bytes.get(..len).unwrap_or_default())?;
    Ok(len as i64)
}

/// Recorded only: where a guest's threads run is the platform's choice.
pub(super) fn sched_setaffinity(task: &mut Task, pid: i32, size: usize, mask: GuestAddr) -> SysResult {
    let target = task_of(task, pid)?;
    let mut allowed = [0; 1024];
    crate::subprocess::roam();
    let len = host::sched_getaffinity(0, allowed.len(), &mut allowed)?;
    let mut wanted = vec![0; len];
    if let Some(given) = wanted.get_mut(..size.min(len)) {
        task.memory().read(mask, given)?;
    }
    if !task.credentials().may_schedule(&target.credentials()) {
        return Err(Errno::EPERM);
    }
    for (wanted, allowed) in wanted.iter_mut().zip(allowed) {
        *wanted &= allowed;
    }
    if wanted.iter().all(|byte| *byte == 0) {
        return Err(Errno::EINVAL);
    }
    target.attributes().affinity = Some(wanted);
    Ok(0)
}

pub(super) fn ioprio_get(task: &mut Task, which: i32, who: i32) -> SysResult {
    let tasks = tasks_of(task, which.wrapping_sub(1), who)?;
    let shown = |task: &Arc<TaskHandle>| {
        let attributes = task.attributes();
        match attributes.io_priority {
            // By its nice value, in the class of those who share what there is.
            0 => (2 << 13) | ((attributes.nice + 20) / 5),
            set => set,
        }
    };
    tasks.iter().map(shown).min().map(i64::from).ok_or(Errno::ESRCH)
}

pub(super) fn ioprio_set(task: &mut Task, which: i32, who: i32, priority: i32) -> SysResult {
    let (class, level) = (priority >> 13, priority & 7);
    let own = task.credentials();
    match class {
        0 if level != 0 => return Err(Errno::EINVAL),
        1 if !own.has(cap::SYS_ADMIN) && !own.has(cap::SYS_NICE) => return Err(Errno::EPERM),
        0..=3 => {}
        _ => return Err(Errno::EINVAL),
    }
    for target in tasks_of(task, which.wrapping_sub(1), who)? {
        if !own.may_schedule(&target.credentials()) {
            return Err(Errno::EPERM);
        }
        target.attributes().io_priority = priority;
    }
    Ok(0)
}

/// personality(2): recorded; there is one execution domain.
pub(super) fn personality(task: &mut Task, persona: u32) -> SysResult {
    let mut attributes = task.handle.attributes();
    let old = attributes.personality;
    if persona != u32::MAX {
        attributes.personality = persona;
    }
    Ok(old.into())
}
