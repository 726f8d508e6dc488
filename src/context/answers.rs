//! Calls that the syshandler does not hand over: answered with constants that the supervisor published, or passed on to
//! the host kernel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use systrap_stub::sysmsg::{ANSWER, ANSWERS, PASS, Sysmsg};

use super::Context;
use super::sent::SentArguments;
use crate::Error;

/// Calls that the stub may make on the host kernel, for [`Context::pass_in_stub`]. None by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PassedCalls {
    /// futex(2): WAIT without a time-out and WAIT_BITSET, with FUTEX_PRIVATE_FLAG, on CLOCK_MONOTONIC.
    pub futex_waits: bool,
    /// futex(2): WAKE, WAKE_BITSET, REQUEUE, CMP_REQUEUE and WAKE_OP, with FUTEX_PRIVATE_FLAG.
    pub futex_wakes: bool,
    /// sched_yield(2).
    pub yields: bool,
}

impl PassedCalls {
    /// All of them.
    pub const ALL: Self = Self { futex_waits: true, futex_wakes: true, yields: true };

    /// A bit for each futex operation.
    fn futexes(self) -> u32 {
        let bits = |ops: &[i32]| ops.iter().fold(0, |bits, op| bits | 1 << op);
        let waits = bits(&[libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET]);
        let wakes = bits(&[
            libc::FUTEX_WAKE,
            libc::FUTEX_WAKE_BITSET,
            libc::FUTEX_REQUEUE,
            libc::FUTEX_CMP_REQUEUE,
            libc::FUTEX_WAKE_OP,
        ]);
        (u32::from(self.futex_waits) * waits) | (u32::from(self.futex_wakes) * wakes)
    }
}

const FUTEX: u32 = libc::SYS_futex as u32;
const YIELD: u32 = libc::SYS_sched_yield as u32;

/// What the stub does for one context without its supervisor.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    by_nr: BTreeMap<u32, i64>,
    passed: PassedCalls,
    pub(super) sent: Arc<SentArguments>,
    /// What the slot's counter showed when it was last looked at.
    seen: u64,
}

impl Answers {
    /// Whether a call through a patched site brings something along.
    pub(super) fn sends(&self, nr: u32) -> bool {
        // A futex call that is not passed on after all was not meant to bring anything.
        self.sent.flag(nr) != 0 && !(nr == FUTEX && self.passed.futexes() != 0)
    }

    /// Puts all answers into a slot whose stub thread another context may have had before.
    pub(super) fn enter(&mut self, slot: &Sysmsg) {
        for (flag, nr) in slot.answer_flags.iter().zip(0..) {
            flag.store(self.sent.flag(nr), Ordering::Relaxed);
        }
        for nr in [FUTEX, YIELD].iter().chain(self.by_nr.keys()) {
            self.publish(slot, *nr);
        }
        self.seen = slot.answered.load(Ordering::Relaxed);
    }

    /// How many calls the stub claims to have answered since the last time.
    pub(super) fn claimed(&mut self, slot: &Sysmsg) -> u64 {
        let now = slot.answered.load(Ordering::Relaxed);
        now.wrapping_sub(std::mem::replace(&mut self.seen, now))
    }

    /// Tells the stub what becomes of a call. Its thread waits meanwhile, or has not run since.
    fn publish(&self, slot: &Sysmsg, nr: u32) {
        let index = nr as usize;
        let (Some(answer), Some(flag)) = (slot.answers.get(index), slot.answer_flags.get(index)) else {
            return;
        };
        let futexes = self.passed.futexes();
        let passed = nr == FUTEX && futexes != 0 || nr == YIELD && self.passed.yields;
        slot.passed_futexes.store(futexes, Ordering::Relaxed);
        let (kind, result) = match self.by_nr.get(&nr) {
            Some(result) => (ANSWER, *result),
            None => (if passed { PASS } else { self.sent.flag(nr) }, 0),
        };
        answer.store(result as u64, Ordering::Relaxed);
        flag.store(kind, Ordering::Relaxed);
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
            self.answers.publish(home.thread.sysmsg(), nr);
        }
        Ok(())
    }

    /// Lets the stub make these calls on the host kernel from now on, and no others: through a patched site they then cost
    /// what they cost natively and some nanoseconds, and the supervisor does not see them. Calls that trap, and those that
    /// [`Context::answer_in_stub`] answers, are treated as before. Duplicates of the context begin without.
    ///
    /// While the guest sleeps in such a call it runs, for its supervisor. An interrupt ends the sleep and is reported as
    /// anywhere else in the guest; the guest then stands at its `syscall`, with the call still to be made, and makes it
    /// again when it goes on. (Being past the jump of the patch, it will trap.)
    ///
    /// The embedder decides whether it may miss these calls: an observer of one has to be asked before it is passed.
    pub fn pass_in_stub(&mut self, calls: PassedCalls) {
        self.answers.passed = calls;
        if let Some(home) = &self.home {
            for nr in [FUTEX, YIELD] {
                self.answers.publish(home.thread.sysmsg(), nr);
            }
        }
    }

    /// Adds the calls that the stub claims to have answered or passed on to the counters ([`Stats::answered`](crate::Stats)). It is
    /// also done when the full state is pulled and when the context leaves its stub thread.
    pub fn count_answers(&mut self) {
        if let Some(home) = &self.home {
            self.counts.local.count_answered(self.answers.claimed(home.thread.sysmsg()));
        }
    }
}
