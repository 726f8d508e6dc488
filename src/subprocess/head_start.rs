//! How long a side of a hand-off leaves the line alone after it has published.
//!
//! The line moves to the reader when it looks, and the reader writes it moments later. A poll by the publisher that falls
//! in between takes the line back, and the store has to fetch it once more: one more transfer between the cores, 60 ns
//! and more. Polls are a `pause` apart, so one falls in between as soon as the reader needs a few dozen instructions
//! more than the shortest exchange there is: a patched call jumped from 125 to 240 ns when counting a call grew by some
//! twenty. So the publisher does not look before an answer can be there, and a call costs what its instructions cost.
//!
//! The wait is made of `pause`s, which take 10 ns on one CPU and 50 on another; hence they are measured.

use std::sync::OnceLock;
use std::time::Instant;

/// A transfer to the supervisor, and what it needs to return an event and to come back with a result. Measured over 0 to
/// 100 ns: below 50 the polls still fall in between now and then, above 80 the wait itself is what is waited for.
const STUB_NS: f64 = 70.0;
/// The shortest way of a guest to its next call. The transfer to it is left out: most guests stay away much longer, and
/// the look that comes too early costs one transfer, not one a call.
const SUPERVISOR_NS: f64 = 25.0;

/// `pause`s of each side between publication and first look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HeadStart {
    pub(crate) supervisor: u32,
    pub(crate) stub: u32,
}

impl HeadStart {
    /// As measured on this machine, once in a process.
    pub(crate) fn measured() -> Self {
        static MEASURED: OnceLock<HeadStart> = OnceLock::new();
        *MEASURED.get_or_init(|| Self::for_pause(pause_ns()))
    }

    /// As for a `pause` of this length. No wait lasts longer than it says: where a `pause` is longer there is none, and
    /// the polls are far apart anyway.
    fn for_pause(pause_ns: f64) -> Self {
        let pauses = |ns: f64| (ns / pause_ns) as u32;
        Self { supervisor: pauses(SUPERVISOR_NS), stub: pauses(STUB_NS) }
    }
}

/// The shortest of some batches: whatever interrupts one makes it longer.
fn pause_ns() -> f64 {
    const BATCHES: usize = 16;
    const PAUSES: u32 = 64;
    let batch = || {
        let started = Instant::now();
        for _ in 0..PAUSES {
            std::hint::spin_loop();
        }
        started.elapsed().as_nanos() as f64 / f64::from(PAUSES)
    };
    // A clock that stands still must not make the wait endless.
    (0..BATCHES).map(|_| batch()).fold(f64::INFINITY, f64::min).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_no_longer_than_it_should_be() {
        for pause_ns in [1.0, 10.0, 14.0, 45.0, 80.0, f64::INFINITY] {
            let HeadStart { supervisor, stub } = HeadStart::for_pause(pause_ns);
            let lasts = |pauses: u32| if pauses == 0 { 0.0 } else { f64::from(pauses) * pause_ns };
            assert!(lasts(supervisor) <= SUPERVISOR_NS, "{supervisor} of {pause_ns} ns");
            assert!(lasts(stub) <= STUB_NS, "{stub} of {pause_ns} ns");
        }
    }

    #[test]
    fn measured_waits_are_bounded() {
        let HeadStart { supervisor, stub } = HeadStart::measured();
        assert!(
            f64::from(supervisor) <= SUPERVISOR_NS && f64::from(stub) <= STUB_NS,
            "a pause takes 1 ns at least"
        );
    }
}
