//! Who makes a change of mappings, and when: at once, or as the guest goes on with its result, which saves a hand-off. Then
//! the record has the change before the host, and takes it back if it fails.
//!
//! What others of the address space see meanwhile is what they may see of a call that has not returned: a child that is
//! forked in between has the mappings of before and the record of after, and its guest cannot know which it should have.

use super::{Backing, Mm, Region, State};
use crate::{AddressSpace, Context, GuestAddr, Made, MapError, Protection};

/// The stub thread of a context, as the one who makes a change; the leader, if it is not at hand.
pub(crate) struct Maker<'a> {
    pub(super) context: &'a mut Context,
    may_wait: bool,
    undo: Option<Undo>,
}

/// What the record goes back to if the change fails.
#[derive(Debug)]
pub(crate) enum Undo {
    /// A range was free.
    Mapped { start: u64, end: u64 },
    /// Parts of a range had these protections.
    Protected(Vec<(u64, u64, Protection)>),
    /// There was this.
    Unmapped(Vec<Region>),
}

impl<'a> Maker<'a> {
    /// Makes changes at once.
    pub(crate) fn at_once(context: &'a mut Context) -> Self {
        Self { context, may_wait: false, undo: None }
    }

    /// Makes one change, whose result is that of the guest's call, as the guest goes on, where that is possible.
    pub(crate) fn on_return(context: &'a mut Context) -> Self {
        Self { context, may_wait: true, undo: None }
    }

    /// The change is made as the guest goes on: how to take it back.
    pub(crate) fn into_undo(self) -> Option<Undo> {
        self.undo
    }

    /// `is_last`: nothing else is to be done in the mapping at once.
    pub(super) fn map_anonymous(
        &mut self,
        space: &AddressSpace,
        state: &State,
        (start, end): (u64, u64),
        protection: Protection,
        is_last: bool,
    ) -> Result<(), MapError> {
        let addr = GuestAddr::new(start);
        if !self.may_wait || !is_last || !state.map.is_free(start, end) {
            return self.context.memory(space).map_anonymous(addr, end - start, protection);
        }
        let made = self.context.memory(space).on_return().map_anonymous(addr, end - start, protection)?;
        self.note(made, || Undo::Mapped { start, end });
        Ok(())
    }

    pub(super) fn protect(
        &mut self,
        space: &AddressSpace,
        state: &State,
        (start, end): (u64, u64),
        protection: Protection,
    ) -> Result<(), MapError> {
        let addr = GuestAddr::new(start);
        if !self.may_wait {
            return self.context.memory(space).protect(addr, end - start, protection);
        }
        let made = self.context.memory(space).on_return().protect(addr, end - start, protection)?;
        self.note(made, || {
            let parts = state.map.overlapping(start, end);
            Undo::Protected(
                parts.map(|part| (part.start.max(start), part.end.min(end), part.protection)).collect(),
            )
        });
        Ok(())
    }

    pub(super) fn unmap(
        &mut self,
        space: &AddressSpace,
        state: &State,
        (start, end): (u64, u64),
    ) -> Result<(), MapError> {
        let addr = GuestAddr::new(start);
        // What is forgotten with a mapping is not noted, and an open file is not to be held for longer.
        let is_plain = state.locked.is_empty()
            && state.fork_ranges.is_empty()
            && state.map.overlapping(start, end).all(|region| matches!(region.backing, Backing::Anonymous));
        if !self.may_wait || !is_plain {
            return self.context.memory(space).unmap(addr, end - start);
        }
        let made = self.context.memory(space).on_return().unmap(addr, end - start)?;
        self.note(made, || {
            Undo::Unmapped(
                state.map.overlapping(start, end).map(|region| region.clipped(start, end)).collect(),
            )
        });
        Ok(())
    }

    fn note(&mut self, made: Made, undo: impl FnOnce() -> Undo) {
        if made == Made::OnReturn {
            self.undo = Some(undo());
            self.may_wait = false;
        }
    }
}

impl Mm {
    /// A change failed after all.
    pub(crate) fn take_back(&self, undo: Undo) {
        let mut state = self.state();
        match undo {
            Undo::Mapped { start, end } => drop(state.map.remove(start, end)),
            // Only what is mapped still: others may have changed it since.
            Undo::Protected(parts) => {
                for (start, end, protection) in parts {
                    state.map.protect(start, end, protection);
                }
            }
            Undo::Unmapped(regions) => {
                for region in regions {
                    if state.map.is_free(region.start, region.end) {
                        state.map.insert(region);
                    }
                }
            }
        }
    }
}
