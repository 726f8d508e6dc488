//! Extended attributes.

use super::SysResult;
use super::args::{Fd, InBytes, OutBytes, Path, Text};
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::ffi::CStr;
use std::os::fd::AsFd as _;

/// The largest value, and the longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const LARGEST: usize = 65536;

/// What an attribute call works on.
#[derive(Clone, Copy)]
enum Target<'a> {
    /// A path, following a last symbolic link or not.
    Path(&'a Path, bool),
    Descriptor(Fd),
}

/// Has the host fill a buffer of at most the guest's size; a size of zero asks for the length.
fn fill(
    task: &Task,
    buf: OutBytes,
    size: usize,
    call: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> SysResult {
    let mut bytes = vec![0; size.min(LARGEST)];
    let len = call(&mut bytes[..])?;
    if size != 0 {
        task.memory().write(buf.0, &bytes[..len.min(bytes.len())])?;
    }
    Ok(len as i64)
}

fn get(task: &Task, target: Target<'_>, name: &CStr, buf: OutBytes, size: usize) -> SysResult {
    match target {
        Target::Descriptor(fd) => {
            let file = task.file(fd.0)?;
            fill(task, buf, size, |bytes| host::fgetxattr(file.as_fd(), name, bytes))
        }
        Target::Path(path, follow) => {
            let at = task.locate(libc::AT_FDCWD, path, follow)?;
            let path = at.absolute()?;
            let call = if follow { host::getxattr } else { host::lgetxattr };
            fill(task, buf, size, |bytes| call(&path, name, bytes))
        }
    }
}

fn list(task: &Task, target: Target<'_>, buf: OutBytes, size: usize) -> SysResult {
    match target {
        Target::Descriptor(fd) => {
            let file = task.file(fd.0)?;
            fill(task, buf, size, |bytes| host::flistxattr(file.as_fd(), bytes))
        }
        Target::Path(path, follow) => {
            let at = task.locate(libc::AT_FDCWD, path, follow)?;
            let path = at.absolute()?;
            let call = if follow { host::listxattr } else { host::llistxattr };
            fill(task, buf, size, |bytes| call(&path, bytes))
        }
    }
}

fn set(task: &Task, target: Target<'_>, name: &CStr, value: InBytes, size: usize, flags: i32) -> SysResult {
    if size > LARGEST {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0; size];
    task.memory().read(value.0, &mut bytes)?;
    match target {
        Target::Descriptor(fd) => {
            host::fsetxattr(task.file_to_change(fd.0)?.as_fd(), name, &bytes[..], flags)
        }
        Target::Path(path, follow) => {
            let at = task.locate(libc::AT_FDCWD, path, follow)?;
            at.check_change(task)?;
            let call = if follow { host::setxattr } else { host::lsetxattr };
            call(&at.absolute()?, name, &bytes[..], flags)
        }
    }
    .map(|_| 0)
}

fn remove(task: &Task, target: Target<'_>, name: &CStr) -> SysResult {
    match target {
        Target::Descriptor(fd) => host::fremovexattr(task.file_to_change(fd.0)?.as_fd(), name),
        Target::Path(path, follow) => {
            let at = task.locate(libc::AT_FDCWD, path, follow)?;
            at.check_change(task)?;
            let call = if follow { host::removexattr } else { host::lremovexattr };
            call(&at.absolute()?, name)
        }
    }
    .map(|_| 0)
}

pub(super) fn getxattr(task: &mut Task, path: Path, name: Text, value: OutBytes, size: usize) -> SysResult {
    get(task, Target::Path(&path, true), &name.0, value, size)
}

pub(super) fn lgetxattr(task: &mut Task, path: Path, name: Text, value: OutBytes, size: usize) -> SysResult {
    get(task, Target::Path(&path, false), &name.0, value, size)
}

pub(super) fn fgetxattr(task: &mut Task, fd: Fd, name: Text, value: OutBytes, size: usize) -> SysResult {
    get(task, Target::Descriptor(fd), &name.0, value, size)
}

pub(super) fn listxattr(task: &mut Task, path: Path, names: OutBytes, size: usize) -> SysResult {
    list(task, Target::Path(&path, true), names, size)
}

pub(super) fn llistxattr(task: &mut Task, path: Path, names: OutBytes, size: usize) -> SysResult {
    list(task, Target::Path(&path, false), names, size)
}

pub(super) fn flistxattr(task: &mut Task, fd: Fd, names: OutBytes, size: usize) -> SysResult {
    list(task, Target::Descriptor(fd), names, size)
}

pub(super) fn setxattr(
    task: &mut Task,
    path: Path,
    name: Text,
    value: InBytes,
    size: usize,
    flags: i32,
) -> SysResult {
    set(task, Target::Path(&path, true), &name.0, value, size, flags)
}

pub(super) fn lsetxattr(
    task: &mut Task,
    path: Path,
    name: Text,
    value: InBytes,
    size: usize,
    flags: i32,
) -> SysResult {
    set(task, Target::Path(&path, false), &name.0, value, size, flags)
}

pub(super) fn fsetxattr(
    task: &mut Task,
    fd: Fd,
    name: Text,
    value: InBytes,
    size: usize,
    flags: i32,
) -> SysResult {
    set(task, Target::Descriptor(fd), &name.0, value, size, flags)
}

pub(super) fn removexattr(task: &mut Task, path: Path, name: Text) -> SysResult {
    remove(task, Target::Path(&path, true), &name.0)
}

pub(super) fn lremovexattr(task: &mut Task, path: Path, name: Text) -> SysResult {
    remove(task, Target::Path(&path, false), &name.0)
}

pub(super) fn fremovexattr(task: &mut Task, fd: Fd, name: Text) -> SysResult {
    remove(task, Target::Descriptor(fd), &name.0)
}
