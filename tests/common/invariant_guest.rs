//! A guest whose registers can be checked at every instruction, and its supervisor's side.
//!
//! It counts calls in r12, and between two calls runs a loop of as many turns as the last result said, of which
//! rbx, r13 and xmm0 keep count. Every other register, vector and x87 registers included, holds a pattern.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, eax, ebx, edi, r12, r13, r13d, rax, rbx, rdi, rdx, rsi, xmm0, xmm15,
};
use systrap::{AddressSpace, Context, Event, Registers, Systrap};

use crate::small_guest::{self, CODE, STACK_END};

pub const CALL: u32 = 1000;
const DF: u64 = 1 << 10;
const CF: u64 = 1;
const XMM: usize = 160;

/// The program and the offsets of the loop's four instructions.
struct Program {
    code: Vec<u8>,
    turn: [u64; 4],
}

fn write(a: &mut CodeAssembler, turn: &mut [CodeLabel; 4]) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut bad = a.create_label();
    a.set_label(&mut again)?;
    a.inc(r12)?;
    a.mov(rdi, r12)?;
    a.mov(rsi, r12)?;
    a.not(rsi)?;
    a.mov(eax, CALL)?;
    a.syscall()?;
    // The result repeats the counter, so that one that belongs to another call is noticed.
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.cmp(rdx, r12)?;
    a.jne(bad)?;
    a.mov(r13d, eax)?;
    a.xor(ebx, ebx)?;
    a.pxor(xmm0, xmm0)?;
    a.stc()?;
    a.set_label(&mut turn[0])?;
    a.inc(rbx)?;
    a.set_label(&mut turn[1])?;
    a.paddq(xmm0, xmm15)?;
    a.set_label(&mut turn[2])?;
    a.dec(r13)?;
    a.set_label(&mut turn[3])?;
    a.jne(turn[0])?;
    a.jmp(again)?;
    a.set_label(&mut bad)?;
    a.mov(edi, eax)?;
    a.ud2()
}

fn program() -> Program {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    let mut turn = [(); 4].map(|()| a.create_label());
    write(&mut a, &mut turn).expect("valid instructions");
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(CODE.raw(), options).expect("the code can be encoded");
    let turn = turn.map(|label| result.label_ip(&label).expect("the label is set"));
    Program { code: result.inner.code_buffer, turn }
}

/// A parked or running guest with what is known of it.
pub struct Guest {
    program: Program,
    pub context: Context,
    /// Calls seen so far.
    pub calls: u64,
    /// How many turns the loop was told to run last.
    turns: u64,
    seed: u64,
    pattern: Vec<u8>,
    checked: Vec<Range<usize>>,
}

impl Guest {
    /// Loads the program if it is the first guest of this address space.
    pub fn new(platform: &Systrap, space: &AddressSpace, seed: u64, first: bool) -> Self {
        let program = program();
        if first {
            small_guest::load(space, &program.code);
        }
        let mut context = small_guest::start(platform);
        let (pattern, checked) = vector_pattern(context.xstate().to_vec(), seed);
        context.xstate_mut().copy_from_slice(&pattern);
        let registers = context.registers_mut();
        let fixed = constants(seed);
        *registers = Registers { rip: CODE.raw(), rsp: STACK_END, rflags: registers.rflags | DF, ..fixed };
        Self { program, context, calls: 0, turns: 0, seed, pattern, checked }
    }

    /// Runs until the next event; true if it was an interrupt, and then the registers were checked. Panics at
    /// anything that the program does not do.
    pub fn run(&mut self, space: &AddressSpace) -> bool {
        match self.context.switch(space).expect("the stub process lives") {
            Event::Interrupted => {
                self.check();
                true
            }
            Event::Syscall(call) => {
                self.calls += 1;
                let [counter, inverse, ..] = call.args;
                assert_eq!(
                    (call.nr, counter, inverse),
                    (CALL, self.calls, !self.calls),
                    "a call is lost or invented"
                );
                false
            }
            other => panic!("call {}: the guest does nothing that raises {other:?}", self.calls),
        }
    }

    /// Answers the call that the last run returned: run `turns` turns, at least one.
    pub fn answer(&mut self, turns: u32) {
        self.turns = turns.max(1).into();
        self.context.set_return((self.calls << 32 | self.turns) as i64);
    }

    /// Pulls the full state and compares every register with what it has to be at this instruction.
    pub fn check(&mut self) {
        self.context.pull_full_state().expect("the stub process lives");
        let found = *self.context.registers();
        let fixed = constants(self.seed);
        let (calls, turn) = (self.calls, self.program.turn);
        let at = || format!("call {calls} at {:#x} of {turn:x?}: {found:x?}", found.rip);
        for (name, found, expected) in [
            ("r8", found.r8, fixed.r8),
            ("r9", found.r9, fixed.r9),
            ("r10", found.r10, fixed.r10),
            ("r14", found.r14, fixed.r14),
            ("r15", found.r15, fixed.r15),
            ("rbp", found.rbp, fixed.rbp),
            ("fs_base", found.fs_base, fixed.fs_base),
            ("gs_base", found.gs_base, fixed.gs_base),
            ("rsp", found.rsp, STACK_END),
            ("DF", found.rflags & DF, DF),
        ] {
            assert_eq!(found, expected, "{name}, {}", at());
        }
        assert!(self.calls == found.r12 || self.calls + 1 == found.r12, "r12, {}", at());
        let image = self.context.xstate();
        let summed = u64::from_le_bytes(image[XMM..XMM + 8].try_into().expect("eight bytes"));
        if let Some(place) = self.program.turn.iter().position(|ip| *ip == found.rip) {
            let begun = u64::from(place == 1 || place == 2);
            assert_eq!(found.rbx + found.r13, self.turns + begun, "turns done and left, {}", at());
            assert_eq!(summed, found.rbx - u64::from(place == 1), "xmm0, {}", at());
            assert_eq!(found.rflags & CF, CF, "CF, {}", at());
        }
        for range in &self.checked {
            let (found, expected) = (&image[range.clone()], &self.pattern[range.clone()]);
            assert_eq!(found, expected, "xsave image {range:?}, {}", at());
        }
    }
}

/// What the registers that the program does not use hold.
fn constants(seed: u64) -> Registers {
    let pattern = |n: u64| (seed + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let base = |n: u64| pattern(n) & 0x3fff_ffff_f000;
    Registers {
        r8: pattern(8),
        r9: pattern(9),
        r10: pattern(10),
        r14: pattern(14),
        r15: pattern(15),
        rbp: pattern(5),
        fs_base: base(1),
        gs_base: base(2),
        ..Registers::default()
    }
}

/// Fills all vector and x87 registers of an xsave image; also says which bytes never change.
fn vector_pattern(mut image: Vec<u8>, seed: u64) -> (Vec<u8>, Vec<Range<usize>>) {
    const HEADER: usize = 512;
    const X87: u64 = 1;
    const SSE: u64 = 2;
    // AVX, opmasks, upper halves of zmm0-15, zmm16-31.
    const WIDE: [u32; 4] = [2, 5, 6, 7];
    const SW_FEATURES: usize = 472;
    let features = u64::from_le_bytes(image[SW_FEATURES..SW_FEATURES + 8].try_into().expect("eight bytes"));
    let fill = |bytes: &mut [u8]| {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (i as u64 * 37 + seed * 11 + 1) as u8;
        }
    };
    let mut used = X87 | SSE;
    for number in 0..8_usize {
        // An 80-bit number: mantissa with its leading one, exponent 0.
        let register = &mut image[32 + number * 16..][..10];
        fill(register);
        register[7] |= 0x80;
        register[8..].copy_from_slice(&0x3fff_u16.to_le_bytes());
    }
    image[4] = 0xff; // every x87 register is in use
    fill(&mut image[XMM..XMM + 256]);
    for lane in [0, 8] {
        image[XMM + 15 * 16 + lane..][..8].copy_from_slice(&1_u64.to_le_bytes());
    }
    // Control word and tags, MXCSR, x87 registers, xmm1 to xmm15.
    let mut checked = vec![0..2, 4..5, 24..28, 32..XMM, XMM + 16..XMM + 256];
    for feature in WIDE.into_iter().filter(|feature| features & 1 << feature != 0) {
        let leaf = __cpuid_count(0xd, feature);
        let range = leaf.ebx as usize..(leaf.ebx + leaf.eax) as usize;
        fill(&mut image[range.clone()]);
        checked.push(range);
        used |= 1 << feature;
    }
    let present = u64::from_le_bytes(image[HEADER..HEADER + 8].try_into().expect("eight bytes")) | used;
    image[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    (image, checked)
}
