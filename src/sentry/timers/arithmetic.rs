//! Times as the kernel counts them: nanoseconds in 63 bits, saturating (`ktime_t`).

use crate::sentry::abi::{Timespec, Timeval};

const SECOND: i64 = 1_000_000_000;

/// A time that is not negative; `None` for one that the kernel refuses.
pub(crate) fn from_timespec(time: Timespec) -> Option<i64> {
    let valid = time.sec >= 0 && (0..SECOND).contains(&time.nsec);
    valid.then(|| time.sec.saturating_mul(SECOND).saturating_add(time.nsec))
}

/// The same for microseconds.
pub(crate) fn from_timeval(time: Timeval) -> Option<i64> {
    from_timespec(time.to_timespec()?)
}

pub(crate) fn to_timespec(ns: i64) -> Timespec {
    Timespec { sec: ns.div_euclid(SECOND), nsec: ns.rem_euclid(SECOND) }
}

pub(crate) fn to_timeval(ns: i64) -> Timeval {
    Timeval { sec: ns.div_euclid(SECOND), usec: ns.rem_euclid(SECOND) / 1000 }
}

/// When a periodic timer that is due at `expires` is due after `now`, and how often it has been until then
/// (`hrtimer_forward`).
pub(super) fn forward(expires: i64, interval: i64, now: i64) -> (i64, i64) {
    if interval <= 0 || now < expires {
        return (expires, 0);
    }
    let count = (now.saturating_sub(expires) / interval).saturating_add(1);
    (expires.saturating_add(count.saturating_mul(interval)), count)
}

/// `si_overrun` and `timer_getoverrun`: at most what an `int` holds (`timer_overrun_to_int`).
pub(super) fn overrun_to_int(overrun: i64) -> i32 {
    i32::try_from(overrun.max(0)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_normalised_times_count_and_large_ones_saturate() {
        let time = |sec, nsec| from_timespec(Timespec { sec, nsec });
        assert_eq!(time(1, 5), Some(1_000_000_005));
        assert_eq!(time(0, 0), Some(0));
        assert_eq!(time(i64::MAX, 999_999_999), Some(i64::MAX));
        for (sec, nsec) in [(-1, 0), (0, -1), (0, SECOND), (i64::MIN, 0), (1, i64::MAX)] {
            assert_eq!(time(sec, nsec), None);
        }
        assert_eq!(from_timeval(Timeval { sec: 2, usec: 999_999 }), Some(2_999_999_000));
        assert_eq!(from_timeval(Timeval { sec: 0, usec: 1_000_000 }), None);
        assert_eq!(from_timeval(Timeval { sec: -1, usec: 0 }), None);
        assert_eq!(to_timespec(i64::MAX), Timespec { sec: 9_223_372_036, nsec: 854_775_807 });
        assert_eq!(to_timeval(1_999), Timeval { sec: 0, usec: 1 });
    }

    #[test]
    fn periods_that_have_passed_are_counted() {
        assert_eq!(forward(100, 10, 99), (100, 0));
        assert_eq!(forward(100, 10, 100), (110, 1));
        assert_eq!(forward(100, 10, 109), (110, 1));
        assert_eq!(forward(100, 10, 110), (120, 2));
        assert_eq!(forward(100, 0, 500), (100, 0));
        assert_eq!(forward(0, 1, i64::MAX), (i64::MAX, i64::MAX));
        assert_eq!(forward(1, i64::MAX, 2), (i64::MAX, 1));
        assert_eq!(forward(5, i64::MAX - 1, i64::MAX), (i64::MAX, 1));
    }

    #[test]
    fn overruns_stop_at_the_largest_int() {
        assert_eq!([-1, 0, 7, i64::MAX].map(overrun_to_int), [0, 0, 7, i32::MAX]);
    }
}
