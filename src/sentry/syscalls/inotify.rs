//! inotify(7): the host's own instances, with paths resolved as the guest's.

use super::SysResult;
use super::args::{Fd, OpenFlags, Path};
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

pub(super) fn inotify_init(task: &mut Task) -> SysResult {
    inotify_init1(task, OpenFlags(0))
}

pub(super) fn inotify_init1(task: &mut Task, flags: OpenFlags) -> SysResult {
    let host = host::inotify_init1(flags.0 | libc::IN_CLOEXEC)?;
    task.install(host, flags.0 & libc::IN_CLOEXEC != 0)
}

pub(super) fn inotify_add_watch(task: &mut Task, fd: Fd, path: Path, mask: u32) -> SysResult {
    let file = task.file(fd.0)?;
    let at = task.locate(libc::AT_FDCWD, &path, mask & libc::IN_DONT_FOLLOW == 0)?;
    host::inotify_add_watch(file.as_fd(), &at.absolute()?, mask).map(|watch| watch as i64)
}

pub(super) fn inotify_rm_watch(task: &mut Task, fd: Fd, watch: i32) -> SysResult {
    host::inotify_rm_watch(task.file(fd.0)?.as_fd(), watch).map(|_| 0)
}
