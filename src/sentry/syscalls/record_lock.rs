//! `fcntl` with `F_SETLK`, `F_SETLKW`, `F_GETLK` and the same for open file descriptions.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::abi::Flock;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::record_locks::{FileIdentity, LockKind, Range};
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;
use std::sync::Arc;

/// The bytes that a `struct flock` names (`flock64_to_posix_lock`).
fn range(file: &File, lock: &Flock) -> Result<Range, Errno> {
    let base = match i32::from(lock.whence) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => host::lseek(file.as_fd(), 0, libc::SEEK_CUR).unwrap_or(0) as i64,
        libc::SEEK_END => {
            let mut stat = [0; 144];
            host::fstat(file.as_fd(), &mut stat)?;
            StatView(&stat).size() as i64
        }
        _ => return Err(Errno::EINVAL),
    };
    let start = base.checked_add(lock.start).ok_or(Errno::EOVERFLOW)?;
    if start < 0 {
        return Err(Errno::EINVAL);
    }
    let (start, end) = match lock.len {
        0 => (start, i64::MAX),
        len if len > 0 => (start, start.checked_add(len - 1).ok_or(Errno::EOVERFLOW)?),
        len => (start.checked_add(len).filter(|start| *start >= 0).ok_or(Errno::EINVAL)?, start - 1),
    };
    Ok(Range { start: start as u64, end: end as u64 })
}

/// Whether the descriptor's access mode allows a lock of that kind.
fn check_access(file: &File, kind: LockKind) -> Result<(), Errno> {
    let flags = host::fcntl(file.as_fd(), libc::F_GETFL, 0)? as i32;
    let access = flags & libc::O_ACCMODE;
    let refused = flags & libc::O_PATH != 0
        || kind == LockKind::Read && access == libc::O_WRONLY
        || kind == LockKind::Write && access == libc::O_RDONLY;
    if refused { Err(Errno::EBADF) } else { Ok(()) }
}

/// Locks of the process.
pub(super) fn of_process(task: &mut Task, file: &Arc<File>, command: i32, addr: GuestAddr) -> SysResult {
    let lock: Flock = task.memory().read_object(addr)?;
    let kind = LockKind::from_raw(lock.kind).ok_or(Errno::EINVAL)?;
    let range = range(file, &lock)?;
    let identity = FileIdentity::of(file)?;
    if command == libc::F_GETLK {
        return show_obstacle(task, file, identity, (kind, range), lock, addr);
    }
    check_access(file, kind)?;
    let pid = task.process.pid;
    let owner = {
        let mut files = task.files();
        let locks = files.locks();
        if kind == LockKind::None && !locks.has(identity) {
            return Ok(0);
        }
        // Whoever the task has become, what it holds open it may lock.
        let description = match locks.description(file, identity, kind) {
            Err(Errno::ENOLCK) => task.as_supervisor(|| locks.description(file, identity, kind)),
            other => other,
        }?;
        match locks.set(&description, identity, kind, range, pid) {
            Err(Errno::EAGAIN | Errno::EACCES) if command == libc::F_SETLKW => {}
            other => return other.map(|()| 0),
        }
        (locks.owner, description)
    };
    let (owner, description) = owner;
    let kernel = Arc::clone(task.kernel());
    let waiting = kernel.record_locks.wait(owner, identity, range, kind).ok_or(Errno::EDEADLK)?;
    let granted = task.wait(|_, attention| description.wait(attention, kind, range));
    drop(waiting);
    granted?;
    task.files().locks().granted(&description, identity, kind, range, pid).map(|()| 0)
}

fn show_obstacle(
    task: &Task,
    file: &Arc<File>,
    identity: FileIdentity,
    (kind, range): (LockKind, Range),
    mut lock: Flock,
    addr: GuestAddr,
) -> SysResult {
    if kind == LockKind::None {
        return Err(Errno::EINVAL);
    }
    let (owner, description) = {
        let mut files = task.files();
        let locks = files.locks();
        // To ask takes no access mode; a description that bears any lock will do.
        let description = match locks.description(file, identity, LockKind::None) {
            Err(Errno::ENOLCK) => task.as_supervisor(|| locks.description(file, identity, LockKind::None)),
            other => other,
        }?;
        (locks.owner, description)
    };
    if let Some(found) = task.kernel().record_locks.obstacle(owner, identity, range, kind) {
        lock.kind = found.kind.raw();
        lock.whence = libc::SEEK_SET as i16;
        lock.start = found.range.start as i64;
        lock.len = found.range.len();
        lock.pid = found.pid;
    } else {
        let found = description.obstacle(kind, range)?;
        if i32::from(found.kind) == libc::F_UNLCK {
            lock.kind = found.kind;
        } else {
            lock = Flock { padding: lock.padding, padding2: lock.padding2, ..found };
        }
    }
    task.memory().write_object(addr, &lock).map(|()| 0)
}

/// Locks of the open file description, which is the host's.
pub(super) fn of_description(task: &mut Task, file: &File, command: i32, addr: GuestAddr) -> SysResult {
    let lock: Flock = task.memory().read_object(addr)?;
    let mut bytes: [u8; 32] = zerocopy::transmute!(lock);
    if command == libc::F_OFD_SETLKW {
        task.wait(|_, attention| host::wait_fcntl_lock(attention, file.as_fd(), command, &mut bytes))?;
    } else {
        host::fcntl_lock(file.as_fd(), command, &mut bytes)?;
    }
    if command == libc::F_OFD_GETLK {
        task.memory().write_object(addr, &bytes)?;
    }
    Ok(0)
}
