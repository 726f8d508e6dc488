//! The guest's memory: one stub process.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use systrap_stub::layout::{MAX_CALL_LEN, STUB_MAPPED_LEN};

use crate::mapping::{MappedFile, Mapping, check_range};
use crate::patching::{self, Change, FileId, Patcher};
use crate::platform::Inner;
use crate::subprocess::{HostCall, Subprocess};
use crate::{Error, GuestAddr, MapError, Patching, StubExit};

/// An address space: the memory of one guest process, held by one stub process.
///
/// A cheap handle: clones refer to the same address space. The stub process is killed when the last handle is
/// dropped and no context is attached, or by [`AddressSpace::release`].
///
/// Counterpart: gVisor `platform.AddressSpace`. `Activate` and `Deactivate` have none: nothing is done at a switch.
#[derive(Debug, Clone)]
pub struct AddressSpace {
    pub(crate) inner: Arc<SpaceInner>,
}

#[derive(Debug)]
pub(crate) struct SpaceInner {
    pub(crate) platform: Arc<Inner>,
    pub(crate) process: Arc<Subprocess>,
    pub(crate) patcher: Mutex<Patcher>,
}

impl Drop for SpaceInner {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// What a guest may do with a mapping: PROT_READ, PROT_WRITE, PROT_EXEC of mmap(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Protection {
    /// Load.
    pub read: bool,
    /// Store.
    pub write: bool,
    /// Execute.
    pub execute: bool,
}

impl Protection {
    /// No access.
    pub const NONE: Self = Self { read: false, write: false, execute: false };
    /// Load.
    pub const READ: Self = Self { read: true, write: false, execute: false };
    /// Load and store.
    pub const READ_WRITE: Self = Self { read: true, write: true, execute: false };
    /// Load and execute.
    pub const READ_EXECUTE: Self = Self { read: true, write: false, execute: true };

    /// From the bits of mmap(2); others than the three are ignored.
    #[must_use]
    pub const fn from_prot_bits(bits: i32) -> Self {
        Self {
            read: bits & libc::PROT_READ != 0,
            write: bits & libc::PROT_WRITE != 0,
            execute: bits & libc::PROT_EXEC != 0,
        }
    }

    /// The bits of mmap(2).
    #[must_use]
    pub const fn prot_bits(self) -> i32 {
        let mut bits = libc::PROT_NONE;
        if self.read {
            bits |= libc::PROT_READ;
        }
        if self.write {
            bits |= libc::PROT_WRITE;
        }
        if self.execute {
            bits |= libc::PROT_EXEC;
        }
        bits
    }
}

/// Whether stores to a file mapping reach the file: MAP_PRIVATE or MAP_SHARED of mmap(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// They stay in this address space.
    Private,
    /// They reach the file and everybody who maps it.
    Shared,
}

/// Advice of madvise(2) that can do no harm outside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the MADV_ constant of that name")]
pub enum Advice {
    Normal,
    Random,
    Sequential,
    WillNeed,
    DontNeed,
    Free,
    HugePage,
    NoHugePage,
    PopulateRead,
    PopulateWrite,
}

impl Advice {
    pub(crate) const fn raw(self) -> i32 {
        match self {
            Self::Normal => libc::MADV_NORMAL,
            Self::Random => libc::MADV_RANDOM,
            Self::Sequential => libc::MADV_SEQUENTIAL,
            Self::WillNeed => libc::MADV_WILLNEED,
            Self::DontNeed => libc::MADV_DONTNEED,
            Self::Free => libc::MADV_FREE,
            Self::HugePage => libc::MADV_HUGEPAGE,
            Self::NoHugePage => libc::MADV_NOHUGEPAGE,
            Self::PopulateRead => libc::MADV_POPULATE_READ,
            Self::PopulateWrite => libc::MADV_POPULATE_WRITE,
        }
    }
}

impl AddressSpace {
    pub(crate) fn new(platform: Arc<Inner>, process: Arc<Subprocess>, patcher: Patcher) -> Self {
        Self { inner: Arc::new(SpaceInner { platform, process, patcher: Mutex::new(patcher) }) }
    }

    /// Overrides the platform's [`Patching`] for this address space. What is patched is rolled back when it becomes
    /// [`Patching::Off`] (what a guest's debugger will want); new patches are made from the next trap on otherwise.
    pub fn set_patching(&self, patching: Patching) {
        match patching {
            Patching::Off => patching::drop_all(&self.inner, Patching::Off),
            Patching::Lazy | Patching::Eager => patching::lock(&self.inner).set_mode(patching),
        }
    }

    /// Undoes every patch; sites that trap from then on are patched again unless patching is off.
    pub fn roll_back_patches(&self) {
        let mode = patching::lock(&self.inner).mode();
        patching::drop_all(&self.inner, mode);
    }

    /// How many sites are patched now.
    #[must_use]
    pub fn patched_sites(&self) -> u64 {
        patching::lock(&self.inner).patched_sites()
    }

    /// Maps private zeroed memory at a fixed place, replacing what is there (`MAP_PRIVATE | MAP_ANONYMOUS |
    /// MAP_FIXED | MAP_NORESERVE`).
    ///
    /// # Errors
    ///
    /// [`MapError::BadRange`] if the range is empty, not page-aligned or beyond
    /// [`max_user_address`](crate::Systrap::max_user_address); [`MapError::Refused`] with the host's errno.
    pub fn map_anonymous(&self, addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<(), MapError> {
        self.make(&Mapping::anonymous(addr, len_bytes, prot)?)
    }

    /// Maps a file at a fixed place, replacing what is there (gVisor `MapFile`). The descriptor is only used
    /// during the call.
    ///
    /// With [`Sharing::Shared`] the guest gets what the *descriptor* allows, whatever `prot` says: it may make the
    /// mapping writable later. Share what it must not change through a descriptor opened read-only.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map_anonymous`]; an offset that is not page-aligned is `EINVAL` by the host.
    pub fn map_file(
        &self,
        addr: GuestAddr,
        len_bytes: u64,
        fd: BorrowedFd<'_>,
        offset: u64,
        prot: Protection,
        sharing: Sharing,
    ) -> Result<(), MapError> {
        let file = MappedFile { fd: fd.as_raw_fd(), id: file_id(fd), offset, sharing };
        let mapping = Mapping::file(addr, len_bytes, prot, file)?;
        self.make(&mapping)?;
        if prot.execute && sharing == Sharing::Private {
            patching::patch_mapped(&self.inner, mapping.range(), Some(fd));
        }
        Ok(())
    }

    /// Removes all mappings in a range (gVisor `Unmap`). A range without any is no error.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map_anonymous`].
    pub fn unmap(&self, addr: GuestAddr, len_bytes: u64) -> Result<(), MapError> {
        self.make(&Mapping::removal(addr, len_bytes)?)
    }

    /// Changes the protection of a range.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map_anonymous`]; `ENOMEM` if part of the range is not mapped (mprotect(2)).
    pub fn protect(&self, addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<(), MapError> {
        self.make(&Mapping::protection(addr, len_bytes, prot)?)
    }

    /// Gives advice on a range (madvise(2)).
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map_anonymous`].
    pub fn advise(&self, addr: GuestAddr, len_bytes: u64, advice: Advice) -> Result<(), MapError> {
        self.make(&Mapping::advice(addr, len_bytes, advice)?)
    }

    /// Moves or resizes one mapping (mremap(2)): in place if `old == new`, otherwise to the fixed place `new`,
    /// replacing what is there.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::map_anonymous`]; `EFAULT` if the old range is not one mapping; `ENOMEM` if it cannot
    /// grow in place, or if either range is longer than one host call of a stub may name (7 TiB).
    pub fn remap(&self, old: GuestAddr, old_len: u64, new: GuestAddr, new_len: u64) -> Result<(), MapError> {
        let old_len = check_range(old, old_len)?;
        let new_len = check_range(new, new_len)?;
        if old_len.max(new_len) > MAX_CALL_LEN {
            // The filters would kill the stub process for it.
            let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
            let (addr, len_bytes) = (old, old_len);
            return Err(MapError::Refused { what: "mremap", addr, len_bytes, source });
        }
        let flags = if old == new { 0 } else { libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED };
        let args = [old.raw(), old_len, new_len, flags as u64, new.raw(), 0];
        let change = Change::Moved { old: bounds(old, old_len), new: bounds(new, new_len) };
        let pending = patching::before_change(&self.inner, change);
        if let Err(error) = self.call("mremap", libc::SYS_mremap, args, (old.raw(), old_len)) {
            patching::not_changed(&self.inner, &pending);
            return Err(error);
        }
        patching::after_change(&self.inner, pending);
        Ok(())
    }

    /// Makes an address space whose memory is a copy-on-write copy of this one, by the host kernel. Nothing of
    /// this address space needs to stand still; what a running guest thread writes meanwhile may or may not be in the copy.
    ///
    /// Counterpart: gVisor's `PreFork`, copying and `PostFork`, which have nothing left to do here.
    ///
    /// # Errors
    ///
    /// As [`Systrap::new_address_space`](crate::Systrap::new_address_space).
    pub fn fork(&self) -> Result<AddressSpace, Error> {
        let platform = &self.inner.platform;
        // Held over the clone, so that the copied memory and the copied books agree.
        let books = patching::lock(&self.inner);
        let process = self.inner.process.clone_process(&platform.reaper, platform.supervisor, false)?;
        let patcher = books.fork();
        drop(books);
        Ok(AddressSpace::new(Arc::clone(platform), process, patcher))
    }

    /// Limits the guest's memory: the address space that it may have mapped, in bytes (RLIMIT_AS of the stub process;
    /// `None` for the supervisor's own hard limit). Mapping calls beyond it fail with `ENOMEM`. Forks inherit it.
    ///
    /// # Errors
    ///
    /// [`Error::StubDied`], or [`Error::Host`] if the host denies prlimit(2).
    pub fn set_memory_limit(&self, limit_bytes: Option<u64>) -> Result<(), Error> {
        let process = &self.inner.process;
        // The stub's own mappings count as well.
        let limit = limit_bytes.map(|limit| limit.saturating_add(STUB_MAPPED_LEN));
        let _alive = process.hold_alive().map_err(|how| Error::StubDied { how })?;
        crate::sys::limit_address_space(process.pid(), limit).map_err(|source| Error::host("prlimit", source))
    }

    /// gVisor `PreFork`: called before a fork by code written for its interface. Nothing to do.
    pub fn pre_fork(&self) {}

    /// gVisor `PostFork`: called after a fork by code written for its interface. Nothing to do.
    pub fn post_fork(&self) {}

    /// Kills the stub process whatever still refers to it, and waits until it is reaped.
    ///
    /// # Errors
    ///
    /// [`Error::StubSilent`] if it did not die within 10 s.
    pub fn release(self) -> Result<(), Error> {
        self.inner.process.kill();
        let limit = Duration::from_secs(10);
        if self.inner.process.wait_dead(limit) {
            Ok(())
        } else {
            Err(Error::StubSilent { seconds: limit.as_secs() })
        }
    }

    /// How the stub process ended, or `None` while it lives.
    #[must_use]
    pub fn stub_exit(&self) -> Option<StubExit> {
        self.inner.process.exit()
    }

    /// The stub process's id, for diagnosis. Once it is dead the number may be somebody else's.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.process.pid()
    }

    /// Lets the leader make a change.
    pub(crate) fn make(&self, mapping: &Mapping) -> Result<(), MapError> {
        mapping.make(&self.inner, |call| self.inner.process.host_call(call))
    }

    fn call(&self, what: &'static str, nr: i64, args: [u64; 6], range: (u64, u64)) -> Result<(), MapError> {
        match self.inner.process.host_call(&HostCall { what, nr, args }) {
            Ok(_) => Ok(()),
            Err(Error::Stub { source, .. }) => {
                Err(MapError::Refused { what, addr: GuestAddr::new(range.0), len_bytes: range.1, source })
            }
            Err(error) => Err(MapError::Platform(error)),
        }
    }
}

fn bounds(addr: GuestAddr, len: u64) -> (u64, u64) {
    (addr.raw(), addr.raw() + len)
}

fn file_id(fd: BorrowedFd<'_>) -> Option<FileId> {
    let stat = nix::sys::stat::fstat(fd).ok()?;
    Some(FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).ok()?,
        mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
    })
}
