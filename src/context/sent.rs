//! What calls bring along: the beginning of what an argument points to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use systrap_stub::sysmsg::{ANSWERS, SEND_FIRST, SEND_FOURTH, SEND_SECOND, SENT_LEN, Sysmsg};

use super::Context;
use crate::{Error, GuestAddr};

/// Which calls bring along what an argument points to; see [`Context::send_along`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentArguments {
    by_nr: [u8; ANSWERS],
}

impl Default for SentArguments {
    fn default() -> Self {
        Self { by_nr: [0; ANSWERS] }
    }
}

impl SentArguments {
    /// Call number `nr` brings along what its first argument points to.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnswerable`] for a number that the stub's table does not reach.
    pub fn first(self, nr: u32) -> Result<Self, Error> {
        self.with(nr, SEND_FIRST)
    }

    /// Call number `nr` brings along what its second argument points to.
    ///
    /// # Errors
    ///
    /// As [`SentArguments::first`].
    pub fn second(self, nr: u32) -> Result<Self, Error> {
        self.with(nr, SEND_SECOND)
    }

    /// Call number `nr` brings along what its fourth argument points to.
    ///
    /// # Errors
    ///
    /// As [`SentArguments::first`].
    pub fn fourth(self, nr: u32) -> Result<Self, Error> {
        self.with(nr, SEND_FOURTH)
    }

    fn with(mut self, nr: u32, kind: u8) -> Result<Self, Error> {
        let flag = self.by_nr.get_mut(nr as usize);
        *flag.ok_or(Error::NotAnswerable { nr, limit: ANSWERS as u32 })? = kind;
        Ok(self)
    }

    /// What the stub is told of a call that it neither answers nor passes on.
    pub(super) fn flag(&self, nr: u32) -> u8 {
        self.by_nr.get(nr as usize).copied().unwrap_or(0)
    }
}

impl Context {
    /// How many bytes a call brings along.
    pub const SENT_LEN: usize = SENT_LEN;

    /// Has the stub send the first [`Context::SENT_LEN`] bytes that an argument points to along with these calls from now
    /// on, and with no others: for short strings and small structures [`Context::sent`] then has what would otherwise take
    /// a copy out of the guest's memory. Calls that trap, and those that the stub answers or makes itself, bring nothing.
    /// Duplicates of the context begin without.
    pub fn send_along(&mut self, calls: Arc<SentArguments>) {
        self.count_answers();
        self.answers.sent = calls;
        if let Some(home) = &self.home {
            self.answers.enter(home.thread.sysmsg());
        }
    }

    /// The bytes at a guest address, if the call that the last switch returned brought them along: as they were when the
    /// guest made the call. They are the guest's claim about its own memory, and another of its threads may change them
    /// between two looks.
    #[must_use]
    pub fn sent(&self, addr: GuestAddr) -> Option<[u8; SENT_LEN]> {
        let home = self.home.as_ref().filter(|_| self.brought)?;
        read(home.thread.sysmsg(), addr)
    }
}

fn read(slot: &Sysmsg, addr: GuestAddr) -> Option<[u8; SENT_LEN]> {
    let sent = slot.sent.addr.load(Ordering::Relaxed);
    if sent != addr.raw() || sent == 0 {
        return None;
    }
    let mut bytes = [0; SENT_LEN];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(&slot.sent.words) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    Some(bytes)
}
