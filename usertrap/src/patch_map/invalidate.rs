//! When the guest's mappings change, when the table is full, and when the guest forks.

use super::{PatchMap, Removal};
use crate::addr::{GuestAddr, GuestRange};
use crate::write::{Step, WriteMode};

/// What happens to a range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Its bytes go away: munmap, a mapping over it, execve. Only what a straddling patch has outside is restored.
    Unmapped,
    /// Its bytes stay but are no longer ours to patch: they become writable, move (mremap), or are to be seen by a
    /// debugger. Everything is restored before.
    Restored,
}

/// What to do before a range is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Invalidated {
    /// Sites that lost their patch, with the stores to make, in order.
    pub removals: Vec<Removal>,
    /// Stores to make after those, when no thread has an instruction pointer that
    /// [`is_retired`](PatchMap::is_retired): padding that trampolines were reached by. Then, before anything else is
    /// mapped there, [`reclaim`](PatchMap::reclaim).
    pub when_left: Vec<Step>,
}

/// A patch was being written when the guest was to be forked. Finish it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the patch of {site} is being written")]
#[non_exhaustive]
pub struct ForkError {
    /// The site.
    pub site: GuestAddr,
}

impl PatchMap {
    /// Drops every patch that has bytes in `range`, and forgets refusals there.
    pub fn invalidate(&mut self, range: GuestRange, loss: Loss, mode: WriteMode) -> Invalidated {
        let affected: Vec<GuestAddr> = self
            .sites_around(range)
            .filter(|(site, p)| super::bytes_used(&p.plan, *site).any(|used| used.overlaps(&range)))
            .map(|(site, _)| site)
            .collect();
        let mut done = Invalidated::default();
        for site in affected {
            let head = self.sites[&site].head.clone();
            let removal = self.remove(site, mode);
            if loss == Loss::Unmapped && head.range().overlaps(&range) {
                // Nobody can arrive at a jump that is partly unmapped: what is left of it needs no care.
                let steps = head.inverse().outside(range).iter().map(|c| c.plain()).collect();
                done.removals.push(Removal { site, steps });
            } else {
                done.removals.extend(removal);
            }
        }
        self.drop_paddings(range, loss, &mut done);
        self.refusals.retain(|site| !range.contains(*site));
        self.breakpoints.retain(|at, _| loss == Loss::Restored || !range.contains(*at));
        done
    }

    /// Padding in the range, of patches just removed or retired before: it cannot be restored later.
    fn drop_paddings(&mut self, range: GuestRange, loss: Loss, done: &mut Invalidated) {
        for placed in self.trampolines.values_mut().filter(|p| p.retired.is_some()) {
            let Some(change) = placed.padding.take_if(|c| c.range().overlaps(&range)) else { continue };
            let undo = change.inverse();
            match loss {
                // A thread may stand there until all have left: it is known as ours until then.
                Loss::Restored => done.when_left.push(undo.plain()),
                Loss::Unmapped => {
                    self.paddings.remove(&change.addr);
                    done.when_left.extend(undo.outside(range).iter().map(|c| c.plain()));
                }
            }
        }
    }

    /// Undoes every patch: for a debugger, a guest that sets its %gs base, or single-stepping.
    pub fn remove_all(&mut self, mode: WriteMode) -> Vec<Removal> {
        let sites: Vec<_> = self.sites().collect();
        sites.into_iter().filter_map(|site| self.remove(site, mode)).collect()
    }

    /// Makes room when [`InstallError::TooManySites`](super::InstallError::TooManySites) or a full arena stands in the
    /// way: removes the oldest finished patch.
    pub fn evict_oldest(&mut self, mode: WriteMode) -> Option<Removal> {
        let oldest = self.by_age.values().copied().find(|site| !self.sites[site].installing)?;
        self.remove(oldest, mode)
    }

    /// The patches of a forked guest: the same, for the child's memory is a copy that includes trampolines.
    ///
    /// # Errors
    /// While a patch is being written, since the child's copy of it would be anything.
    pub fn fork(&self) -> Result<Self, ForkError> {
        match self.sites.iter().find(|(_, p)| p.installing) {
            Some((site, _)) => Err(ForkError { site: *site }),
            None => Ok(self.clone()),
        }
    }
}
