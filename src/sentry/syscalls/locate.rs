//! From a directory descriptor and a path to what a host call takes.

use super::args::Path;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::filesystem::{Last, MountTable, Resolved, Territory, path_of_pinned};
use crate::sentry::host;
use crate::sentry::procfs::{Anchor, Found, Node};
use crate::sentry::task::{Directory, Task};
use std::borrow::Cow;
use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// A path with the directory that it is relative to, what is not the host's replaced by what stands for it.
pub(super) struct Located<'a> {
    directory: Directory,
    path: Cow<'a, CStr>,
    /// The node of the guest's `/proc`, if the path names one: the path is then that of its stand-in.
    pub(super) node: Option<Node>,
    /// The path is as the guest gave it, and the host may find anything there.
    as_given: bool,
    /// A descriptor that the path goes through.
    _held: Option<Anchor>,
    /// Where it is in the guest's own file system.
    territory: Territory,
    /// Something is mounted there.
    covered: bool,
}

impl Located<'_> {
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn path(&self) -> &CStr {
        &self.path
    }

    /// Where it is in the guest's own file system.
    pub(super) fn territory(&self) -> Territory {
        self.territory
    }

    /// Before what is there is changed: its attributes.
    pub(super) fn check_change(&self, task: &Task) -> Result<(), Errno> {
        match task.mounts() {
            // What stands for it is the host's.
            Some(_) if self.node.is_some() => Err(Errno::EPERM),
            Some(mounts) => self.territory.check_change(mounts, self.dir()),
            None => Ok(()),
        }
    }

    /// Before the file is given another length.
    pub(super) fn check_truncate(&self, task: &Task) -> Result<(), Errno> {
        match task.mounts() {
            Some(_) if self.node.is_some() => Err(Errno::EPERM),
            Some(mounts) => self.territory.check_truncate(mounts, self.dir()),
            None => Ok(()),
        }
    }

    /// After `access` has found that the file may be written to.
    pub(super) fn check_writable(&self, task: &Task, mode: u32) -> Result<(), Errno> {
        let Some(mounts) = task.mounts() else { return Ok(()) };
        if mode & libc::W_OK as u32 == 0 || self.node.is_some() || !self.territory.is_read_only(mounts) {
            return Ok(());
        }
        let mut stat = [0; 144];
        host::newfstatat(self.dir(), self.path(), &mut stat, 0)?;
        let kind = StatView(&stat).mode() & libc::S_IFMT;
        if matches!(kind, libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK) { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Before something is made under this name.
    pub(super) fn check_new(&self, task: &Task) -> Result<(), Errno> {
        let Some(mounts) = task.mounts() else { return Ok(()) };
        if self.covered {
            return Err(Errno::EEXIST);
        }
        if !self.territory.is_read_only(mounts) {
            return Ok(());
        }
        // With a slash at its end a link would be followed.
        let path = self.path().to_bytes();
        let path = CString::new(path.strip_suffix(b"/").unwrap_or(path)).map_err(|_| Errno::ENOENT)?;
        let mut stat = [0; 144];
        match host::newfstatat(self.dir(), &path, &mut stat, libc::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Err(Errno::EROFS),
            Err(errno) => Err(errno),
            Ok(_) => Err(Errno::EEXIST),
        }
    }

    /// Before the name is removed or put somewhere else.
    pub(super) fn check_remove(&self, task: &Task) -> Result<(), Errno> {
        match task.mounts() {
            Some(mounts) if self.territory.is_read_only(mounts) => Err(Errno::EROFS),
            Some(_) if self.covered => Err(Errno::EBUSY),
            _ => Ok(()),
        }
    }

    /// Whether one file can have names at both: mounts may be of the same file system on the host, not for the guest.
    pub(super) fn check_same_mount(&self, other: &Located<'_>) -> Result<(), Errno> {
        if self.territory == other.territory && self.territory != Territory::Outside {
            Ok(())
        } else {
            Err(Errno::EXDEV)
        }
    }

    /// Whether symbolic links may have led into the host's `/proc`, if that is where the path ends.
    pub(super) fn may_have_strayed(&self, device: u64) -> bool {
        self.as_given && crate::sentry::procfs::is_proc_device(device)
    }

    /// Whether the host may find anything under the path.
    pub(super) fn is_as_given(&self) -> bool {
        self.as_given
    }

    /// The path for calls that take no directory: an absolute one, by way of the directory's descriptor.
    pub(super) fn absolute(&self) -> Result<Cow<'_, CStr>, Errno> {
        let path = self.path.to_bytes();
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.starts_with(b"/") {
            return Ok(Cow::Borrowed(&self.path));
        }
        let prefix = format!("/proc/self/fd/{}/", self.dir().as_raw_fd());
        let joined = [prefix.as_bytes(), path].concat();
        CString::new(joined).map(Cow::Owned).map_err(|_| Errno::ENOENT)
    }
}

impl Task {
    /// The absolute path of a directory argument, as it is now.
    pub(in crate::sentry) fn directory_path(&self, dirfd: i32) -> Result<PathBuf, Errno> {
        let node = match dirfd {
            libc::AT_FDCWD => self.fs().proc_directory,
            dirfd => self.file(dirfd)?.proc().map(|file| file.node()),
        };
        match node {
            Some(node) => Ok(node.path().into()),
            None => {
                let directory = self.directory(dirfd)?;
                if self.mounts().is_some() {
                    return self.shown_path(&directory).map(|path| OsString::from_vec(path).into());
                }
                Ok(std::fs::read_link(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()))?)
            }
        }
    }

    /// The guest's path of a directory in its own file system.
    pub(super) fn shown_path(&self, directory: &Directory) -> Result<Vec<u8>, Errno> {
        match (directory, self.fs().territory, self.mounts()) {
            (Directory::Open(file), ..) => file.shown_path(),
            (Directory::Working(cwd), Territory::Mount(mount), Some(mounts)) => {
                mounts.path_of(mount, cwd.as_fd())
            }
            (Directory::Working(cwd), ..) => MountTable::path_outside(cwd.as_fd()),
        }
    }

    /// Finds what a path call works on; `follow` says whether it follows a last symbolic link.
    pub(super) fn locate<'a>(&self, dirfd: i32, path: &'a Path, follow: bool) -> Result<Located<'a>, Errno> {
        if let Some(mounts) = self.mounts() {
            let last = if follow { Last::Follow } else { Last::NoFollow };
            return self.locate_in(mounts, dirfd, path, last);
        }
        let found = self.find(dirfd, path.as_c_str(), follow)?;
        self.located(found, dirfd, Cow::Borrowed(path.as_c_str()))
    }

    /// Finds a name that a call makes, removes or renames.
    pub(super) fn locate_name<'a>(&self, dirfd: i32, path: &'a Path) -> Result<Located<'a>, Errno> {
        match self.mounts() {
            None => self.locate(dirfd, path, false),
            Some(mounts) => self.locate_in(mounts, dirfd, path, Last::Name),
        }
    }

    /// Finds a path in the guest's own file system: a pinned file, or a name in a pinned directory.
    fn locate_in<'a>(
        &self,
        mounts: &Arc<MountTable>,
        dirfd: i32,
        path: &'a Path,
        last: Last,
    ) -> Result<Located<'a>, Errno> {
        let (directory, path, territory, covered) =
            match self.resolve(mounts, dirfd, path.as_c_str(), last)? {
                Resolved::Object { file, territory } => {
                    // What is found without following a link is a directory, or has been named as one.
                    let follows = last == Last::Follow;
                    let path = if follows { path_of_pinned(file.as_fd()) } else { c".".to_owned() };
                    (file, Cow::Owned(path), territory, last == Last::Name)
                }
                Resolved::Name { directory, name, covered, territory } => {
                    (directory, Cow::Owned(name), territory, covered)
                }
                Resolved::Given { file, territory } => {
                    (file, Cow::Borrowed(path.as_c_str()), territory, false)
                }
                Resolved::Node(node) => {
                    return self.located(Found::Node(node), libc::AT_FDCWD, Cow::Borrowed(path.as_c_str()));
                }
            };
        Ok(Located { directory, path, node: None, as_given: false, _held: None, territory, covered })
    }

    fn located<'a>(&self, found: Found, dirfd: i32, path: Cow<'a, CStr>) -> Result<Located<'a>, Errno> {
        let node = found.node();
        let replaced = found.host_path(self)?;
        let as_given = replaced.is_none();
        let (path, held) = match replaced {
            Some((path, held)) => (Cow::Owned(path), held),
            None => (path, None),
        };
        // An absolute path makes the descriptor irrelevant, even a bad one.
        let absolute = path.to_bytes().starts_with(b"/");
        let directory = self.directory(if absolute { libc::AT_FDCWD } else { dirfd })?;
        Ok(Located {
            directory,
            path,
            node,
            as_given,
            _held: held,
            territory: Territory::Host,
            covered: false,
        })
    }

    /// The open file of a descriptor whose attributes are to be changed.
    pub(super) fn file_to_change(&self, fd: i32) -> Result<Arc<File>, Errno> {
        let file = self.file(fd)?;
        if let Some(mounts) = self.mounts() {
            if file.proc().is_some() {
                return Err(Errno::EPERM);
            }
            file.territory(mounts).check_change(mounts, file.as_fd())?;
        }
        Ok(file)
    }

    /// Puts `ST_RDONLY` into a `struct statfs` of a read-only mount.
    pub(super) fn show_read_only(&self, territory: Territory, statfs: &mut [u8; 120]) {
        const FLAGS: usize = 80;
        const ST_RDONLY: u8 = 1;
        if self.mounts().is_some_and(|mounts| territory.is_read_only(mounts)) {
            statfs[FLAGS] |= ST_RDONLY;
        }
    }

    /// Looks again when symbolic links have led into the host's `/proc`.
    pub(super) fn relocate<'a>(&self, strayed: &Located<'a>) -> Result<Located<'a>, Errno> {
        let found = self.reveal(strayed.dir(), strayed.path())?;
        self.relocate_to(strayed, found)
    }

    /// The same for what has been opened there.
    pub(super) fn relocate_opened<'a>(
        &self,
        strayed: &Located<'a>,
        opened: BorrowedFd<'_>,
    ) -> Result<Located<'a>, Errno> {
        self.relocate_to(strayed, self.reveal_opened(opened)?)
    }

    fn relocate_to<'a>(&self, strayed: &Located<'a>, found: Found) -> Result<Located<'a>, Errno> {
        let mut located = self.located(found, libc::AT_FDCWD, strayed.path.clone())?;
        if !located.path.to_bytes().starts_with(b"/") {
            located.directory = strayed.directory.clone();
        }
        Ok(located)
    }
}
