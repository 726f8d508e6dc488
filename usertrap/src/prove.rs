//! Proof that an offset is an instruction boundary.
//!
//! x86 code cannot be decoded backwards: google/gvisor#10849 is a patcher that took the displacement and immediate of
//! `c7 44 24 b8 10 00 00 00` for a `mov eax, 16`. Decoding *forwards* however falls into step with the real
//! instructions after a few of them, wherever it starts. So every start in a stretch of bytes in front of the offset
//! casts a vote, and only a unanimous vote counts. A known function start is a second witness: decoding from there is
//! right by definition, unless there is data in between; behind a jump or return it needs a majority of the votes, too.

use crate::decode::{Lengths, decode_at, leaves_for_good};
use crate::window::Hints;

/// Starts this far in front of the offset vote. Closer ones have not fallen into step yet.
const NEAREST_START: i32 = 16;
/// Starts further away add time, not certainty.
const FARTHEST_START: i32 = 64;
/// Starts that run into an invalid opcode abstain; so many have to remain for the vote to count.
pub(crate) const MIN_VOTERS: u8 = 16;

/// What a proof rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Witness {
    /// All of so many decodings agree; no function start is known.
    Vote {
        /// How many starts reached the offset's neighbourhood.
        voters: u8,
    },
    /// All decodings agree, and so does the one from the known function start.
    VoteAndFunction {
        /// How many starts reached the offset's neighbourhood.
        voters: u8,
    },
    /// Decoding from the known function start reaches the offset; the vote was split or too small.
    Function {
        /// Starts that agreed.
        agreeing: u8,
        /// How many starts reached the offset's neighbourhood.
        voters: u8,
    },
}

/// There is no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{agreeing} of {voters} decodings agree and no function start vouches for it")]
#[non_exhaustive]
pub struct Unproved {
    /// Starts that decoded an instruction boundary at the offset.
    pub agreeing: u8,
    /// How many starts got past the offset at all.
    pub voters: u8,
    /// Decoding from the known function start says that this is not a boundary.
    pub contradicted: bool,
}

/// The instruction boundaries of a window, as far as they are asked for.
pub(crate) struct Prover<'a> {
    lengths: Lengths<'a>,
    /// Boundaries from the known function start on, ascending; empty when there is no function in the window.
    linear: Vec<i32>,
    /// Behind the first jump or return there may be data, which only looks decodable: from here on the function start
    /// is believed only if most voters agree.
    straight_until: i32,
}

impl<'a> Prover<'a> {
    /// `reach` is the last offset that will be asked about.
    pub fn new(mut lengths: Lengths<'a>, hints: &Hints<'_>, reach: i32) -> Self {
        let window = *lengths.window();
        let linear = hints.function.and_then(|f| {
            let end = f.end.and_then(|e| window.offset_of(e)).unwrap_or(i32::MAX).min(reach);
            window.offset_of(f.start).map(|start| walk(&mut lengths, start, end))
        });
        let linear = linear.unwrap_or_default();
        let leaves = |at: &&i32| decode_at(&window, **at).is_none_or(|d| leaves_for_good(&d.instr));
        let straight_until = linear.iter().find(leaves).copied().unwrap_or(i32::MAX);
        Self { lengths, linear, straight_until }
    }

    pub fn lengths(&mut self) -> &mut Lengths<'a> {
        &mut self.lengths
    }

    /// Whether decoding from the function start covers `at`, and if so, whether it is a boundary.
    fn linear_says(&self, at: i32) -> Option<bool> {
        let covered = at >= *self.linear.first()? && at <= *self.linear.last()?;
        covered.then(|| self.linear.binary_search(&at).is_ok())
    }

    /// Proves that an instruction begins (or code ends) at `at`.
    pub fn boundary(&mut self, at: i32) -> Result<Witness, Unproved> {
        let (agreeing, voters) = self.vote(at);
        let unanimous = voters >= MIN_VOTERS && agreeing == voters;
        let straight = at <= self.straight_until;
        match (self.linear_says(at), unanimous) {
            (Some(true), true) => Ok(Witness::VoteAndFunction { voters }),
            (Some(true), false) if straight || 2 * agreeing > voters => {
                Ok(Witness::Function { agreeing, voters })
            }
            (None, true) => Ok(Witness::Vote { voters }),
            (Some(false), _) => Err(Unproved { agreeing, voters, contradicted: true }),
            (None | Some(true), false) => Err(Unproved { agreeing, voters, contradicted: false }),
        }
    }

    /// How many starts decode a boundary at `at`, and how many got that far at all.
    fn vote(&mut self, at: i32) -> (u8, u8) {
        let (mut agreeing, mut voters) = (0, 0);
        for start in at.saturating_sub(FARTHEST_START)..=at.saturating_sub(NEAREST_START) {
            // None abstains: it ran into something that is no instruction, or starts outside of the window.
            if let Some(arrives) = self.arrives(start, at) {
                voters += 1;
                agreeing += u8::from(arrives);
            }
        }
        (agreeing, voters)
    }

    fn arrives(&mut self, start: i32, at: i32) -> Option<bool> {
        let mut here = start;
        while here < at {
            here = self.lengths.next(here)?;
        }
        Some(here == at)
    }

    /// Boundaries from somewhere before `from` up to `to`: by the function if it is known, else by the farthest start
    /// that gets there. Only a suggestion: each boundary used has to be proved.
    pub fn suggest_chain(&mut self, from: i32, to: i32) -> Vec<i32> {
        if self.linear_says(to) == Some(true) {
            return self.linear.iter().copied().filter(|b| (from..=to).contains(b)).collect();
        }
        let first = self.lengths.window().first();
        (from.max(first)..to)
            .map(|start| walk(&mut self.lengths, start, to))
            .find(|chain| chain.last() == Some(&to))
            .unwrap_or_default()
    }
}

const _: () =
    assert!(2 * (FARTHEST_START - NEAREST_START + 1) <= u8::MAX as i32, "votes are counted in a u8");

/// Instruction boundaries from `start` on, `end` included if one falls on it.
fn walk(lengths: &mut Lengths<'_>, start: i32, end: i32) -> Vec<i32> {
    let mut chain = vec![];
    let mut here = Some(start).filter(|s| *s >= lengths.window().first());
    while let Some(at) = here.filter(|at| *at <= end) {
        chain.push(at);
        here = lengths.next(at);
    }
    chain
}
