//! Waiting for children.

use super::SysResult;
use super::args::WaitOptions;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::kernel::tree::Usage;
use crate::sentry::kernel::{WaitFor, WaitOutcome, WaitRequest};
use crate::sentry::signals::SigInfo;
use crate::sentry::task::{Parked, Task};
use std::sync::Arc;

const WALL: i32 = 0x4000_0000;
const WCLONE: i32 = 1 << 31;
const WNOTHREAD: i32 = 0x2000_0000;

/// Waits until a child has something to tell; `None` if nothing does and the caller does not want to wait.
fn wait_for(task: &mut Task, request: &WaitRequest, no_hang: bool) -> Result<Option<WaitOutcome>, Errno> {
    let kernel = Arc::clone(task.kernel());
    loop {
        let seen = task.handle.bell();
        let found = kernel.tree().wait_once(task.process.pid, request)?;
        if found.is_some() || no_hang {
            return Ok(found);
        }
        if task.park(seen, None) == Parked::Interrupted {
            return Err(Errno::ERESTARTSYS);
        }
    }
}

pub(super) fn wait4(
    task: &mut Task,
    pid: i32,
    status: GuestAddr,
    options: WaitOptions,
    usage: GuestAddr,
) -> SysResult {
    let known = libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED | WALL | WCLONE | WNOTHREAD;
    if options.0 & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let who = match pid {
        i32::MIN => return Err(Errno::ESRCH),
        -1 => WaitFor::Any,
        0 => WaitFor::Group(task.with_node(|node| node.group).unwrap_or(0)),
        pid if pid < 0 => WaitFor::Group(-pid),
        pid => WaitFor::Process(pid),
    };
    let request = WaitRequest {
        who,
        exited: true,
        stopped: options.0 & libc::WUNTRACED != 0,
        continued: options.0 & libc::WCONTINUED != 0,
        keep: false,
        clones_only: options.0 & WCLONE != 0,
        all_kinds: options.0 & WALL != 0,
    };
    let Some(found) = wait_for(task, &request, options.0 & libc::WNOHANG != 0)? else { return Ok(0) };
    task.memory().write_optional(status, &found.wait_status())?;
    task.memory().write_optional(usage, &found.usage.to_rusage())?;
    Ok(i64::from(found.pid))
}

pub(super) fn waitid(
    task: &mut Task,
    kind: i32,
    id: i32,
    info: GuestAddr,
    options: WaitOptions,
    usage: GuestAddr,
) -> SysResult {
    let states = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED;
    let known = states | libc::WNOHANG | libc::WNOWAIT | WALL | WCLONE | WNOTHREAD;
    if options.0 & !known != 0 || options.0 & states == 0 {
        return Err(Errno::EINVAL);
    }
    let who = match kind as u32 {
        libc::P_ALL => WaitFor::Any,
        libc::P_PID if id > 0 => WaitFor::Process(id),
        libc::P_PGID if id == 0 => WaitFor::Group(task.with_node(|node| node.group).unwrap_or(0)),
        libc::P_PGID if id > 0 => WaitFor::Group(id),
        libc::P_PIDFD if id >= 0 => match task.process_of_pid_file(id) {
            Ok(process) => WaitFor::Process(process.pid),
            // It was waited for: it is nobody's child any more.
            Err(Errno::ESRCH) => return Err(Errno::ECHILD),
            Err(errno) => return Err(errno),
        },
        _ => return Err(Errno::EINVAL),
    };
    let request = WaitRequest {
        who,
        exited: options.0 & libc::WEXITED != 0,
        stopped: options.0 & libc::WSTOPPED != 0,
        continued: options.0 & libc::WCONTINUED != 0,
        keep: options.0 & libc::WNOWAIT != 0,
        clones_only: options.0 & WCLONE != 0,
        all_kinds: options.0 & WALL != 0,
    };
    let no_hang = options.0 & libc::WNOHANG != 0;
    let by_nonblocking = kind as u32 == libc::P_PIDFD && task.file(id)?.is_nonblocking();
    let found = wait_for(task, &request, no_hang || by_nonblocking)?;
    if found.is_none() && by_nonblocking && !no_hang {
        return Err(Errno::EAGAIN);
    }
    if let Some(found) = found {
        task.memory().write_optional(usage, &found.usage.to_rusage())?;
    }
    // The kernel stores the seven fields of a child's signal one by one and leaves the rest as it is.
    let shown = found.map_or(SigInfo([0; 128]), |found| {
        SigInfo::from_child(libc::SIGCHLD, found.code, (found.pid, found.uid), found.status, Usage::default())
    });
    if info != GuestAddr::NULL {
        let fields: &[u8] = shown.0.get(..28).unwrap_or_default();
        task.memory().write(info, fields)?;
    }
    Ok(0)
}
