//! Eager patching: the sites of a file are planned when its code is mapped, and patched all at once.
//!
//! A scan takes time in proportion to the file (a C library: some ten milliseconds) and is made once per content. A
//! guest that maps ever new files makes its supervisor scan each; files of more than [`MAX_FILE_BYTES`] are left to
//! lazy patching.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use usertrap::Plan;

use super::batch::{Batch, Company};
use super::code_map::{Code, FileId};
use super::files::Knowledge;
use super::hands::Hands;
use super::lock;
use crate::address_space::SpaceInner;
use crate::platform::Inner;
use crate::{GuestAddr, Patching};

/// Files of more bytes are not scanned.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Patches what was mapped at `from..to` or became executable there, if the address space is patched eagerly.
/// `fd` is the file behind it, if that is at hand; else its plans have to be known.
pub(crate) fn patch_mapped(space: &SpaceInner, (from, to): (u64, u64), fd: Option<BorrowedFd<'_>>) {
    for code in mapped_code(space, from, to) {
        let Some((id, offset)) = code.file else { continue };
        let begun = Instant::now();
        let known = learn(&space.platform, &id, fd);
        let scanned_at = Instant::now();
        let plans = known.then(|| {
            let mut files = space.platform.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.known_in(&id, offset, offset.saturating_add(code.range.1 - code.range.0))
        });
        let patched = match &plans {
            Some(plans) if !plans.is_empty() => patch(space, code, plans),
            _ => 0,
        };
        space.platform.counters.count_eager(|eager| {
            eager.mappings_left += u64::from(!known);
            eager.sites_patched += patched;
            eager.scan_time += scanned_at - begun;
            eager.patch_time += scanned_at.elapsed();
        });
    }
}

/// The patchable mappings in the range; none unless patching is eager.
fn mapped_code(space: &SpaceInner, from: u64, to: u64) -> Vec<Code> {
    let books = lock(space);
    if books.mode == Patching::Eager { books.code.patchable(from, to) } else { Vec::new() }
}

/// Sees to it that the plans of a file are known.
fn learn(platform: &Inner, id: &FileId, fd: Option<BorrowedFd<'_>>) -> bool {
    let files = || platform.files.lock().unwrap_or_else(PoisonError::into_inner);
    match (files().knowledge(id), fd) {
        (Some(Knowledge::Scanned), _) => return true,
        (Some(Knowledge::Unreadable), _) | (_, None) => return false,
        (Some(Knowledge::Executed) | None, Some(_)) => {}
    }
    let plans = fd.and_then(|fd| scan(id, fd));
    let known = plans.is_some();
    if let Some(plans) = &plans {
        let mut cache = platform.plans.lock().unwrap_or_else(PoisonError::into_inner);
        for (offset, plan) in plans {
            cache.insert(id.site(*offset), Ok(Arc::clone(plan)));
        }
        platform.counters.count_eager(|eager| {
            eager.files_scanned += 1;
            eager.sites_planned += plans.len() as u64;
        });
    }
    files().scanned(*id, plans);
    known
}

/// The plans of an ELF file. It is read, not mapped: whoever truncates it meanwhile does no harm.
///
/// Refusals are left out: a site that traps is executed, which proves more than a scan can.
fn scan(id: &FileId, fd: BorrowedFd<'_>) -> Option<Vec<(u64, Arc<Plan>)>> {
    if id.size_bytes > MAX_FILE_BYTES {
        return None;
    }
    let mut magic = [0; 4];
    read_whole(fd, &mut magic)?;
    if magic != *b"\x7fELF" {
        return None;
    }
    let mut data = vec![0; usize::try_from(id.size_bytes).ok()?];
    read_whole(fd, &mut data)?;
    let scan = usertrap::scan(&data).ok()?;
    let plans =
        scan.sites.into_iter().filter_map(|site| Some((site.file_offset, Arc::new(site.result.ok()?))));
    Some(plans.collect())
}

/// The first bytes of a file, wherever its position is.
fn read_whole(fd: BorrowedFd<'_>, data: &mut [u8]) -> Option<()> {
    let mut done = 0;
    while done < data.len() {
        match nix::sys::uio::pread(fd, &mut data[done..], i64::try_from(done).ok()?) {
            Ok(0) => return None,
            Ok(count) => done += count,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}

fn patch(space: &SpaceInner, code: Code, plans: &[(u64, Arc<Plan>)]) -> u64 {
    let mut books = lock(space);
    let books = &mut *books;
    // It may have changed since the plans were looked up.
    let closed = books.mode != Patching::Eager || books.rounds.are_closed();
    if closed || books.code.around(GuestAddr::new(code.range.0)) != Some(code) {
        return 0;
    }
    let Ok(thread) = space.process.take_thread() else { return 0 };
    let hands = Hands::new(&space.platform, &thread);
    // Who attaches does so under the lock of the books.
    let company = match space.process.attached_count() {
        0 => Company::None,
        _ if books.barriers => Company::Running,
        _ => Company::RunningWithoutBarriers,
    };
    let patched = Batch { space, hands: &hands, code, company }.patch(books, plans);
    books.code.set_batched(code.range.0);
    thread.park();
    patched
}
