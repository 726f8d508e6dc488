//! Looking things up: by site, by instruction pointer, by range.

use std::ops::Range;

use super::{PatchMap, Patched, Placed};
use crate::addr::{GuestAddr, GuestRange, TrampolineAddr};
use crate::plan::{JUMP_LEN, Plan, Tier};
use crate::trampoline::{GuestPosition, Trampoline};
use crate::write::{Change, overlay};

/// No patch has bytes further than this from its site: the planner's line is shorter, and so is the reach of `jmp rel8`.
const SPREAD: u64 = 256;

/// What an instruction pointer means to someone who knows of the patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RipMeaning {
    /// It is the guest's own, as it stands.
    Guest,
    /// It is ours; a guest would see this instead.
    Ours(GuestPosition),
    /// It is in a trampoline where no instruction begins. Only a guest that jumps into trampolines gets there; what
    /// happens to it is its own doing.
    Astray,
}

impl PatchMap {
    /// The plan and trampoline of a patched site.
    #[must_use]
    pub fn find(&self, site: GuestAddr) -> Option<(&Plan, &Trampoline)> {
        let patched = self.sites.get(&site)?;
        Some((&patched.plan, &self.trampolines.get(&patched.trampoline)?.trampoline))
    }

    /// Patched sites, ascending.
    pub fn sites(&self) -> impl Iterator<Item = GuestAddr> {
        self.sites.keys().copied()
    }

    /// What an instruction pointer means, in trampolines (retired ones included) and in padding.
    #[must_use]
    pub fn locate(&self, rip: GuestAddr) -> RipMeaning {
        if let Some(site) = self.paddings.get(&rip).and_then(|at| self.trampolines.get(at)) {
            return RipMeaning::Ours(GuestPosition::At(site.trampoline.site()));
        }
        match self.trampoline_around(rip).map(|p| p.trampoline.guest_position(rip)) {
            None => RipMeaning::Guest,
            Some(None) => RipMeaning::Astray,
            Some(Some(position)) => RipMeaning::Ours(position),
        }
    }

    /// Where a thread must be put whose guest instruction pointer is `addr`: there, or, when a tier 3 patch has
    /// overwritten that instruction, at its copy. To be asked whenever an instruction pointer is set: by a restarted
    /// call, a signal's return, a debugger; and for every saved one after a tier 3 patch was written.
    pub fn resume_at(&self, addr: GuestAddr) -> GuestAddr {
        self.sites_near(addr)
            .filter(|(_, p)| !p.installing)
            .find_map(|(site, patched)| {
                let Tier::Relocated { vanishing } = patched.plan.tier() else { return None };
                let offset = i32::try_from(site.distance_to(addr)).ok().filter(|o| vanishing.contains(o))?;
                let placed = self.trampolines.get(&patched.trampoline)?;
                placed.trampoline.copy_of(site.wrapping_offset(offset.into()))
            })
            .map_or(addr, TrampolineAddr::as_rip)
    }

    /// Whether a SIGTRAP that reports `rip` comes from an `int3` of ours; if so, where to send the thread back to.
    #[must_use]
    pub fn own_breakpoint(&self, rip: GuestAddr) -> Option<GuestAddr> {
        let at = rip.wrapping_offset(-1);
        self.breakpoints.contains_key(&at).then_some(at)
    }

    /// Whether a thread with this instruction pointer keeps [`reclaim`](Self::reclaim) from being called.
    #[must_use]
    pub fn is_retired(&self, rip: GuestAddr) -> bool {
        let padding = self.paddings.get(&rip).and_then(|at| self.trampolines.get(at));
        padding.into_iter().chain(self.trampoline_around(rip)).any(|p| p.retired.is_some())
    }

    fn trampoline_around(&self, rip: GuestAddr) -> Option<&Placed> {
        let (at, placed) = self.trampolines.range(..=TrampolineAddr::new(rip.raw())).next_back()?;
        (at.as_rip().distance_to(rip) < placed.trampoline.bytes().len() as i64).then_some(placed)
    }

    /// The bytes that patches near `site` need, for [`Hints::occupied`](crate::Hints::occupied).
    #[must_use]
    pub fn occupied_near(&self, site: GuestAddr) -> Vec<GuestRange> {
        let code = self.sites_near(site).map(|(site, p)| p.plan.footprint(site));
        let padding = self.paddings.range(spread(GuestRange::of_len(site, 1)));
        code.chain(padding.map(|(at, _)| GuestRange::of_len(*at, JUMP_LEN as u64))).collect()
    }

    /// Whether some of [`occupied_near`](Self::occupied_near) is padding that [`reclaim`](Self::reclaim) would set free:
    /// what is refused for its sake need not be refused for ever.
    #[must_use]
    pub fn has_retired_near(&self, site: GuestAddr) -> bool {
        let mut padding = self.paddings.range(spread(GuestRange::of_len(site, 1)));
        padding.any(|(_, at)| self.trampolines.get(at).is_some_and(|placed| placed.retired.is_some()))
    }

    /// Undoes, in a copy of guest memory that begins at `base`, what patches have changed.
    pub fn overlay_original(&self, base: GuestAddr, bytes: &mut [u8]) {
        self.overlay_changes(base, bytes, |change| &change.old);
    }

    /// The aligned word as it is now, given how it is without patches.
    pub(super) fn current_word(&self, addr: GuestAddr, mut word: [u8; 8]) -> [u8; 8] {
        self.overlay_changes(addr, &mut word, |change| &change.new);
        word
    }

    fn overlay_changes(&self, base: GuestAddr, bytes: &mut [u8], pick: impl Fn(&Change) -> &[u8]) {
        let range = GuestRange::of_len(base, bytes.len() as u64);
        let heads = self.sites_around(range).map(|(_, p)| &p.head);
        let paddings = self.paddings.range(spread(range));
        let paddings = paddings.filter_map(|(_, at)| self.trampolines.get(at)?.padding.as_ref());
        for change in heads.chain(paddings).filter(|c| c.range().overlaps(&range)) {
            overlay(base, bytes, change.addr, pick(change));
        }
    }

    fn sites_near(&self, addr: GuestAddr) -> impl Iterator<Item = (GuestAddr, &Patched)> {
        self.sites_around(GuestRange::of_len(addr, 1))
    }

    /// Sites whose patch may have bytes in the range.
    pub(super) fn sites_around(&self, range: GuestRange) -> impl Iterator<Item = (GuestAddr, &Patched)> {
        self.sites.range(spread(range)).map(|(site, p)| (*site, p))
    }
}

/// The range and what lies within a patch's spread of it.
fn spread(range: GuestRange) -> Range<GuestAddr> {
    let from = GuestAddr::new(range.start.raw().saturating_sub(SPREAD));
    let to = GuestAddr::new(range.end.raw().saturating_add(SPREAD));
    from..to.max(from)
}
