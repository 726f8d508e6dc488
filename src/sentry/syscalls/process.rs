//! The life of a process: exec, exit, waiting; and what a thread registers about itself.

use super::SysResult;
use super::args::{ArchPrctl, Hex, Path, WaitOptions};
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::{ExitStatus, Task};

pub(super) fn exit(task: &mut Task, status: i32) -> SysResult {
    task.exit = Some(ExitStatus::Exited(status & 0xff));
    Ok(0)
}

pub(super) fn execve(task: &mut Task, path: Path, argv: GuestAddr, envp: GuestAddr) -> SysResult {
    task.execute(libc::AT_FDCWD, &path, argv, envp, 0)
}

pub(super) fn execveat(
    task: &mut Task,
    dir: super::args::DirFd,
    path: Path,
    argv: GuestAddr,
    envp: GuestAddr,
    flags: super::args::AtFlags,
) -> SysResult {
    task.execute(dir.0, &path, argv, envp, flags.0)
}

/// There are no child processes yet.
pub(super) fn wait4(
    _: &mut Task,
    _pid: i32,
    _status: GuestAddr,
    _: WaitOptions,
    _usage: GuestAddr,
) -> SysResult {
    Err(Errno::ECHILD)
}

pub(super) fn waitid(
    _: &mut Task,
    _kind: i32,
    _id: i32,
    _info: GuestAddr,
    _: WaitOptions,
    _usage: GuestAddr,
) -> SysResult {
    Err(Errno::ECHILD)
}

pub(super) fn set_tid_address(task: &mut Task, _addr: GuestAddr) -> SysResult {
    // The address matters when a thread ends and others wait for it.
    Ok(i64::from(task.tid))
}

pub(super) fn set_robust_list(_: &mut Task, _head: GuestAddr, len: usize) -> SysResult {
    const HEAD_LEN: usize = 24;
    if len == HEAD_LEN { Ok(0) } else { Err(Errno::EINVAL) }
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

pub(super) fn prctl(task: &mut Task, option: i32, arg: Hex, _: Hex, _: Hex, _: Hex) -> SysResult {
    const NAME_LEN: usize = 16;
    let addr = GuestAddr::new(arg.0);
    match option {
        libc::PR_SET_NAME => {
            let name = match task.memory().read_string(addr, NAME_LEN, Errno::ENAMETOOLONG) {
                Ok(name) => name.into_bytes(),
                // A longer name is cut.
                Err(Errno::ENAMETOOLONG) => {
                    let mut bytes = [0; NAME_LEN - 1];
                    task.memory().read(addr, &mut bytes)?;
                    bytes.to_vec()
                }
                Err(errno) => return Err(errno),
            };
            task.set_name(&name);
            Ok(0)
        }
        libc::PR_GET_NAME => task.memory().write_object(addr, &task.name).map(|()| 0),
        libc::PR_GET_DUMPABLE | libc::PR_GET_NO_NEW_PRIVS => Ok(1),
        libc::PR_SET_DUMPABLE if arg.0 <= 1 => Ok(0),
        libc::PR_SET_NO_NEW_PRIVS if arg.0 == 1 => Ok(0),
        // With one process these have nothing to act on.
        libc::PR_SET_PDEATHSIG | libc::PR_SET_TIMERSLACK | libc::PR_SET_CHILD_SUBREAPER => Ok(0),
        libc::PR_GET_PDEATHSIG | libc::PR_GET_CHILD_SUBREAPER => {
            task.memory().write_object(addr, &0_i32).map(|()| 0)
        }
        libc::PR_GET_TIMERSLACK => Ok(50_000),
        libc::PR_GET_SECUREBITS | libc::PR_GET_KEEPCAPS | libc::PR_GET_SECCOMP => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// futex(2) of a process with one thread: nobody else waits, and nobody else wakes.
pub(super) fn futex(
    task: &mut Task,
    addr: GuestAddr,
    operation: i32,
    value: u32,
    timeout: GuestAddr,
    _addr2: GuestAddr,
    _value3: u32,
) -> SysResult {
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    if !addr.raw().is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let limit = task.memory().read_optional::<Timespec>(timeout)?;
            if task.memory().read_object::<u32>(addr)? != value {
                return Err(Errno::EAGAIN);
            }
            let Some(limit) = limit else {
                return task.wait(|_, attention| host::wait_ppoll(attention, &mut [], None, 0)).map(|_| 0);
            };
            limit.to_duration().ok_or(Errno::EINVAL)?;
            let realtime = operation & libc::FUTEX_CLOCK_REALTIME != 0;
            let clock = if realtime { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
            let flags = if command == libc::FUTEX_WAIT_BITSET { libc::TIMER_ABSTIME } else { 0 };
            let request = limit.to_array();
            task.wait(|_, attention| host::wait_nanosleep(attention, clock, flags, &request, None))?;
            Err(Errno::ETIMEDOUT)
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET | libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => {
            task.memory().read_object::<u32>(addr).map(|_| 0)
        }
        _ => Err(Errno::ENOSYS),
    }
}
