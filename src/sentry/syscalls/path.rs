//! Calls that change what is under a path.

use super::SysResult;
use super::args::{
    AccessMode, AtFlags, DirFd, Fd, Hex, Mode, OptionalPath, OutBytes, Path, RenameFlags, Text,
};
use crate::GuestAddr;
use crate::sentry::abi::{Timespec, Timeval};
use crate::sentry::errno::Errno;
use crate::sentry::file::StatView;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

const CWD: DirFd = DirFd(libc::AT_FDCWD);

fn done(_: usize) -> i64 {
    0
}

pub(super) fn access(task: &mut Task, path: Path, mode: AccessMode) -> SysResult {
    faccessat(task, CWD, path, mode)
}

pub(super) fn faccessat(task: &mut Task, dir: DirFd, path: Path, mode: AccessMode) -> SysResult {
    check_access(task, dir, &path, mode, 0)
}

/// By the real ids unless `AT_EACCESS` says otherwise.
fn check_access(task: &Task, dir: DirFd, path: &Path, mode: AccessMode, flags: i32) -> SysResult {
    let at = task.locate(dir.0, path, flags & libc::AT_SYMLINK_NOFOLLOW == 0)?;
    if flags & libc::AT_EACCESS != 0 {
        host::faccessat2(at.dir(), at.path(), mode.0, flags)?;
        return at.check_writable(task, mode.0).map(|()| 0);
    }
    let checked = task.by_real_ids(|by_fs_ids| match (by_fs_ids, flags) {
        (false, 0) => host::faccessat(at.dir(), at.path(), mode.0),
        (false, _) => host::faccessat2(at.dir(), at.path(), mode.0, flags),
        (true, _) => host::faccessat2(at.dir(), at.path(), mode.0, flags | libc::AT_EACCESS),
    });
    checked?;
    at.check_writable(task, mode.0).map(|()| 0)
}

pub(super) fn faccessat2(
    task: &mut Task,
    dir: DirFd,
    path: Path,
    mode: AccessMode,
    flags: AtFlags,
) -> SysResult {
    check_access(task, dir, &path, mode, flags.0)
}

pub(super) fn mkdir(task: &mut Task, path: Path, mode: Mode) -> SysResult {
    mkdirat(task, CWD, path, mode)
}

pub(super) fn mkdirat(task: &mut Task, dir: DirFd, path: Path, mode: Mode) -> SysResult {
    let at = task.locate_name(dir.0, &path)?;
    at.check_new(task)?;
    let umask = task.fs().umask;
    host::mkdirat(at.dir(), at.path(), mode.0 & !umask).map(done)
}

pub(super) fn mknod(task: &mut Task, path: Path, mode: Mode, device: u32) -> SysResult {
    mknodat(task, CWD, path, mode, device)
}

pub(super) fn mknodat(task: &mut Task, dir: DirFd, path: Path, mode: Mode, device: u32) -> SysResult {
    let at = task.locate_name(dir.0, &path)?;
    at.check_new(task)?;
    if task.mounts().is_some() && is_device(mode.0) {
        // A device of the host's choosing is a way out of any directory, if the supervisor may make it.
        return Err(Errno::EPERM);
    }
    let umask = task.fs().umask;
    host::mknodat(at.dir(), at.path(), mode.0 & !umask, device).map(done)
}

fn is_device(mode: u32) -> bool {
    matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
}

pub(super) fn rmdir(task: &mut Task, path: Path) -> SysResult {
    unlinkat(task, CWD, path, AtFlags(libc::AT_REMOVEDIR))
}

pub(super) fn unlink(task: &mut Task, path: Path) -> SysResult {
    unlinkat(task, CWD, path, AtFlags(0))
}

pub(super) fn unlinkat(task: &mut Task, dir: DirFd, path: Path, flags: AtFlags) -> SysResult {
    let at = task.locate_name(dir.0, &path)?;
    at.check_remove(task)?;
    host::unlinkat(at.dir(), at.path(), flags.0).map(done)
}

pub(super) fn rename(task: &mut Task, from: Path, to: Path) -> SysResult {
    renameat2(task, CWD, from, CWD, to, RenameFlags(0))
}

pub(super) fn renameat(task: &mut Task, old: DirFd, from: Path, new: DirFd, to: Path) -> SysResult {
    renameat2(task, old, from, new, to, RenameFlags(0))
}

pub(super) fn renameat2(
    task: &mut Task,
    old: DirFd,
    from: Path,
    new: DirFd,
    to: Path,
    RenameFlags(flags): RenameFlags,
) -> SysResult {
    let (from, to) = (task.locate_name(old.0, &from)?, task.locate_name(new.0, &to)?);
    from.check_same_mount(&to)?;
    from.check_remove(task)?;
    to.check_remove(task)?;
    host::renameat2(from.dir(), from.path(), to.dir(), to.path(), flags).map(done)
}

pub(super) fn link(task: &mut Task, from: Path, to: Path) -> SysResult {
    linkat(task, CWD, from, CWD, to, AtFlags(0))
}

pub(super) fn linkat(
    task: &mut Task,
    old: DirFd,
    from: Path,
    new: DirFd,
    to: Path,
    flags: AtFlags,
) -> SysResult {
    let follow = flags.0 & libc::AT_SYMLINK_FOLLOW != 0;
    let (from, to) = (task.locate(old.0, &from, follow)?, task.locate_name(new.0, &to)?);
    to.check_new(task)?;
    from.check_same_mount(&to)?;
    host::linkat(from.dir(), from.path(), to.dir(), to.path(), flags.0).map(done)
}

pub(super) fn symlink(task: &mut Task, target: Text, path: Path) -> SysResult {
    symlinkat(task, target, CWD, path)
}

pub(super) fn symlinkat(task: &mut Task, target: Text, dir: DirFd, path: Path) -> SysResult {
    let at = task.locate_name(dir.0, &path)?;
    at.check_new(task)?;
    host::symlinkat(target.as_c_str(), at.dir(), at.path()).map(done)
}

pub(super) fn readlink(task: &mut Task, path: Path, buf: OutBytes, size: i32) -> SysResult {
    readlinkat(task, CWD, path, buf, size)
}

pub(super) fn readlinkat(task: &mut Task, dir: DirFd, path: Path, buf: OutBytes, size: i32) -> SysResult {
    let size = usize::try_from(size).ok().filter(|size| *size > 0).ok_or(Errno::EINVAL)?;
    let mut bytes = [0; crate::sentry::abi::PATH_MAX];
    let at = task.locate(dir.0, &path, false)?;
    let target = match at.node {
        Some(node) => {
            let target = task.link_text(node)?;
            let len = target.len().min(size).min(bytes.len());
            bytes[..len].copy_from_slice(&target[..len]);
            len
        }
        None => {
            let limit = size.min(bytes.len());
            host::readlinkat(at.dir(), at.path(), &mut bytes[..limit])?
        }
    };
    task.give(buf.0, &bytes[..target])?;
    Ok(target as i64)
}

pub(super) fn chmod(task: &mut Task, path: Path, mode: Mode) -> SysResult {
    fchmodat(task, CWD, path, mode)
}

pub(super) fn fchmod(task: &mut Task, fd: Fd, mode: Mode) -> SysResult {
    host::fchmod(task.file_to_change(fd.0)?.as_fd(), mode.0).map(done)
}

pub(super) fn fchmodat(task: &mut Task, dir: DirFd, path: Path, mode: Mode) -> SysResult {
    let at = task.locate(dir.0, &path, true)?;
    at.check_change(task)?;
    host::fchmodat(at.dir(), at.path(), mode.0).map(done)
}

pub(super) fn fchmodat2(task: &mut Task, dir: DirFd, path: Path, mode: Mode, flags: AtFlags) -> SysResult {
    let at = task.locate(dir.0, &path, flags.0 & libc::AT_SYMLINK_NOFOLLOW == 0)?;
    at.check_change(task)?;
    host::fchmodat2(at.dir(), at.path(), mode.0, flags.0).map(done)
}

pub(super) fn chown(task: &mut Task, path: Path, uid: u32, gid: u32) -> SysResult {
    fchownat(task, CWD, path, uid, gid, AtFlags(0))
}

pub(super) fn lchown(task: &mut Task, path: Path, uid: u32, gid: u32) -> SysResult {
    fchownat(task, CWD, path, uid, gid, AtFlags(libc::AT_SYMLINK_NOFOLLOW))
}

pub(super) fn fchown(task: &mut Task, fd: Fd, uid: u32, gid: u32) -> SysResult {
    host::fchown(task.file_to_change(fd.0)?.as_fd(), uid, gid).map(done)
}

pub(super) fn fchownat(
    task: &mut Task,
    dir: DirFd,
    path: Path,
    uid: u32,
    gid: u32,
    flags: AtFlags,
) -> SysResult {
    let at = task.locate(dir.0, &path, flags.0 & libc::AT_SYMLINK_NOFOLLOW == 0)?;
    at.check_change(task)?;
    host::fchownat(at.dir(), at.path(), uid, gid, flags.0).map(done)
}

pub(super) fn truncate(task: &mut Task, path: Path, length: i64) -> SysResult {
    let at = task.locate(libc::AT_FDCWD, &path, true)?;
    at.check_truncate(task)?;
    let mut stat = [0; 144];
    host::newfstatat(at.dir(), at.path(), &mut stat, 0)?;
    let stat = StatView(&stat);
    if task.kernel().tree().is_executed((stat.device(), stat.inode())) {
        // After who may not write to the file has been told that.
        host::faccessat2(at.dir(), at.path(), libc::W_OK as u32, libc::AT_EACCESS)?;
        return Err(Errno::ETXTBSY);
    }
    let limited = task.process.current_limits().file_size() != libc::RLIM_INFINITY;
    let path = at.absolute()?;
    if limited {
        // Who may not write to the file is told that first.
        host::faccessat2(at.dir(), at.path(), libc::W_OK as u32, libc::AT_EACCESS)?;
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let file = host::openat(at.dir(), at.path(), flags, 0)?;
        task.check_new_size(file.as_fd(), length)?;
    }
    host::truncate(&path, length).map(done)
}

/// The times of the `utime` family, as `utimensat` takes them.
fn set_times(
    task: &Task,
    dir: DirFd,
    path: &OptionalPath,
    times: Option<[Timespec; 2]>,
    flags: i32,
) -> SysResult {
    let times: Option<[u8; 32]> = times.map(|times| zerocopy::transmute!(times));
    match &path.0 {
        Some(path) => {
            let path = Path(path.clone());
            let at = task.locate(dir.0, &path, flags & libc::AT_SYMLINK_NOFOLLOW == 0)?;
            at.check_change(task)?;
            host::utimensat(at.dir(), Some(at.path()), times.as_ref(), flags).map(done)
        }
        None if dir.0 == libc::AT_FDCWD => Err(Errno::EFAULT),
        None => host::utimensat(task.file_to_change(dir.0)?.as_fd(), None, times.as_ref(), flags).map(done),
    }
}

pub(super) fn utimensat(
    task: &mut Task,
    dir: DirFd,
    path: OptionalPath,
    times: GuestAddr,
    flags: AtFlags,
) -> SysResult {
    let times = task.memory().read_optional::<[Timespec; 2]>(times)?;
    set_times(task, dir, &path, times, flags.0)
}

pub(super) fn futimesat(task: &mut Task, dir: DirFd, path: OptionalPath, times: GuestAddr) -> SysResult {
    let times = match task.memory().read_optional::<[Timeval; 2]>(times)? {
        Some([access, change]) => {
            Some([access.to_timespec().ok_or(Errno::EINVAL)?, change.to_timespec().ok_or(Errno::EINVAL)?])
        }
        None => None,
    };
    set_times(task, dir, &path, times, 0)
}

pub(super) fn utimes(task: &mut Task, path: Path, times: GuestAddr) -> SysResult {
    futimesat(task, CWD, OptionalPath(Some(path.0)), times)
}

pub(super) fn utime(task: &mut Task, path: Path, times: GuestAddr) -> SysResult {
    let times = task.memory().read_optional::<[i64; 2]>(times)?;
    let times = times.map(|times| times.map(|sec| Timespec { sec, nsec: 0 }));
    set_times(task, CWD, &OptionalPath(Some(path.0)), times, 0)
}

pub(super) fn statfs(task: &mut Task, path: Path, buf: Hex) -> SysResult {
    let at = task.locate(libc::AT_FDCWD, &path, true)?;
    let mut bytes = [0; 120];
    host::statfs(&at.absolute()?, &mut bytes)?;
    task.show_read_only(at.territory(), &mut bytes);
    task.memory().write_object(GuestAddr::new(buf.0), &bytes).map(|()| 0)
}
