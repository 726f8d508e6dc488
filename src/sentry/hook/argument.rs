//! One argument as a hook sees it.

use super::call::{Caller, Facts};
use super::{ArgValue, CallEnd, Slot};
use crate::sentry::syscalls::Parameter;
use crate::sentry::syscalls::args::CallView;
use std::fmt;

/// An argument of a [`Call`](super::Call). [`Display`](fmt::Display) shows it as strace does.
#[derive(Clone, Copy)]
pub struct Argument<'a> {
    pub(super) slot: &'a dyn Slot,
    pub(super) parameter: &'static Parameter,
    pub(super) facts: &'a Facts,
    pub(super) index: usize,
    pub(super) caller: &'a dyn Caller,
}

impl<'a> Argument<'a> {
    fn view(&self) -> CallView<'a> {
        let result = match self.facts.end {
            Some(CallEnd::Returned(result)) => Some(result),
            _ => None,
        };
        CallView {
            args: &self.facts.args,
            index: self.index,
            memory: self.caller.memory(),
            result,
            returned_address: self.facts.end.and_then(|_| self.caller.returned_address()),
        }
    }

    /// Its name, for example `flags`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.parameter.name
    }

    /// What is in the register.
    #[must_use]
    pub fn raw(&self) -> u64 {
        self.facts.args.get(self.index).copied().unwrap_or_default()
    }

    /// What it means.
    #[must_use]
    pub fn value(&self) -> ArgValue<'a> {
        self.slot.value(&self.view())
    }

    /// Whether it points to what the call writes: shown after the call only.
    #[must_use]
    pub fn is_output(&self) -> bool {
        self.slot.is_output()
    }
}

impl fmt::Display for Argument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.facts.end.is_none() && self.is_output() {
            return Ok(());
        }
        let mut text = String::new();
        self.slot.show(&self.view(), &mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for Argument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}", self.name(), self.value())
    }
}
