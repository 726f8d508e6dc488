//! Generated windows run on the host, trapped and patched, from the same random state: everything is compared.
#![allow(dead_code, reason = "each test crate uses its own part")]

use std::collections::BTreeMap;

use systrap::{AddressSpace, Context, GuestAddr, PAGE_SIZE, Patching, Protection, Registers, Systrap};

use crate::native_lab::Native;
use crate::patch_lab::{self, Run, Ways, bytes_at, first_difference, run, vectors};
use crate::support::rng::Rng;
use crate::support::windows::{DATA_LEN, DATA_OFFSET, SHAPES, Shape, Window, generate};

/// Windows that are in guest memory at a time.
pub const BATCH: usize = 200;
/// Each window has two pages from here on: its code ends in the first, its data, stack included, is the second.
pub const PAGES: u64 = 0x2000_0000;
/// Where runs end: a `hlt`.
const END: u64 = 0x1000_0000;
/// In the second page: what rbx points to, and rsp.
const RBX: u64 = 0x400;
const RSP: u64 = 0xa00;
const _: () =
    assert!(DATA_LEN as u64 + 0x200 < RBX, "what is reached by rbx lies behind what is reached by rip");
/// Calls after which a run is cut off; a loop around a call goes on while the random result says so.
const MOST_CALLS: usize = 12;
/// CF PF AF ZF SF DF OF; AC would make misaligned windows fault, and a tracer cannot set ID.
const FLAGS: u64 = 0xcd5;

/// A window at its place.
pub struct Placed {
    pub window: Window,
    pub page: u64,
    pub base: u64,
}

impl Placed {
    pub fn new(window: Window, index: usize, rng: &mut Rng) -> Self {
        let page = PAGES + 2 * PAGE_SIZE * index as u64;
        // The data lies at a fixed distance from the code, and has to lie in the second page.
        let slack = (DATA_OFFSET - 16 - window.code.len()) / 16;
        let shift = 16 * rng.below(slack.min(24)) as u64;
        Self { window, page, base: page + PAGE_SIZE - DATA_OFFSET as u64 + shift }
    }

    pub fn at(&self, offset: usize) -> u64 {
        self.base + offset as u64
    }

    fn data(&self) -> u64 {
        self.page + PAGE_SIZE
    }
}

/// So many windows of each shape, batch by batch, each at its place.
pub fn batches(per_shape: usize, rng: &mut Rng) -> Vec<Vec<Placed>> {
    let of_shape = |shape: &Shape| std::iter::repeat_n(*shape, per_shape);
    let windows: Vec<Window> = SHAPES.iter().flat_map(of_shape).map(|s| generate(s, rng)).collect();
    let place = |batch: &[Window], rng: &mut Rng| {
        batch.iter().cloned().enumerate().map(|(i, window)| Placed::new(window, i, rng)).collect()
    };
    windows.chunks(BATCH).map(|batch| place(batch, rng)).collect()
}

/// What a run starts from.
struct Start {
    data: Vec<u8>,
    regs: Registers,
    /// Seed of the vector registers.
    vectors: u64,
}

impl Start {
    fn new(placed: &Placed, entry: usize, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut data: Vec<u8> = (0..PAGE_SIZE / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
        data[RSP as usize..][..8].copy_from_slice(&END.to_le_bytes());
        let regs = random_registers(&mut rng);
        let small = rng.below(2) == 0;
        let regs = Registers {
            rip: placed.at(entry),
            rbx: placed.data() + RBX,
            rsp: placed.data() + RSP,
            rflags: rng.next() & FLAGS | 0x202,
            rax: if small { regs.rax & 0xff } else { regs.rax },
            ..regs
        };
        Self { data, regs, vectors: rng.next() }
    }

    fn fill_vectors(&self, image: &mut [u8]) -> Vec<u32> {
        let components = vectors::components(image.len());
        let mut rng = Rng::new(self.vectors);
        vectors::fill(image, &components, || rng.next() as u8);
        components
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

/// An address space with a context.
pub struct Guest {
    pub space: AddressSpace,
    pub context: Context,
}

impl Guest {
    pub fn new(platform: &Systrap, patching: Patching) -> Self {
        let space = platform.new_address_space().expect("an address space");
        space.set_patching(patching);
        patch_lab::put_code(&space, END, &[0xf4]);
        Self { space, context: platform.new_context().expect("a context") }
    }

    /// Puts the windows into anonymous memory.
    pub fn load(&self, batch: &[Placed]) {
        let len = 2 * PAGE_SIZE * batch.len() as u64;
        self.space.map_anonymous(GuestAddr::new(PAGES), len, Protection::READ_WRITE).expect("memory");
        for placed in batch {
            self.space.write(GuestAddr::new(placed.base), &placed.window.code).expect("the code is written");
            let page = GuestAddr::new(placed.page);
            self.space.protect(page, PAGE_SIZE, Protection::READ_EXECUTE).expect("the code is protected");
        }
    }

    pub fn code(&self, placed: &Placed) -> Vec<u8> {
        bytes_at(&self.space, placed.base, placed.window.code.len())
    }

    /// Runs a window; gives the state and the second page afterwards. Some of its calls are restarted.
    fn run(&mut self, placed: &Placed, start: &Start, ways: &mut Ways, restarts: bool) -> (Run, Vec<u8>) {
        self.space.write(GuestAddr::new(placed.data()), &start.data).expect("the data is written");
        *self.context.registers_mut() = start.regs;
        start.fill_vectors(self.context.xstate_mut());
        let mut restart = Rng::new(start.vectors);
        let restart = |_: &_| restarts && restart.below(4) == 0;
        let run = run(&mut self.context, &self.space, MOST_CALLS, ways, restart);
        (run, bytes_at(&self.space, placed.data(), PAGE_SIZE as usize))
    }
}

/// The three that are compared.
pub struct Lab {
    native: Native,
    pub trapped: Guest,
    pub patched: Guest,
    pub ways: Ways,
    pub entries: u64,
}

impl Lab {
    pub fn new(platform: &Systrap, patched: Guest) -> Self {
        let (code, data) = (libc::PROT_READ | libc::PROT_EXEC, libc::PROT_READ | libc::PROT_WRITE);
        let pages = (0..2 * BATCH as u64)
            .map(|i| (PAGES + i * PAGE_SIZE, PAGE_SIZE, if i % 2 == 0 { code } else { data }));
        let areas: Vec<_> = pages.chain([(END, PAGE_SIZE, code)]).collect();
        let native = Native::new(&areas);
        native.write(END, &[0xf4]);
        let trapped = Guest::new(platform, Patching::Off);
        Self { native, trapped, patched, ways: Ways::default(), entries: 0 }
    }

    /// Loads where no patch is made.
    pub fn load(&self, batch: &[Placed]) {
        for placed in batch {
            self.native.write(placed.base, &placed.window.code);
        }
        self.trapped.load(batch);
    }

    /// Runs a window from `entry` in all three.
    pub fn compare(&mut self, placed: &Placed, entry: usize, seed: u64) {
        let start = Start::new(placed, entry, seed);
        self.native.write(placed.data(), &start.data);
        let mut image = self.native.vectors();
        let components = start.fill_vectors(&mut image);
        let native = self.native.run(&start.regs, &image, &components, MOST_CALLS);
        let native_data = self.native.read(placed.data(), PAGE_SIZE as usize);
        let trapped = self.trapped.run(placed, &start, &mut Ways::default(), false);
        let patched = self.patched.run(placed, &start, &mut self.ways, true);
        let what = || format!("{:?} from {entry:#x}: {:x?}", placed.window.shape, placed.window);
        native.assert_same(&trapped.0.traced(), || format!("native against trapped, {}", what()));
        trapped.0.assert_same(&patched.0, || format!("trapped against patched, {}", what()));
        for (data, how) in [(&trapped.1, "trapped"), (&patched.1, "patched")] {
            assert_eq!(first_difference(&native_data, data), None, "{how} data at this offset, {}", what());
        }
        self.entries += 1;
    }

    /// Runs a window from its beginning, and from everywhere between its jump and its site.
    pub fn compare_from_everywhere(&mut self, placed: &Placed, head: usize, rng: &mut Rng) {
        let window = &placed.window;
        self.compare(placed, window.function.0, rng.next());
        let concerned = window.boundaries.iter().filter(|at| (head..=window.site).contains(*at));
        for entry in concerned.copied().collect::<Vec<_>>() {
            self.compare(placed, entry, rng.next());
        }
    }
}

/// How many windows of each shape came to what.
#[derive(Default)]
pub struct Histogram<const N: usize>(BTreeMap<Shape, [usize; N]>);

impl<const N: usize> Histogram<N> {
    pub fn count(&mut self, shape: Shape, column: usize) {
        self.0.entry(shape).or_insert([0; N])[column] += 1;
    }

    /// Prints the table; each shape must be there so many times.
    pub fn print(&self, titles: [&str; N], least: usize) {
        println!("{:<20} {}", "shape", titles.join(" "));
        for (shape, counts) in &self.0 {
            let counted: Vec<String> = counts
                .iter()
                .zip(titles)
                .map(|(n, title)| format!("{n:>width$}", width = title.len()))
                .collect();
            println!("{:<20} {}", format!("{shape:?}"), counted.join(" "));
            assert!(counts.iter().sum::<usize>() >= least, "{shape:?} is hardly tested");
        }
    }

    pub fn column(&self, i: usize) -> usize {
        self.0.values().map(|h| h[i]).sum()
    }
}
