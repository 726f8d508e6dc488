//! One change of a guest's mappings: what is checked, what the patcher is told, which host calls make it – whoever
//! makes those, the leader or a stub thread.

use systrap_stub::layout::{MAX_CALL_LEN, MAX_USER_ADDRESS};

use crate::address_space::SpaceInner;
use crate::patching::{self, Change, Code, FileId};
use crate::subprocess::HostCall;
use crate::{Advice, Error, GuestAddr, MapError, PAGE_SIZE, Protection, Sharing};

/// A change of a range of mappings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    what: &'static str,
    nr: i64,
    addr: u64,
    len: u64,
    /// The arguments behind address and length.
    rest: [u64; 4],
    change: Option<Change>,
}

/// What is mapped by [`Mapping::file`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct MappedFile {
    /// The descriptor, which the stub process shares.
    pub(crate) fd: i32,
    /// Its identity, if it could be told.
    pub(crate) id: Option<FileId>,
    pub(crate) offset: u64,
    pub(crate) sharing: Sharing,
}

impl Mapping {
    pub(crate) fn anonymous(addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<Self, MapError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let rest = [prot.prot_bits() as u64, flags as u64, u64::MAX, 0];
        let mut mapping = Self::new("mmap", libc::SYS_mmap, addr, len_bytes, rest)?;
        let code = Code { range: mapping.range(), prot, file: None, batched: false };
        mapping.change = Some(Change::Mapped(code));
        Ok(mapping)
    }

    pub(crate) fn file(
        addr: GuestAddr,
        len_bytes: u64,
        prot: Protection,
        file: MappedFile,
    ) -> Result<Self, MapError> {
        let flags = libc::MAP_FIXED
            | match file.sharing {
                Sharing::Private => libc::MAP_PRIVATE,
                Sharing::Shared => libc::MAP_SHARED,
            };
        let rest = [prot.prot_bits() as u64, flags as u64, file.fd as u64, file.offset];
        let mut mapping = Self::new("mmap of a file", libc::SYS_mmap, addr, len_bytes, rest)?;
        let range = mapping.range();
        mapping.change = Some(match file.sharing {
            Sharing::Private => {
                let file = file.id.map(|id| (id, file.offset));
                Change::Mapped(Code { range, prot, file, batched: false })
            }
            // Its text is everybody's: never patched.
            Sharing::Shared => Change::Gone(range),
        });
        Ok(mapping)
    }

    pub(crate) fn removal(addr: GuestAddr, len_bytes: u64) -> Result<Self, MapError> {
        let mut mapping = Self::new("munmap", libc::SYS_munmap, addr, len_bytes, [0; 4])?;
        mapping.change = Some(Change::Gone(mapping.range()));
        Ok(mapping)
    }

    pub(crate) fn protection(addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<Self, MapError> {
        let rest = [prot.prot_bits() as u64, 0, 0, 0];
        let mut mapping = Self::new("mprotect", libc::SYS_mprotect, addr, len_bytes, rest)?;
        mapping.change = Some(Change::Protected(mapping.range(), prot));
        Ok(mapping)
    }

    pub(crate) fn advice(addr: GuestAddr, len_bytes: u64, advice: Advice) -> Result<Self, MapError> {
        Self::new("madvise", libc::SYS_madvise, addr, len_bytes, [advice.raw() as u64, 0, 0, 0])
    }

    fn new(
        what: &'static str,
        nr: i64,
        addr: GuestAddr,
        len_bytes: u64,
        rest: [u64; 4],
    ) -> Result<Self, MapError> {
        let len = check_range(addr, len_bytes)?;
        Ok(Self { what, nr, addr: addr.raw(), len, rest, change: None })
    }

    /// First address, and the address behind the last.
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.addr, self.addr + self.len)
    }

    /// Makes the change. The patcher is told before of what it takes away, and behind of what it has brought; `host`
    /// makes a host call in the stub process.
    pub(crate) fn make(
        &self,
        space: &SpaceInner,
        mut host: impl FnMut(&HostCall) -> Result<i64, Error>,
    ) -> Result<(), MapError> {
        let pending = self.change.map(|change| patching::before_change(space, change));
        let mut done = 0;
        while done < self.len {
            let (call, part) = self.part(done);
            if let Err(error) = host(&call) {
                if let Some(pending) = &pending {
                    patching::not_changed(space, pending);
                }
                return Err(self.refused(done, part, error));
            }
            done += part;
        }
        if let Some(pending) = pending {
            patching::after_change(space, pending);
        }
        if let Some(Change::Protected(range, prot)) = self.change
            && prot.execute
        {
            patching::patch_mapped(space, range, None);
        }
        Ok(())
    }

    /// The one host call of a change that can be made later than it is noted: whatever happens in between, nothing is
    /// patched that must not be. That is so if nothing becomes executable. The patcher has been told of all of it then.
    pub(crate) fn note_for_later(&self, space: &SpaceInner, key: patching::ContextKey) -> Option<HostCall> {
        let harmless = match self.change {
            None | Some(Change::Gone(_)) => true,
            Some(Change::Mapped(code)) => !code.prot.execute,
            Some(Change::Protected(_, prot)) => !prot.execute,
            Some(Change::Moved { .. }) => false,
        };
        let (call, part) = self.part(0);
        if !harmless || part != self.len {
            return None;
        }
        let noted = self.change.is_none_or(|change| patching::change_later(space, change, key));
        noted.then_some(call)
    }

    /// Whether the range is free afterwards.
    pub(crate) fn frees(&self) -> bool {
        self.nr == libc::SYS_munmap
    }

    /// The host call for what the filters bear at once, behind the first `done` bytes; and its length.
    fn part(&self, done: u64) -> (HostCall, u64) {
        let part = (self.len - done).min(MAX_CALL_LEN);
        let [a2, a3, a4, offset] = self.rest;
        // Nothing but a mapping of a file has an offset; the host looks at it for nothing else.
        let args = [self.addr + done, part, a2, a3, a4, offset.wrapping_add(done)];
        (HostCall { what: self.what, nr: self.nr, args }, part)
    }

    fn refused(&self, done: u64, part: u64, error: Error) -> MapError {
        match error {
            Error::Stub { source, .. } => MapError::Refused {
                what: self.what,
                addr: GuestAddr::new(self.addr + done),
                len_bytes: part,
                source,
            },
            error => MapError::Platform(error),
        }
    }
}

/// The length of a range rounded up to pages, if the range is one that a guest may map.
pub(crate) fn check_range(addr: GuestAddr, len_bytes: u64) -> Result<u64, MapError> {
    let bad = || MapError::BadRange { addr, len_bytes, limit: GuestAddr::new(MAX_USER_ADDRESS) };
    let len = len_bytes.checked_next_multiple_of(PAGE_SIZE).ok_or_else(bad)?;
    let end = addr.raw().checked_add(len).ok_or_else(bad)?;
    if len == 0 || !addr.is_page_aligned() || end > MAX_USER_ADDRESS { Err(bad()) } else { Ok(len) }
}
