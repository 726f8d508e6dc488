//! Opening files of the guest's own file system: for `open` and its kin, and for programs.

use super::files::open_how;
use super::resolve::{Last, Reached};
use super::table::{MountTable, Place};
use super::task::Resolved;
use super::territory::Territory;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host;
use crate::sentry::loader::Program;
use crate::sentry::task::{Directory, Task};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The host's path of a pinned file, for calls that follow links.
pub(crate) fn path_of_pinned(file: BorrowedFd<'_>) -> CString {
    // Digits: there is no zero byte in it.
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}

/// Opens a pinned file again, as what its flags say.
pub(crate) fn reopen(file: BorrowedFd<'_>, territory: Territory, flags: i32) -> Result<OwnedFd, Errno> {
    territory.check_open(file, flags)?;
    host::openat(file, &path_of_pinned(file), flags, 0)
}

impl MountTable {
    /// The working directory that a guest starts in.
    pub(crate) fn first_directory(
        &self,
        supervisors: BorrowedFd<'_>,
    ) -> Result<(Arc<OwnedFd>, Territory), Errno> {
        let place = self.place_of(supervisors).unwrap_or_else(|| self.root());
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let directory = host::openat(place.directory.as_fd(), c".", flags, 0)?;
        Ok((Arc::new(directory), Territory::Mount(place.mount)))
    }

    /// A directory that a guest is to start in, by a path from its root.
    pub(crate) fn open_directory(self: &Arc<Self>, path: &CStr) -> Result<(Arc<OwnedFd>, Territory), Errno> {
        match self.walk(self.root(), path.to_bytes(), Last::Follow, &mut 0)? {
            Reached::Object { file, mount } => {
                let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
                // To enter it takes the right to search it.
                host::faccessat2(
                    file.as_fd(),
                    c"",
                    libc::X_OK as u32,
                    libc::AT_EMPTY_PATH | libc::AT_EACCESS,
                )?;
                let directory = host::openat(file.as_fd(), c".", flags, 0)?;
                Ok((Arc::new(directory), Territory::Mount(mount)))
            }
            Reached::Name { .. } => Err(Errno::ENOENT),
            // There is no process yet whose files it could have.
            Reached::Proc { .. } => Err(Errno::EACCES),
        }
    }

    /// Opens the first program, or what it names, before there is a task.
    pub(crate) fn open_first(
        self: &Arc<Self>,
        cwd: &Arc<OwnedFd>,
        territory: Territory,
        path: &CStr,
        flags: i32,
    ) -> Result<File, Errno> {
        let start = match territory {
            Territory::Mount(mount) => Place { mount, directory: Directory::Working(Arc::clone(cwd)) },
            _ => self.root(),
        };
        match self.walk(start, path.to_bytes(), Last::Follow, &mut 0)? {
            Reached::Object { file, mount } => {
                let territory = Territory::Mount(mount);
                let opened = File::new(reopen(file.as_fd(), territory, flags)?);
                opened.opened_in(self, territory);
                Ok(opened)
            }
            Reached::Name { .. } => Err(Errno::ENOENT),
            // There is no process yet whose files it could have.
            Reached::Proc { .. } => Err(Errno::EACCES),
        }
    }
}

impl Task {
    /// Opens a program that `execve` names, and whatever interpreters it needs.
    pub(in crate::sentry) fn open_program_in(
        &self,
        mounts: &Arc<MountTable>,
        dirfd: i32,
        path: &CStr,
        flags: i32,
        argv: Vec<CString>,
        envp: Vec<CString>,
    ) -> Result<Program, Errno> {
        if path.is_empty() && flags & libc::AT_EMPTY_PATH == 0 {
            return Err(Errno::ENOENT);
        }
        let last = if flags & libc::AT_SYMLINK_NOFOLLOW != 0 { Last::NoFollow } else { Last::Follow };
        // The program is found from the descriptor, its interpreters from the working directory.
        let first = std::cell::Cell::new(Some((dirfd, last)));
        let open = |path: &CStr, flags| {
            let (dirfd, last) = first.take().unwrap_or((libc::AT_FDCWD, Last::Follow));
            self.open_to_execute(mounts, dirfd, path, last, flags)
        };
        Program::open_with(&open, path, argv, envp).map_err(|error| error.errno())
    }

    fn open_to_execute(
        &self,
        mounts: &Arc<MountTable>,
        dirfd: i32,
        path: &CStr,
        last: Last,
        flags: i32,
    ) -> Result<File, Errno> {
        let (host, territory) = match self.resolve(mounts, dirfd, path, last)? {
            Resolved::Object { file, territory } | Resolved::Given { file, territory } => {
                (reopen(file.as_fd(), territory, flags)?, territory)
            }
            // A link is not executed here: ELOOP says so.
            Resolved::Name { directory, name, territory, .. } => {
                let how = open_how(flags | libc::O_NOFOLLOW, 0);
                (host::openat2(directory.as_fd(), &name, &how, how.len())?, territory)
            }
            Resolved::Node(_) => return Err(Errno::EACCES),
        };
        let file = File::new(host);
        file.opened_in(mounts, territory);
        Ok(file)
    }

    /// Opens a file as `open` does, but for nodes of the guest's `/proc`.
    pub(in crate::sentry) fn open_resolved(
        &mut self,
        resolved: &Resolved,
        flags: i32,
        mode: u32,
        may_wait: bool,
    ) -> Result<OwnedFd, Errno> {
        match resolved {
            Resolved::Object { file, territory } | Resolved::Given { file, territory } => {
                let (dir, pinned) = (file.as_fd(), path_of_pinned(file.as_fd()));
                territory.check_open(dir, flags)?;
                // With O_NOFOLLOW it is a directory, or has been asked for as one.
                let path = if flags & libc::O_NOFOLLOW != 0 { c"." } else { pinned.as_c_str() };
                if may_wait {
                    self.wait(|_, attention| host::wait_open(attention, dir, path, flags, mode))
                } else {
                    host::openat(dir, path, flags, mode)
                }
            }
            Resolved::Name { directory, name, .. } => {
                // openat2 takes no flag that it does not know, openat takes them all.
                let how = open_how(known_flags(flags), mode);
                if may_wait {
                    let dir = directory.as_fd();
                    self.wait(|_, attention| host::wait_open2(attention, dir, name, &how))
                } else {
                    host::openat2(directory.as_fd(), name, &how, how.len())
                }
            }
            Resolved::Node(_) => Err(Errno::EACCES),
        }
    }
}

/// The flags of `open` that have a meaning.
fn known_flags(flags: i32) -> i32 {
    const FASYNC: i32 = 0o20000;
    let with_path = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    if flags & libc::O_PATH != 0 {
        return flags & with_path;
    }
    flags
        & (libc::O_ACCMODE
            | libc::O_CREAT
            | libc::O_EXCL
            | libc::O_NOCTTY
            | libc::O_TRUNC
            | libc::O_APPEND
            | libc::O_NONBLOCK
            | libc::O_SYNC
            | FASYNC
            | libc::O_DIRECT
            | 0o100000 // O_LARGEFILE, which the C library has as 0
            | libc::O_DIRECTORY
            | libc::O_NOFOLLOW
            | libc::O_NOATIME
            | libc::O_CLOEXEC
            | libc::O_TMPFILE)
}
