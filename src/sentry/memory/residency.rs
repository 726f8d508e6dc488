//! mincore(2): which pages are there.

use super::{Backing, Mm};
use crate::PAGE_SIZE;
use crate::sentry::errno::Errno;
use std::os::unix::fs::FileExt as _;

impl Mm {
    /// One byte for each page: of private memory whether it has been touched, as the host's page map tells. Pages of files
    /// count as there.
    pub(crate) fn residency(&self, start: u64, pages: u64) -> Result<Vec<u8>, Errno> {
        const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;
        let mut resident = vec![1; usize::try_from(pages).map_err(|_| Errno::ENOMEM)?];
        let Ok(pagemap) = std::fs::File::open(format!("/proc/{}/pagemap", self.space().pid())) else {
            return Ok(resident); // a host that does not tell
        };
        let mut entries = vec![0; 8 * resident.len()];
        pagemap.read_exact_at(&mut entries, start / PAGE_SIZE * 8)?;
        let state = self.state();
        let entries = entries.chunks_exact(8).zip((start..).step_by(PAGE_SIZE as usize));
        for (byte, (entry, addr)) in resident.iter_mut().zip(entries) {
            let is_private = state
                .map
                .find(addr)
                .is_some_and(|region| !region.shared && !matches!(region.backing, Backing::File { .. }));
            let entry = u64::from_ne_bytes(entry.try_into().map_err(|_| Errno::EIO)?);
            let is_locked = state.locked.iter().any(|(from, to)| (*from..*to).contains(&addr));
            *byte = u8::from(!is_private || is_locked || entry & PRESENT_OR_SWAPPED != 0);
        }
        Ok(resident)
    }
}
