//! What fuzzing checks: given any input, `usertrap` neither panics nor makes a plan that its own bytes do not bear out.
//! Shared by the fuzz targets (`fuzz/`) and the short run among the tests.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use usertrap::*;

use super::memory::{Blocks, Guest};

/// What precedes the code in an input for [`planner`].
pub const HEADER_LEN: usize = 24;
const SYSHANDLER: SyshandlerAddr = SyshandlerAddr::new(0x7f00_0000_0000);

/// What came of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    pub planned: usize,
    pub refused: usize,
}

/// Plans every site of arbitrary code at an arbitrary place with arbitrary hints: 8 bytes of base address, one of
/// switches; as 16-bit offsets from the base function start and end, two branch targets, data and occupied bytes; how
/// many those are; two bytes of nothing; then the code.
pub fn planner(input: &[u8]) -> Came {
    let mut came = Came::default();
    let Some((header, code)) = input.split_at_checked(HEADER_LEN) else { return came };
    let base = GuestAddr::new(u64::from_le_bytes(header[..8].try_into().expect("eight bytes")));
    let switches = header[8];
    let near =
        |i: usize| base.wrapping_offset(i16::from_le_bytes([header[9 + 2 * i], header[10 + 2 * i]]).into());
    let end = Some(near(1)).filter(|_| switches & 1 != 0);
    let function = Some(KnownFunction { start: near(0), end }).filter(|_| switches & 2 != 0);
    let targets = [near(2), near(3)];
    let data = [near(4)];
    let occupied = [GuestRange::of_len(near(5), u64::from(header[21] % 16))];
    for site in (0..code.len().saturating_sub(1)).filter(|at| code[*at..at + 2] == [0x0f, 0x05]) {
        let Ok(window) = CodeWindow::new(base, code, base.wrapping_offset(site as i64)) else { continue };
        let hints = Hints {
            site_executed: switches & 4 != 0,
            function,
            targets: if switches & 8 != 0 { &targets } else { &[] },
            targets_complete: switches & 16 != 0,
            data: if switches & 32 != 0 { &data } else { &[] },
            occupied: if switches & 64 != 0 { &occupied } else { &[] },
        };
        match plan(&window, &hints) {
            Ok(plan) => {
                came.planned += 1;
                let plan = Checked { plan: &plan, window: &window, hints: &hints };
                plan.agrees_with_its_bytes();
                plan.is_proved();
                plan.keeps_off_what_is_known();
                plan.is_undone(code);
            }
            Err(refusal) => {
                came.refused += 1;
                assert!(!refusal.to_string().is_empty());
            }
        }
    }
    came
}

/// Scans arbitrary bytes as an ELF file and describes what was found.
pub fn elf(input: &[u8]) -> Came {
    let scan = match scan(input) {
        Ok(scan) => scan,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return Came { planned: 0, refused: 1 };
        }
    };
    let mut used: Vec<GuestRange> = vec![];
    for site in &scan.sites {
        let at = usize::try_from(site.file_offset).expect("an offset in the file");
        assert_eq!(
            input.get(at..at.saturating_add(2)),
            Some(&[0x0f, 0x05][..]),
            "a site that is no `syscall`"
        );
        assert!(!scan.describe(site, TrampolineAddr::new(0x1000_0000), SYSHANDLER).is_empty());
        if let Ok(plan) = &site.result {
            let needed = [Some(plan.footprint(site.site)), plan.padding(site.site)];
            for range in needed.into_iter().flatten() {
                // Patches reach no further than this: only the last ones can be in the way.
                let near = used.iter().rev().take(64);
                assert!(near.clone().all(|other| !other.overlaps(&range)), "two patches need {range:?}");
                used.push(range);
            }
        }
    }
    assert!(scan.sites.windows(2).all(|w| w[0].site < w[1].site), "sites ascend");
    Came { planned: used.len(), refused: 0 }
}

/// A plan, and what it was made from.
struct Checked<'a> {
    plan: &'a Plan,
    window: &'a CodeWindow<'a>,
    hints: &'a Hints<'a>,
}

impl Checked<'_> {
    /// The instructions that it says it copies are those that are there, without gaps, up to the site.
    fn agrees_with_its_bytes(&self) {
        let Checked { plan, window, .. } = self;
        assert!(plan.matches(window));
        let mut next = plan.head();
        let mut begin = vec![];
        for r in plan.relocated() {
            let instr = self.decode(r.offset).expect("an instruction");
            assert_eq!((r.offset, usize::from(r.len)), (next, instr.len()), "{plan:?}: copies without gaps");
            begin.push(next);
            next += i32::from(r.len);
        }
        assert_eq!(next, 0, "{plan:?}: copies up to the site");
        begin.push(0);
        let (head, behind) = (plan.head(), plan.head() + JUMP_LEN as i32);
        begin.retain(|at| head < *at && *at < behind);
        match plan.tier() {
            Tier::OneInstruction => assert!(begin.is_empty(), "{plan:?}: {begin:?} are lost"),
            Tier::Relocated { vanishing } => assert_eq!(*vanishing, begin, "{plan:?}"),
            Tier::Padding { offset, .. } => assert!((-126..=129).contains(offset), "{plan:?}: rel8"),
            other => panic!("unknown tier {other:?}"),
        }
    }

    /// The boundary that it relies on is proved by decodings made here.
    fn is_proved(&self) {
        let plan = self.plan;
        let Tier::Padding { offset, .. } = plan.tier() else {
            return assert!(self.boundary(plan.head()), "{plan:?}: its head is not proved");
        };
        // Back over padding to a proved way out, behind which nothing runs on.
        let way_out = |end: i32| {
            (1..=8).map(|len| end - len).any(|at| {
                let leaves =
                    self.decode(at).is_some_and(|i| i.len() as i32 == end - at && leaves_for_good(&i));
                leaves && self.boundary(at)
            })
        };
        let padded = |from: i32| {
            let mut at = from;
            while at < *offset {
                match self.decode(at).filter(is_padding) {
                    // The five bytes may begin anywhere in the run.
                    Some(instr) => at += instr.len() as i32,
                    None => return false,
                }
            }
            true
        };
        let starts = (offset - 260..=*offset).rev();
        let mut starts = starts.filter(|from| padded(*from));
        assert!(starts.any(way_out), "{plan:?}: control may run into its padding");
    }

    /// Branch targets, data and other patches are left alone.
    fn keeps_off_what_is_known(&self) {
        let Checked { plan, window, hints } = self;
        let site = window.site();
        let used = [Some(plan.footprint(site)), plan.padding(site)];
        for range in used.iter().flatten() {
            assert!(hints.occupied.iter().all(|o| !o.overlaps(range)), "{plan:?} overlaps another patch");
            assert!(hints.data.iter().all(|d| !range.contains(*d)), "{plan:?} changes data");
        }
        let head = site.wrapping_offset(plan.head().into());
        let inside = match plan.padding(site) {
            Some(padding) => padding,
            None => GuestRange::new(head.wrapping_offset(1), head.wrapping_offset(JUMP_LEN as i64)),
        };
        assert!(hints.targets.iter().all(|t| !inside.contains(*t)), "{plan:?} is entered in the middle");
    }

    /// The stores that make it and those that undo it leave what was there, in every mode that serves.
    fn is_undone(&self, code: &[u8]) {
        let Checked { plan, window, .. } = self;
        let (site, base) = (window.site(), window.addr(window.first()));
        for mode in [WriteMode::Stopped, WriteMode::Atomic, WriteMode::Breakpoint] {
            let mut guest = Guest { base, bytes: code.to_vec() };
            let (mut map, mut memory) = (PatchMap::new(Limits::default()), Blocks::default());
            let made = match map.prepare(plan, window, SYSHANDLER, mode, &mut memory) {
                Err(InstallError::OutOfReach) => return assert_eq!(plan.reach(site), None),
                Err(InstallError::WrongMode) if mode != WriteMode::Stopped => continue,
                made => made.unwrap_or_else(|e| panic!("{e:?} {plan:?}")),
            };
            guest.make_all(&made.steps);
            assert!(map.commit(site));
            map.remove(site, mode).iter().for_each(|r| guest.make_all(&r.steps));
            guest.make_all(&map.reclaim(&mut memory));
            assert_eq!(guest.bytes, code, "{plan:?} undone in {mode:?}");
            assert!(memory.live.is_empty() && map.trampoline_bytes() == 0, "memory is left");
        }
    }

    fn decode(&self, at: i32) -> Option<Instruction> {
        let bytes =
            self.window.get(at, 15).or_else(|| (1..15).rev().find_map(|len| self.window.get(at, len)))?;
        let ip = self.window.addr(at).raw();
        let instr = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
        (!instr.is_invalid()).then_some(instr)
    }

    /// Decodings from 16 to 64 bytes in front all arrive here, or that from the function's start does.
    fn boundary(&self, at: i32) -> bool {
        let arrives = |start: i32| {
            let mut here = start;
            while here < at {
                here += self.decode(here)?.len() as i32;
            }
            Some(here == at)
        };
        let votes: Vec<bool> = (at - 64..=at - 16).filter_map(arrives).collect();
        let unanimous = votes.len() >= 16 && votes.iter().all(|v| *v);
        let function =
            self.hints.function.and_then(|f| i32::try_from(self.window.site().distance_to(f.start)).ok());
        unanimous || function.is_some_and(|start| start <= at && arrives(start) == Some(true))
    }
}

fn is_padding(instr: &Instruction) -> bool {
    // `xchg ax, ax` is what `66 90` decodes to.
    matches!(instr.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
        || (instr.mnemonic() == Mnemonic::Xchg && instr.op0_register() == instr.op1_register())
}

fn leaves_for_good(instr: &Instruction) -> bool {
    matches!(
        instr.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
    )
}
