//! Calls that the stub answers by itself, with constants that the supervisor published.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use systrap_stub::sysmsg::{ANSWERS, Sysmsg};

use super::Context;
use crate::Error;

/// The answers of one context.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    by_nr: BTreeMap<u32, i64>,
    /// What the slot's counter showed when it was last looked at.
    seen: u64,
}

impl Answers {
    /// Puts all answers into a slot whose stub thread another context may have had before.
    pub(super) fn enter(&mut self, slot: &Sysmsg) {
        for flag in &slot.answer_flags {
            flag.store(0, Ordering::Relaxed);
        }
        for (nr, result) in &self.by_nr {
            publish(slot, *nr, Some(*result));
        }
        self.seen = slot.answered.load(Ordering::Relaxed);
    }

    /// How many calls the stub claims to have answered since the last time.
    pub(super) fn claimed(&mut self, slot: &Sysmsg) -> u64 {
        let now = slot.answered.load(Ordering::Relaxed);
        now.wrapping_sub(std::mem::replace(&mut self.seen, now))
    }
}

/// The stub thread waits meanwhile, or has not run since.
fn publish(slot: &Sysmsg, nr: u32, result: Option<i64>) {
    let index = nr as usize;
    if let (Some(answer), Some(flag)) = (slot.answers.get(index), slot.answer_flags.get(index)) {
        answer.store(result.unwrap_or(0) as u64, Ordering::Relaxed);
        flag.store(u8::from(result.is_some()), Ordering::Relaxed);
    }
}

impl Context {
    /// Lets the stub answer call number `nr` with a constant from now on, or (`None`) no more: a call through a patched
    /// site then costs about a nanosecond and is not seen by the supervisor. Calls that trap are reported as before.
    ///
    /// The answers stay with the context when it moves to another address space, and are not duplicated by
    /// [`Context::duplicate`].
    ///
    /// # Errors
    ///
    /// [`Error::NotAnswerable`] for a number that the stub's table does not reach.
    pub fn answer_in_stub(&mut self, nr: u32, result: Option<i64>) -> Result<(), Error> {
        if nr as usize >= ANSWERS {
            return Err(Error::NotAnswerable { nr, limit: ANSWERS as u32 });
        }
        match result {
            Some(result) => self.answers.by_nr.insert(nr, result),
            None => self.answers.by_nr.remove(&nr),
        };
        if let Some(home) = &self.home {
            publish(home.thread.sysmsg(), nr, result);
        }
        Ok(())
    }

    /// Adds the calls that the stub claims to have answered to the counters ([`Stats::answered`](crate::Stats)). It is
    /// also done when the full state is pulled and when the context leaves its stub thread.
    pub fn count_answers(&mut self) {
        if let Some(home) = &self.home {
            self.counts.local.count_answered(self.answers.claimed(home.thread.sysmsg()));
        }
    }
}
