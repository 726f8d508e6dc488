//! Calls on open descriptors other than reading and writing.

use super::SysResult;
use super::args::{FcntlCommand, Fd, FlockOperation, Hex, OpenFlags};
use super::record_lock;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;
use std::sync::Arc;

const F_DUPFD_QUERY: i32 = 1027;
const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;

fn done(_: usize) -> i64 {
    0
}

pub(super) fn dup(task: &mut Task, fd: Fd) -> SysResult {
    let mut files = task.files();
    let file = files.get(fd.0)?;
    files.insert(file, false).map(i64::from)
}

pub(super) fn dup2(task: &mut Task, old: Fd, new: Fd) -> SysResult {
    if old == new {
        return task.file(old.0).map(|_| i64::from(new.0));
    }
    dup3(task, old, new, OpenFlags(0))
}

pub(super) fn dup3(task: &mut Task, old: Fd, new: Fd, flags: OpenFlags) -> SysResult {
    if old == new || flags.0 & !libc::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let mut files = task.files();
    let file = files.get(old.0)?;
    files.replace(new.0, file, flags.0 & libc::O_CLOEXEC != 0)?;
    Ok(i64::from(new.0))
}

pub(super) fn fcntl(task: &mut Task, fd: Fd, command: FcntlCommand, arg: Hex) -> SysResult {
    let file = task.file(fd.0)?;
    let number = arg.0;
    match command.0 {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            let minimum = i32::try_from(number).map_err(|_| Errno::EINVAL)?;
            let cloexec = command.0 == libc::F_DUPFD_CLOEXEC;
            task.files().insert_from(minimum, file, cloexec).map(i64::from)
        }
        libc::F_GETFD => task.files().cloexec(fd.0).map(i64::from),
        libc::F_SETFD => {
            let cloexec = number & libc::FD_CLOEXEC as u64 != 0;
            task.files().set_cloexec(fd.0, cloexec).map(|()| 0)
        }
        libc::F_GETFL
        | libc::F_SETFL
        | libc::F_SETPIPE_SZ
        | libc::F_GETPIPE_SZ
        | libc::F_ADD_SEALS
        | libc::F_GET_SEALS
        | libc::F_GETLEASE => host::fcntl(file.as_fd(), command.0, number).map(|value| value as i64),
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW => {
            record_lock::of_process(task, &file, command.0, GuestAddr::new(number))
        }
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => {
            record_lock::of_description(task, &file, command.0, GuestAddr::new(number))
        }
        F_DUPFD_QUERY => {
            let other = i32::try_from(number).map_err(|_| Errno::EBADF)?;
            Ok(i64::from(Arc::ptr_eq(&file, &task.file(other)?)))
        }
        // Whom SIGIO is for is recorded, but nobody is sent it: to the host it would be the supervisor. Programs that ask
        // for it beside waiting by other means (nginx) go on.
        libc::F_SETOWN => set_owner(task, &file, number as i32).map(|()| 0),
        libc::F_GETOWN => Ok(i64::from(file.owner())),
        F_GETSIG => Ok(0),
        F_GETOWN_EX => {
            const F_OWNER_PID: i32 = 1;
            const F_OWNER_PGRP: i32 = 2;
            let owner = file.owner();
            let kind = if owner < 0 { F_OWNER_PGRP } else { F_OWNER_PID };
            let owner = [kind, owner.saturating_abs()];
            task.memory().write_object(GuestAddr::new(number), &owner).map(|()| 0)
        }
        libc::F_SETLEASE if number == libc::F_UNLCK as u64 => Err(Errno::EAGAIN),
        _ => Err(Errno::EINVAL),
    }
}

/// `F_SETOWN` (fs/fcntl.c `f_setown`): a process, minus a group, or nobody.
fn set_owner(task: &Task, file: &File, owner: i32) -> Result<(), Errno> {
    let wanted = owner.checked_abs().ok_or(Errno::EINVAL)?;
    let known = wanted == 0 || {
        let tree = task.kernel().tree();
        match owner {
            1.. => tree.process_of(wanted).is_some(),
            _ => tree.nodes().any(|node| node.group == wanted),
        }
    };
    if !known {
        return Err(Errno::ESRCH);
    }
    file.set_owner(owner);
    Ok(())
}

pub(super) fn flock(task: &mut Task, fd: Fd, FlockOperation(operation): FlockOperation) -> SysResult {
    let file = task.file(fd.0)?;
    if operation & libc::LOCK_NB != 0 || operation == libc::LOCK_UN {
        return host::flock(file.as_fd(), operation).map(done);
    }
    match host::flock(file.as_fd(), operation | libc::LOCK_NB) {
        Err(Errno::EAGAIN) => {
            task.wait(|_, attention| host::wait_flock(attention, file.as_fd(), operation)).map(done)
        }
        other => other.map(done),
    }
}

pub(super) fn ftruncate(task: &mut Task, fd: Fd, length: i64) -> SysResult {
    let file = task.file(fd.0)?;
    task.check_new_size(file.as_fd(), length)?;
    host::ftruncate(file.as_fd(), length).map(done)
}

pub(super) fn fallocate(task: &mut Task, fd: Fd, mode: i32, offset: i64, length: i64) -> SysResult {
    let file = task.file(fd.0)?;
    if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
        task.check_new_size(file.as_fd(), offset.saturating_add(length))?;
    }
    host::fallocate(file.as_fd(), mode, offset, length).map(done)
}

pub(super) fn fadvise64(task: &mut Task, fd: Fd, offset: i64, length: i64, advice: i32) -> SysResult {
    host::fadvise64(task.file(fd.0)?.as_fd(), offset, length, advice).map(done)
}

pub(super) fn readahead(task: &mut Task, fd: Fd, offset: i64, count: usize) -> SysResult {
    host::readahead(task.file(fd.0)?.as_fd(), offset, count).map(done)
}

pub(super) fn fsync(task: &mut Task, fd: Fd) -> SysResult {
    host::fsync(task.file(fd.0)?.as_fd()).map(done)
}

pub(super) fn fdatasync(task: &mut Task, fd: Fd) -> SysResult {
    host::fdatasync(task.file(fd.0)?.as_fd()).map(done)
}

pub(super) fn syncfs(task: &mut Task, fd: Fd) -> SysResult {
    host::syncfs(task.file(fd.0)?.as_fd()).map(done)
}

pub(super) fn sync_file_range(task: &mut Task, fd: Fd, offset: i64, length: i64, flags: u32) -> SysResult {
    host::sync_file_range(task.file(fd.0)?.as_fd(), offset, length, flags).map(done)
}

pub(super) fn sync(_: &mut Task) -> SysResult {
    host::sync().map(done)
}
