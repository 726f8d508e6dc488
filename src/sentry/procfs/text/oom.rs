//! What the kernel's out-of-memory killer is told, and would think, of a process: bookkeeping, for the stub process
//! is always the first to go.

use super::super::subject::Subject;
use super::memory;
use crate::sentry::errno::Errno;
use crate::sentry::process::Process;

/// `OOM_SCORE_ADJ_MIN` and `_MAX`.
const ADJUSTMENTS: std::ops::RangeInclusive<i64> = -1000..=1000;
/// `OOM_DISABLE` and `OOM_ADJUST_MAX` of the older file.
const DISABLE: i64 = -17;
const LEGACY_MAX: i64 = 15;
const CAP_SYS_RESOURCE: u32 = 24;

/// Sets `oom_score_adj`.
pub(super) fn set(process: &Process, value: i64) -> Result<(), Errno> {
    if !ADJUSTMENTS.contains(&value) {
        return Err(Errno::EINVAL);
    }
    let value = value as i32;
    if value < process.oom_score_adj_min() && !has_capability(CAP_SYS_RESOURCE) {
        return Err(Errno::EACCES);
    }
    process.set_oom_score_adj(value);
    if has_capability(CAP_SYS_RESOURCE) {
        process.set_oom_score_adj_min(value);
    }
    Ok(())
}

/// Sets `oom_adj`, by its scale.
pub(super) fn set_legacy(process: &Process, value: i64) -> Result<(), Errno> {
    match value {
        LEGACY_MAX => set(process, *ADJUSTMENTS.end()),
        DISABLE..LEGACY_MAX => set(process, value * 1000 / -DISABLE),
        _ => Err(Errno::EINVAL),
    }
}

/// `oom_adj` as the kernel converts it.
pub(super) fn legacy(adjustment: i32) -> i64 {
    if adjustment == 1000 { LEGACY_MAX } else { i64::from(adjustment) * -DISABLE / 1000 }
}

/// `oom_score` (mm/oom_kill.c `oom_badness`, fs/proc/base.c `proc_oom_score`).
pub(super) fn score(subject: &Subject) -> u64 {
    let adjustment = i64::from(subject.process.oom_score_adj());
    if !subject.is_alive() || adjustment == *ADJUSTMENTS.start() {
        return 0;
    }
    let machine = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name| super::number_field(&machine, name).unwrap_or(0) as i64;
    let total = ((kib("MemTotal") + kib("SwapTotal")) / 4).max(1);
    let used = memory::resident_pages(subject) as i64;
    let points = used + adjustment * total / 1000;
    let score = (1000 + points * 1000 / total) * 2 / 3;
    u64::try_from(score).unwrap_or(0)
}

/// Whether the supervisor, with whose rights the guest works, has a capability.
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = super::field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    effective.is_some_and(|effective| effective >> number & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_scale() {
        assert_eq!([legacy(0), legacy(1000), legacy(-1000), legacy(500)], [0, 15, -17, 8]);
    }
}
