//! The life of a process: exec, exit, waiting; and what a thread registers about itself.

use super::SysResult;
use super::args::{ArchPrctl, Arguments, Environment, Hex, Path};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::kernel::Node;
use crate::sentry::task::{ExitStatus, Task};

/// `struct robust_list_head`.
const ROBUST_LIST_HEAD: usize = 24;

/// Ends the thread.
pub(super) fn exit(task: &mut Task, status: i32) -> SysResult {
    task.exit = Some(ExitStatus::Exited(status & 0xff));
    Ok(0)
}

/// Ends the process.
pub(super) fn exit_group(task: &mut Task, status: i32) -> SysResult {
    task.process.end(ExitStatus::Exited(status & 0xff));
    task.exit = task.process.ending();
    Ok(0)
}

pub(super) fn execve(task: &mut Task, path: Path, argv: Arguments, envp: Environment) -> SysResult {
    task.execute(libc::AT_FDCWD, &path, (argv, envp), 0)
}

pub(super) fn execveat(
    task: &mut Task,
    dir: super::args::DirFd,
    path: Path,
    argv: Arguments,
    envp: Environment,
    flags: super::args::AtFlags,
) -> SysResult {
    task.execute(dir.0, &path, (argv, envp), flags.0)
}

pub(super) fn set_tid_address(task: &mut Task, addr: GuestAddr) -> SysResult {
    task.clear_child_tid = addr.raw();
    Ok(i64::from(task.tid()))
}

pub(super) fn set_robust_list(task: &mut Task, head: GuestAddr, len: usize) -> SysResult {
    if len != ROBUST_LIST_HEAD {
        return Err(Errno::EINVAL);
    }
    task.robust_list = head.raw();
    Ok(0)
}

pub(super) fn get_robust_list(task: &mut Task, tid: i32, head: GuestAddr, len: GuestAddr) -> SysResult {
    if tid != 0 && tid != task.tid() {
        // Another thread's list is its own.
        return Err(if task.kernel().tree().thread(tid).is_some() { Errno::EPERM } else { Errno::ESRCH });
    }
    task.memory().write_object(len, &(ROBUST_LIST_HEAD as u64))?;
    task.memory().write_object(head, &task.robust_list).map(|()| 0)
}

/// Not offered, as on a kernel without it: the C library then goes without.
pub(super) fn rseq(_: &mut Task, _area: GuestAddr, _len: u32, _flags: i32, _signature: Hex) -> SysResult {
    Err(Errno::ENOSYS)
}

pub(super) fn arch_prctl(task: &mut Task, code: ArchPrctl, addr: GuestAddr) -> SysResult {
    const ARCH_SET_GS: u32 = 0x1001;
    const ARCH_SET_FS: u32 = 0x1002;
    const ARCH_GET_FS: u32 = 0x1003;
    const ARCH_GET_GS: u32 = 0x1004;
    const TASK_SIZE_MAX: u64 = (1 << 47) - crate::PAGE_SIZE;
    if !(ARCH_SET_GS..=ARCH_GET_GS).contains(&code.0) {
        return Err(Errno::EINVAL); // CPUID faulting, shadow stacks, tagged addresses
    }
    task.context.pull_full_state().map_err(|_| Errno::EFAULT)?;
    match code.0 {
        ARCH_SET_FS | ARCH_SET_GS if addr.raw() >= TASK_SIZE_MAX => return Err(Errno::EPERM),
        ARCH_SET_FS => task.context.registers_mut().fs_base = addr.raw(),
        ARCH_SET_GS => task.context.registers_mut().gs_base = addr.raw(),
        ARCH_GET_FS => task.memory().write_object(addr, &task.context.registers().fs_base)?,
        _ => task.memory().write_object(addr, &task.context.registers().gs_base)?,
    }
    Ok(0)
}

impl Task {
    /// Looks at, or changes, what the tree has of the task's process.
    pub(super) fn with_node<T>(&self, look: impl FnOnce(&mut Node) -> T) -> Option<T> {
        self.kernel().tree().node_mut(self.process.pid).map(look)
    }
}
