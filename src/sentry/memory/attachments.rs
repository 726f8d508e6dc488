//! Shared mappings of one open file (shmat(2)).

use super::region::{Backing, Region};
use super::{Maker, Mm};
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::{Context, GuestAddr};
use std::sync::Arc;

fn shared_file(region: &Region) -> Option<&Arc<File>> {
    match &region.backing {
        Backing::File { open, .. } => open.as_ref(),
        _ => None,
    }
}

impl Mm {
    /// The open file whose shared mapping begins, with the file, at that address.
    pub(crate) fn shared_file_at(&self, addr: GuestAddr) -> Option<Arc<File>> {
        let state = self.state();
        let region = state.map.find(addr.raw()).filter(|region| region.start == addr.raw())?;
        match &region.backing {
            Backing::File { offset: 0, open, .. } => open.clone(),
            _ => None,
        }
    }

    /// Unmaps what of a range is a shared mapping of that open file.
    pub(crate) fn unmap_file(
        &self,
        context: &mut Context,
        addr: GuestAddr,
        len: u64,
        file: &Arc<File>,
    ) -> Result<(), Errno> {
        let end = addr.raw().saturating_add(len);
        let parts: Vec<(u64, u64)> = {
            let state = self.state();
            let of_file = |region: &&Region| shared_file(region).is_some_and(|open| Arc::ptr_eq(open, file));
            state
                .map
                .overlapping(addr.raw(), end)
                .filter(of_file)
                .map(|part| (part.start, part.end))
                .collect()
        };
        for (start, end) in parts {
            self.unmap(&mut Maker::at_once(context), GuestAddr::new(start), end - start)?;
        }
        Ok(())
    }
}
