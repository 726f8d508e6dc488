//! Finding the plan: tier 1 where possible, else 2, else 3, else the reasons.

use std::ops::Range;
use std::sync::Arc;

use crate::addr::GuestAddr;
use crate::decode::{Decoded, Lengths, Padding, copy_kind, decode_at, leaves_for_good, padding_kind, traps};
use crate::plan::{Blocker, JUMP_LEN, Plan, Refusal, Relocated, Tier};
use crate::prove::{Prover, Unproved, Witness};
use crate::targets::Targets;
use crate::window::{CodeWindow, Hints, SYSCALL};

/// How far in front of the site an instruction may be replaced. Real code has what it needs within 40 bytes.
const LINE_MAX: i32 = 96;

/// What `jmp rel8` over the `syscall` reaches, as offsets of its target.
const REL8: Range<i32> = (SYSCALL.len() as i32 - 128)..(SYSCALL.len() as i32 + 128);

/// Longest jump or return looked for in front of padding: `jmp [rip + disp32]` with a prefix or two.
const WAY_OUT_MAX: i32 = 8;

/// So many decodings that all deny a site settle that it is none. Fewer than it takes to affirm: nothing is done
/// about a place that is no site, so being wrong costs a trap.
const DENYING_VOTERS: u8 = 4;

/// Functions and loop heads are aligned to this by compilers that pad with `nop`s.
const PADDING_ALIGN: u64 = 16;

/// Plans the patch of the site that `window` is around.
///
/// # Errors
/// The reasons when the site has to keep trapping. They hold for these bytes and hints; a caller should remember them
/// ([`PatchMap::refuse`](crate::PatchMap::refuse)) rather than ask again at every call.
pub fn plan(window: &CodeWindow<'_>, hints: &Hints<'_>) -> Result<Plan, Refusal> {
    if !window.holds_syscall() {
        return Err(Refusal::NotSyscall);
    }
    let mut prover = Prover::new(Lengths::new(*window), hints, REL8.end);
    if !hints.site_executed {
        prove_site(&mut prover)?;
    }
    let targets = Targets::collect(prover.lengths(), hints);
    Search { window, hints, prover, targets }.run()
}

/// Whether an instruction begins at the window's site, whatever bytes are there. Offline scans ask this first.
///
/// # Errors
/// [`Refusal::NotAnInstruction`] when the witnesses say no, [`Refusal::SiteUnproved`] when they do not say yes.
pub fn prove_site_of(window: &CodeWindow<'_>, hints: &Hints<'_>) -> Result<Witness, Refusal> {
    prove_site(&mut Prover::new(Lengths::new(*window), hints, SYSCALL.len() as i32))
}

/// Where the instructions in front of the site and the one at the site probably begin, ascending: for people to read.
#[cfg(feature = "elf")]
pub(crate) fn probable_line(window: &CodeWindow<'_>, hints: &Hints<'_>, before: i32) -> Vec<i32> {
    Prover::new(Lengths::new(*window), hints, SYSCALL.len() as i32).suggest_chain(-before, 0)
}

fn prove_site(prover: &mut Prover<'_>) -> Result<Witness, Refusal> {
    prover.boundary(0).map_err(|unproved| {
        let Unproved { agreeing, voters, contradicted } = unproved;
        if contradicted || (voters >= DENYING_VOTERS && agreeing == 0) {
            Refusal::NotAnInstruction(unproved)
        } else {
            Refusal::SiteUnproved(unproved)
        }
    })
}

struct Search<'w, 'a> {
    window: &'w CodeWindow<'a>,
    hints: &'w Hints<'w>,
    prover: Prover<'a>,
    targets: Targets,
}

/// The instructions in front of a site that may run elsewhere, nearest first, and what ended them.
struct Line {
    nearest_first: Vec<(Decoded, Relocated)>,
    ended_by: Blocker,
}

impl Search<'_, '_> {
    fn run(mut self) -> Result<Plan, Refusal> {
        let line = self.straight_line();
        // A late entry leaves some calls trapping, so a second tier without one is the better choice.
        let one = match self.tier1(&line) {
            Ok(plan) if plan.late_entry.is_none() => return Ok(plan),
            one => one,
        };
        match (self.tier2(), one) {
            (Ok(plan), _) | (Err(_), Ok(plan)) => Ok(plan),
            (Err(two), Err(one)) => self.tier3(&line).map_err(|three| Refusal::NoTier { one, two, three }),
        }
    }

    /// Walks back from the site over a *suggested* chain; every boundary used is proved by the tier that uses it.
    fn straight_line(&mut self) -> Line {
        let chain = self.prover.suggest_chain(-LINE_MAX, 0);
        let mut line = Line { nearest_first: vec![], ended_by: Blocker::NoRoom };
        for offset in chain.into_iter().rev().skip(1) {
            let Some(decoded) = decode_at(self.window, offset) else { break };
            match copy_kind(&decoded.instr) {
                Ok(kind) => {
                    let len = decoded.instr.len() as u8;
                    let refers_to = decoded.refers_to();
                    line.nearest_first.push((decoded, Relocated { offset, len, kind, refers_to }));
                }
                Err(pinned) => {
                    line.ended_by = Blocker::Pinned { offset, pinned };
                    if leaves_for_good(&decoded.instr) || traps(&decoded.instr) {
                        self.drop_unreachable(&mut line);
                    }
                    break;
                }
            }
        }
        line
    }

    /// Takes instructions off the line's far end, behind a jump, that nothing is known to enter: they may be padding,
    /// which it would be in vain to replace, or data that decodes well, which it would be wrong to replace.
    fn drop_unreachable(&self, line: &mut Line) {
        while line.nearest_first.last().is_some_and(|(d, _)| !self.looks_entered(d)) {
            line.nearest_first.pop();
        }
    }

    /// Whether control may arrive here other than from the instruction in front: a branch target, or where a function
    /// begins or may begin.
    fn looks_entered(&self, at: &Decoded) -> bool {
        let addr = self.window.addr(at.offset);
        self.targets.first_in(at.offset..at.offset + 1).is_some()
            || self.hints.function.is_some_and(|f| f.start == addr)
            || self.is_landing_pad(at.offset)
            || (addr.raw().is_multiple_of(PADDING_ALIGN) && padding_kind(&at.instr).is_none())
    }

    /// The nearest instruction of five bytes that is proved, not jumped into and not taken.
    fn tier1(&mut self, line: &Line) -> Result<Plan, Blocker> {
        let mut why_not = None;
        for (i, (decoded, _)) in line.nearest_first.iter().enumerate() {
            if decoded.instr.len() < JUMP_LEN {
                continue;
            }
            match self.usable(decoded.offset, decoded.offset + 1..decoded.end()) {
                Ok(witness) => {
                    let late = self.targets.first_in(decoded.end()..1);
                    let late = late.or_else(|| self.likely_entry(&line.nearest_first[..=i]));
                    return self.assemble(
                        Tier::OneInstruction,
                        &line.nearest_first[..=i],
                        witness,
                        late,
                        None,
                    );
                }
                Err(blocker) => why_not = why_not.or(Some(blocker)),
            }
        }
        Err(why_not.unwrap_or(line.ended_by))
    }

    /// Where a function or loop probably begins behind the jump: right behind `nop`s that end at an aligned address.
    /// A function in front may end in a call that never returns, which looks like straight code.
    fn likely_entry(&self, nearest_first: &[(Decoded, Relocated)]) -> Option<i32> {
        let mut ends =
            nearest_first.iter().filter(|(d, _)| padding_kind(&d.instr).is_some()).map(|(d, _)| d.end());
        ends.find(|end| self.window.addr(*end).raw().is_multiple_of(PADDING_ALIGN))
    }

    /// Whether the boundary is proved, no branch goes into `inside` and no other patch lies there.
    fn usable(&mut self, boundary: i32, inside: Range<i32>) -> Result<Witness, Blocker> {
        let proof = self.prover.boundary(boundary);
        let witness = proof.map_err(|unproved| Blocker::Unproved { offset: boundary, unproved })?;
        if let Some(offset) = self.targets.first_in(inside.clone()) {
            return Err(Blocker::BranchInto { offset });
        }
        self.free(boundary.min(inside.start)..inside.end.max(SYSCALL.len() as i32))?;
        Ok(witness)
    }

    fn free(&self, range: Range<i32>) -> Result<(), Blocker> {
        let bytes = crate::GuestRange::new(self.window.addr(range.start), self.window.addr(range.end));
        if let Some(o) = self.hints.occupied.iter().find(|o| o.overlaps(&bytes)) {
            return Err(Blocker::Occupied { offset: self.window.offset_of(o.start).unwrap_or(range.start) });
        }
        match self.hints.data.iter().find(|d| bytes.contains(**d)) {
            Some(d) => Err(Blocker::ReadAsData { offset: self.window.offset_of(*d).unwrap_or(range.start) }),
            None => Ok(()),
        }
    }

    /// The nearest padding that `jmp rel8` reaches.
    fn tier2(&mut self) -> Result<Plan, Blocker> {
        self.free(0..SYSCALL.len() as i32)?;
        let mut starts: Vec<i32> = REL8.filter(|at| self.may_be_padding(*at)).collect();
        starts.sort_by_key(|at| (at.abs(), *at));
        let mut why_not = Blocker::NoPadding;
        for start in starts {
            match self.padding_at(start) {
                Ok((offset, kind, witness)) => {
                    let tier = Tier::Padding { offset, kind };
                    let bytes = self.window.get(offset, JUMP_LEN).and_then(|b| b.try_into().ok());
                    return self.assemble(tier, &[], witness, None, bytes);
                }
                Err(blocker) => why_not = blocker,
            }
        }
        Err(why_not)
    }

    /// A quick look, so that only few places are proved: padding here, the end of a jump or return in front of it.
    fn may_be_padding(&self, at: i32) -> bool {
        let padded = decode_at(self.window, at).is_some_and(|d| padding_kind(&d.instr).is_some());
        padded && ways_out(self.window, at).next().is_some()
    }

    /// Five bytes in the run of padding that begins at `start`, if it is proved that nothing executes them.
    fn padding_at(&mut self, start: i32) -> Result<(i32, Padding, Witness), Blocker> {
        let (end, kind) = self.padding_run(start).ok_or(Blocker::NoPadding)?;
        let (witness, mut why_not) = (None, Blocker::NoPadding);
        let ways_out: Vec<i32> = ways_out(self.window, start).collect();
        let witness = ways_out.into_iter().fold(witness, |found, way_out| {
            found.or_else(|| {
                let proof = self.prover.boundary(way_out);
                proof.map_err(|unproved| why_not = Blocker::Unproved { offset: way_out, unproved }).ok()
            })
        });
        let witness = witness.ok_or(why_not)?;
        // What a branch enters, and all behind it, is executed. An instruction at `end` may be entered.
        let end = self.targets.first_in(start..end).unwrap_or(end);
        why_not = Blocker::NoPadding;
        for offset in (start..end).take_while(|o| o + JUMP_LEN as i32 <= end && REL8.contains(o)) {
            match self.free(offset..offset + JUMP_LEN as i32) {
                Ok(()) => return Ok((offset, kind, witness)),
                Err(blocker) => why_not = blocker,
            }
        }
        Err(why_not)
    }

    /// End and kind of the padding at `start`, cut off where a function may begin.
    fn padding_run(&self, start: i32) -> Option<(i32, Padding)> {
        let kind = padding_kind(&decode_at(self.window, start)?.instr)?;
        let mut end = start;
        while end < REL8.end + JUMP_LEN as i32
            && let Some(next) = decode_at(self.window, end).filter(|d| padding_kind(&d.instr) == Some(kind))
        {
            end = next.end();
        }
        if kind == Padding::Nops && !self.within_function(start..end) {
            // A function may begin with nops (room for live patching), and only an indirect call may lead there. It
            // begins at an aligned address, and padding ends at the latest there; nops that neither begin nor end at
            // one are no padding that a tool has put between functions.
            let up = |offset: i32| self.window.addr(offset).raw().wrapping_neg() % PADDING_ALIGN;
            end = end.min(start + up(start) as i32);
            if up(end) != 0 {
                return None;
            }
        }
        (end > start).then_some((end, kind))
    }

    /// Whether the range lies inside of the known function, where no other function begins.
    fn within_function(&self, range: Range<i32>) -> bool {
        let bounds = self.hints.function.and_then(|f| Some((f.start, f.end?)));
        bounds.is_some_and(|(start, end)| {
            start < self.window.addr(range.start) && self.window.addr(range.end) <= end
        })
    }

    /// The shortest run of whole instructions up to the `syscall` that has five bytes, if every jump of the function
    /// is known and none goes to a boundary that vanishes.
    fn tier3(&mut self, line: &Line) -> Result<Plan, Blocker> {
        let head_max = SYSCALL.len() as i32 - JUMP_LEN as i32;
        let Some(i) = line.nearest_first.iter().position(|(d, _)| d.offset <= head_max) else {
            return Err(line.ended_by);
        };
        let head = line.nearest_first[i].0.offset;
        if !self.hints.targets_complete {
            return Err(Blocker::TargetsUnknown);
        }
        self.whole_function()?;
        let witness = self.usable(head, head + 1..head + JUMP_LEN as i32)?;
        let behind = head..head + JUMP_LEN as i32;
        let mut vanishing: Vec<i32> = line.nearest_first[..i].iter().map(|(d, _)| d.offset).collect();
        vanishing.reverse();
        vanishing.push(0);
        vanishing.retain(|v| behind.contains(v));
        let late = self.targets.first_in(behind.end..1);
        self.assemble(Tier::Relocated { vanishing }, &line.nearest_first[..=i], witness, late, None)
    }

    fn is_landing_pad(&self, offset: i32) -> bool {
        self.window.get(offset, 4) == Some(&[0xf3, 0x0f, 0x1e, 0xfa])
    }

    /// Checks that every jump within the function is direct, so that the targets collected are all there are.
    fn whole_function(&self) -> Result<(), Blocker> {
        let bounds = self
            .hints
            .function
            .and_then(|f| Some((self.window.offset_of(f.start)?, self.window.offset_of(f.end?)?)));
        let (mut here, end) = bounds.ok_or(Blocker::FunctionUnknown)?;
        if here < self.window.first() || end > self.window.end() || !(here..end).contains(&0) {
            return Err(Blocker::FunctionUnknown);
        }
        while here < end {
            let unknown = Blocker::UnknownJumps { offset: here };
            let decoded = decode_at(self.window, here).ok_or(unknown)?;
            if decoded.instr.is_jmp_near_indirect() || decoded.instr.is_jmp_far_indirect() {
                return Err(unknown);
            }
            here = decoded.end();
        }
        if here == end { Ok(()) } else { Err(Blocker::UnknownJumps { offset: end }) }
    }

    /// Puts the plan together. `line` is nearest first.
    fn assemble(
        &self,
        tier: Tier,
        line: &[(Decoded, Relocated)],
        witness: Witness,
        late_entry: Option<i32>,
        padding: Option<[u8; JUMP_LEN]>,
    ) -> Result<Plan, Blocker> {
        let relocated: Arc<[Relocated]> = line.iter().rev().map(|(_, r)| *r).collect();
        let head = relocated.first().map_or(0, |r| r.offset);
        let len = (SYSCALL.len() as i32 - head) as usize;
        let code = self.window.get(head, len).ok_or(Blocker::NoRoom)?.into();
        let plan = Plan { tier, head, relocated, witness, late_entry, code, padding };
        // Operands up to 2 GiB away on both sides leave no room between them. The real address does not matter for
        // this question, except near the ends of the address space, where there are no programs.
        let somewhere = GuestAddr::new(1 << 46);
        plan.reach(somewhere).map(|_| plan).ok_or(Blocker::OutOfReach { offset: head })
    }
}

/// Where a jump or return may begin that ends at `at`.
fn ways_out(window: &CodeWindow<'_>, at: i32) -> impl Iterator<Item = i32> {
    let ends_here = move |d: &Decoded| d.end() == at && leaves_for_good(&d.instr);
    (1..=WAY_OUT_MAX).filter_map(move |len| decode_at(window, at - len).filter(ends_here)).map(|d| d.offset)
}
