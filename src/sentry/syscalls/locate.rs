//! From a directory descriptor and a path to what a host call takes.

use super::args::Path;
use crate::sentry::errno::Errno;
use crate::sentry::procfs::{Anchor, Found, Node};
use crate::sentry::task::{Directory, Task};
use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::PathBuf;

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
}

impl Located<'_> {
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn path(&self) -> &CStr {
        &self.path
    }

    /// Whether symbolic links may have led into the host's `/proc`, if that is where the path ends.
    pub(super) fn may_have_strayed(&self, device: u64) -> bool {
        self.as_given && crate::sentry::procfs::is_proc_device(device)
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
                Ok(std::fs::read_link(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()))?)
            }
        }
    }

    /// Finds what a path call works on; `follow` says whether it follows a last symbolic link.
    pub(super) fn locate<'a>(&self, dirfd: i32, path: &'a Path, follow: bool) -> Result<Located<'a>, Errno> {
        let found = self.find(dirfd, path.as_c_str(), follow)?;
        self.located(found, dirfd, Cow::Borrowed(path.as_c_str()))
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
        Ok(Located { directory, path, node, as_given, _held: held })
    }

    /// Looks again when symbolic links have led into the host's `/proc`.
    pub(super) fn relocate<'a>(&self, strayed: &Located<'a>) -> Result<Located<'a>, Errno> {
        let found = self.reveal(strayed.dir(), strayed.path())?;
        let mut located = self.located(found, libc::AT_FDCWD, strayed.path.clone())?;
        // Once is enough: what is left to the host is the host's.
        located.as_given = false;
        if !located.path.to_bytes().starts_with(b"/") {
            located.directory = strayed.directory.clone();
        }
        Ok(located)
    }
}
