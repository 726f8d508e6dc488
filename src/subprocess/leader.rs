//! Requests to the leader.
//!
//! The answer is the file offset of the address space's memfd, which only the leader can move: a guest that
//! writes the hint word wakes the supervisor early and nothing more.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use systrap_stub::request::{Answer, SEQ_BITS};

use super::placement::{confine, confined};
use super::{ANSWER_DEADLINE, Subprocess};
use crate::{Error, StubExit, sys};

/// How often the answer is looked at before the supervisor sleeps; a look takes about 90 ns.
const LOOKS_BEFORE_SLEEP: u32 = 20;
/// After so many sleeps that ended at once a guest is playing with the hint word: sleep by the clock.
const EARLY_WAKES: u32 = 64;

/// A host call for the leader.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostCall {
    /// Its name, for errors.
    pub(crate) what: &'static str,
    pub(crate) nr: i64,
    pub(crate) args: [u64; 6],
}

/// Whoever holds this may make a request.
#[derive(Debug, Default)]
pub(crate) struct LeaderSeat {
    seq: u32,
    /// The CPU that the leader is confined to.
    cpu: Option<u32>,
}

impl LeaderSeat {
    /// Of a process whose parent's leader was confined to this CPU.
    pub(super) fn new(cpu: Option<u32>) -> Self {
        Self { seq: 0, cpu }
    }
}

impl Subprocess {
    /// Lets the leader make one host call and returns its result.
    pub(crate) fn host_call(&self, call: &HostCall) -> Result<i64, Error> {
        self.host_call_somewhere(call).map(|(result, _)| result)
    }

    /// The same, for a call that makes a thread or a process: with the CPU that the leader, and so what it made, is
    /// confined to.
    pub(super) fn host_call_somewhere(&self, call: &HostCall) -> Result<(i64, Option<u32>), Error> {
        let (answer, cpu) = {
            let mut seat = self.sit();
            (self.request(&mut seat, std::slice::from_ref(call))?, seat.cpu)
        };
        if answer.left == 0 {
            Ok((answer.result, cpu))
        } else {
            Err(Error::stub(call.what, -answer.result as i32))
        }
    }

    fn sit(&self) -> MutexGuard<'_, LeaderSeat> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, seat: &mut LeaderSeat, calls: &[HostCall]) -> Result<Answer, Error> {
        let page = self.requests.page(self.request_page);
        for (op, call) in page.ops.iter().zip(calls) {
            op.nr.store(call.nr as u64, Ordering::Relaxed);
            for (slot, arg) in op.args.iter().zip(call.args) {
                slot.store(arg, Ordering::Relaxed);
            }
        }
        // A supervisor that is confined to a CPU waits there, and leaves it to the leader.
        let together = confined().is_some_and(|(cpu, _)| {
            seat.cpu == Some(cpu) || confine(self.pid(), cpu).inspect(|()| seat.cpu = Some(cpu)).is_some()
        });
        page.count.store(calls.len() as u32, Ordering::Relaxed);
        seat.seq = next_seq(seat.seq);
        page.seq.store(seat.seq, Ordering::SeqCst);
        sys::futex_wake_shared(&page.seq);
        self.wait_for_answer(seat.seq, if together { 0 } else { LOOKS_BEFORE_SLEEP })
    }

    /// A new process says hello once its shared areas are in place: sequence number 0, result 1.
    pub(super) fn wait_for_hello(&self) -> Result<(), Error> {
        let answer = self.wait_for_answer(0, LOOKS_BEFORE_SLEEP)?;
        if answer.result == 1 && answer.left == 0 {
            return Ok(());
        }
        self.kill();
        Err(Error::StubDied { how: StubExit::Unknown })
    }

    fn wait_for_answer(&self, seq: u32, looks_before_sleep: u32) -> Result<Answer, Error> {
        let hint = &self.slots.leader().hint;
        let started = Instant::now();
        let mut looks = 0_u32;
        let mut sleeps = 0_u32;
        loop {
            let hinted = hint.load(Ordering::Acquire);
            let offset =
                sys::file_offset(self.slots.file()).map_err(|source| Error::host("lseek", source))?;
            let answer = Answer::from_offset(offset);
            // A fresh memfd's offset 0 is no answer: results of hello are 1.
            if offset != 0 && answer.seq == seq & ((1 << SEQ_BITS) - 1) {
                return Ok(answer);
            }
            if let Some(how) = self.exit() {
                return Err(Error::StubDied { how });
            }
            looks += 1;
            if looks < looks_before_sleep {
                continue;
            }
            if started.elapsed() > ANSWER_DEADLINE {
                self.kill();
                return Err(Error::StubSilent { seconds: ANSWER_DEADLINE.as_secs() });
            }
            sleeps += 1;
            if sleeps < EARLY_WAKES {
                sys::futex_wait_shared(hint, hinted, Duration::from_millis(2));
            } else {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

/// The sequence number after `seq`. None whose answer could be the file offset 0, which stands for no answer.
fn next_seq(seq: u32) -> u32 {
    let next = seq.wrapping_add(1);
    if next.is_multiple_of(1 << SEQ_BITS) { next + 1 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_the_offset_of_a_fresh_file() {
        let mut seq = u32::MAX - 3_000;
        for _ in 0..6_000 {
            let next = next_seq(seq);
            assert_ne!(next % (1 << SEQ_BITS), 0);
            assert_ne!(next, seq);
            seq = next;
        }
    }
}
