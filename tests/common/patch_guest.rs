//! A guest with as many sites as wanted, to be patched and looked at.
#![allow(dead_code, reason = "each test crate uses its own part")]

use systrap::{AddressSpace, Context, Entry, Event, GuestAddr, Systrap};

use crate::patch_lab::{put_code, put_data};

pub const CODE: u64 = 0x40_0000;
pub const STACK: u64 = 0x7000_0000;
pub const STACK_LEN: u64 = 0x4000;
/// Length of a function made by [`functions`].
pub const STEP: usize = 32;

pub fn at(addr: u64) -> GuestAddr {
    GuestAddr::new(addr)
}

/// Enough code in front of the first site for its boundaries to be proved.
pub const LEAD: usize = 64;

/// `count` functions of [`STEP`] bytes, each with its own number from `first` on; each falls into the next, the last
/// returns to the beginning.
pub fn functions(count: usize, first: u32) -> Vec<u8> {
    let mut code = [0x49, 0x89, 0xe5, 0x90].repeat(LEAD / 4); // mov r13, rsp; nop
    for i in 0..count {
        let [a, b, c, d] = (first + i as u32).to_le_bytes();
        // mov rdi, r12 and others; mov eax, imm32; syscall
        code.extend([0x4c, 0x89, 0xe7, 0x4c, 0x89, 0xe6, 0x4c, 0x89, 0xe2, 0x4d, 0x89, 0xe0]);
        code.extend([0x90; 3]);
        code.extend([0xb8, a, b, c, d, 0x0f, 5]);
        code.resize(LEAD + (i + 1) * STEP, 0x90);
    }
    let back = -(code.len() as i32 + 5);
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code
}

/// Where the `syscall` of the `i`th function is.
pub fn site(code: u64, i: usize) -> u64 {
    code + (LEAD + i * STEP) as u64 + 20
}

pub fn guest_in(platform: &Systrap, space: &AddressSpace, code: u64) -> Context {
    put_data(space, STACK, STACK_LEN, &[]);
    let mut context = platform.new_context().expect("a context");
    let regs = context.registers_mut();
    (regs.rip, regs.rsp, regs.r12) = (code, STACK + STACK_LEN, 77);
    context
}

pub fn guest(platform: &Systrap, code: &[u8]) -> (AddressSpace, Context) {
    let space = platform.new_address_space().expect("an address space");
    put_code(&space, CODE, code);
    let context = guest_in(platform, &space, CODE);
    (space, context)
}

/// Runs through all functions once; says how many calls came patched.
#[track_caller]
pub fn round(context: &mut Context, space: &AddressSpace, code: u64, count: usize, first: u32) -> usize {
    let mut patched = 0;
    for i in 0..count {
        match context.switch(space).expect("the stub process lives") {
            Event::Syscall(call) => {
                assert_eq!((call.nr, call.args[0]), (first + i as u32, 77), "call {i}");
                assert_eq!(call.ip.raw(), site(code, i) + 2);
                patched += usize::from(call.entry == Entry::Patched);
            }
            other => panic!("call {i}: {other:?}"),
        }
        context.set_return(0);
    }
    patched
}

pub fn mappings(space: &AddressSpace) -> usize {
    std::fs::read_to_string(format!("/proc/{}/maps", space.pid()))
        .expect("the stub's mappings")
        .lines()
        .count()
}

/// Executable memory that the guest did not map: first address and length.
pub fn trampolines(space: &AddressSpace) -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", space.pid())).expect("the stub's mappings");
    let anonymous = maps.lines().filter(|line| line.contains("r-xp") && line.split_whitespace().count() == 5);
    let ranges = anonymous.map(|line| {
        let (from, to) = line.split_whitespace().next().and_then(|r| r.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        (number(from), number(to) - number(from))
    });
    ranges.filter(|(at, _)| !(CODE..CODE + 0x100_0000).contains(at)).collect()
}
