//! Making descriptors from paths or from nothing.

use super::SysResult;
use super::args::{DirFd, Fd, InOpenHow, MemfdFlags, Mode, OpenFlags, OutFdPair, Path, Text};
use super::locate::Located;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::filesystem::Territory;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::hook::OpenHow;
use crate::sentry::host;
use crate::sentry::procfs::{Node, ProcFile};
use crate::sentry::task::Task;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

/// A file whose opening may wait or do more than open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpecialFile {
    Fifo,
    /// A character device.
    Device(u64),
}

fn open_at(task: &mut Task, dirfd: i32, path: &Path, flags: i32, mode: u32) -> SysResult {
    if path.0.is_empty() {
        return Err(Errno::ENOENT);
    }
    if let Some(mounts) = task.mounts().cloned() {
        return super::open_within::open_at(task, &mounts, dirfd, path, flags, mode);
    }
    let cloexec = flags & libc::O_CLOEXEC != 0;
    let mut located = task.locate(dirfd, path, flags & libc::O_NOFOLLOW == 0)?;
    let looks = flags & (libc::O_DIRECTORY | libc::O_PATH) == 0;
    let writes = flags & (libc::O_ACCMODE | libc::O_TRUNC) != libc::O_RDONLY;
    let special = if looks && located.node.is_none() { special(task, &mut located, writes)? } else { None };
    if let Some(node) = located.node {
        let file = task.open_node(node, flags)?;
        return task.files().insert(Arc::new(file), cloexec).map(i64::from);
    }
    if special == Some(SpecialFile::Device(libc::makedev(5, 0))) {
        let host = task.open_own_terminal(flags)?;
        return task.install(host, cloexec);
    }
    let guest_flags = flags;
    // A terminal must not become the supervisor's.
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    let creates = flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE;
    let mode = if creates { mode & 0o7777 & !task.fs().umask } else { 0 };
    // Only a FIFO or a device waits to be opened. O_NONBLOCK would tell, but changes the open file; what is known
    // to be neither is opened at once.
    let host = if flags & libc::O_NONBLOCK != 0 || special.is_none() {
        host::openat(located.dir(), located.path(), flags, mode)
    } else {
        task.wait(|_, attention| host::wait_open(attention, located.dir(), located.path(), flags, mode))
    }?;
    // What was looked at may have been put in the place of a link since.
    if has_strayed(&located, &host)? {
        located = task.relocate_opened(&located, host.as_fd())?;
        if let Some(node) = located.node {
            let file = task.open_node(node, guest_flags)?;
            return task.files().insert(Arc::new(file), cloexec).map(i64::from);
        }
    }
    task.check_opened(host.as_fd(), guest_flags)?;
    let file = Arc::new(File::new(host));
    if matches!(special, Some(SpecialFile::Device(_))) {
        task.opened_terminal(&file, guest_flags);
    }
    task.files().insert(file, cloexec).map(i64::from)
}

/// Looks at a file before it is opened, and again where it really is if links have led into the host's `/proc`.
fn special(task: &Task, located: &mut Located<'_>, writes: bool) -> Result<Option<SpecialFile>, Errno> {
    let mut stat = [0; 144];
    // Everything that is usually opened in great numbers lies in no special directory and is not stat'ed twice for
    // nothing: one call of less than a microsecond against a wait that no signal could end.
    if host::newfstatat(located.dir(), located.path(), &mut stat, 0).is_err() {
        return Ok(None);
    }
    let stat = StatView(&stat);
    if located.may_have_strayed(stat.device()) {
        *located = task.relocate(located)?;
    }
    if writes
        && stat.mode() & libc::S_IFMT == libc::S_IFREG
        && task.kernel().tree().is_executed((stat.device(), stat.inode()))
    {
        return Err(Errno::ETXTBSY);
    }
    Ok(match stat.mode() & libc::S_IFMT {
        libc::S_IFIFO => Some(SpecialFile::Fifo),
        libc::S_IFCHR => Some(SpecialFile::Device(stat.rdev())),
        _ => None,
    })
}

/// Whether symbolic links have led into the host's `/proc`.
fn has_strayed(located: &Located<'_>, opened: &OwnedFd) -> Result<bool, Errno> {
    if !located.is_as_given() {
        return Ok(false);
    }
    let mut stat = [0; 144];
    host::fstat(opened.as_fd(), &mut stat)?;
    Ok(located.may_have_strayed(StatView(&stat).device()))
}

pub(super) fn open(task: &mut Task, path: Path, flags: OpenFlags, mode: Mode) -> SysResult {
    open_at(task, libc::AT_FDCWD, &path, flags.0, mode.0)
}

pub(super) fn creat(task: &mut Task, path: Path, mode: Mode) -> SysResult {
    open_at(task, libc::AT_FDCWD, &path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode.0)
}

pub(super) fn openat(task: &mut Task, dir: DirFd, path: Path, flags: OpenFlags, mode: Mode) -> SysResult {
    open_at(task, dir.0, &path, flags.0, mode.0)
}

pub(super) fn openat2(task: &mut Task, dir: DirFd, path: Path, how: InOpenHow, _: usize) -> SysResult {
    let OpenHow { flags, mode, resolve } = how.read(task.memory())?;
    if resolve != 0 {
        return Err(Errno::ENOSYS); // programs fall back to openat
    }
    let flags = i32::try_from(flags).map_err(|_| Errno::EINVAL)?;
    open_at(task, dir.0, &path, flags, mode as u32)
}

pub(super) fn close(task: &mut Task, fd: Fd) -> SysResult {
    let file = task.files().remove(fd.0)?;
    drop(file);
    Ok(0)
}

pub(super) fn close_range(task: &mut Task, first: u32, last: u32, flags: u32) -> SysResult {
    const UNSHARE: u32 = 2;
    const CLOEXEC: u32 = 4;
    if first > last || flags & !(UNSHARE | CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & UNSHARE != 0 {
        task.unshare_files();
    }
    task.files().close_range(first, last, flags & CLOEXEC != 0);
    Ok(0)
}

pub(super) fn pipe(task: &mut Task, fds: OutFdPair) -> SysResult {
    pipe2(task, fds, OpenFlags(0))
}

pub(super) fn pipe2(task: &mut Task, fds: OutFdPair, flags: OpenFlags) -> SysResult {
    let cloexec = flags.0 & libc::O_CLOEXEC != 0;
    let (reader, writer) = host::pipe2(flags.0 | libc::O_CLOEXEC)?;
    let mut table = task.files();
    let first = table.insert(Arc::new(File::new(reader)), cloexec)?;
    let second = table.insert(Arc::new(File::new(writer)), cloexec);
    let result = second.and_then(|second| task.memory().write_object(fds.0, &[first, second]));
    if result.is_err() {
        let _ = table.remove(first);
        if let Ok(second) = second {
            let _ = table.remove(second);
        }
    }
    result.map(|()| 0)
}

pub(super) fn eventfd(task: &mut Task, initial: u32) -> SysResult {
    eventfd2(task, initial, 0)
}

pub(super) fn eventfd2(task: &mut Task, initial: u32, flags: i32) -> SysResult {
    let host = host::eventfd2(initial, flags | libc::EFD_CLOEXEC)?;
    task.install(host, flags & libc::EFD_CLOEXEC != 0)
}

pub(super) fn memfd_create(task: &mut Task, name: Text, flags: MemfdFlags) -> SysResult {
    let flags = flags.0 as u32;
    let host = host::memfd_create(&name.0, flags | libc::MFD_CLOEXEC)?;
    task.install(host, flags & libc::MFD_CLOEXEC != 0)
}

pub(super) fn umask(task: &mut Task, mask: Mode) -> SysResult {
    let mut fs = task.fs();
    let old = std::mem::replace(&mut fs.umask, mask.0 & 0o777);
    Ok(i64::from(old))
}

pub(super) fn chdir(task: &mut Task, path: Path) -> SysResult {
    let mut located = task.locate(libc::AT_FDCWD, &path, true)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    if located.territory() == Territory::Outside {
        return Err(Errno::EACCES);
    }
    let mut directory = host::openat(located.dir(), located.path(), flags, 0)?;
    if has_strayed(&located, &directory)? {
        located = task.relocate_opened(&located, directory.as_fd())?;
        if located.node.is_some() {
            directory = host::openat(located.dir(), located.path(), flags, 0)?;
        }
    }
    let (node, territory) = (located.node, located.territory());
    change_directory(task, directory, node, territory)
}

pub(super) fn fchdir(task: &mut Task, fd: Fd) -> SysResult {
    let file = task.file(fd.0)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let path = CString::new(file.host_proc_path()).map_err(|_| Errno::EINVAL)?;
    // Through /proc so that the working directory is a description of its own.
    let directory = host::openat(task.directory(libc::AT_FDCWD)?.as_fd(), &path, flags, 0)?;
    let territory = task.mounts().map_or(Territory::Host, |mounts| file.territory(mounts));
    if territory == Territory::Outside {
        return Err(Errno::EACCES);
    }
    change_directory(task, directory, file.proc().map(ProcFile::node), territory)
}

fn change_directory(
    task: &mut Task,
    directory: OwnedFd,
    node: Option<Node>,
    territory: Territory,
) -> SysResult {
    let by_descriptor = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    host::faccessat2(directory.as_fd(), c"", libc::X_OK as u32, by_descriptor)?;
    let mut fs = task.fs();
    fs.cwd = Arc::new(directory);
    fs.proc_directory = node;
    fs.territory = territory;
    Ok(0)
}

pub(super) fn getcwd(task: &mut Task, buf: super::args::OutBytes, size: usize) -> SysResult {
    use std::os::fd::AsRawFd as _;
    let node = task.fs().proc_directory;
    let path = match node {
        Some(node) => node.path().into_bytes(),
        None => {
            let directory = task.directory(libc::AT_FDCWD)?;
            let mut stat = [0; 144];
            host::newfstatat(directory.as_fd(), c"", &mut stat, libc::AT_EMPTY_PATH)?;
            if StatView(&stat).links() == 0 {
                return Err(Errno::ENOENT);
            }
            match task.mounts() {
                Some(_) => task.shown_path(&directory)?,
                None => {
                    let link = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
                    std::fs::read_link(link)?.into_os_string().into_encoded_bytes()
                }
            }
        }
    };
    let bytes = [&path[..], b"\0"].concat();
    if bytes.len() > size {
        return Err(Errno::ERANGE);
    }
    task.give(buf.0, &bytes)?;
    Ok(bytes.len() as i64)
}
