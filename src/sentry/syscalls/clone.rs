//! clone and its kin: what their arguments say.

use super::SysResult;
use super::args::Hex;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::task::{CLONE_NEWTIME, CloneRequest, NAMESPACES, Task};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The exit signal's part of `clone`'s flags.
const CSIGNAL: u64 = 0xff;

pub(super) fn clone(
    task: &mut Task,
    flags: Hex,
    stack: GuestAddr,
    parent_tid: GuestAddr,
    child_tid: GuestAddr,
    tls: Hex,
) -> SysResult {
    // The high half means nothing to this call.
    let flags = flags.0 & u64::from(u32::MAX);
    // One word cannot take both numbers.
    if flags & (libc::CLONE_PIDFD as u64) != 0 && flags & (libc::CLONE_PARENT_SETTID as u64) != 0 {
        return Err(Errno::EINVAL);
    }
    task.clone_task(&CloneRequest {
        flags: flags & !CSIGNAL,
        exit_signal: (flags & CSIGNAL) as i32,
        stack: stack.raw(),
        parent_tid,
        pid_fd: parent_tid,
        child_tid,
        tls: tls.0,
    })
}

pub(super) fn fork(task: &mut Task) -> SysResult {
    task.clone_task(&CloneRequest { exit_signal: libc::SIGCHLD, ..CloneRequest::default() })
}

pub(super) fn vfork(task: &mut Task) -> SysResult {
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    task.clone_task(&CloneRequest { flags, exit_signal: libc::SIGCHLD, ..CloneRequest::default() })
}

/// `struct clone_args`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

pub(super) fn clone3(task: &mut Task, args: GuestAddr, size: usize) -> SysResult {
    const FIRST_VERSION: usize = 64;
    const DETACHED: u64 = libc::CLONE_DETACHED as u64;
    // CLONE_NEWTIME lies where clone has its exit signal.
    const KNOWN: u64 = (((1 << 34) - 1) & !CSIGNAL) | CLONE_NEWTIME;
    if size < FIRST_VERSION {
        return Err(Errno::EINVAL);
    }
    let mut known = CloneArgs::default();
    task.read_versioned(args, size, known.as_mut_bytes())?;
    let wrong = known.flags & !KNOWN != 0
        || known.flags & DETACHED != 0
        || known.exit_signal & !CSIGNAL != 0
        || known.flags & (libc::CLONE_THREAD | libc::CLONE_PARENT) as u64 != 0 && known.exit_signal != 0
        || (known.stack == 0) != (known.stack_size == 0)
        || known.set_tid_size > 32
        || (known.set_tid == 0) != (known.set_tid_size == 0);
    if wrong {
        return Err(Errno::EINVAL);
    }
    if known.set_tid_size != 0 {
        return Err(Errno::EPERM);
    }
    task.clone_task(&CloneRequest {
        flags: known.flags,
        exit_signal: known.exit_signal as i32,
        stack: known.stack.wrapping_add(known.stack_size),
        parent_tid: GuestAddr::new(known.parent_tid),
        pid_fd: GuestAddr::new(known.pidfd),
        child_tid: GuestAddr::new(known.child_tid),
        tls: known.tls,
    })
}

/// Stops sharing with other tasks; namespaces are the supervisor's to make.
pub(super) fn unshare(task: &mut Task, flags: Hex) -> SysResult {
    let bits = |flag: i32| u64::from(flag as u32);
    let alone = task.process.threads().len() == 1;
    let here = bits(libc::CLONE_FILES) | bits(libc::CLONE_FS) | bits(libc::CLONE_SYSVSEM);
    let of_process = bits(libc::CLONE_THREAD) | bits(libc::CLONE_SIGHAND) | bits(libc::CLONE_VM);
    if flags.0 & !(here | of_process | NAMESPACES) != 0 || flags.0 & of_process != 0 && !alone {
        return Err(Errno::EINVAL);
    }
    if flags.0 & NAMESPACES != 0 {
        return Err(Errno::EPERM);
    }
    if flags.0 & bits(libc::CLONE_FILES) != 0 {
        task.unshare_files();
    }
    if flags.0 & bits(libc::CLONE_FS) != 0 {
        task.unshare_fs();
    }
    Ok(0)
}

impl Task {
    /// Reads a structure that grows over time (`copy_struct_from_user`): shorter ones are filled with zeroes, longer
    /// ones must have zeroes where this sentry knows nothing.
    pub(super) fn read_versioned(&self, addr: GuestAddr, size: usize, known: &mut [u8]) -> Result<(), Errno> {
        if size > crate::PAGE_SIZE as usize {
            return Err(Errno::E2BIG);
        }
        let common = size.min(known.len());
        if let Some(head) = known.get_mut(..common) {
            self.memory().read(addr, head)?;
        }
        if size > common {
            let mut rest = vec![0_u8; size - common];
            let from = addr.checked_add(common as u64).ok_or(Errno::EFAULT)?;
            self.memory().read(from, &mut rest)?;
            if rest.iter().any(|byte| *byte != 0) {
                return Err(Errno::E2BIG);
            }
        }
        Ok(())
    }
}
