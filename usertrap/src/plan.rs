//! What to do about one site: the types.

use std::fmt;
use std::sync::Arc;

use crate::addr::{GuestAddr, GuestRange, Reach};
use crate::decode::{CopyKind, Padding, Pinned};
use crate::prove::{Unproved, Witness};
use crate::window::{CodeWindow, SYSCALL};
use crate::write::WriteMode;

/// Length of `jmp rel32`, the instruction that leads to a trampoline.
pub const JUMP_LEN: usize = 5;

/// An instruction that the trampoline runs in place of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Relocated {
    /// Offset of the original from the site; negative.
    pub offset: i32,
    /// Length of the original.
    pub len: u8,
    /// How its copy is made.
    pub kind: CopyKind,
    /// For copies that are encoded anew: what they refer to, as an offset from the site.
    pub refers_to: Option<i64>,
}

/// How the guest's bytes are changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Tier 1: the first five bytes of one earlier instruction become `jmp rel32`. Every instruction boundary and the
    /// `syscall` stay. The rest of a longer instruction stays as it is too: nothing executes it.
    OneInstruction,
    /// Tier 2: the `syscall` becomes `jmp rel8` to padding that nothing executes, which becomes `jmp rel32`.
    Padding {
        /// Offset of the five bytes of padding from the site.
        offset: i32,
        /// What was there.
        kind: Padding,
    },
    /// Tier 3: `jmp rel32` over several instructions. To be written only while no other thread of the address space
    /// runs, and with saved instruction pointers sent through [`PatchMap::resume_at`](crate::PatchMap::resume_at).
    Relocated {
        /// Offsets of the instructions that begin inside the five bytes, hence cannot be jumped to any more. 0, the
        /// `syscall` itself, may be among them.
        vanishing: Vec<i32>,
    },
}

impl Tier {
    /// 1, 2 or 3.
    #[must_use]
    pub fn number(&self) -> u8 {
        match self {
            Tier::OneInstruction => 1,
            Tier::Padding { .. } => 2,
            Tier::Relocated { .. } => 3,
        }
    }
}

/// A proved way to patch one site.
///
/// Everything in it is relative to the site, so a plan made once for a file serves wherever the file is mapped, at
/// any address with the same offset in a page. It remembers the bytes it was made from; they are compared when it is
/// applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    pub(crate) tier: Tier,
    /// Offset of the first byte that changes (tiers 1 and 3), or 0 (tier 2).
    pub(crate) head: i32,
    pub(crate) relocated: Arc<[Relocated]>,
    pub(crate) witness: Witness,
    pub(crate) late_entry: Option<i32>,
    /// The original bytes from `head` to the end of the `syscall`.
    pub(crate) code: Arc<[u8]>,
    /// The original bytes of the padding (tier 2).
    pub(crate) padding: Option<[u8; JUMP_LEN]>,
}

impl Plan {
    /// Which bytes change, and how.
    #[must_use]
    pub fn tier(&self) -> &Tier {
        &self.tier
    }

    /// Offset from the site of the jump: the instruction replaced (tiers 1 and 3) or the `syscall`, 0 (tier 2).
    #[must_use]
    pub fn head(&self) -> i32 {
        self.head
    }

    /// The instructions that the trampoline runs before it enters the syshandler, in order.
    #[must_use]
    pub fn relocated(&self) -> &[Relocated] {
        &self.relocated
    }

    /// What the proof of the instruction boundaries rests on.
    #[must_use]
    pub fn witness(&self) -> Witness {
        self.witness
    }

    /// A known branch target behind the jump, or where a function probably begins there, as an offset: whoever arrives there still traps, which is correct but
    /// slow.
    #[must_use]
    pub fn late_entry(&self) -> Option<i32> {
        self.late_entry
    }

    /// Whether other threads of the address space must not run while the patch is written.
    #[must_use]
    pub fn needs_stopped_threads(&self) -> bool {
        matches!(self.tier, Tier::Relocated { .. })
    }

    /// The cheapest way in which a patch of this plan may be written at `site`: one atomic store where its bytes lie
    /// in one aligned word, `int3` first elsewhere, stopped threads for tier 3.
    #[must_use]
    pub fn write_mode(&self, site: GuestAddr) -> WriteMode {
        let len = if self.padding.is_some() { SYSCALL.len() } else { JUMP_LEN };
        let first = site.wrapping_offset(self.head.into());
        let last = first.wrapping_offset(len as i64 - 1);
        match self.needs_stopped_threads() {
            true => WriteMode::Stopped,
            false if first.qword() == last.qword() => WriteMode::Atomic,
            false => WriteMode::Breakpoint,
        }
    }

    /// The guest bytes that the patch needs unchanged: those it replaces, those it copied, and the site.
    #[must_use]
    pub fn footprint(&self, site: GuestAddr) -> GuestRange {
        let start = site.wrapping_offset(self.head.into());
        GuestRange::of_len(start, self.code.len() as u64)
    }

    /// The padding used, for a plan of tier 2.
    #[must_use]
    pub fn padding(&self, site: GuestAddr) -> Option<GuestRange> {
        match self.tier {
            Tier::Padding { offset, .. } => {
                Some(GuestRange::of_len(site.wrapping_offset(offset.into()), JUMP_LEN as u64))
            }
            _ => None,
        }
    }

    /// Whether the window holds, at its site, the very bytes that the plan was made from.
    #[must_use]
    pub fn matches(&self, window: &CodeWindow<'_>) -> bool {
        let code = window.get(self.head, self.code.len()) == Some(&self.code);
        let padding = match (&self.tier, &self.padding) {
            (Tier::Padding { offset, .. }, Some(bytes)) => window.get(*offset, JUMP_LEN) == Some(bytes),
            _ => true,
        };
        code && padding
    }

    /// Where a trampoline for the site may lie, so that the jump to it and everything its copies refer to is in reach.
    /// `None` if there is no such place.
    #[must_use]
    pub fn reach(&self, site: GuestAddr) -> Option<Reach> {
        self.relocated.iter().filter_map(|r| r.refers_to).try_fold(Reach::around(site), |reach, to| {
            reach.intersect(Reach::around(site.wrapping_offset(to)))
        })
    }
}

/// Why one tier does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Blocker {
    /// The straight line in front of the site is cut short by an instruction that cannot be copied.
    #[error("at {offset:+}: {pinned}")]
    Pinned {
        /// Offset of that instruction from the site.
        offset: i32,
        /// What is wrong with it.
        pinned: Pinned,
    },
    /// A boundary that the tier relies on is not proved.
    #[error("at {offset:+}: {unproved}")]
    Unproved {
        /// Offset of the boundary.
        offset: i32,
        /// The votes.
        unproved: Unproved,
    },
    /// A branch goes into the bytes that would change.
    #[error("a branch to {offset:+}")]
    BranchInto {
        /// Offset of the branch target from the site.
        offset: i32,
    },
    /// Another patch uses the bytes.
    #[error("another patch at {offset:+}")]
    Occupied {
        /// Offset of the bytes from the site.
        offset: i32,
    },
    /// The program reads the bytes as data.
    #[error("read as data at {offset:+}")]
    ReadAsData {
        /// Offset of the data from the site.
        offset: i32,
    },
    /// No instruction of five bytes or more, or too few bytes, before the window or the search ends.
    #[error("no room")]
    NoRoom,
    /// No unreachable padding within reach of `jmp rel8`.
    #[error("no padding in reach")]
    NoPadding,
    /// The instructions to copy refer to places so far apart that no trampoline reaches all of them.
    #[error("at {offset:+}: operands out of reach of each other")]
    OutOfReach {
        /// Offset of the first instruction to copy.
        offset: i32,
    },
    /// Tier 3 needs to see the whole function, and its bounds are not known or exceed the window.
    #[error("the whole function is not in sight")]
    FunctionUnknown,
    /// Tier 3 needs all direct branch targets ([`Hints::targets_complete`](crate::Hints::targets_complete)).
    #[error("branches from afar are not known")]
    TargetsUnknown,
    /// Tier 3 needs to know every jump of the function, and it holds an indirect jump or bytes that are no code.
    #[error("at {offset:+}: jumps that cannot be known")]
    UnknownJumps {
        /// Offset of the obstacle from the site.
        offset: i32,
    },
}

/// Tier 4: why a site keeps trapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The bytes at the site are no `syscall` instruction (any more).
    #[error("no syscall instruction")]
    NotSyscall,
    /// It is not proved that an instruction begins at the site.
    #[error("not proved to be an instruction: {0}")]
    SiteUnproved(Unproved),
    /// It is proved that no instruction begins at the site: the bytes are part of one, or data.
    #[error("not an instruction: {0}")]
    NotAnInstruction(Unproved),
    /// Each tier fails for a reason of its own.
    #[error("tier 1: {one}; tier 2: {two}; tier 3: {three}")]
    NoTier {
        /// Why tier 1 does not serve.
        one: Blocker,
        /// Why tier 2 does not serve.
        two: Blocker,
        /// Why tier 3 does not serve.
        three: Blocker,
    },
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tier::OneInstruction => f.write_str("tier 1, one instruction"),
            Tier::Padding { offset, kind } => write!(f, "tier 2, padding at {offset:+} ({kind:?})"),
            Tier::Relocated { vanishing } => write!(f, "tier 3, relocated window, vanishing {vanishing:?}"),
        }
    }
}
