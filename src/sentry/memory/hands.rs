//! Who changes a guest's mappings: the guest's own stub thread, which is at hand when the guest makes the call, or the
//! leader of its stub process.

use crate::{AddressSpace, Advice, Context, GuestAddr, MapError, Protection};

/// By whom a change is made. Both do the same; waking the leader takes much longer.
pub(crate) enum Hands<'a> {
    /// The stub thread of the task that makes the call.
    Own(&'a mut Context),
    /// The leader: before the guest runs.
    Leader,
}

impl Hands<'_> {
    pub(super) fn map_anonymous(
        &mut self,
        space: &AddressSpace,
        addr: GuestAddr,
        len: u64,
        protection: Protection,
    ) -> Result<(), MapError> {
        match self {
            Hands::Own(context) => context.memory(space).map_anonymous(addr, len, protection),
            Hands::Leader => space.map_anonymous(addr, len, protection),
        }
    }

    pub(super) fn unmap(&mut self, space: &AddressSpace, addr: GuestAddr, len: u64) -> Result<(), MapError> {
        match self {
            Hands::Own(context) => context.memory(space).unmap(addr, len),
            Hands::Leader => space.unmap(addr, len),
        }
    }

    pub(super) fn protect(
        &mut self,
        space: &AddressSpace,
        addr: GuestAddr,
        len: u64,
        protection: Protection,
    ) -> Result<(), MapError> {
        match self {
            Hands::Own(context) => context.memory(space).protect(addr, len, protection),
            Hands::Leader => space.protect(addr, len, protection),
        }
    }

    pub(super) fn advise(
        &mut self,
        space: &AddressSpace,
        addr: GuestAddr,
        len: u64,
        advice: Advice,
    ) -> Result<(), MapError> {
        match self {
            Hands::Own(context) => context.memory(space).advise(addr, len, advice),
            Hands::Leader => space.advise(addr, len, advice),
        }
    }
}
