//! mmap(2) and its kin, on the record and on the platform's address space.

use super::{Backing, Maker, MappedFile, Mm, Region, State, page_range, page_up, protection};
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::host;
use crate::{Advice, Context, GuestAddr, PAGE_SIZE, Protection, Sharing};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The arguments of one `mmap`, the descriptor looked up.
pub(crate) struct MapRequest {
    pub(crate) addr: GuestAddr,
    pub(crate) len: u64,
    pub(crate) prot: u64,
    pub(crate) flags: i32,
    pub(crate) file: Option<Arc<File>>,
    pub(crate) offset: u64,
}

/// The range in which `MAP_32BIT` searches (arch/x86/kernel/sys_x86_64.c).
const MAP_32BIT_RANGE: (u64, u64) = (0x4000_0000, 0x8000_0000);

impl State {
    /// Where a new mapping goes, by Linux's rules for hints and `MAP_FIXED`.
    pub(super) fn place(&self, addr: GuestAddr, len: u64, flags: i32) -> Result<u64, Errno> {
        let (bottom, top) = (self.layout.bottom, self.layout.top);
        if flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0 {
            let (start, end) = page_range(addr, len, Errno::ENOMEM)?;
            if end > top {
                return Err(Errno::ENOMEM);
            }
            if start < bottom {
                return Err(Errno::EPERM);
            }
            if flags & libc::MAP_FIXED_NOREPLACE != 0 && !self.map.is_free(start, end) {
                return Err(Errno::EEXIST);
            }
            return Ok(start);
        }
        if flags & libc::MAP_32BIT != 0 {
            return self.map.find_free_below(len, MAP_32BIT_RANGE.0, MAP_32BIT_RANGE.1).ok_or(Errno::ENOMEM);
        }
        let hint = addr.page_down().raw();
        if hint >= bottom
            && let Some(end) = hint.checked_add(len)
            && end <= top
            && self.map.is_free(hint, end)
        {
            return Ok(hint);
        }
        self.map
            .find_free_below(len, bottom, self.layout.mmap_top)
            .or_else(|| self.map.find_free_below(len, bottom, top))
            .ok_or(Errno::ENOMEM)
    }
}

/// The longest range that one host call advises, far below what a stub may name.
const MOST_ADVISED: u64 = 1 << 40;

impl Mm {
    /// Where a mapping of that length would go; nothing is reserved.
    pub(crate) fn find_room(&self, len: u64) -> Result<u64, Errno> {
        self.state().place(GuestAddr::NULL, len, 0)
    }

    /// mmap(2).
    pub(crate) fn map(&self, maker: &mut Maker<'_>, request: &MapRequest) -> Result<GuestAddr, Errno> {
        let shared = match request.flags & libc::MAP_TYPE {
            libc::MAP_PRIVATE => false,
            libc::MAP_SHARED => true,
            libc::MAP_SHARED_VALIDATE if request.flags & libc::MAP_SYNC != 0 => {
                return Err(Errno::EOPNOTSUPP);
            }
            libc::MAP_SHARED_VALIDATE => true,
            _ => return Err(Errno::EINVAL),
        };
        if request.len == 0 || !request.offset.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let len = page_up(request.len).ok_or(Errno::ENOMEM)?;
        if request.flags & libc::MAP_HUGETLB != 0 {
            return Err(Errno::ENOMEM); // as on a host without reserved huge pages
        }
        let protection = protection(request.prot);
        let mut state = self.state();
        let start = state.place(request.addr, len, request.flags)?;
        state.check_room(&self.limits, len, protection.write && !shared, (start, start + len))?;
        let addr = GuestAddr::new(start);
        let populates = request.flags & (libc::MAP_POPULATE | libc::MAP_LOCKED) != 0
            && request.flags & libc::MAP_NONBLOCK == 0;
        let backing = match &request.file {
            Some(file) => {
                let sharing = if shared { Sharing::Shared } else { Sharing::Private };
                self.space().map_file(addr, len, file.as_fd(), request.offset, protection, sharing)?;
                file_backing(file, request.offset, shared)
            }
            None if shared => {
                // The name is the one that Linux gives shared anonymous memory.
                let memory = host::memfd_create(c"zero", libc::MFD_CLOEXEC)?;
                host::ftruncate(memory.as_fd(), i64::try_from(len).map_err(|_| Errno::ENOMEM)?)?;
                self.space().map_file(addr, len, memory.as_fd(), 0, protection, Sharing::Shared)?;
                shared_memory_backing(memory)
            }
            None => {
                maker.map_anonymous(self.space(), &state, (start, start + len), protection, !populates)?;
                Backing::Anonymous
            }
        };
        state.map.insert(Region { start, end: start + len, protection, shared, backing });
        state.forget_fork_advice(start, start + len);
        drop(state);
        if populates {
            let advice =
                if protection.write && !shared { Advice::PopulateWrite } else { Advice::PopulateRead };
            // Populating is best effort, as in the kernel.
            let _ = maker.context.memory(self.space()).advise(addr, len, advice);
        }
        Ok(addr)
    }

    /// Maps zero pages of a special area at a fixed address, for the loader.
    pub(crate) fn map_named(&self, start: u64, len: u64, bits: i32, name: &'static str) -> Result<(), Errno> {
        let protection = protection(bits as u64);
        let mut state = self.state();
        self.space().map_anonymous(GuestAddr::new(start), len, protection)?;
        let backing = Backing::Named(name);
        state.map.insert(Region { start, end: start + len, protection, shared: false, backing });
        Ok(())
    }

    /// munmap(2).
    pub(crate) fn unmap(&self, maker: &mut Maker<'_>, addr: GuestAddr, len: u64) -> Result<(), Errno> {
        let (start, end) = page_range(addr, len, Errno::EINVAL)?;
        let mut state = self.state();
        if len == 0 || end > state.layout.top {
            return Err(Errno::EINVAL);
        }
        if !state.map.is_free(start, end) {
            maker.unmap(self.space(), &state, (start, end))?;
            state.map.remove(start, end);
            state.forget_locked(start, end);
            state.forget_fork_advice(start, end);
        }
        Ok(())
    }

    /// mprotect(2).
    pub(crate) fn protect(
        &self,
        maker: &mut Maker<'_>,
        addr: GuestAddr,
        len: u64,
        bits: u64,
    ) -> Result<(), Errno> {
        const KNOWN: u64 = 0xf; // PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM
        let (start, end) = page_range(addr, len, Errno::ENOMEM)?;
        if bits & !KNOWN != 0 {
            return Err(Errno::EINVAL);
        }
        if start == end {
            return Ok(());
        }
        let protection = protection(bits);
        let mut state = self.state();
        if !state.map.is_covered(start, end) {
            return Err(Errno::ENOMEM);
        }
        maker.protect(self.space(), &state, (start, end), protection)?;
        state.map.protect(start, end, protection);
        Ok(())
    }

    /// brk(2): the new end of the heap, or the old one when it cannot move there.
    pub(crate) fn brk(&self, context: &mut Context, wanted: GuestAddr) -> GuestAddr {
        let mut state = self.state();
        let wanted = wanted.raw();
        if wanted >= state.brk_start
            && wanted < state.layout.top
            && let (Some(old), Some(new)) = (page_up(state.brk), page_up(wanted))
        {
            let done = if new > old {
                let rw = Protection { read: true, write: true, execute: false };
                // One page stays free between the heap and what is above it, as in the kernel.
                let grown = state.map.is_free(old, new + PAGE_SIZE)
                    && state.check_room(&self.limits, new - old, true, (old, old)).is_ok()
                    && context.memory(self.space()).map_anonymous(GuestAddr::new(old), new - old, rw).is_ok();
                if grown {
                    let backing = Backing::Named("[heap]");
                    state.map.insert(Region { start: old, end: new, protection: rw, shared: false, backing });
                }
                grown
            } else if new < old {
                let shrunk = context.memory(self.space()).unmap(GuestAddr::new(new), old - new).is_ok();
                if shrunk {
                    state.map.remove(new, old);
                }
                shrunk
            } else {
                true
            };
            if done {
                state.brk = wanted;
            }
        }
        GuestAddr::new(state.brk)
    }

    /// madvise(2).
    pub(crate) fn advise(
        &self,
        context: &mut Context,
        addr: GuestAddr,
        len: u64,
        advice: i32,
    ) -> Result<(), Errno> {
        let (start, end) = page_range(addr, len, Errno::EINVAL)?;
        if advice == libc::MADV_REMOVE {
            return self.punch(start, end);
        }
        if let Some(result) = self.state().advise_fork(start, end, advice) {
            return result;
        }
        let advice = match advice {
            libc::MADV_NORMAL => Advice::Normal,
            libc::MADV_RANDOM => Advice::Random,
            libc::MADV_SEQUENTIAL => Advice::Sequential,
            libc::MADV_WILLNEED => Advice::WillNeed,
            libc::MADV_DONTNEED => Advice::DontNeed,
            libc::MADV_FREE => Advice::Free,
            libc::MADV_HUGEPAGE => Advice::HugePage,
            libc::MADV_NOHUGEPAGE => Advice::NoHugePage,
            libc::MADV_POPULATE_READ => Advice::PopulateRead,
            libc::MADV_POPULATE_WRITE => Advice::PopulateWrite,
            // Hints about core dumps and reclaim: nothing to do is a correct answer.
            libc::MADV_DONTDUMP | libc::MADV_DODUMP | libc::MADV_COLD | libc::MADV_PAGEOUT => {
                let covered = self.state().map.is_covered(start, end);
                return if covered { Ok(()) } else { Err(Errno::ENOMEM) };
            }
            _ => return Err(Errno::EINVAL),
        };
        if start == end {
            return Ok(());
        }
        // What lies next to each other is one call: a thread's stack and its guard page when it ends.
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for part in self.state().map.overlapping(start, end) {
            let (from, to) = (part.start.max(start), part.end.min(end));
            match parts.last_mut().filter(|last| last.1 == from && to - last.0 <= MOST_ADVISED) {
                Some(last) => last.1 = to,
                None => parts.push((from, to)),
            }
        }
        let mut covered_to = start;
        let mut hole = false;
        for (from, to) in parts {
            hole |= from > covered_to;
            covered_to = to;
            context.memory(self.space()).advise(GuestAddr::new(from), to - from, advice)?;
        }
        if hole || covered_to < end { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// msync(2): dirty pages of a shared mapping are in the host's page cache already; `MS_SYNC` has them written.
    pub(crate) fn sync(&self, addr: GuestAddr, len: u64, flags: i32) -> Result<(), Errno> {
        let known = libc::MS_ASYNC | libc::MS_SYNC | libc::MS_INVALIDATE;
        let both = libc::MS_ASYNC | libc::MS_SYNC;
        if flags & !known != 0 || flags & both == both {
            return Err(Errno::EINVAL);
        }
        let (start, end) = page_range(addr, len, Errno::ENOMEM)?;
        let files: Vec<Arc<File>> = {
            let state = self.state();
            if !state.map.is_covered(start, end) {
                return Err(Errno::ENOMEM);
            }
            let open = |region: &Region| match &region.backing {
                Backing::File { open, .. } => open.clone(),
                _ => None,
            };
            state.map.overlapping(start, end).filter_map(open).collect()
        };
        if flags & libc::MS_SYNC != 0 {
            for file in files {
                host::fdatasync(file.as_fd())?;
            }
        }
        Ok(())
    }

    /// Device, inode and offset of a word in a shared mapping; `None` for private memory and for none.
    pub(crate) fn shared_word(&self, addr: GuestAddr) -> Option<(u64, u64, u64)> {
        let state = self.state();
        let region = state.map.find(addr.raw()).filter(|region| region.shared)?;
        match &region.backing {
            Backing::File { identity, offset, .. } => {
                Some((identity.device, identity.inode, offset.wrapping_add(addr.raw() - region.start)))
            }
            Backing::Anonymous | Backing::Named(_) => None,
        }
    }

    /// Whether every page of the range is mapped.
    pub(crate) fn is_mapped(&self, addr: GuestAddr, len: u64) -> Result<bool, Errno> {
        let (start, end) = page_range(addr, len, Errno::ENOMEM)?;
        Ok(self.state().map.is_covered(start, end))
    }
}

/// Shared anonymous memory is a file of the kernel's own (`shmem_zero_setup`).
fn shared_memory_backing(memory: OwnedFd) -> Backing {
    let mut stat = [0; 144];
    let _ = host::fstat(memory.as_fd(), &mut stat);
    let stat = StatView(&stat);
    let path = "/dev/zero (deleted)".to_owned();
    let identity = MappedFile { path, device: stat.device(), inode: stat.inode() };
    Backing::File { identity: Arc::new(identity), offset: 0, open: Some(Arc::new(File::new(memory))) }
}

/// Identity and offset of a file mapping, for `/proc/self/maps`.
fn file_backing(file: &Arc<File>, offset: u64, shared: bool) -> Backing {
    let mut stat = [0; 144];
    let _ = host::fstat(file.as_fd(), &mut stat);
    let stat = StatView(&stat);
    let path = file.shown_path().unwrap_or_default();
    let path = String::from_utf8_lossy(&path).into_owned();
    let identity = MappedFile { path, device: stat.device(), inode: stat.inode() };
    Backing::File { identity: Arc::new(identity), offset, open: shared.then(|| Arc::clone(file)) }
}
