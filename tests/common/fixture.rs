//! A fixture: code and memory at fixed addresses, to be run natively and under the platform.
#![allow(dead_code, reason = "each test crate uses a part")]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use systrap::{Protection, Registers};

/// Where the code lies; the first instruction is the first to run.
pub const CODE: u64 = 0x1000_0000;
/// Where a fixture's own data lies, if it has any.
pub const DATA: u64 = 0x1100_0000;
/// Memory that the guest writes its results to.
pub const DUMP: u64 = 0x1200_0000;
/// Length of [`DUMP`] in bytes.
pub const DUMP_LEN: u64 = 0x4000;
/// Where the stack lies.
pub const STACK: u64 = 0x1300_0000;
/// Length of the stack in bytes.
pub const STACK_LEN: u64 = 0x8000;
/// The first rsp; there is as much room above as below.
pub const STACK_TOP: u64 = STACK + STACK_LEN / 2;
/// A page that no fixture maps by itself.
pub const HOLE: u64 = 0x1400_0000;

/// Where [`dump_state`] puts the xsave image, from [`DUMP`].
pub const DUMP_XSAVE: usize = 0x400;
/// AMX tile data needs a permission that nobody asks for here.
const NO_TILE_DATA: u32 = !(1 << 18);

/// A piece of memory and what is in it; the rest of it is zero.
#[derive(Debug, Clone)]
pub struct Region {
    pub addr: u64,
    pub len: u64,
    pub prot: Protection,
    pub bytes: Vec<u8>,
}

/// Code with its memory. It starts with all registers zero but rip = [`CODE`] and rsp = [`STACK_TOP`].
#[derive(Debug, Clone)]
pub struct Fixture {
    pub regions: Vec<Region>,
}

impl Fixture {
    /// From what `build` assembles.
    pub fn new(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        Self::from_bytes(assemble(64, CODE, build))
    }

    /// From machine code.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let fixture = Self { regions: Vec::new() };
        fixture
            .with(CODE, 0x1000, Protection::READ_EXECUTE, &bytes)
            .with(DUMP, DUMP_LEN, Protection::READ_WRITE, &vec![0; DUMP_LEN as usize])
            .with(STACK, STACK_LEN, Protection::READ_WRITE, &vec![0; STACK_LEN as usize])
    }

    /// Adds a region.
    pub fn with(mut self, addr: u64, len: u64, prot: Protection, bytes: &[u8]) -> Self {
        assert!(bytes.len() as u64 <= len, "a region is as long as its contents at least");
        self.regions.push(Region { addr, len, prot, bytes: bytes.to_vec() });
        self
    }
}

/// Machine code for `addr`.
pub fn assemble(
    bitness: u32,
    addr: u64,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut asm = CodeAssembler::new(bitness).expect("a valid bitness");
    build(&mut asm).expect("valid instructions");
    asm.assemble(addr).expect("encodable instructions")
}

/// A synchronous stop: what a signal handler is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Stop {
    pub signo: i32,
    pub code: i32,
    pub addr: u64,
    pub trapno: u64,
    pub error_code: u64,
    /// 0 unless the stop is a page fault: the kernel leaves that of an earlier one.
    pub cr2: u64,
    pub regs: Registers,
}

/// What came of a fixture.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub stops: Vec<Stop>,
    pub dump: Vec<u8>,
}

impl Outcome {
    /// The 64-bit word that the guest put at `DUMP + offset`.
    pub fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.dump[offset..offset + 8].try_into().expect("eight bytes"))
    }

    /// The xsave image of [`dump_state`], without XSTATE_BV: which components are tracked as being in their
    /// initial state is the CPU's own business, their contents are written all the same.
    pub fn xsave(&self) -> Vec<u8> {
        let mut image = self.dump[DUMP_XSAVE..].to_vec();
        image[512..520].fill(0);
        image
    }

    /// Fails if the guest's own dump differs from another's, naming the words.
    pub fn assert_same_dump(&self, native: &Outcome, what: &str) {
        for (i, name) in DUMP_WORDS.iter().enumerate() {
            let (here, there) = (self.word(8 * i), native.word(8 * i));
            assert_eq!(here, there, "{what}: {name} is {here:#x}, natively {there:#x}");
        }
        let (here, there) = (self.xsave(), native.xsave());
        let differing: Vec<usize> = (0..here.len()).filter(|&i| here[i] != there[i]).collect();
        assert!(differing.is_empty(), "{what}: xsave image differs at offsets {differing:x?}");
    }
}

/// What [`dump_state`] writes, 64 bits each.
const DUMP_WORDS: [&str; 23] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rflags", "fs_base", "cs", "ss", "ds", "es", "red zone",
];

/// Loads every general register but rsp with a pattern of its own, fs base too. Clobbers nothing else.
pub fn load_patterns(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    asm.mov(rax, 0x0000_1234_5678_9000_u64)?;
    asm.wrfsbase(rax)?;
    let registers = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (i, register) in registers.into_iter().enumerate() {
        asm.mov(register, pattern(i))?;
    }
    Ok(())
}

/// The pattern of the `i`th register of [`load_patterns`].
pub fn pattern(i: usize) -> u64 {
    0x8111_0000_dead_0000 + (i as u64 + 1) * 0x0101_0000_0000_0101
}

/// Writes all registers, flags, segments and the whole xstate to [`DUMP`], with the guest's own instructions.
pub fn dump_state(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    let registers = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    let mut at = DUMP;
    for register in registers {
        asm.mov(qword_ptr(at), register)?;
        at += 8;
    }
    // The red zone first: pushfq below would overwrite it.
    asm.mov(rax, qword_ptr(rsp - 8))?;
    asm.mov(qword_ptr(DUMP + 22 * 8), rax)?;
    asm.pushfq()?;
    asm.pop(qword_ptr(at))?;
    asm.push(0x202)?;
    asm.popfq()?;
    asm.rdfsbase(rax)?;
    asm.mov(qword_ptr(at + 8), rax)?;
    for (i, segment) in [cs, ss, ds, es].into_iter().enumerate() {
        asm.mov(eax, segment)?;
        asm.mov(qword_ptr(at + 16 + 8 * i as u64), rax)?;
    }
    asm.mov(eax, NO_TILE_DATA)?;
    asm.mov(edx, -1)?;
    asm.xsave64(ptr(DUMP + DUMP_XSAVE as u64))
}
