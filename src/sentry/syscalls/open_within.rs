//! `open` for a guest with a file system of its own.

use super::SysResult;
use super::args::Path;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::filesystem::{Last, MountTable, Resolved, Territory, path_of_pinned};
use crate::sentry::host;
use crate::sentry::task::Task;
use std::sync::Arc;

/// How often a name is looked at again that has become a link since.
const MOST_RACES: usize = 1000;

/// What the flags of an `open` ask for.
#[derive(Clone, Copy)]
struct Wants {
    flags: i32,
    /// A file of that name may be made.
    creates: bool,
    /// A file without a name is made.
    temporary: bool,
    /// An existing file is opened to be changed.
    writes: bool,
    path_only: bool,
}

impl Wants {
    fn new(flags: i32) -> Self {
        let path_only = flags & libc::O_PATH != 0;
        let temporary = !path_only && flags & libc::O_TMPFILE == libc::O_TMPFILE;
        let creates = !path_only && !temporary && flags & libc::O_CREAT != 0;
        let writes = !path_only && flags & (libc::O_ACCMODE | libc::O_TRUNC) != libc::O_RDONLY;
        Self { flags, creates, temporary, writes, path_only }
    }

    fn last(self) -> Last {
        let exclusive = self.creates && self.flags & libc::O_EXCL != 0;
        match self.creates {
            _ if exclusive || self.flags & libc::O_NOFOLLOW != 0 => Last::NoFollow,
            true => Last::Create,
            false => Last::Follow,
        }
    }
}

pub(super) fn open_at(
    task: &mut Task,
    mounts: &Arc<MountTable>,
    dirfd: i32,
    path: &Path,
    flags: i32,
    mode: u32,
) -> SysResult {
    let wants = Wants::new(flags);
    let cloexec = flags & libc::O_CLOEXEC != 0;
    if wants.creates && names_a_directory(path) {
        // No file can be made of that name, whatever is there; if one could get there.
        task.resolve(mounts, dirfd, path.as_c_str(), Last::Name)?;
        return Err(Errno::EISDIR);
    }
    for _ in 0..MOST_RACES {
        let resolved = task.resolve(mounts, dirfd, path.as_c_str(), wants.last())?;
        let file = match open_resolved(task, mounts, &resolved, wants, mode) {
            // The name was free, or no link, a moment ago.
            Err(Errno::ELOOP | Errno::EAGAIN) if has_raced(&resolved, wants) => continue,
            other => other?,
        };
        return task.files().insert(file, cloexec).map(i64::from);
    }
    Err(Errno::ELOOP)
}

/// Whether the last name, not being `.` or `..`, ends with a slash.
fn names_a_directory(path: &Path) -> bool {
    let path = path.0.as_bytes();
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let name = &path[..end];
    name.len() < path.len()
        && !matches!(name.rsplit(|byte| *byte == b'/').next(), None | Some(b"" | b"." | b".."))
}

fn has_raced(resolved: &Resolved, wants: Wants) -> bool {
    matches!(resolved, Resolved::Name { .. }) && wants.flags & (libc::O_NOFOLLOW | libc::O_EXCL) == 0
}

fn open_resolved(
    task: &mut Task,
    mounts: &Arc<MountTable>,
    resolved: &Resolved,
    wants: Wants,
    mode: u32,
) -> Result<Arc<File>, Errno> {
    let flags = wants.flags;
    let territory = match resolved {
        Resolved::Node(_) if wants.creates && flags & libc::O_EXCL != 0 => return Err(Errno::EEXIST),
        Resolved::Node(node) => return task.open_node(*node, flags).map(Arc::new),
        Resolved::Object { territory, .. }
        | Resolved::Name { territory, .. }
        | Resolved::Given { territory, .. } => *territory,
    };
    let existing = look(resolved)?;
    let kind = existing.map(|stat| StatView(&stat).mode() & libc::S_IFMT);
    if let Some(stat) = &existing {
        check_existing(task, mounts, StatView(stat), territory, wants)?;
    } else if wants.creates && territory.is_read_only(mounts) {
        return Err(Errno::EROFS);
    }
    if wants.temporary && territory.is_read_only(mounts) {
        return Err(Errno::EROFS);
    }
    let opens = !wants.path_only && flags & libc::O_DIRECTORY == 0;
    let device = existing.filter(|_| kind == Some(libc::S_IFCHR) && opens);
    if device.is_some_and(|stat| StatView(&stat).rdev() == libc::makedev(5, 0)) {
        let file = File::new(task.open_own_terminal(flags)?);
        file.opened_in(mounts, territory);
        return Ok(Arc::new(file));
    }
    if let Some(stat) = &device {
        task.check_terminal_of(mounts, territory, &StatView(stat))?;
    }
    let makes = wants.creates || wants.temporary;
    let mode = if makes { mode & 0o7777 & !task.fs().umask } else { 0 };
    // Only a FIFO or a device waits to be opened; so may what takes the place of a name that was free.
    let is_plain = matches!(kind, Some(libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK));
    let may_wait = opens && flags & libc::O_NONBLOCK == 0 && !is_plain;
    // A terminal must not become the supervisor's.
    let host = task.open_resolved(resolved, flags | libc::O_CLOEXEC | libc::O_NOCTTY, mode, may_wait)?;
    let file = Arc::new(File::new(host));
    file.opened_in(mounts, territory);
    if let Some(stat) = &device {
        task.check_terminal_of(mounts, territory, &StatView(stat))?;
        task.opened_terminal(&file, flags);
    }
    Ok(file)
}

/// What is there at the moment; `None` if nothing is.
fn look(resolved: &Resolved) -> Result<Option<[u8; 144]>, Errno> {
    let mut stat = [0; 144];
    let looked = match resolved {
        Resolved::Object { file, .. } | Resolved::Given { file, .. } => {
            host::newfstatat(file.as_fd(), &path_of_pinned(file.as_fd()), &mut stat, 0)
        }
        Resolved::Name { directory, name, .. } => {
            host::newfstatat(directory.as_fd(), name, &mut stat, libc::AT_SYMLINK_NOFOLLOW)
        }
        Resolved::Node(_) => Err(Errno::ENOENT),
    };
    match looked {
        Ok(_) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn check_existing(
    task: &Task,
    mounts: &MountTable,
    stat: StatView<'_>,
    territory: Territory,
    wants: Wants,
) -> Result<(), Errno> {
    if wants.creates && wants.flags & libc::O_EXCL != 0 {
        return Err(Errno::EEXIST);
    }
    if !wants.writes || stat.mode() & libc::S_IFMT != libc::S_IFREG {
        return Ok(());
    }
    if task.kernel().tree().is_executed((stat.device(), stat.inode())) {
        return Err(Errno::ETXTBSY);
    }
    if territory.is_read_only(mounts) { Err(Errno::EROFS) } else { Ok(()) }
}
