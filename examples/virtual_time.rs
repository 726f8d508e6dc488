//! Runs a program in a time of its own: it begins on 1 January 2000, each look at a clock takes a microsecond, and
//! sleeping takes no time at all.
//!
//! ```sh
//! cargo run --release --example virtual_time -- /bin/sh -c 'date -u; sleep 86400; date -u'
//! ```
//!
//! Time limits of other calls (poll, futex, …) and timers are still the host's.

use std::ffi::CString;
use std::sync::atomic::{AtomicI64, Ordering};
use systrap::GuestAddr;
use systrap::sentry::{Call, CallSet, Errno, Guest, Hook, Verdict};

/// 2000-01-01 00:00:00 UTC.
const BEGIN_NS: i64 = 946_684_800 * SECOND;
const SECOND: i64 = 1_000_000_000;
const LOOK_NS: i64 = 1000;

struct Clock {
    now_ns: AtomicI64,
}

impl Clock {
    /// The time, a moment later than before.
    fn look(&self) -> i64 {
        self.now_ns.fetch_add(LOOK_NS, Ordering::SeqCst)
    }

    /// Writes seconds and a fraction, a `timespec` or a `timeval`.
    fn write(call: &Call<'_>, index: usize, seconds: i64, fraction: i64) -> Verdict {
        let addr = GuestAddr::new(call.arg(index).map_or(0, |arg| arg.raw()));
        let bytes = [seconds.to_le_bytes(), fraction.to_le_bytes()].concat();
        match call.write_memory(addr, &bytes) {
            Ok(()) => Verdict::Answer(0),
            Err(_) => Verdict::Deny(Errno::EFAULT),
        }
    }

    /// Lets the time pass that a sleep asks for.
    fn sleep(&self, call: &Call<'_>, request: usize, absolute: bool) -> Verdict {
        let addr = GuestAddr::new(call.arg(request).map_or(0, |arg| arg.raw()));
        let mut bytes = [0; 16];
        if call.read_memory(addr, &mut bytes).is_err() {
            return Verdict::Deny(Errno::EFAULT);
        }
        let (seconds, nanoseconds) = bytes.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_le_bytes);
        let (seconds, nanoseconds) = (number(seconds), number(nanoseconds));
        if seconds < 0 || !(0..SECOND).contains(&nanoseconds) {
            return Verdict::Deny(Errno::EINVAL);
        }
        let length_ns = seconds.saturating_mul(SECOND).saturating_add(nanoseconds);
        match absolute {
            true => self.now_ns.fetch_max(length_ns, Ordering::SeqCst),
            false => self.now_ns.fetch_add(length_ns, Ordering::SeqCst),
        };
        Verdict::Answer(0)
    }
}

impl Hook for Clock {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::numbered([
            libc::SYS_clock_gettime,
            libc::SYS_gettimeofday,
            libc::SYS_time,
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
        ])
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        let first = call.arg(0).map_or(0, |arg| arg.raw());
        let processor_clocks = [libc::CLOCK_PROCESS_CPUTIME_ID, libc::CLOCK_THREAD_CPUTIME_ID];
        match call.number() {
            // All clocks show the same time, but those of processors.
            libc::SYS_clock_gettime if processor_clocks.contains(&(first as i32)) => Verdict::Proceed,
            libc::SYS_clock_gettime => {
                let now = self.look();
                Self::write(call, 1, now / SECOND, now % SECOND)
            }
            libc::SYS_gettimeofday if first == 0 => Verdict::Answer(0),
            libc::SYS_gettimeofday => {
                let now = self.look();
                Self::write(call, 0, now / SECOND, now % SECOND / 1000)
            }
            libc::SYS_time => {
                let seconds = self.look() / SECOND;
                let stored =
                    first == 0 || call.write_memory(GuestAddr::new(first), &seconds.to_le_bytes()).is_ok();
                if stored { Verdict::Answer(seconds) } else { Verdict::Deny(Errno::EFAULT) }
            }
            libc::SYS_nanosleep => self.sleep(call, 0, false),
            libc::SYS_clock_nanosleep => {
                let flags = call.arg(1).map_or(0, |arg| arg.raw());
                self.sleep(call, 2, flags as i32 & libc::TIMER_ABSTIME != 0)
            }
            _ => Verdict::Proceed,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program: Vec<CString> = std::env::args().skip(1).map(CString::new).collect::<Result<_, _>>()?;
    let path = program.first().ok_or("usage: virtual_time PROGRAM [ARGUMENT]...")?.clone();

    let clock = Clock { now_ns: AtomicI64::new(BEGIN_NS) };
    // In the vdso programs would read the host's clocks without a call.
    let outcome = Guest::new(path).args(program).hide_vdso(true).hook(clock).run()?;
    outcome.status.end_this_process()
}
