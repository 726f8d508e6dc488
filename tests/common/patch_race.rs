//! Threads that run through the same sites while a test disturbs their patches: a wrong result, register or call ends the
//! race.
#![allow(dead_code, reason = "each test crate uses its own part")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use iced_x86::code_asm::*;
use systrap::{AddressSpace, Context, Entry, Event, Patching, Systrap};

use crate::patch_lab::{self, answer, put_code, put_data};
use crate::small_guest;

pub const CODE: u64 = 0x40_0000;
const STACKS: u64 = 0x7000_0000;
const STACK_LEN: u64 = 0x1000;
pub const THREADS: u64 = 8;
/// How many call numbers: one for each site.
const FIRST_NR: u32 = 1000;

/// Functions that make one call each, at chosen places, and a loop that calls them all for ever.
pub struct Program {
    pub code: Vec<u8>,
    pub sites: Vec<u64>,
}

/// Offsets of `mov eax, imm32`, five bytes: within an aligned word, across one, across a cache line, across a page.
const PLACES: [u64; 8] = [0x1000, 0x1043, 0x1084, 0x10bd, 0x1ffd, 0x2fff, 0x3ffc, 0x4ffe];
/// Offsets of `syscall`s with padding in front and nothing else to patch: in a word, across a line, across a page.
const SHORT_PLACES: [u64; 3] = [0x5100, 0x51bf, 0x5fff];

pub fn program() -> Program {
    let mut code = vec![0x53_u8; 0x7000];
    let mut put = |at: u64, bytes: &[u8]| code[at as usize..][..bytes.len()].copy_from_slice(bytes);
    let mut sites = Vec::new();
    let mut functions = Vec::new();
    for (i, at) in PLACES.iter().enumerate() {
        // mov eax, imm32; syscall; ret; as the functions begin at `at` there is nothing else to replace.
        let [a, b, c, d] = (FIRST_NR + i as u32).to_le_bytes();
        put(*at, &[0xb8, a, b, c, d, 0x0f, 5, 0xc3]);
        sites.push(CODE + at + 5);
        functions.push(CODE + at);
    }
    for (i, at) in SHORT_PLACES.iter().enumerate() {
        // mov eax, ebp; jmp site; six times int3; site: syscall; ret. The number comes in ebp.
        put(at - 10, &[0x89, 0xe8, 0xeb, 6, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 5, 0xc3]);
        sites.push(CODE + at);
        functions.push(CODE + at - 10);
        assert_eq!(PLACES.len() + i + 1, sites.len());
    }
    let top = small_guest::CODE.raw();
    assert_eq!(top, CODE);
    let main = small_guest::assemble(|a| assemble_main(a, &functions).expect("valid instructions"));
    assert!(main.len() < 0x1000, "the loop fits in front of the functions");
    put(0, &main);
    Program { code, sites }
}

/// Calls every function with r12 = turn; r13 = thread. Checks result, rcx, r11 and the argument registers; a wrong one
/// ends in `ud2`.
fn assemble_main(a: &mut CodeAssembler, functions: &[u64]) -> Result<(), iced_x86::IcedError> {
    let mut again = a.create_label();
    let mut bad = a.create_label();
    a.set_label(&mut again)?;
    a.inc(r12)?;
    for (i, function) in functions.iter().enumerate() {
        let nr = FIRST_NR + i as u32;
        a.mov(ebp, nr)?;
        a.mov(rdi, r12)?;
        a.mov(rsi, r13)?;
        a.lea(rdx, r12 + r13)?;
        a.mov(r10, r12)?;
        a.not(r10)?;
        a.xor(r8d, r8d)?;
        a.mov(r9d, nr)?;
        a.call(*function)?;
        // What `answer` computes.
        a.mov(r14d, nr)?;
        for arg in [rdi, rsi, rdx, r10, r8, r9] {
            a.imul_3(r14, r14, 31)?;
            a.add(r14, arg)?;
        }
        a.inc(r14)?;
        a.cmp(rax, r14)?;
        a.jne(bad)?;
        a.cmp(rdi, r12)?;
        a.jne(bad)?;
        a.cmp(r9d, nr)?;
        a.jne(bad)?;
    }
    a.jmp(again)?;
    a.set_label(&mut bad)?;
    a.ud2()
}

/// What the threads did.
#[derive(Debug, Default)]
pub struct Tally {
    pub trapped: AtomicU64,
    pub patched: AtomicU64,
}

fn hammer(
    platform: &Systrap,
    space: &AddressSpace,
    number: u64,
    program: &Program,
    stop: &AtomicBool,
    tally: &Tally,
) {
    let mut context: Context = platform.new_context().expect("a context");
    let regs = context.registers_mut();
    regs.rip = CODE;
    regs.rsp = STACKS + (number + 1) * STACK_LEN - 64;
    regs.r13 = number << 40;
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        for (i, site) in program.sites.iter().enumerate() {
            let call = match context.switch(space).expect("the stub process lives") {
                Event::Syscall(call) => call,
                other => {
                    stop.store(true, Ordering::Relaxed);
                    context.pull_full_state().expect("the state");
                    panic!(
                        "thread {number}, turn {turn}, site {site:#x}: {other:?} {:x?}",
                        context.registers()
                    )
                }
            };
            let nr = FIRST_NR + i as u32;
            let base = number << 40;
            let args = [turn, base, turn + base, !turn, 0, nr.into()];
            if (call.nr, call.args, call.ip.raw()) != (nr, args, site + 2) {
                stop.store(true, Ordering::Relaxed);
                panic!("thread {number}, turn {turn}, site {site:#x}: {call:x?}");
            }
            let _ = match call.entry {
                Entry::Patched => tally.patched.fetch_add(1, Ordering::Relaxed),
                _ => tally.trapped.fetch_add(1, Ordering::Relaxed),
            };
            context.set_return(answer(call.nr, &call.args));
        }
    }
}

/// Hammers with `threads` threads and calls `disturb` until it says that it is enough.
pub fn race(
    platform: &Systrap,
    threads: u64,
    disturb: impl Fn(&AddressSpace, &Tally, u64) -> bool,
) -> (Tally, u64) {
    let space = platform.new_address_space().expect("an address space");
    let program = program();
    put_code(&space, CODE, &program.code);
    put_data(&space, STACKS, THREADS * STACK_LEN, &[]);
    let (stop, tally) = (AtomicBool::new(false), Tally::default());
    let mut rounds = 0;
    thread::scope(|scope| {
        for number in 0..threads {
            let (space, program, stop, tally) = (&space, &program, &stop, &tally);
            scope.spawn(move || hammer(platform, space, number, program, stop, tally));
        }
        while !stop.load(Ordering::Relaxed) && disturb(&space, &tally, rounds) {
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    space.set_patching(Patching::Off);
    let found = patch_lab::bytes_at(&space, CODE, program.code.len());
    assert_eq!(patch_lab::first_difference(&found, &program.code), None, "all bytes are as they were");
    (tally, rounds)
}

/// A while for the sites to be patched, more or less long.
pub fn pause(round: u64) {
    thread::sleep(Duration::from_micros(200 + round % 16 * 500));
}
