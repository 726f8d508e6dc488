//! Asking about files: stat and its kin, directories.

use super::SysResult;
use super::args::{AtFlags, DirFd, Fd, Hex, OutStat, Path};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

pub(super) fn stat(task: &mut Task, path: Path, buf: OutStat) -> SysResult {
    newfstatat(task, DirFd(libc::AT_FDCWD), path, buf, AtFlags(0))
}

pub(super) fn lstat(task: &mut Task, path: Path, buf: OutStat) -> SysResult {
    newfstatat(task, DirFd(libc::AT_FDCWD), path, buf, AtFlags(libc::AT_SYMLINK_NOFOLLOW))
}

pub(super) fn fstat(task: &mut Task, fd: Fd, buf: OutStat) -> SysResult {
    let mut bytes = [0; 144];
    host::fstat(task.file(fd.0)?.as_fd(), &mut bytes)?;
    task.give(buf.0, &bytes).map(|()| 0)
}

pub(super) fn newfstatat(task: &mut Task, dir: DirFd, path: Path, buf: OutStat, flags: AtFlags) -> SysResult {
    let mut bytes = [0; 144];
    if path.0.is_empty() && flags.0 & libc::AT_EMPTY_PATH != 0 && dir.0 >= 0 {
        // How the C library spells fstat.
        host::fstat(task.file(dir.0)?.as_fd(), &mut bytes)?;
    } else {
        let at = task.locate(dir.0, &path, flags.0 & libc::AT_SYMLINK_NOFOLLOW == 0)?;
        host::newfstatat(at.dir(), at.path(), &mut bytes, flags.0)?;
    }
    task.give(buf.0, &bytes).map(|()| 0)
}

pub(super) fn statx(
    task: &mut Task,
    dir: DirFd,
    path: Path,
    flags: AtFlags,
    mask: Hex,
    buf: GuestAddr,
) -> SysResult {
    let at = task.locate(dir.0, &path, flags.0 & libc::AT_SYMLINK_NOFOLLOW == 0)?;
    let mut bytes = [0; 256];
    host::statx(at.dir(), at.path(), flags.0, mask.0 as u32, &mut bytes)?;
    task.give(buf, &bytes).map(|()| 0)
}

pub(super) fn fstatfs(task: &mut Task, fd: Fd, buf: Hex) -> SysResult {
    let mut bytes = [0; 120];
    host::fstatfs(task.file(fd.0)?.as_fd(), &mut bytes)?;
    task.memory().write_object(GuestAddr::new(buf.0), &bytes).map(|()| 0)
}

/// The most directory entries fetched at a time; the C library asks for 32 KiB.
const ENTRIES_MAX: usize = 64 << 10;

pub(super) fn getdents64(task: &mut Task, fd: Fd, buf: GuestAddr, size: u32) -> SysResult {
    let file = task.file(fd.0)?;
    let mut bytes = vec![0; (size as usize).min(ENTRIES_MAX)];
    let len = match file.directory() {
        Some(directory) => {
            let descriptors: Vec<i32> = task.files().numbers().collect();
            directory.read_entries(&descriptors, &mut bytes)?
        }
        None => host::getdents64(file.as_fd(), &mut bytes[..])?,
    };
    task.memory().write(buf, &bytes[..len])?;
    Ok(len as i64)
}

pub(super) fn getdents(task: &mut Task, fd: Fd, buf: GuestAddr, size: u32) -> SysResult {
    let file = task.file(fd.0)?;
    if file.directory().is_some() {
        return Err(Errno::EINVAL); // the old format is not made up; nothing reads /proc/self/fd with it
    }
    let mut bytes = vec![0; (size as usize).min(ENTRIES_MAX)];
    let len = host::getdents(file.as_fd(), &mut bytes[..])?;
    task.memory().write(buf, &bytes[..len])?;
    Ok(len as i64)
}
