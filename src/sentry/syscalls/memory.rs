//! The memory calls.

use super::SysResult;
use super::args::{Fd, Hex, MapFlags, MemoryAdvice, Protections, RemapFlags, SyncFlags};
use crate::GuestAddr;
use crate::sentry::credentials::cap;
use crate::sentry::errno::Errno;
use crate::sentry::memory::{Maker, MapRequest, Mm};
use crate::sentry::task::{AfterCall, Task};

impl Task {
    /// Makes a change of mappings, as the guest goes on if that is possible: not if a hook waits for its result, or a
    /// signal for the guest.
    fn change_memory<T>(
        &mut self,
        change: impl FnOnce(&Mm, &mut Maker<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let waits = !self.observer.hooks.is_watching()
            && !self.handle.attention.is_raised()
            && self.signals.saved_mask.is_none();
        let mut maker =
            if waits { Maker::on_return(&mut self.context) } else { Maker::at_once(&mut self.context) };
        let result = change(&self.mm, &mut maker);
        if let Some(undo) = maker.into_undo() {
            self.after_call = AfterCall::Changed(undo);
        }
        result
    }

    fn apply_memory_limits(&self) {
        self.mm.set_limits(&self.process.limits());
    }

    /// How much the task may lock; `None`: as much as it likes.
    fn lock_limit(&self) -> Option<u64> {
        let limit = self.process.limits().soft(libc::RLIMIT_MEMLOCK);
        (limit != libc::RLIM_INFINITY && !self.credentials().has(cap::IPC_LOCK)).then_some(limit)
    }
}

fn address(addr: GuestAddr) -> i64 {
    addr.raw() as i64
}

pub(super) fn mmap(
    task: &mut Task,
    addr: GuestAddr,
    len: u64,
    prot: Protections,
    flags: MapFlags,
    fd: Fd,
    offset: Hex,
) -> SysResult {
    let file = if flags.0 & libc::MAP_ANONYMOUS != 0 { None } else { Some(task.file(fd.0)?) };
    let offset = if file.is_some() { offset.0 } else { 0 };
    task.apply_memory_limits();
    let request = MapRequest { addr, len, prot: prot.0, flags: flags.0, file, offset };
    task.change_memory(|mm, maker| mm.map(maker, &request)).map(address)
}

pub(super) fn munmap(task: &mut Task, addr: GuestAddr, len: u64) -> SysResult {
    task.change_memory(|mm, maker| mm.unmap(maker, addr, len)).map(|()| 0)
}

pub(super) fn mprotect(task: &mut Task, addr: GuestAddr, len: u64, prot: Protections) -> SysResult {
    task.change_memory(|mm, maker| mm.protect(maker, addr, len, prot.0)).map(|()| 0)
}

pub(super) fn mremap(
    task: &mut Task,
    addr: GuestAddr,
    old_len: u64,
    new_len: u64,
    flags: RemapFlags,
    new_addr: GuestAddr,
) -> SysResult {
    task.apply_memory_limits();
    task.mm.remap(&mut task.context, addr, old_len, new_len, flags.0, new_addr).map(address)
}

pub(super) fn brk(task: &mut Task, addr: GuestAddr) -> SysResult {
    task.apply_memory_limits();
    Ok(address(task.mm.brk(&mut task.context, addr)))
}

pub(super) fn madvise(task: &mut Task, addr: GuestAddr, len: u64, advice: MemoryAdvice) -> SysResult {
    task.mm.advise(&mut task.context, addr, len, advice.0).map(|()| 0)
}

pub(super) fn msync(task: &mut Task, addr: GuestAddr, len: u64, flags: SyncFlags) -> SysResult {
    task.mm.sync(addr, len, flags.0).map(|()| 0)
}

/// The whole pages of a range whose start need not be a page's.
fn whole_pages(addr: GuestAddr, len: u64) -> Result<(GuestAddr, u64), Errno> {
    let len = len.checked_add(addr.raw() % crate::PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    Ok((addr.page_down(), len))
}

/// Locked memory is a promise about paging that a sentry cannot keep for its stub; it is counted and limited.
pub(super) fn mlock(task: &mut Task, addr: GuestAddr, len: u64) -> SysResult {
    let (addr, len) = whole_pages(addr, len)?;
    task.mm.lock_pages(addr, len, task.lock_limit()).map(|()| 0)
}

pub(super) fn mlock2(task: &mut Task, addr: GuestAddr, len: u64, flags: i32) -> SysResult {
    if flags & !(libc::MLOCK_ONFAULT as i32) != 0 {
        return Err(Errno::EINVAL);
    }
    mlock(task, addr, len)
}

pub(super) fn munlock(task: &mut Task, addr: GuestAddr, len: u64) -> SysResult {
    let (addr, len) = whole_pages(addr, len)?;
    task.mm.unlock_pages(addr, len).map(|()| 0)
}

pub(super) fn mlockall(task: &mut Task, flags: i32) -> SysResult {
    let known = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    if flags == 0 || flags & !known != 0 || flags == libc::MCL_ONFAULT {
        return Err(Errno::EINVAL);
    }
    let limit = task.lock_limit();
    if limit == Some(0) {
        return Err(Errno::EPERM);
    }
    task.mm.lock_all(flags & libc::MCL_CURRENT != 0, limit).map(|()| 0)
}

pub(super) fn munlockall(task: &mut Task) -> SysResult {
    task.mm.lock_all(false, None).map(|()| 0)
}

/// Every mapped page is called resident: which ones are is the host's business and changes at any time.
pub(super) fn mincore(task: &mut Task, addr: GuestAddr, len: u64, residency: GuestAddr) -> SysResult {
    if !addr.is_page_aligned() {
        return Err(Errno::EINVAL);
    }
    if !task.mm.is_mapped(addr, len)? {
        return Err(Errno::ENOMEM);
    }
    const PIECE: u64 = 4096;
    let pages = len.div_ceil(crate::PAGE_SIZE);
    let mut done = 0;
    while done < pages {
        let count = (pages - done).min(PIECE);
        let to = residency.checked_add(done).ok_or(Errno::EFAULT)?;
        let resident = task.mm.residency(addr.raw() + done * crate::PAGE_SIZE, count)?;
        task.memory().write(to, &resident)?;
        done += count;
    }
    Ok(0)
}
