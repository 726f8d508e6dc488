//! The locks of one descriptor table: an open file description for each file that it has locked.

use super::{LockKind, Owner, Range, RecordLocks};
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::host;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What makes two descriptors the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileIdentity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl FileIdentity {
    pub(crate) fn of(file: &File) -> Result<Self, Errno> {
        let mut stat = [0; 144];
        host::fstat(file.as_fd(), &mut stat)?;
        let stat = StatView(&stat);
        Ok(Self { device: stat.device(), inode: stat.inode() })
    }
}

/// A description that holds locks.
#[derive(Debug)]
pub(crate) struct Description {
    host: OwnedFd,
    writable: bool,
    readable: bool,
}

/// The locks of one table. They go with it, and with the first descriptor of the file that is closed.
#[derive(Debug)]
pub(crate) struct OwnedLocks {
    pub(crate) owner: Owner,
    all: Arc<RecordLocks>,
    files: HashMap<FileIdentity, Arc<Description>>,
}

/// The kernel's `struct flock`, from the start of the file.
fn flock_bytes(kind: LockKind, range: Range) -> [u8; 32] {
    let lock = crate::sentry::abi::Flock {
        kind: kind.raw(),
        whence: libc::SEEK_SET as i16,
        padding: 0,
        start: range.start as i64,
        len: range.len(),
        pid: 0,
        padding2: 0,
    };
    zerocopy::transmute!(lock)
}

impl Description {
    fn set(&self, kind: LockKind, range: Range) -> Result<(), Errno> {
        host::fcntl_lock(self.host.as_fd(), libc::F_OFD_SETLK, &mut flock_bytes(kind, range)).map(drop)
    }

    /// Waits until the host grants the lock.
    pub(crate) fn wait(
        &self,
        attention: &host::Attention,
        kind: LockKind,
        range: Range,
    ) -> Result<(), Errno> {
        let mut bytes = flock_bytes(kind, range);
        host::wait_fcntl_lock(attention, self.host.as_fd(), libc::F_OFD_SETLKW, &mut bytes).map(drop)
    }

    /// The lock that is in the way, as the host sees it.
    pub(crate) fn obstacle(&self, kind: LockKind, range: Range) -> Result<crate::sentry::abi::Flock, Errno> {
        let mut bytes = flock_bytes(kind, range);
        host::fcntl_lock(self.host.as_fd(), libc::F_OFD_GETLK, &mut bytes)?;
        Ok(zerocopy::transmute!(bytes))
    }

    fn bears(&self, kind: LockKind) -> bool {
        match kind {
            LockKind::Read => self.readable,
            LockKind::Write => self.writable,
            LockKind::None => true,
        }
    }
}

/// Opens the file behind a descriptor once more. What cannot be opened twice has no locks: `ENOLCK`.
fn reopen(file: BorrowedFd<'_>, path: &str, access: i32) -> Result<OwnedFd, Errno> {
    let flags = access | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_LARGEFILE;
    let path = CString::new(path).map_err(|_| Errno::ENOLCK)?;
    host::openat(file, &path, flags, 0).map_err(|_| Errno::ENOLCK)
}

impl OwnedLocks {
    pub(crate) fn new(all: Arc<RecordLocks>) -> Self {
        Self { owner: Owner::new(), all, files: HashMap::new() }
    }

    /// No locks, for a copy of the table.
    pub(crate) fn none_like(&self) -> Self {
        Self::new(Arc::clone(&self.all))
    }

    /// Whether the owner may have locks of the file.
    pub(crate) fn has(&self, identity: FileIdentity) -> bool {
        self.files.contains_key(&identity)
    }

    /// The description that bears the owner's locks of a file, made if there is none that bears the wanted kind.
    pub(crate) fn description(
        &mut self,
        file: &File,
        identity: FileIdentity,
        kind: LockKind,
    ) -> Result<Arc<Description>, Errno> {
        let found = self.files.get(&identity).map(Arc::clone);
        if let Some(found) = &found
            && found.bears(kind)
        {
            return Ok(Arc::clone(found));
        }
        let own = host::fcntl(file.as_fd(), libc::F_GETFL, 0)? as i32 & libc::O_ACCMODE;
        let path = file.host_proc_path();
        let (host, access) = match reopen(file.as_fd(), &path, own) {
            Ok(host) if found.is_none() => (host, own),
            // Another descriptor of the file bore what this one does not: one description has to bear all.
            first => match reopen(file.as_fd(), &path, libc::O_RDWR) {
                Ok(host) => (host, libc::O_RDWR),
                Err(_) if found.is_none() => (first?, own),
                Err(errno) => return Err(errno),
            },
        };
        let (readable, writable) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        let new = Arc::new(Description { host, writable, readable });
        for (range, kind) in self.all.locks_of(self.owner, identity) {
            if let Some(old) = &found {
                // For a moment the range is nobody's, if it was locked for writing.
                old.set(LockKind::None, range)?;
            }
            new.set(kind, range)?;
        }
        self.files.insert(identity, Arc::clone(&new));
        Ok(new)
    }

    /// Sets or clears a lock; `EAGAIN` if another is in the way.
    pub(crate) fn set(
        &self,
        description: &Description,
        identity: FileIdentity,
        kind: LockKind,
        range: Range,
        pid: i32,
    ) -> Result<(), Errno> {
        description.set(kind, range)?;
        self.all.record(self.owner, identity, range, kind, pid);
        Ok(())
    }

    /// After a wait: records the lock, unless the file was closed meanwhile, which would have cleared it.
    pub(crate) fn granted(
        &self,
        description: &Arc<Description>,
        identity: FileIdentity,
        kind: LockKind,
        range: Range,
        pid: i32,
    ) -> Result<(), Errno> {
        if self.files.get(&identity).is_some_and(|own| Arc::ptr_eq(own, description)) {
            self.all.record(self.owner, identity, range, kind, pid);
            return Ok(());
        }
        let _ = description.set(LockKind::None, range);
        Err(Errno::EBADF)
    }

    /// A descriptor of the file has been closed (`locks_remove_posix`).
    pub(crate) fn closed(&mut self, file: &File) {
        if !self.files.is_empty()
            && let Ok(identity) = FileIdentity::of(file)
            && let Some(description) = self.files.remove(&identity)
        {
            self.release(identity, &description);
        }
    }

    fn release(&self, identity: FileIdentity, description: &Description) {
        let everything = Range { start: 0, end: super::ranges::LAST_BYTE };
        // A thread that waits may hold the description for a moment longer.
        let _ = description.set(LockKind::None, everything);
        self.all.forget(self.owner, identity);
    }
}

impl Drop for OwnedLocks {
    fn drop(&mut self) {
        for (identity, description) in std::mem::take(&mut self.files) {
            self.release(identity, &description);
        }
    }
}
