//! The supervisor's side of the hand-off: publish a reply, wait for the event.
//!
//! The transitions are those of `systrap_stub::handoff`; see there for why the order of the accesses matters.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use systrap_stub::sysmsg::Line;
use systrap_stub::wire::{self, StubEvent};

use crate::platform::Inner;
use crate::subprocess::{ANSWER_DEADLINE, Attention, STAY, Spinning, StubThread};
use crate::{Error, SwitchError, sys};

/// How long one sleep lasts at most; nothing depends on its end but a lost wake-up by a hostile stub.
const SLEEP: Duration = Duration::from_millis(500);
/// First and longest time between two interrupt signals that were not answered.
const FIRST_KICK: Duration = Duration::from_micros(100);
const LAST_KICK: Duration = Duration::from_millis(20);
/// After so many sleeps that ended at once without an event, the stub is playing with the word.
const EARLY_WAKES: u32 = 64;

/// One exchange with a stub thread.
pub(crate) struct HandOff<'a> {
    platform: &'a Inner,
    thread: &'a StubThread,
    attention: Option<&'a Attention>,
}

/// Tells sleeps that end by the clock from those that a hostile stub ends: it may wake its supervisor as often
/// as it likes, but only so often before the supervisor sleeps by the clock alone.
struct Patience {
    since: Instant,
    sleeps: u32,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { since: now, sleeps: 0 }
    }

    /// Whether the next sleep may end by a wake-up. Each window of [`EARLY_WAKES`] sleeps has to last.
    fn trusts_the_word(&mut self, now: Instant) -> bool {
        self.sleeps += 1;
        if self.sleeps < EARLY_WAKES {
            return true;
        }
        if now.duration_since(self.since) > SLEEP * EARLY_WAKES / 4 {
            *self = Self::new(now);
            return true;
        }
        false
    }
}

/// The interrupt signals of one exchange.
struct Kicks {
    first: Option<Instant>,
    next: Instant,
    pause: Duration,
}

impl<'a> HandOff<'a> {
    /// An exchange on behalf of a context, which an interrupt reaches.
    pub(crate) fn attached(platform: &'a Inner, thread: &'a StubThread, attention: &'a Attention) -> Self {
        Self { platform, thread, attention: Some(attention) }
    }

    /// An exchange that no interrupt concerns (a copy, a spill).
    pub(crate) fn detached(platform: &'a Inner, thread: &'a StubThread) -> Self {
        Self { platform, thread, attention: None }
    }

    /// Publishes a reply whose arguments are in the line already, and waits for the event.
    pub(crate) fn exchange(&self, reply: u32) -> Result<StubEvent, SwitchError> {
        self.exchange_with(reply, |_| {})
    }

    /// Publishes a reply with the result of the call that the stub waits for, and waits for the event.
    pub(crate) fn exchange_result(&self, reply: u32, result: u64) -> Result<StubEvent, SwitchError> {
        self.exchange_with(reply, |line| line.args[0].store(result, Ordering::Relaxed))
    }

    /// Publishes a reply that is a host call for the stub thread, and waits for the event.
    pub(crate) fn exchange_call(
        &self,
        reply: u32,
        nr: i64,
        args: [u64; 6],
    ) -> Result<StubEvent, SwitchError> {
        self.exchange_with(reply, |line| {
            line.nr.store(nr as u32, Ordering::Relaxed);
            for (shared, arg) in line.args.iter().zip(args) {
                shared.store(arg, Ordering::Relaxed);
            }
        })
    }

    fn exchange_with(&self, reply: u32, fill: impl FnOnce(&Line)) -> Result<StubEvent, SwitchError> {
        let sysmsg = self.thread.sysmsg();
        let spinning = self.thread.spinning();
        let may_spin = self.platform.gangs.may_spin();
        let stub_slept = sysmsg.stub_sleeps.load(Ordering::Relaxed) != 0;
        let seat = self.thread.seat();
        let near = seat.choose(&self.platform.places, self.thread, stub_slept, may_spin);
        let may_spin = may_spin && !near;
        // Work is done in microseconds, and mostly followed by more: whatever the guest's own calls were like.
        let is_work = self.attention.is_none() && may_spin;
        let told = if is_work { spinning.stub_at_work() } else { spinning.stub(may_spin, stub_slept) };
        if let Some(budget) = told {
            sysmsg.spin.store(budget.spin, Ordering::Relaxed);
            sysmsg.head_start.store(budget.head_start, Ordering::Relaxed);
        }
        let budget = if is_work { Spinning::AT_WORK } else { spinning.supervisor(may_spin) };
        // The line is written in one go, last of all: between two stores the spinning stub would steal it. For the same
        // reason a plain store and a fence publish, and no locked instruction. The fence is the full barrier between
        // the publication and the look at the sleep flag.
        fill(&sysmsg.line);
        sysmsg.line.state.store(reply, Ordering::Release);
        fence(Ordering::SeqCst);
        if sysmsg.stub_sleeps.load(Ordering::SeqCst) != 0 {
            sys::futex_wake_shared(&sysmsg.line.state);
        }
        if budget != 0 {
            for _ in 0..spinning.supervisor_head_start() {
                std::hint::spin_loop();
            }
        }
        for _ in 0..budget {
            let state = sysmsg.line.state.load(Ordering::Acquire);
            if state != reply {
                if !is_work {
                    spinning.supervisor_worked(budget);
                }
                return self.event(state);
            }
            if self.needs_attention() {
                break;
            }
            std::hint::spin_loop();
        }
        let started = Instant::now();
        let event = self.sleep_for_event(reply, started, near);
        let slept = started.elapsed();
        if near {
            seat.waited(slept);
        } else if !is_work {
            spinning.supervisor_slept(slept);
        }
        event
    }

    fn needs_attention(&self) -> bool {
        self.attention.is_some_and(|attention| attention.get() != 0)
    }

    fn event(&self, state: u32) -> Result<StubEvent, SwitchError> {
        StubEvent::from_raw(state)
            .ok_or_else(|| self.corrupted("the state word holds a value that no stub writes"))
    }

    /// Kills the stub process for breaking the protocol.
    pub(crate) fn corrupted(&self, what: &'static str) -> SwitchError {
        self.thread.process().kill();
        SwitchError::StubCorrupted { what }
    }

    #[cold]
    fn sleep_for_event(&self, reply: u32, started: Instant, near: bool) -> Result<StubEvent, SwitchError> {
        let sysmsg = self.thread.sysmsg();
        let own = Attention::default();
        let attention = self.attention.unwrap_or(&own);
        let mut kicks = Kicks { first: None, next: started, pause: FIRST_KICK };
        let mut patience = Patience::new(started);
        let mut stays = near;
        // A guest that computes may wait by and by without an event.
        let (mut is_hot, mut look_again) = (self.attention.is_some(), STAY);
        let result = loop {
            // Full barrier: announce the sleep before the last look at the state.
            sysmsg.supervisor_sleeps.swap(1, Ordering::SeqCst);
            let state = sysmsg.line.state.load(Ordering::SeqCst);
            if state != reply {
                break self.event(state);
            }
            if let Some(how) = self.thread.process().exit() {
                break Err(SwitchError::StubDied { how });
            }
            let seen = attention.get();
            let timeout = match self.attend(seen, started, &mut kicks) {
                Ok(timeout) => timeout,
                Err(error) => break Err(error),
            };
            if is_hot && self.guest_waits(reply) {
                is_hot = false;
                self.platform.gangs.leave();
            }
            let timeout = if stays || is_hot { timeout.min(look_again) } else { timeout };
            if stays && started.elapsed() >= STAY {
                stays = false;
                self.thread.seat().let_go(&self.platform.places, self.thread);
            }
            look_again = (look_again * 2).min(SLEEP);
            if !patience.trusts_the_word(Instant::now()) {
                std::thread::sleep(Duration::from_millis(1));
            } else if let Err(source) =
                sys::futex_wait_two((&sysmsg.line.state, reply), (attention.word(), seen), timeout)
            {
                break Err(Error::host("futex_waitv", source).into());
            }
        };
        sysmsg.supervisor_sleeps.store(0, Ordering::Relaxed);
        if self.attention.is_some() && !is_hot {
            self.platform.gangs.enter();
        }
        result
    }

    /// Whether the stub thread is in a host call of its guest's, and needs no CPU. By a passed one's word it says so itself: a
    /// guest that lies only makes others spin in vain.
    fn guest_waits(&self, reply: u32) -> bool {
        matches!(reply, wire::EXECUTE_RESUME | wire::EXECUTE_RESUME_IF_DONE)
            || self.thread.sysmsg().in_passed_call.load(Ordering::Relaxed) != 0
    }

    /// Sends the interrupt signal if it is due; says how long to sleep.
    fn attend(&self, seen: u32, started: Instant, kicks: &mut Kicks) -> Result<Duration, SwitchError> {
        if self.attention.is_none() {
            if started.elapsed() > ANSWER_DEADLINE {
                self.thread.process().kill();
                return Err(Error::StubSilent { seconds: ANSWER_DEADLINE.as_secs() }.into());
            }
            return Ok(SLEEP);
        }
        if seen & (Attention::INTERRUPT | Attention::STEP_ASIDE) == 0 {
            return Ok(SLEEP);
        }
        let now = Instant::now();
        // Whoever only wants it to step aside has a deadline of their own, if any.
        if seen & Attention::INTERRUPT != 0 {
            let first = *kicks.first.get_or_insert(now);
            if now.duration_since(first) > self.platform.options.get_interrupt_deadline() {
                return Err(self.corrupted("an interrupt was not answered within its deadline"));
            }
        }
        if now >= kicks.next {
            self.thread.kick();
            kicks.next = now + kicks.pause;
            kicks.pause = (kicks.pause * 2).min(LAST_KICK);
        }
        Ok(kicks.next.saturating_duration_since(now).max(Duration::from_micros(10)))
    }
}

const _: () = assert!(wire::RESUME == 0, "a fresh slot is all zero: its stub thread has not answered yet");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_that_wakes_for_ever_is_not_listened_to_for_ever() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        // It wakes its supervisor every 10 µs for a minute.
        let step = Duration::from_micros(10);
        let trusted = (1..6_000_000_u32).filter(|i| patience.trusts_the_word(start + step * *i)).count();
        assert!(trusted < 1_000, "{trusted} wake-ups by the stub were listened to");
    }

    #[test]
    fn sleeps_that_end_by_the_clock_stay_sleeps_on_the_word() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        assert!((1..10_000).all(|i| patience.trusts_the_word(start + SLEEP * i)));
    }
}
