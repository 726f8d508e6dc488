//! From a directory descriptor and a path to what a host call takes.

use super::args::Path;
use crate::sentry::errno::Errno;
use crate::sentry::procfs;
use crate::sentry::task::{Directory, Task};
use std::borrow::Cow;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// A path with the directory that it is relative to, the sentry's own files replaced by what stands for them.
pub(super) struct Located<'a> {
    directory: Directory,
    path: Cow<'a, CStr>,
}

impl Located<'_> {
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn path(&self) -> &CStr {
        &self.path
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
    /// The special meaning, if any, of a path that is relative to `dirfd`.
    pub(super) fn complete_path(&self, dirfd: i32, path: &Path) -> Option<CString> {
        if dirfd == libc::AT_FDCWD || path.0.as_bytes().starts_with(b"/") || path.0.as_bytes().is_empty() {
            return None;
        }
        // Relative to a directory that the sentry makes up.
        let file = self.file(dirfd).ok()?;
        let directory = file.directory()?;
        CString::new([directory.path.as_bytes(), b"/", path.0.as_bytes()].concat()).ok()
    }

    /// The absolute path of a directory argument, as the host has it now.
    pub(in crate::sentry) fn directory_path(&self, dirfd: i32) -> Result<PathBuf, Errno> {
        let directory = self.directory(dirfd)?;
        if let Directory::Open(file) = &directory
            && let Some(made_up) = file.directory()
        {
            return Ok(OsStr::from_bytes(made_up.path.as_bytes()).into());
        }
        Ok(std::fs::read_link(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()))?)
    }

    /// Finds what a path call works on; `follow` says whether it follows a last symbolic link.
    pub(super) fn locate<'a>(&self, dirfd: i32, path: &'a Path, follow: bool) -> Result<Located<'a>, Errno> {
        let completed = self.complete_path(dirfd, path);
        let path = completed.map_or(Cow::Borrowed(path.as_c_str()), Cow::Owned);
        // An absolute path makes the descriptor irrelevant, even a bad one.
        let absolute = path.to_bytes().starts_with(b"/");
        let directory = self.directory(if absolute { libc::AT_FDCWD } else { dirfd })?;
        let path = match procfs::recognise(path.to_bytes(), self.process.pid) {
            Some(special) => Cow::Owned(self.host_path(special, follow)?),
            None => path,
        };
        Ok(Located { directory, path })
    }

    /// The target of `/proc/self/exe`, if that is what the path names.
    pub(super) fn executable_link(&self, dirfd: i32, path: &Path) -> Option<Vec<u8>> {
        let completed = self.complete_path(dirfd, path);
        let bytes = completed.as_deref().unwrap_or(path.as_c_str()).to_bytes();
        let special = procfs::recognise(bytes, self.process.pid)?;
        (special == procfs::Special::Executable)
            .then(|| self.process.program().executable.as_os_str().as_bytes().to_vec())
    }
}
