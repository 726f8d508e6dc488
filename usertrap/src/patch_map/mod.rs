//! The patches of one address space.
//!
//! Pure bookkeeping: it says which stores to make and believes the caller that they were made. The caller serialises
//! its calls (one lock per address space).
//!
//! A patch's life: [`prepare`](PatchMap::prepare) → the caller makes the steps → [`commit`](PatchMap::commit) →
//! [`remove`](PatchMap::remove) → the caller makes the steps; the trampoline and the padding are now *retired*, for a
//! thread may still be in them → [`reclaim`](PatchMap::reclaim), once no thread is, or
//! [`reclaim_until`](PatchMap::reclaim_until), once none is that may have entered before some moment.

mod invalidate;
mod locate;
mod retire;

use std::collections::BTreeMap;

pub use invalidate::{ForkError, Invalidated, Loss};
pub use locate::RipMeaning;
pub use retire::Retirement;

use crate::addr::{GuestAddr, GuestRange, SyshandlerAddr, TrampolineAddr};
use crate::arena::{Arena, ArenaError, Slot, TrampolineMemory};
use crate::bounded::BoundedMap;
use crate::plan::{JUMP_LEN, Plan, Refusal, Tier};
use crate::trampoline::{BuildError, Trampoline};
use crate::window::{CodeWindow, SYSCALL};
use crate::write::{Change, Step, WriteMode, overlay};

/// Caps of one address space. Guests choose sites, so everything kept per site has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sites patched at a time.
    pub max_sites: usize,
    /// Bytes of trampoline memory, retired trampolines included.
    pub max_trampoline_bytes: usize,
    /// Refusals remembered.
    pub max_refusals: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_sites: 32 * 1024, max_trampoline_bytes: 8 << 20, max_refusals: 8 * 1024 }
    }
}

/// Why a plan was not made into a patch. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError<E> {
    /// The site has a patch, or one is being made. The race of two threads that trap at once ends here, harmlessly.
    #[error("the site is patched already")]
    AlreadyPatched,
    /// The guest's bytes are not those the plan was made from: plan again.
    #[error("the bytes have changed since they were planned for")]
    BytesChanged,
    /// Another patch uses bytes that the plan needs: plan again with [`PatchMap::occupied_near`].
    #[error("another patch uses the bytes")]
    Overlaps,
    /// The mode cannot write this patch: [`WriteMode::Atomic`] a straddling one, or any but
    /// [`WriteMode::Stopped`] a tier 3 one.
    #[error("the bytes cannot be written in that way")]
    WrongMode,
    /// What the plan's copies refer to wraps around the end of the address space: no trampoline reaches it.
    #[error("no trampoline can reach what the instructions refer to")]
    OutOfReach,
    /// As many sites as [`Limits::max_sites`]: see [`PatchMap::evict_oldest`].
    #[error("too many sites are patched")]
    TooManySites,
    /// No memory for the trampoline.
    #[error(transparent)]
    Arena(#[from] ArenaError<E>),
    /// The trampoline could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// What to write to make a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Installation {
    /// The site.
    pub site: GuestAddr,
    /// The trampoline; the first step writes it.
    pub trampoline: Trampoline,
    /// To be made in order, each complete before the next. If one fails, make no further one and call
    /// [`PatchMap::remove`] (or [`PatchMap::cancel`] if none but [`Step::Trampoline`] was made).
    pub steps: Vec<Step>,
}

/// What to write to undo a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// The site.
    pub site: GuestAddr,
    /// To be made in order.
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
struct Patched {
    trampoline: TrampolineAddr,
    plan: Plan,
    head: Change,
    /// The aligned word around the head without any patch, where the head lies in one.
    word: Option<[u8; 8]>,
    installing: bool,
    serial: u64,
}

/// A trampoline, live or retired.
#[derive(Clone, Debug)]
struct Placed {
    slot: Slot,
    trampoline: Trampoline,
    padding: Option<Change>,
    /// The number of its retirement.
    retired: Option<Retirement>,
}

/// The patches of one address space, and the sites known to be unpatchable.
#[derive(Clone, Debug)]
pub struct PatchMap {
    limits: Limits,
    sites: BTreeMap<GuestAddr, Patched>,
    by_age: BTreeMap<u64, GuestAddr>,
    trampolines: BTreeMap<TrampolineAddr, Placed>,
    /// Padding in use, retired included, and the trampoline it leads to.
    paddings: BTreeMap<GuestAddr, TrampolineAddr>,
    /// Where an `int3` of ours is or may have been, until no thread can still report it.
    breakpoints: BTreeMap<GuestAddr, TrampolineAddr>,
    refusals: BoundedMap<GuestAddr, Refusal>,
    arena: Arena,
    serial: u64,
    last_retirement: Retirement,
    retired: usize,
}

impl PatchMap {
    /// The patches of a fresh address space: none.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sites: BTreeMap::new(),
            by_age: BTreeMap::new(),
            trampolines: BTreeMap::new(),
            paddings: BTreeMap::new(),
            breakpoints: BTreeMap::new(),
            refusals: BoundedMap::new(limits.max_refusals),
            arena: Arena::new(limits.max_trampoline_bytes),
            serial: 0,
            last_retirement: Retirement::default(),
            retired: 0,
        }
    }

    /// Allocates and builds the trampoline and says what to write.
    ///
    /// `window` holds the guest's bytes as they are now, without patches
    /// ([`overlay_original`](Self::overlay_original)). For [`WriteMode::Atomic`] it has to include the whole aligned
    /// word around the bytes that change.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub fn prepare<M: TrampolineMemory>(
        &mut self,
        plan: &Plan,
        window: &CodeWindow<'_>,
        syshandler: SyshandlerAddr,
        mode: WriteMode,
        memory: &mut M,
    ) -> Result<Installation, InstallError<M::Error>> {
        let site = window.site();
        self.admit(plan, window, mode)?;
        let reach = plan.reach(site).ok_or(InstallError::OutOfReach)?;
        let slot = self.arena.allocate(Trampoline::max_len(plan), reach, memory)?;
        let built = Trampoline::build(plan, site, slot.at, syshandler);
        let trampoline = built.inspect_err(|_| self.arena.free_unused(slot, memory))?;
        let (head, padding) = changes(plan, site, slot.at);
        let word = window.get_at(head.addr.qword(), 8).and_then(|w| w.try_into().ok());
        let now = word.map(|word| {
            let mut now = self.current_word(head.addr.qword(), word);
            // The padding is written first, and may lie in the same word.
            padding.iter().for_each(|p| overlay(head.addr.qword(), &mut now, p.addr, &p.new));
            now
        });
        let Some(head_steps) = head.steps(mode, now) else {
            self.arena.free_unused(slot, memory);
            return Err(InstallError::WrongMode);
        };
        let mut steps = vec![Step::Trampoline { at: slot.at, bytes: trampoline.bytes().to_vec() }];
        steps.extend(padding.as_ref().map(Change::plain));
        // Fresh trampoline memory was never executed. Everything else may be in a pipeline somewhere.
        if mode != WriteMode::Stopped && (slot.reused || padding.is_some()) {
            steps.push(Step::Barrier);
        }
        steps.extend(head_steps);
        if mode == WriteMode::Breakpoint {
            self.breakpoints.insert(head.addr, slot.at);
        }
        self.paddings.extend(padding.as_ref().map(|p| (p.addr, slot.at)));
        let placed = Placed { slot, trampoline: trampoline.clone(), padding, retired: None };
        self.trampolines.insert(slot.at, placed);
        self.serial += 1;
        self.by_age.insert(self.serial, site);
        let (plan, serial) = (plan.clone(), self.serial);
        let patched = Patched { trampoline: slot.at, plan, head, word, installing: true, serial };
        self.sites.insert(site, patched);
        self.refusals.remove(&site);
        Ok(Installation { site, trampoline, steps })
    }

    /// Everything that can be checked before anything is allocated.
    fn admit<E>(&self, plan: &Plan, window: &CodeWindow<'_>, mode: WriteMode) -> Result<(), InstallError<E>> {
        let site = window.site();
        if self.sites.contains_key(&site) {
            return Err(InstallError::AlreadyPatched);
        }
        if !plan.matches(window) {
            return Err(InstallError::BytesChanged);
        }
        if plan.needs_stopped_threads() && mode != WriteMode::Stopped {
            return Err(InstallError::WrongMode);
        }
        let needed = [Some(plan.footprint(site)), plan.padding(site)];
        let occupied = self.occupied_near(site);
        if needed.iter().flatten().any(|n| occupied.iter().any(|o| o.overlaps(n))) {
            return Err(InstallError::Overlaps);
        }
        if self.sites.len() >= self.limits.max_sites {
            return Err(InstallError::TooManySites);
        }
        Ok(())
    }

    /// The steps of [`prepare`](Self::prepare) were made. False if there is nothing to commit.
    pub fn commit(&mut self, site: GuestAddr) -> bool {
        self.sites.get_mut(&site).is_some_and(|p| std::mem::take(&mut p.installing))
    }

    /// No step of [`prepare`](Self::prepare) but [`Step::Trampoline`] was made, and none will be. Frees the trampoline
    /// at once. False if the site has no patch that is being made.
    pub fn cancel<M: TrampolineMemory>(&mut self, site: GuestAddr, memory: &mut M) -> bool {
        if !self.sites.get(&site).is_some_and(|p| p.installing) {
            return false;
        }
        if let Some(at) = self.retire(site).map(|p| p.trampoline) {
            self.release(at, false, memory);
        }
        true
    }

    /// Says what to write to undo the patch of a site, and retires its trampoline. [`WriteMode::Atomic`] becomes
    /// [`WriteMode::Breakpoint`] where the bytes do not lie in one word. Also for a patch that is only
    /// partly written: the stores are right whichever of the steps were made, if the caller then does not insist on
    /// what they say was there before.
    pub fn remove(&mut self, site: GuestAddr, mode: WriteMode) -> Option<Removal> {
        let patched = self.sites.get(&site)?;
        let undo = patched.head.inverse();
        let word = patched.word.map(|w| self.current_word(undo.addr.qword(), w));
        // A patch that does not lie in one word cannot be undone by one store either.
        let steps = undo.steps(mode, word).or_else(|| undo.steps(WriteMode::Breakpoint, None))?;
        if steps.contains(&Step::Barrier) {
            self.breakpoints.insert(undo.addr, patched.trampoline);
        }
        self.retire(site);
        Some(Removal { site, steps })
    }

    /// Remembers that a site cannot be patched, so that it is not planned at every call.
    pub fn refuse(&mut self, site: GuestAddr, refusal: Refusal) {
        self.refusals.insert(site, refusal);
    }

    /// Why the site was refused, if that is remembered.
    pub fn refusal(&mut self, site: GuestAddr) -> Option<Refusal> {
        self.refusals.get(&site).copied()
    }

    /// Sites patched or being patched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether no site is patched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// Bytes of trampoline memory held.
    #[must_use]
    pub fn trampoline_bytes(&self) -> usize {
        self.arena.bytes()
    }
}

/// The changes of guest bytes that the plan means at this site with this trampoline.
fn changes(plan: &Plan, site: GuestAddr, to: TrampolineAddr) -> (Change, Option<Change>) {
    let jump = |from: GuestAddr| {
        let displacement = from.wrapping_offset(JUMP_LEN as i64).distance_to(to.as_rip()) as i32;
        let mut bytes = vec![0xe9];
        bytes.extend(displacement.to_le_bytes());
        bytes
    };
    let head = site.wrapping_offset(plan.head.into());
    match (plan.tier(), plan.padding) {
        (Tier::Padding { offset, .. }, Some(old)) => {
            let at = site.wrapping_offset((*offset).into());
            let short = vec![0xeb, (*offset - SYSCALL.len() as i32) as i8 as u8];
            let padding = Change { addr: at, old: old.to_vec(), new: jump(at) };
            (Change { addr: site, old: SYSCALL.to_vec(), new: short }, Some(padding))
        }
        _ => (Change { addr: head, old: plan.code[..JUMP_LEN].to_vec(), new: jump(head) }, None),
    }
}

/// The bytes that a patch of this plan needs to itself.
pub(crate) fn bytes_used(plan: &Plan, site: GuestAddr) -> impl Iterator<Item = GuestRange> {
    [Some(plan.footprint(site)), plan.padding(site)].into_iter().flatten()
}
