//! A moment from which on this process does not stay stopped.

use super::{Argument, Errno, Words, raw};
use std::time::Duration;

/// A timer of the host's that sends this process SIGCONT when its time has come, and every second from then on.
#[derive(Debug)]
pub(crate) struct Deadline {
    timer: i32,
}

impl Deadline {
    /// `delay` from now.
    pub(crate) fn new(delay: Duration) -> Result<Self, Errno> {
        // SAFETY: zeroes are a valid `struct sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGCONT;
        let mut timer = [0_i32];
        let mut words = Words::default();
        libc::CLOCK_MONOTONIC.push_to(&mut words);
        words.push((&raw const event).expose_provenance());
        (&mut timer).push_to(&mut words);
        // SAFETY: timer_create reads the structure, which outlives the call, and writes one int.
        unsafe { raw(libc::SYS_timer_create, &words) }?;
        let made = Self { timer: timer[0] };
        // The period in seconds and nanoseconds, then the first time.
        let mut setting = [0; 32];
        let first_s = i64::try_from(delay.as_secs()).unwrap_or(i64::MAX >> 32).min(i64::MAX >> 32);
        for (at, word) in [(0, 1), (16, first_s), (24, i64::from(delay.subsec_nanos()).max(1))] {
            setting[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        let mut words = Words::default();
        made.timer.push_to(&mut words);
        0_i32.push_to(&mut words);
        (&setting).push_to(&mut words);
        0_i32.push_to(&mut words);
        // SAFETY: timer_settime reads two times of 16 bytes each, and has nowhere to write the old ones.
        unsafe { raw(libc::SYS_timer_settime, &words) }?;
        Ok(made)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut words = Words::default();
        self.timer.push_to(&mut words);
        // SAFETY: timer_delete takes a number.
        let _ = unsafe { raw(libc::SYS_timer_delete, &words) };
    }
}
