//! What an instruction pointer that a stub reported means to the guest.

use usertrap::{GuestPosition, RipMeaning};

use super::lock;
use crate::GuestAddr;
use crate::address_space::SpaceInner;

const INT3: u8 = 0xcc;

/// Where a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Where it says.
    Guest,
    /// In a trampoline, about to do what its own code does at this address.
    At(GuestAddr),
    /// In a trampoline, with the call as good as made; the address behind the `syscall`.
    Call(GuestAddr),
    /// Behind an `int3` of ours, which stood at this address.
    OwnBreakpoint(GuestAddr),
}

/// Finds out; `breakpoint` says that a breakpoint was hit.
pub(crate) fn locate(space: &SpaceInner, rip: GuestAddr, breakpoint: bool) -> Found {
    let books = lock(space);
    if books.is_idle() {
        return Found::Guest;
    }
    let rip = usertrap::GuestAddr::new(rip.raw());
    if breakpoint && let Some(at) = books.patches.own_breakpoint(rip) {
        // Nothing is being written while the books are locked: an `int3` that stands there now is the guest's own.
        let (at, mut byte) = (GuestAddr::new(at.raw()), [0]);
        let is_guests = space.read_memory(at, &mut byte).is_ok() && byte == [INT3];
        return if is_guests { Found::Guest } else { Found::OwnBreakpoint(at) };
    }
    match books.patches.locate(rip) {
        RipMeaning::Guest | RipMeaning::Astray => Found::Guest,
        RipMeaning::Ours(GuestPosition::At(at)) => Found::At(GuestAddr::new(at.raw())),
        RipMeaning::Ours(GuestPosition::Call { ret, .. }) => Found::Call(GuestAddr::new(ret.raw())),
    }
}

/// Where a guest has to be put whose instruction pointer is set to `rip`: there, unless a tier 3 patch has overwritten
/// that instruction.
pub(crate) fn resume_at(space: &SpaceInner, rip: u64) -> u64 {
    let books = lock(space);
    if books.is_idle() { rip } else { books.patches.resume_at(usertrap::GuestAddr::new(rip)).raw() }
}
