//! Where a file is, as far as it matters to what a guest may do with it.

use super::{MountId, MountTable};
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, OnceLock};

/// Where a file or directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Territory {
    /// On the host, which the guest sees as it is.
    #[default]
    Host,
    /// In one of the guest's mounts.
    Mount(MountId),
    /// In what the guest sees of the host's `/proc`.
    Proc,
    /// In none of the guest's mounts: pipes and the like, and files that the guest was given.
    Outside,
}

/// Where an open file is, once somebody wanted to know.
pub(crate) type Location = OnceLock<(Arc<MountTable>, Territory)>;

impl Territory {
    pub(crate) fn is_read_only(self, mounts: &MountTable) -> bool {
        match self {
            Territory::Mount(mount) => mounts.is_read_only(mount),
            Territory::Proc => true,
            Territory::Host | Territory::Outside => false,
        }
    }

    /// Whether the attributes of a file there may be changed, by its path or by a descriptor. Those of a file that the
    /// guest was given are not part of the gift; pipes and the like have no others to matter to.
    pub(crate) fn check_change(self, mounts: &MountTable, file: BorrowedFd<'_>) -> Result<(), Errno> {
        match self {
            Territory::Proc => Err(Errno::EPERM),
            _ if self.is_read_only(mounts) => Err(Errno::EROFS),
            Territory::Outside if !is_nameless(file) => Err(Errno::EPERM),
            _ => Ok(()),
        }
    }

    /// Whether a file there may be given another length by its path.
    pub(crate) fn check_truncate(self, mounts: &MountTable, file: BorrowedFd<'_>) -> Result<(), Errno> {
        match self {
            Territory::Outside => self.check_open(file, libc::O_WRONLY),
            _ => self.check_change(mounts, file),
        }
    }

    /// Whether a file there may be opened again with these flags.
    pub(crate) fn check_open(self, file: BorrowedFd<'_>, flags: i32) -> Result<(), Errno> {
        if self != Territory::Outside || flags & libc::O_PATH != 0 {
            return Ok(());
        }
        let (reads, writes) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (true, flags & libc::O_TRUNC != 0),
            libc::O_WRONLY => (false, true),
            _ => (true, true),
        };
        let (may_read, may_write) = granted(file);
        if reads && !may_read || writes && !may_write { Err(Errno::EACCES) } else { Ok(()) }
    }
}

/// Whether a file is in no directory and never was: a pipe, a socket, memory.
fn is_nameless(file: BorrowedFd<'_>) -> bool {
    super::files::host_path(file).is_ok_and(|path| !path.starts_with(b"/") || path.starts_with(b"/memfd:"))
}

/// Whether a descriptor is one for reading, and for writing.
fn granted(file: BorrowedFd<'_>) -> (bool, bool) {
    let flags = host::fcntl(file, libc::F_GETFL, 0).map_or(libc::O_PATH, |flags| flags as i32);
    if flags & libc::O_PATH != 0 {
        return (false, false);
    }
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => (true, false),
        libc::O_WRONLY => (false, true),
        _ => (true, true),
    }
}

impl File {
    /// Says where the file was opened.
    pub(crate) fn opened_in(&self, mounts: &Arc<MountTable>, territory: Territory) {
        let _ = self.location().set((Arc::clone(mounts), territory));
    }

    /// Where the file is: where it was opened, or where it is found if it came from somewhere else.
    pub(crate) fn territory(&self, mounts: &Arc<MountTable>) -> Territory {
        let find = || {
            let territory = match self.proc() {
                Some(_) => Territory::Proc,
                None => mounts.mount_of(self.as_fd()).map_or(Territory::Outside, Territory::Mount),
            };
            (Arc::clone(mounts), territory)
        };
        self.location().get_or_init(find).1
    }

    /// Finds out where a file is that came from somewhere else, and whether it is a directory that no path of the guest
    /// leads to. The guest must not have that: names in it would be looked up outside.
    pub(crate) fn is_directory_outside(&self, mounts: &Arc<MountTable>) -> bool {
        self.territory(mounts) == Territory::Outside
            && super::files::look_at(self.as_fd()).is_ok_and(|known| known.is_directory())
    }

    /// The path of the file as the guest knows it.
    pub(crate) fn shown_path(&self) -> Result<Vec<u8>, Errno> {
        match self.location().get() {
            Some((mounts, Territory::Mount(mount))) => mounts.path_of(*mount, self.as_fd()),
            Some((_, Territory::Outside)) => MountTable::path_outside(self.as_fd()),
            _ => super::files::host_path(self.as_fd()),
        }
    }
}
