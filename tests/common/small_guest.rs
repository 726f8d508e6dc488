//! Guests of a few instructions: assembled, put into an address space, started.

#![allow(dead_code, reason = "each test crate uses its own part of it")]

use iced_x86::code_asm::{CodeAssembler, eax, r12, rax, rdi, rsi};
use systrap::{AddressSpace, Context, Event, GuestAddr, PAGE_SIZE, Protection, Syscall, Systrap};

/// Where the code lies.
pub const CODE: GuestAddr = GuestAddr::new(0x40_0000);
/// A page that the guest may read and write.
pub const DATA: GuestAddr = GuestAddr::new(0x50_0000);
/// End of the stack.
pub const STACK_END: u64 = 0x70_0000;
const STACK_LEN: u64 = 4 * PAGE_SIZE;

/// Assembles what `write` writes, for [`CODE`].
pub fn assemble(write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    write(&mut a);
    a.assemble(CODE.raw()).expect("the code can be encoded at its place")
}

/// Maps code, data and stack of a guest.
pub fn load(space: &AddressSpace, code: &[u8]) {
    let read_write = Protection::READ_WRITE;
    space.map_anonymous(CODE, code.len() as u64, read_write).expect("code is mapped");
    space.write(CODE, code).expect("code is written");
    space.protect(CODE, code.len() as u64, Protection::READ_EXECUTE).expect("code is protected");
    space.map_anonymous(DATA, PAGE_SIZE, read_write).expect("data is mapped");
    let stack = GuestAddr::new(STACK_END - STACK_LEN);
    space.map_anonymous(stack, STACK_LEN, read_write).expect("stack is mapped");
}

/// A context at the start of the code.
pub fn start(platform: &Systrap) -> Context {
    let mut context = platform.new_context().expect("a context");
    context.registers_mut().rip = CODE.raw();
    context.registers_mut().rsp = STACK_END;
    context
}

/// A guest that calls nr 1000 with (counter, word at [`DATA`]) for ever, counting up from 1.
pub fn counting_code() -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            a.set_label(&mut again)?;
            a.inc(r12)?;
            a.mov(rdi, r12)?;
            a.mov(rax, DATA.raw())?;
            a.mov(rsi, iced_x86::code_asm::qword_ptr(rax))?;
            a.mov(eax, 1000)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

/// A guest that runs in its own code for ever and calls nothing.
pub fn endless_code() -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            a.set_label(&mut again)?;
            a.inc(r12)?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

/// A new address space with `code` and a context at its start.
pub fn guest(platform: &Systrap, code: &[u8]) -> (AddressSpace, Context) {
    let space = platform.new_address_space().expect("an address space");
    load(&space, code);
    (space, start(platform))
}

/// Runs the guest until its next event, which has to be a system call.
pub fn next_call(context: &mut Context, space: &AddressSpace) -> Syscall {
    match context.switch(space) {
        Ok(Event::Syscall(call)) => call,
        other => panic!("expected a system call, got {other:?}"),
    }
}

/// Runs a guest of [`counting_code`] for one call and checks it; returns the word at [`DATA`].
pub fn next_count(context: &mut Context, space: &AddressSpace, count: u64) -> u64 {
    let call = next_call(context, space);
    assert_eq!((call.nr, call.args[0]), (1000, count), "number and counter of the call");
    call.args[1]
}

/// Reads a word of guest memory.
pub fn peek(space: &AddressSpace, addr: GuestAddr) -> u64 {
    let mut word = [0; 8];
    space.read(addr, &mut word).expect("the guest's word is readable");
    u64::from_le_bytes(word)
}

/// Writes a word of guest memory.
pub fn poke(space: &AddressSpace, addr: GuestAddr, word: u64) {
    space.write(addr, &word.to_le_bytes()).expect("the guest's word is writable");
}
