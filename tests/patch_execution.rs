//! Patched code does what the original does: generated windows around a `syscall` run unpatched and patched from the
//! same random state, from every instruction that a patch concerns, and everything is compared afterwards.

#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "../usertrap/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use patch_lab::{Made, Run, Ways, bytes_at, first_difference, platform, run, what_was_made};
use support::rng::Rng;
use support::windows::{DATA_LEN, DATA_OFFSET, SHAPES, Shape, Window, generate};
use systrap::{AddressSpace, Context, GuestAddr, PAGE_SIZE, Patching, Protection, Registers, Systrap};

const PER_SHAPE: usize = 400;
/// Windows that are in guest memory at a time.
const BATCH: usize = 200;
/// Each window has two pages from here on: its code ends in the first, its data, stack included, is the second.
const PAGES: u64 = 0x2000_0000;
/// Where runs end: a `hlt`.
const END: u64 = 0x1000_0000;
/// In the second page: what rbx points to, and rsp.
const RBX: u64 = 0x400;
const RSP: u64 = 0xa00;
/// Calls after which a run is cut off; a loop around a call goes on while the random result says so.
const MOST_CALLS: usize = 12;
/// CF PF AF ZF SF DF OF ID; AC would make misaligned windows fault.
const FLAGS: u64 = 0x20_0cd5;

/// A window at its place.
struct Placed {
    window: Window,
    page: u64,
    base: u64,
}

impl Placed {
    fn new(window: Window, index: usize, rng: &mut Rng) -> Self {
        let page = PAGES + 2 * PAGE_SIZE * index as u64;
        // The data lies at a fixed distance from the code, and has to lie in the second page.
        let slack = (DATA_OFFSET - 16 - window.code.len()) / 16;
        let shift = 16 * rng.below(slack.min(24)) as u64;
        Self { window, page, base: page + PAGE_SIZE - DATA_OFFSET as u64 + shift }
    }

    fn at(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }

    fn data(&self) -> u64 {
        self.page + PAGE_SIZE
    }
}

/// The two address spaces.
struct Lab {
    native: (AddressSpace, Context),
    patched: (AddressSpace, Context),
    ways: Ways,
    runs: u64,
    entries: u64,
}

impl Lab {
    fn new(platform: &Systrap) -> Self {
        let guest = |patching| {
            let space = platform.new_address_space().expect("an address space");
            space.set_patching(patching);
            patch_lab::put_code(&space, END, &[0xf4]);
            (space, platform.new_context().expect("a context"))
        };
        let (native, patched) = (guest(Patching::Off), guest(Patching::Lazy));
        Self { native, patched, ways: Ways::default(), runs: 0, entries: 0 }
    }

    fn load(&self, batch: &[Placed]) {
        let len = 2 * PAGE_SIZE * batch.len() as u64;
        for (space, _) in [&self.native, &self.patched] {
            space.map_anonymous(GuestAddr::new(PAGES), len, Protection::READ_WRITE).expect("memory");
            for placed in batch {
                space.write(GuestAddr::new(placed.base), &placed.window.code).expect("the code is written");
                let page = GuestAddr::new(placed.page);
                space.protect(page, PAGE_SIZE, Protection::READ_EXECUTE).expect("the code is protected");
            }
        }
    }

    /// Runs a window from `entry` in one of the spaces; gives the state and the second page afterwards.
    fn run(&mut self, placed: &Placed, entry: usize, seed: u64, patched: bool) -> (Run, Vec<u8>) {
        let (space, context) = if patched { &mut self.patched } else { &mut self.native };
        let mut rng = Rng::new(seed);
        let mut data: Vec<u8> = (0..PAGE_SIZE / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
        data[RSP as usize..][..8].copy_from_slice(&END.to_le_bytes());
        space.write(GuestAddr::new(placed.data()), &data).expect("the data is written");
        let regs = random_registers(&mut rng);
        let small = rng.below(2) == 0;
        *context.registers_mut() = Registers {
            rip: placed.at(entry),
            rbx: placed.data() + RBX,
            rsp: placed.data() + RSP,
            rflags: rng.next() & FLAGS | 0x202,
            rax: if small { regs.rax & 0xff } else { regs.rax },
            ..regs
        };
        // xmm0 and xmm1, marked as in use.
        let image = context.xstate_mut();
        image[160..192].fill_with(|| rng.next() as u8);
        image[512] |= 2;
        let mut restart = Rng::new(seed);
        let restart = |_: &_| patched && restart.below(4) == 0;
        let run = run(context, space, MOST_CALLS, &mut self.ways, restart);
        self.runs += 1;
        (run, bytes_at(space, placed.data(), PAGE_SIZE as usize))
    }

    fn compare(&mut self, placed: &Placed, entry: usize, seed: u64) {
        let native = self.run(placed, entry, seed, false);
        let patched = self.run(placed, entry, seed, true);
        let what = || format!("{:?} from {entry:#x}: {:x?}", placed.window.shape, placed.window);
        assert_eq!(native.0, patched.0, "{}", what());
        let differs = first_difference(&native.1, &patched.1);
        assert_eq!(differs, None, "data at this offset, {}", what());
        self.entries += 1;
    }

    fn code(&self, placed: &Placed) -> Vec<u8> {
        bytes_at(&self.patched.0, placed.base, placed.window.code.len())
    }
}

fn random_registers(rng: &mut Rng) -> Registers {
    let mut next = || rng.next();
    Registers {
        r8: next(),
        r9: next(),
        r10: next(),
        r11: next(),
        r12: next(),
        r13: next(),
        r14: next(),
        r15: next(),
        rdi: next(),
        rsi: next(),
        rbp: next(),
        rdx: next(),
        rax: next(),
        rcx: next(),
        ..Registers::default()
    }
}

/// Runs a window until it is patched, and then from everywhere between its jump and its site.
fn check(lab: &mut Lab, placed: &Placed, rng: &mut Rng) -> Made {
    let window = &placed.window;
    lab.compare(placed, window.function.0, rng.next());
    if lab.code(placed) == window.code {
        // A conditional branch may have led around the site.
        lab.compare(placed, window.site, rng.next());
    }
    let made = what_was_made(&window.code, &lab.code(placed), window.site);
    let head = match made {
        Made::Nothing => return made,
        Made::Jump(head) => head,
        Made::ShortJump => window.site,
    };
    lab.compare(placed, window.function.0, rng.next());
    let concerned = window.boundaries.iter().filter(|at| (head..=window.site).contains(*at));
    for entry in concerned.copied().collect::<Vec<_>>() {
        lab.compare(placed, entry, rng.next());
    }
    made
}

#[test]
fn generated_windows_run_the_same_patched_and_not() {
    let platform = platform(Patching::Lazy);
    let mut lab = Lab::new(&platform);
    let mut rng = Rng::new(0x0f05_e9eb);
    let mut histogram = BTreeMap::<Shape, [usize; 3]>::new();
    let windows: Vec<Window> = SHAPES
        .iter()
        .flat_map(|shape| std::iter::repeat_n(*shape, PER_SHAPE))
        .map(|s| generate(s, &mut rng))
        .collect();
    assert!(DATA_LEN as u64 + 0x200 < RBX && windows.len() >= 10_000);
    for batch in windows.chunks(BATCH) {
        let placed = batch.iter().cloned().enumerate();
        let placed: Vec<Placed> = placed.map(|(i, window)| Placed::new(window, i, &mut rng)).collect();
        lab.load(&placed);
        for placed in &placed {
            let column = match check(&mut lab, placed, &mut rng) {
                Made::Jump(_) => 0,
                Made::ShortJump => 1,
                Made::Nothing => 2,
            };
            histogram.entry(placed.window.shape).or_default()[column] += 1;
        }
        lab.patched.0.roll_back_patches();
        for placed in &placed {
            assert_eq!(lab.code(placed), placed.window.code, "rolled back: {:x?}", placed.window);
        }
    }
    println!("{:<20} tier 1 tier 2   none", "shape");
    for (shape, [one, two, none]) in &histogram {
        println!("{:<20} {one:6} {two:6} {none:6}", format!("{shape:?}"));
        assert!(one + two + none >= 200);
    }
    let Lab { ways, runs, entries, .. } = &lab;
    println!("{} windows, {entries} pairs of runs equal ({runs} runs), {ways:?}", windows.len());
    let column = |i: usize| histogram.values().map(|h| h[i]).sum::<usize>();
    assert!(column(0) >= 5_000 && column(1) >= 200, "hardly anything was patched");
    assert!(ways.patched > 10_000 && ways.restarted > 1_000);
}
