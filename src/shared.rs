//! The supervisor's view of memory that it shares with stub processes.
//!
//! # Safety
//!
//! The references handed out point into mappings that live as long as their owner and consist of atomics
//! only, so another process may write them at any time. The mapped files are never shrunk: the descriptors
//! are sealed against it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use systrap_stub::layout::{MAX_SLOTS, PAGE_SIZE, SLOT_SIZE, SYSMSG_LEN};
use systrap_stub::request::Request;
use systrap_stub::sysmsg::{LeaderSlot, SIGSTACK, SIGSTACK_LEN, Sysmsg};

use crate::Error;

fn sealable_memfd(name: &str) -> Result<File, Error> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(name, flags) {
        Ok(fd) => Ok(File::from(fd)),
        Err(errno) => Err(Error::host("memfd_create", errno.into())),
    }
}

fn seal(file: &File, seals: SealFlag) -> Result<(), Error> {
    match fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals)) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::host("sealing a memfd", errno.into())),
    }
}

fn map(file: &File, len: u64, what: &'static str) -> Result<MmapRaw, Error> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    MmapOptions::new().len(len).map_raw(file).map_err(|source| Error::host(what, source))
}

/// A memfd with fixed contents that nobody can change or map writable.
pub(crate) fn sealed_file(name: &str, contents: &[u8]) -> Result<File, Error> {
    use std::io::Write;
    let mut file = sealable_memfd(name)?;
    file.write_all(contents).map_err(|source| Error::host("writing the stub's text", source))?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    seal(&file, seals)?;
    Ok(file)
}

/// The request pages of all address spaces of a platform: writable here, and nowhere else, for the memfd is
/// sealed against future writable mappings.
#[derive(Debug)]
pub(crate) struct RequestPages {
    file: File,
    map: MmapRaw,
    free: Mutex<FreePages>,
    abandoned: Mutex<Vec<Abandoned>>,
}

/// What a stub process may hold of which nobody knows whether it exists.
#[derive(Debug)]
struct Abandoned {
    page: u32,
    /// Keeps the descriptor's number from being used for something else.
    _slots: Slots,
}

/// How many abandoned areas are kept at most: each is two mappings and a descriptor.
const MAX_ABANDONED: usize = 256;

#[derive(Debug)]
struct FreePages {
    released: Vec<u32>,
    untouched: u32,
}

/// How many address spaces a platform can have at once.
pub(crate) const MAX_ADDRESS_SPACES: u32 = 16 * 1024;

impl RequestPages {
    pub(crate) fn new() -> Result<Self, Error> {
        let len = u64::from(MAX_ADDRESS_SPACES) * PAGE_SIZE;
        let file = sealable_memfd("systrap-request")?;
        file.set_len(len).map_err(|source| Error::host("sizing the request memfd", source))?;
        let map = map(&file, len, "mapping the request pages")?;
        let seals = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_FUTURE_WRITE;
        seal(&file, seals)?;
        let free = Mutex::new(FreePages { released: Vec::new(), untouched: 0 });
        Ok(Self { file, map, free, abandoned: Mutex::new(Vec::new()) })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Takes a page whose contents are as new.
    pub(crate) fn take(&self) -> Result<u32, Error> {
        if self.abandoned_count() >= MAX_ABANDONED {
            let what = "forks whose parent died meanwhile";
            return Err(Error::TooMany { what, limit: MAX_ABANDONED as u64 });
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = free.released.pop() {
            self.page(index).seq.store(0, Ordering::Relaxed);
            self.page(index).spin.store(0, Ordering::Relaxed);
            return Ok(index);
        }
        let index = free.untouched;
        if index == MAX_ADDRESS_SPACES {
            return Err(Error::TooMany { what: "address spaces", limit: MAX_ADDRESS_SPACES.into() });
        }
        free.untouched += 1;
        Ok(index)
    }

    /// Gives a page back; nobody may read it any more.
    pub(crate) fn give_back(&self, index: u32) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).released.push(index);
    }

    /// Takes out of use what a clone child may have, when its parent ended without saying whether there is a child.
    ///
    /// Such a child would serve the requests of whoever got the page next, and move the file offset of whatever
    /// got the descriptor's number next. So neither is used again before the reaper has seen to it that there is none, and the page holds a request that no
    /// filter admits: it ends the child at its first look, all signals of a leader being blocked.
    pub(crate) fn abandon(&self, page: u32, slots: Slots) {
        let request = self.page(page);
        request.ops[0].nr.store(u64::MAX, Ordering::Relaxed);
        request.count.store(1, Ordering::Relaxed);
        // Not the number of a request that it may have seen.
        request.seq.store(2, Ordering::SeqCst);
        crate::sys::futex_wake_shared(&request.seq);
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        abandoned.push(Abandoned { page, _slots: slots });
    }

    /// How much is out of use.
    pub(crate) fn abandoned_count(&self) -> usize {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Puts the first `count` abandoned areas back into use: no child of their forks is left.
    pub(crate) fn reclaim(&self, count: usize) {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        for it in abandoned.drain(..count) {
            self.give_back(it.page);
        }
    }

    pub(crate) fn page(&self, index: u32) -> &Request {
        assert!(index < MAX_ADDRESS_SPACES, "request page {index} does not exist");
        // SAFETY: the index is in bounds, the mapping is page-aligned, lives as long as self, and a Request
        // is one page of atomics for which every bit pattern is valid.
        unsafe { &*self.map.as_mut_ptr().add(index as usize * PAGE_SIZE as usize).cast::<Request>() }
    }
}

/// The slots of one address space, and the memfd behind them whose file offset is the leader's answer.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    map: MmapRaw,
}

/// Slots are made in steps, so that a guest cannot fill memory that no thread was given.
pub(crate) const SLOT_STEP: u32 = 16;

impl Slots {
    pub(crate) fn new() -> Result<Self, Error> {
        let file = sealable_memfd("systrap-sysmsg")?;
        file.set_len(u64::from(SLOT_STEP) * SLOT_SIZE)
            .map_err(|source| Error::host("sizing the sysmsg memfd", source))?;
        seal(&file, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL)?;
        let map = map(&file, SYSMSG_LEN, "mapping the sysmsg slots")?;
        Ok(Self { file, map })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Makes `count` slots usable (both processes get SIGBUS beyond).
    pub(crate) fn grow(&self, count: u32) -> io::Result<()> {
        self.file.set_len(u64::from(count) * SLOT_SIZE)
    }

    pub(crate) fn leader(&self) -> &LeaderSlot {
        // SAFETY: slot 0 exists from the start; the mapping is aligned, lives as long as self and consists of atomics.
        unsafe { &*self.map.as_mut_ptr().cast::<LeaderSlot>() }
    }

    /// The slot `index`, which must lie within what [`Slots::grow`] made usable.
    pub(crate) fn sysmsg(&self, index: u32) -> &Sysmsg {
        assert!(u64::from(index) < MAX_SLOTS, "slot {index} does not exist");
        // SAFETY: in bounds, aligned to 64 KiB, lives as long as self, atomics only (padding is never read).
        unsafe { &*self.map.as_mut_ptr().add(index as usize * SLOT_SIZE as usize).cast::<Sysmsg>() }
    }

    /// The signal stack of a slot, as words.
    pub(crate) fn signal_stack(&self, index: u32) -> &[AtomicU64] {
        assert!(u64::from(index) < MAX_SLOTS, "slot {index} does not exist");
        let offset = index as usize * SLOT_SIZE as usize + SIGSTACK as usize;
        // SAFETY: as in `sysmsg`; the stack ends with the slot.
        unsafe {
            std::slice::from_raw_parts(
                self.map.as_mut_ptr().add(offset).cast::<AtomicU64>(),
                SIGSTACK_LEN as usize / 8,
            )
        }
    }
}
