//! Trampolines that no patch leads to any more, and getting their memory back.

use super::{PatchMap, Patched, Placed};
use crate::addr::{GuestAddr, TrampolineAddr};
use crate::arena::TrampolineMemory;
use crate::write::{Change, Step};

/// Retirements of one address space are numbered, so that those up to a moment can be told from later ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Retirement(u64);

impl PatchMap {
    pub(super) fn retire(&mut self, site: GuestAddr) -> Option<Patched> {
        let patched = self.sites.remove(&site)?;
        self.by_age.remove(&patched.serial);
        if let Some(placed) = self.trampolines.get_mut(&patched.trampoline) {
            self.last_retirement.0 += 1;
            self.retired += 1;
            placed.retired = Some(self.last_retirement);
        }
        Some(patched)
    }

    /// Frees everything retired, and says how to restore its padding. To be called when no thread of the address space
    /// has an instruction pointer that [`is_retired`](Self::is_retired); make the steps before anything else runs.
    pub fn reclaim<M: TrampolineMemory>(&mut self, memory: &mut M) -> Vec<Step> {
        self.reclaim_until(self.last_retirement, memory)
    }

    /// The same of what was retired up to a moment, when no thread is left that ran at that moment and has not been
    /// outside since.
    pub fn reclaim_until<M: TrampolineMemory>(&mut self, until: Retirement, memory: &mut M) -> Vec<Step> {
        let gone = |placed: &Placed| placed.retired.is_some_and(|number| number <= until);
        let retired: Vec<_> = self.trampolines.iter().filter(|(_, p)| gone(p)).map(|(at, _)| *at).collect();
        retired
            .into_iter()
            .filter_map(|at| self.release(at, true, memory))
            .map(|c| c.inverse().plain())
            .collect()
    }

    /// The latest retirement: what is retired from now on comes behind it.
    #[must_use]
    pub fn last_retirement(&self) -> Retirement {
        self.last_retirement
    }

    /// Trampolines that are retired and not reclaimed.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired
    }

    /// Forgets a retired trampoline; gives the change of its padding.
    pub(super) fn release<M: TrampolineMemory>(
        &mut self,
        at: TrampolineAddr,
        was_executed: bool,
        memory: &mut M,
    ) -> Option<Change> {
        let placed = self.trampolines.remove(&at)?;
        self.retired -= usize::from(placed.retired.is_some());
        self.paddings.retain(|_, owner| *owner != at);
        self.breakpoints.retain(|_, owner| *owner != at);
        match was_executed {
            true => self.arena.free(placed.slot, memory),
            false => self.arena.free_unused(placed.slot, memory),
        }
        placed.padding
    }
}
