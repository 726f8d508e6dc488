//! Random code around a `syscall`, to be placed at a multiple of 16, together with the truth about it: where its instructions begin, where its branches
//! go, what is padding. Usable for executing it, too: registers other than rsp and rbx are free to hold anything, rbx
//! points to [`DATA_LEN`] bytes, there is a red zone, and every branch stays inside.

use super::rng::Rng;

/// Bytes around rbx, and of the RIP-relative data behind the code, that instructions touch.
pub const DATA_LEN: usize = 256;
/// Where the RIP-relative data begins, counted from the start of the code.
pub const DATA_OFFSET: usize = 0x800;

macro_rules! shapes {
    ($($shape:ident),* $(,)?) => {
        /// What is special about a window.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Shape { $($shape),* }

        /// All shapes.
        pub const SHAPES: &[Shape] = &[$(Shape::$shape),*];
    };
}

shapes!(
    MovImm32,
    MovImm64,
    MovThenMoves,
    XorEax,
    FromRegister,
    FromMemory,
    BeforeJcc,
    LongJccBetween,
    SharedNumber,
    BackToBack,
    LoopHead,
    BranchToSyscall,
    BranchBetween,
    BranchBehind,
    BranchIntoReplaced,
    RipRelative,
    Endbr,
    NopPadding,
    Int3Padding,
    FalseMovMemory,
    FalseMovRegister,
    CallBetween,
    Locked,
    ShortOnly,
    NoRoom,
);

/// A window, and what is true of it. Positions are offsets from the start of the code.
#[derive(Clone, Debug)]
pub struct Window {
    pub shape: Shape,
    pub code: Vec<u8>,
    /// The site that the shape is about.
    pub site: usize,
    /// Where instructions that control can reach begin.
    pub boundaries: Vec<usize>,
    /// Where branches go.
    pub targets: Vec<usize>,
    /// Start and end of unreachable padding.
    pub padding: Vec<(usize, usize)>,
    /// Start and end of the function.
    pub function: (usize, usize),
}

#[derive(Default)]
struct Assembler {
    code: Vec<u8>,
    boundaries: Vec<usize>,
    targets: Vec<usize>,
    padding: Vec<(usize, usize)>,
    fixups: Vec<(usize, Label)>,
    labels: Vec<Option<usize>>,
}

type Label = usize;

impl Assembler {
    fn put(&mut self, bytes: &[u8]) {
        self.boundaries.push(self.code.len());
        self.code.extend(bytes);
    }

    fn label(&mut self) -> Label {
        self.labels.push(None);
        self.labels.len() - 1
    }

    fn here(&mut self, label: Label) {
        self.labels[label] = Some(self.code.len());
        self.targets.push(self.code.len());
    }

    /// A branch with an 8-bit displacement.
    fn short(&mut self, opcode: u8, to: Label) {
        self.put(&[opcode, 0]);
        self.fixups.push((self.code.len() - 1, to));
    }

    fn pad(&mut self, bytes: &[u8]) {
        let start = self.code.len();
        self.code.extend(bytes);
        self.padding.push((start, self.code.len()));
    }

    /// mov reg32, imm32 with an arbitrary register but rsp and rbx.
    fn mov_imm(&mut self, rng: &mut Rng, register: u8) {
        let [a, b, _, _] = (rng.next() as u32).to_le_bytes();
        self.put(&[0xb8 + register, a, b, 0, 0]);
    }

    fn syscall(&mut self) -> usize {
        self.put(&[0x0f, 0x05]);
        self.code.len() - 2
    }

    /// One instruction that falls through, never touches rsp or rbx, and is safe to run.
    fn ordinary(&mut self, rng: &mut Rng, max_len: usize) {
        loop {
            let before = (self.code.len(), self.boundaries.len());
            self.candidate(rng);
            if self.code.len() - before.0 <= max_len {
                return;
            }
            self.code.truncate(before.0);
            self.boundaries.truncate(before.1);
        }
    }

    fn candidate(&mut self, rng: &mut Rng) {
        // rax rcx rdx rbp rsi rdi, by number
        let free = [0u8, 1, 2, 5, 6, 7];
        let (to, from) = (rng.pick(&free), rng.pick(&free));
        let both = 0xc0 | (from << 3) | to;
        let disp = rng.below(DATA_LEN / 2 - 16) as u8 & !7;
        let through_rbx = 0x43 | (to << 3);
        match rng.below(16) {
            0 => self.put(&[0x48, 0x89, both]),                         // mov r64, r64
            1 => self.put(&[0x89, both]),                               // mov r32, r32
            2 => self.put(&[0x31, both]),                               // xor r32, r32
            3 => self.put(&[0x48, 0x8b, through_rbx, disp]),            // mov r64, [rbx+d]
            4 => self.put(&[0x48, 0x89, through_rbx, disp]),            // mov [rbx+d], r64
            5 => self.put(&[0x4d, 0x89, both]),                         // mov r8..r15, r8..r15 (not rsp, rbx)
            6 => self.mov_imm(rng, to),                                 // mov r32, imm32
            7 => self.put(&[0x48, 0x83, 0xc0 | to, rng.next() as u8]),  // add r64, imm8
            8 => self.put(&[0x48, 0x8b, 0x44 | (to << 3), 0x24, 0x88]), // mov r64, [rsp-0x78]: red zone
            9 => self.put(&[0x48, 0x89, 0x44 | (to << 3), 0x24, 0x90]), // mov [rsp-0x70], r64
            10 => self.put(&[0x48, 0x85, both]),                        // test r64, r64
            11 => self.put(&[0x0f, 0x10, 0x43, disp]),                  // movups xmm0, [rbx+d]
            12 => self.put(&[0x66, 0x0f, 0xef, 0xc9]),                  // pxor xmm1, xmm1
            13 => self.put(&[0x48, 0x8d, through_rbx, disp]),           // lea r64, [rbx+d]
            14 => self.put(&[0x0f, 0x1f, 0x44, 0, 0]),                  // nop dword [rax+rax]
            _ => self.rip_relative(rng, to),
        }
    }

    fn rip_relative(&mut self, rng: &mut Rng, register: u8) {
        let opcode = rng.pick(&[0x8bu8, 0x89, 0x8d, 0x01, 0x33]); // mov, mov to, lea, add to, xor
        let to = DATA_OFFSET + (rng.below(DATA_LEN - 8) & !7);
        let displacement = (to - self.code.len() - 7) as u32;
        let mut bytes = vec![0x48, opcode, 0x05 | (register << 3)];
        bytes.extend(displacement.to_le_bytes());
        self.put(&bytes);
    }

    fn some(&mut self, rng: &mut Rng, most: usize, max_len: usize) {
        for _ in 0..rng.below(most + 1) {
            self.ordinary(rng, max_len);
        }
    }

    fn finish(mut self, shape: Shape, site: usize, start: usize) -> Window {
        let end = self.code.len();
        for (at, label) in std::mem::take(&mut self.fixups) {
            let target = self.labels[label].expect("every label is placed") as i64;
            self.code[at] = i8::try_from(target - at as i64 - 1).expect("branches are near") as u8;
        }
        assert!(end + 64 <= DATA_OFFSET, "the code ends before the data");
        self.targets.sort_unstable();
        let Assembler { code, boundaries, targets, padding, .. } = self;
        Window { shape, code, site, boundaries, targets, padding, function: (start, end) }
    }
}

/// A random window of the given shape.
pub fn generate(shape: Shape, rng: &mut Rng) -> Window {
    let mut a = Assembler::default();
    // Another function in front, which ends in a return.
    for _ in 0..20 + rng.below(12) {
        a.ordinary(rng, 15);
    }
    // Functions are aligned, given code that begins at a multiple of 16.
    if shape == Shape::NoRoom {
        while !a.code.len().is_multiple_of(16) {
            a.put(&[0xf8]); // clc: one function falls into the next, without padding
        }
    } else {
        a.put(&[0xc3]);
        let gap = a.code.len().wrapping_neg() % 16;
        a.pad(&vec![if rng.below(2) == 0 { 0x90 } else { 0xcc }; gap]);
    }
    let start = a.code.len();
    for _ in 0..4 + rng.below(8) {
        a.ordinary(rng, 15);
    }
    let site = middle(shape, &mut a, rng);
    for _ in 0..2 + rng.below(6) {
        a.ordinary(rng, 15);
    }
    a.put(&[0xc3]);
    a.finish(shape, site, start)
}

fn middle(shape: Shape, a: &mut Assembler, rng: &mut Rng) -> usize {
    let (one, two) = (a.label(), a.label());
    let mut site = None;
    match shape {
        Shape::MovImm32 => a.mov_imm(rng, 0),
        Shape::MovImm64 => a.put(&[0x48, 0xc7, 0xc0, 0x27, 0, 0, 0]),
        Shape::MovThenMoves => {
            a.mov_imm(rng, 0);
            a.some(rng, 4, 4);
        }
        Shape::XorEax => {
            a.some(rng, 2, 15);
            a.put(&[0x31, 0xc0]);
        }
        Shape::FromRegister => {
            a.some(rng, 3, 15);
            a.put(&[0x44, 0x89, 0xe0]);
        }
        Shape::FromMemory => a.put(&[0x48, 0x8b, 0x44, 0x24, 0x10]),
        Shape::BeforeJcc => {
            a.mov_imm(rng, 0);
            a.put(&[0x85, 0xff]);
            a.short(0x70 + rng.below(16) as u8, one);
            a.some(rng, 2, 4);
        }
        Shape::LongJccBetween => {
            a.mov_imm(rng, 0);
            let condition = 0x80 + rng.below(16) as u8;
            a.put(&[0x0f, condition, 2, 0, 0, 0]); // over the syscall
            site = Some(a.syscall());
            a.targets.push(a.code.len());
        }
        Shape::SharedNumber => {
            a.mov_imm(rng, 0);
            a.put(&[0x85, 0xff]);
            a.short(0x75, one);
            site = Some(a.syscall());
            a.short(0xeb, two);
            a.here(one);
            a.some(rng, 1, 4);
            let other = a.syscall();
            a.here(two);
            site = Some(if rng.below(2) == 0 { other } else { site.unwrap_or(other) });
        }
        Shape::BackToBack => {
            a.mov_imm(rng, 0);
            a.syscall();
            site = Some(a.syscall());
        }
        Shape::LoopHead => {
            a.here(one);
            a.put(&[0x44, 0x89, 0xe0]);
            site = Some(a.syscall());
            a.put(&[0x83, 0xf8, 0xfc]);
            a.short(0x74, one);
        }
        Shape::BranchToSyscall => {
            a.short(0x74, one);
            a.mov_imm(rng, 0);
            a.here(one);
        }
        Shape::BranchBetween => {
            a.short(0x74, one);
            a.mov_imm(rng, 0);
            a.here(one);
            a.some(rng, 3, 4);
        }
        Shape::BranchBehind => {
            a.short(0x74, one);
            a.mov_imm(rng, 0);
            site = Some(a.syscall());
            a.here(one);
        }
        Shape::BranchIntoReplaced => {
            a.put(&[0x85, 0xff]);
            a.short(0x74, one);
            // lock add [rbx+8], eax with a long displacement, or without its prefix
            let at = a.code.len();
            a.put(&[0xf0, 0x01, 0x83, 8, 0, 0, 0]);
            a.boundaries.push(at + 1);
            a.targets.push(at + 1);
            a.labels[one] = Some(at + 1);
        }
        Shape::RipRelative => {
            a.rip_relative(rng, 7);
            a.rip_relative(rng, 6);
            a.put(&[0x44, 0x89, 0xe0]);
        }
        Shape::Endbr => {
            a.mov_imm(rng, 0);
            a.put(&[0xf3, 0x0f, 0x1e, 0xfa]);
        }
        Shape::NopPadding | Shape::Int3Padding => {
            a.put(&[0x44, 0x89, 0xe0]);
            a.short(0xeb, one);
            if shape == Shape::NopPadding {
                a.pad(rng.pick(&[
                    &[0x0f, 0x1f, 0x44, 0, 0][..],
                    &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
                    &[0x90; 7],
                    &[0x66, 0x90, 0x90],
                ]));
            } else {
                a.pad(&vec![0xcc; 1 + rng.below(14)]);
            }
            a.here(one);
        }
        Shape::FalseMovMemory => a.put(&[0xc7, 0x44, 0x24, 0xb8, 0x10, 0, 0, 0]),
        Shape::FalseMovRegister => a.put(&[0x41, 0xb8, 1, 0, 0, 0]),
        Shape::CallBetween => {
            a.mov_imm(rng, 0);
            a.put(&[0xe8, 0, 0, 0, 0]); // to the next instruction
            a.targets.push(a.code.len());
            a.put(&[0x5f]); // pop rdi
        }
        Shape::Locked => {
            a.mov_imm(rng, 0);
            a.put(&[0xf0, 0xff, 0x43, 0x10]); // lock inc dword [rbx+16]
            a.put(&[0xf3, 0x90]); // pause
        }
        Shape::ShortOnly => {
            a.mov_imm(rng, 0);
            a.short(0xe3, one); // jrcxz
        }
        Shape::NoRoom => {
            a.short(0xeb, one);
            a.here(one);
            a.put(&[0x44, 0x89, 0xe0]);
        }
    }
    let site = site.unwrap_or_else(|| a.syscall());
    for label in [one, two] {
        if a.labels[label].is_none() {
            a.here(label);
        }
    }
    site
}
