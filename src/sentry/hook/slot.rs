//! Decoded arguments of a call on their way from the guest to the call's handler, whatever their types.

use super::ArgValue;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::syscalls::args::{Arg, CallView, Replacement};

/// A decoded argument, whatever its type: what the handler of the call will get.
pub(crate) trait Slot {
    fn is_output(&self) -> bool;
    fn show(&self, view: &CallView<'_>, out: &mut String);
    fn value<'a>(&'a self, view: &CallView<'a>) -> ArgValue<'a>;
    fn uses_next(&self) -> bool;
    fn decode_again(&mut self, args: &[u64; 6], index: usize, memory: &dyn GuestMemory);
    /// Says whether the argument is of that kind.
    fn replace(&mut self, by: Replacement) -> bool;
}

/// The arguments of a call.
pub(super) trait SlotList {
    fn at(&self, index: usize) -> Option<&dyn Slot>;
    fn at_mut(&mut self, index: usize) -> Option<&mut (dyn Slot + 'static)>;
}

pub(super) struct Slots<'s, 't>(pub(super) &'s mut [&'t mut (dyn Slot + 'static)]);

impl SlotList for Slots<'_, '_> {
    fn at(&self, index: usize) -> Option<&dyn Slot> {
        self.0.get(index).map(|slot| &**slot as &dyn Slot)
    }

    fn at_mut(&mut self, index: usize) -> Option<&mut (dyn Slot + 'static)> {
        self.0.get_mut(index).map(|slot| &mut **slot)
    }
}

/// An argument that could not be decoded makes the call fail; it is shown as it came.
impl<A: Arg + 'static> Slot for Result<A, Errno> {
    fn is_output(&self) -> bool {
        A::OUTPUT && self.is_ok()
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        match self {
            Ok(arg) => arg.show(view, out),
            Err(_) => {
                let raw = view.args.get(view.index).copied().unwrap_or_default();
                *out = format!("{raw:#x}");
            }
        }
    }

    fn value<'a>(&'a self, view: &CallView<'a>) -> ArgValue<'a> {
        match self {
            Ok(arg) => arg
                .value_in(view)
                .unwrap_or_else(|| ArgValue::Word(view.args.get(view.index).copied().unwrap_or_default())),
            Err(errno) => ArgValue::Unreadable(*errno),
        }
    }

    fn uses_next(&self) -> bool {
        A::USES_NEXT
    }

    fn decode_again(&mut self, args: &[u64; 6], index: usize, memory: &dyn GuestMemory) {
        *self = A::decode_at(args, index, memory);
    }

    fn replace(&mut self, by: Replacement) -> bool {
        match A::replaced(by) {
            Some(arg) => {
                *self = Ok(arg);
                true
            }
            None => false,
        }
    }
}
