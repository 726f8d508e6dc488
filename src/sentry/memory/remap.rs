//! mremap(2), and holes in shared memory.

use super::{Backing, Mm, Region, State, page_range, page_up};
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host;
use crate::{Context, GuestAddr, Sharing};
use std::os::fd::AsFd as _;
use std::sync::Arc;

impl Mm {
    /// mremap(2).
    pub(crate) fn remap(
        &self,
        context: &mut Context,
        addr: GuestAddr,
        old_len: u64,
        new_len: u64,
        flags: i32,
        target: GuestAddr,
    ) -> Result<GuestAddr, Errno> {
        let fixed = flags & libc::MREMAP_FIXED != 0;
        let may_move = flags & libc::MREMAP_MAYMOVE != 0;
        let stays = flags & libc::MREMAP_DONTUNMAP != 0;
        let known = libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        if flags & !known != 0 || (fixed || stays || old_len == 0) && !may_move || stays && old_len != new_len
        {
            return Err(Errno::EINVAL);
        }
        let (start, end) = page_range(addr, old_len, Errno::EINVAL)?;
        let new_len = page_up(new_len).filter(|len| *len != 0).ok_or(Errno::EINVAL)?;
        let old_len = end - start;
        let mut state = self.state();
        let region = state.map.find(start).cloned().ok_or(Errno::EFAULT)?;
        if fixed {
            let (to, to_end) = page_range(target, new_len, Errno::EINVAL)?;
            if to_end > state.layout.top || to < end && start < to_end {
                return Err(Errno::EINVAL);
            }
            if to < state.layout.bottom {
                return Err(Errno::EPERM);
            }
        }
        if old_len == 0 {
            let to = if fixed { target.raw() } else { state.place(GuestAddr::NULL, new_len, 0)? };
            return self.map_again(&mut state, &region, start, GuestAddr::new(to), new_len);
        }
        if stays && (region.end < end || !matches!(region.backing, Backing::Anonymous) || region.shared) {
            // As Linux before 5.13: only anonymous private memory.
            return Err(Errno::EINVAL);
        }
        if new_len < old_len {
            context.memory(self.space()).unmap(GuestAddr::new(start + new_len), old_len - new_len)?;
            state.map.remove(start + new_len, end);
        }
        let kept = old_len.min(new_len);
        if new_len > old_len && region.end < end {
            return Err(Errno::EFAULT);
        }
        if new_len > old_len {
            let data = region.protection.write && !region.shared;
            state.check_room(&self.limits, new_len - old_len, data, (start, start))?;
        }
        let grows_in_place = end
            .checked_add(new_len - kept)
            .is_some_and(|grown| grown <= state.layout.top && state.map.is_free(end, grown));
        let to = if fixed {
            target.raw()
        } else if stays {
            state.place(GuestAddr::NULL, new_len, 0)?
        } else if new_len <= old_len {
            return Ok(addr);
        } else if region.end == end && grows_in_place {
            start
        } else if may_move {
            state.place(GuestAddr::NULL, new_len, 0)?
        } else {
            return Err(Errno::ENOMEM);
        };
        self.space().remap(addr, kept, GuestAddr::new(to), new_len)?;
        state.map.relocate(start, kept, to, new_len);
        if stays {
            // The range stays, empty.
            self.space().map_anonymous(addr, kept, region.protection)?;
            state.map.insert(Region { start, end: start + kept, ..region });
        }
        Ok(GuestAddr::new(to))
    }

    /// Maps what a shared mapping shows once more (`mremap` with an old length of 0).
    fn map_again(
        &self,
        state: &mut State,
        region: &Region,
        start: u64,
        to: GuestAddr,
        len: u64,
    ) -> Result<GuestAddr, Errno> {
        let backing = region.backing.advanced(start - region.start);
        let Backing::File { open: Some(file), offset, .. } = &backing else { return Err(Errno::EINVAL) };
        self.space().map_file(to, len, file.as_fd(), *offset, region.protection, Sharing::Shared)?;
        let end = to.raw() + len;
        let again = Region { start: to.raw(), end, protection: region.protection, shared: true, backing };
        state.map.insert(again);
        Ok(to)
    }

    /// `MADV_REMOVE`: frees a part of a shared mapping's file.
    pub(super) fn punch(&self, start: u64, end: u64) -> Result<(), Errno> {
        let holes: Vec<(Arc<File>, u64, u64)> = {
            let state = self.state();
            if !state.map.is_covered(start, end) {
                return Err(Errno::ENOMEM);
            }
            let hole = |region: &Region| {
                let (from, to) = (region.start.max(start), region.end.min(end));
                match region.backing.advanced(from - region.start) {
                    Backing::File { open: Some(file), offset, .. } if region.protection.write => {
                        Ok((file, offset, to - from))
                    }
                    Backing::File { open: Some(_), .. } => Err(Errno::EACCES),
                    _ => Err(Errno::EINVAL),
                }
            };
            state.map.overlapping(start, end).map(hole).collect::<Result<_, _>>()?
        };
        for (file, offset, len) in holes {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            host::fallocate(file.as_fd(), mode, offset as i64, len as i64)?;
        }
        Ok(())
    }
}
