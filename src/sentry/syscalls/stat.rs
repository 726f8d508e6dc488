//! Asking about files: stat and its kin, directories.

use super::SysResult;
use super::args::{AtFlags, DirFd, Fd, Hex, OutStat, Path};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::StatView;
use crate::sentry::filesystem::Territory;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::procfs::{RecordFormat, fill_more};
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

pub(super) fn stat(task: &mut Task, path: Path, buf: OutStat) -> SysResult {
    newfstatat(task, DirFd(libc::AT_FDCWD), path, buf, AtFlags(0))
}

pub(super) fn lstat(task: &mut Task, path: Path, buf: OutStat) -> SysResult {
    newfstatat(task, DirFd(libc::AT_FDCWD), path, buf, AtFlags(libc::AT_SYMLINK_NOFOLLOW))
}

/// `fstat`: of a node of the guest's `/proc`, what `stat` says.
fn stat_open(task: &Task, fd: i32, bytes: &mut [u8; 144]) -> Result<(), Errno> {
    let file = task.file(fd)?;
    match file.proc() {
        Some(proc) => task.stat_node(proc.node(), bytes),
        None => host::fstat(file.as_fd(), bytes).map(drop),
    }
}

pub(super) fn fstat(task: &mut Task, fd: Fd, buf: OutStat) -> SysResult {
    let mut bytes = [0; 144];
    stat_open(task, fd.0, &mut bytes)?;
    task.give(buf.0, &bytes).map(|()| 0)
}

pub(super) fn newfstatat(task: &mut Task, dir: DirFd, path: Path, buf: OutStat, flags: AtFlags) -> SysResult {
    let mut bytes = [0; 144];
    if path.0.is_empty() && flags.0 & libc::AT_EMPTY_PATH != 0 && dir.0 >= 0 {
        // How the C library spells fstat.
        stat_open(task, dir.0, &mut bytes)?;
    } else {
        let mut at = task.locate(dir.0, &path, flags.0 & libc::AT_SYMLINK_NOFOLLOW == 0)?;
        host::newfstatat(at.dir(), at.path(), &mut bytes, flags.0)?;
        if at.may_have_strayed(StatView(&bytes).device()) && flags.0 & libc::AT_SYMLINK_NOFOLLOW == 0 {
            at = task.relocate(&at)?;
            host::newfstatat(at.dir(), at.path(), &mut bytes, flags.0)?;
        }
        if let Some(node) = at.node {
            task.adjust_stat(node, &mut bytes);
        }
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
    if let Some(node) = at.node {
        task.adjust_statx(node, &mut bytes);
    }
    task.give(buf, &bytes).map(|()| 0)
}

pub(super) fn fstatfs(task: &mut Task, fd: Fd, buf: Hex) -> SysResult {
    let mut bytes = [0; 120];
    let file = task.file(fd.0)?;
    host::fstatfs(file.as_fd(), &mut bytes)?;
    if let Some(mounts) = task.mounts() {
        task.show_read_only(file.territory(mounts), &mut bytes);
    }
    task.memory().write_object(GuestAddr::new(buf.0), &bytes).map(|()| 0)
}

/// The most directory entries fetched at a time; the C library asks for 32 KiB.
const ENTRIES_MAX: usize = 64 << 10;

pub(super) fn getdents64(task: &mut Task, fd: Fd, buf: GuestAddr, size: u32) -> SysResult {
    entries(task, fd, buf, size, RecordFormat::New)
}

pub(super) fn getdents(task: &mut Task, fd: Fd, buf: GuestAddr, size: u32) -> SysResult {
    entries(task, fd, buf, size, RecordFormat::Old)
}

fn entries(task: &mut Task, fd: Fd, buf: GuestAddr, size: u32, format: RecordFormat) -> SysResult {
    let file = task.file(fd.0)?;
    let mut bytes = vec![0; (size as usize).min(ENTRIES_MAX)];
    let len = match (file.proc().filter(|proc| proc.is_directory()), format) {
        (Some(proc), _) => task.read_entries(proc, format, &mut bytes)?,
        (None, RecordFormat::New) => host::getdents64(file.as_fd(), &mut bytes[..])?,
        (None, RecordFormat::Old) => host::getdents(file.as_fd(), &mut bytes[..])?,
    };
    let len = match (len, task.mounts()) {
        (0, Some(mounts)) if file.proc().is_none() && !file.set_listed(true) => {
            let Territory::Mount(mount) = file.territory(mounts) else { return Ok(0) };
            fill_more(mounts.names_in(mount, file.as_fd()), format, &mut bytes)?
        }
        _ => len,
    };
    task.memory().write(buf, &bytes[..len])?;
    Ok(len as i64)
}
