//! `MADV_DONTFORK` and `MADV_WIPEONFORK`: what a child does not get. The host copies everything; the child's part is taken
//! away before it runs.

use super::{Backing, Mm, Region, State};
use crate::GuestAddr;
use crate::sentry::errno::Errno;

/// What becomes of a range in a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForkAdvice {
    /// It is not there.
    Leave,
    /// It is there and zero.
    Wipe,
}

/// Ranges that do not overlap within one kind.
pub(super) type ForkRanges = Vec<(u64, u64, ForkAdvice)>;

fn without(ranges: ForkRanges, start: u64, end: u64, kind: Option<ForkAdvice>) -> ForkRanges {
    let split = |(from, to, of): (u64, u64, ForkAdvice)| {
        let concerned = kind.is_none_or(|kind| kind == of) && from < end && start < to;
        if concerned {
            [(from, to.min(start), of), (from.max(end), to, of)]
        } else {
            [(from, to, of), (0, 0, of)]
        }
    };
    ranges.into_iter().flat_map(split).filter(|(from, to, _)| from < to).collect()
}

impl State {
    /// The range is not what it was: mapped anew, or no more.
    pub(super) fn forget_fork_advice(&mut self, start: u64, end: u64) {
        if !self.fork_ranges.is_empty() {
            self.fork_ranges = without(std::mem::take(&mut self.fork_ranges), start, end, None);
        }
    }

    /// Takes the advice; `None` if it is about something else than forks.
    pub(super) fn advise_fork(&mut self, start: u64, end: u64, advice: i32) -> Option<Result<(), Errno>> {
        let (kind, on) = match advice {
            libc::MADV_DONTFORK => (ForkAdvice::Leave, true),
            libc::MADV_DOFORK => (ForkAdvice::Leave, false),
            libc::MADV_WIPEONFORK => (ForkAdvice::Wipe, true),
            libc::MADV_KEEPONFORK => (ForkAdvice::Wipe, false),
            _ => return None,
        };
        let wipeable = |region: &Region| {
            !region.shared && matches!(region.backing, Backing::Anonymous | Backing::Named(_))
        };
        if kind == ForkAdvice::Wipe && on && !self.map.overlapping(start, end).all(wipeable) {
            return Some(Err(Errno::EINVAL));
        }
        let covered = self.map.is_covered(start, end);
        self.fork_ranges = without(std::mem::take(&mut self.fork_ranges), start, end, Some(kind));
        if on {
            self.fork_ranges.push((start, end, kind));
        }
        Some(if covered { Ok(()) } else { Err(Errno::ENOMEM) })
    }
}

impl Mm {
    /// Takes away from this copy, which nobody runs in yet, what its parent does not pass on.
    pub(super) fn after_fork(&self) -> Result<(), Errno> {
        let mut state = self.state();
        for (start, end, advice) in state.fork_ranges.clone() {
            let parts: Vec<Region> =
                state.map.overlapping(start, end).map(|region| region.clipped(start, end)).collect();
            for part in parts {
                let (addr, len) = (GuestAddr::new(part.start), part.end - part.start);
                match advice {
                    ForkAdvice::Wipe => self.space().map_anonymous(addr, len, part.protection)?,
                    ForkAdvice::Leave => {
                        self.space().unmap(addr, len)?;
                        state.map.remove(part.start, part.end);
                    }
                }
            }
        }
        // What is not there needs no advice; what is wiped is wiped in grandchildren too.
        state.fork_ranges.retain(|(_, _, advice)| *advice == ForkAdvice::Wipe);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut() {
        let ranges = vec![(0, 10, ForkAdvice::Leave), (0, 10, ForkAdvice::Wipe)];
        let cut = without(ranges, 4, 6, Some(ForkAdvice::Wipe));
        assert_eq!(cut, [(0, 10, ForkAdvice::Leave), (0, 4, ForkAdvice::Wipe), (6, 10, ForkAdvice::Wipe)]);
        assert!(without(cut, 0, 10, None).is_empty());
    }
}
