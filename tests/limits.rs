//! What an embedder can limit or switch on for guests: memory, CPUID faulting, speculation barriers; and answers that
//! the stub gives by itself.

use iced_x86::code_asm::*;
use systrap::{AddressSpace, Context, Entry, Event, GuestAddr, Options, PAGE_SIZE, Protection, Systrap};

const TEXT: u64 = 0x10_0000;
const STACK: u64 = 0x20_0000;

/// A guest with this code.
fn guest(
    platform: &Systrap,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (AddressSpace, Context) {
    let mut asm = CodeAssembler::new(64).expect("64-bit code");
    build(&mut asm).expect("encodable code");
    let code = asm.assemble(TEXT).expect("encodable code");
    let space = platform.new_address_space().expect("an address space");
    let text = GuestAddr::new(TEXT);
    space.map_anonymous(text, PAGE_SIZE, Protection::READ_WRITE).expect("free memory");
    space.write(text, &code).expect("mapped memory");
    space.protect(text, PAGE_SIZE, Protection::READ_EXECUTE).expect("mapped memory");
    space.map_anonymous(GuestAddr::new(STACK), PAGE_SIZE, Protection::READ_WRITE).expect("free memory");
    let mut context = platform.new_context().expect("a context");
    let registers = context.registers_mut();
    registers.rip = TEXT;
    registers.rsp = STACK + PAGE_SIZE;
    (space, context)
}

fn getpid_loop(asm: &mut CodeAssembler) -> Result<(), IcedError> {
    // Enough code in front of the site for the planner to prove its boundaries by.
    for _ in 0..64 {
        asm.nop()?;
    }
    let mut again = asm.create_label();
    asm.set_label(&mut again)?;
    asm.mov(eax, 39)?;
    asm.syscall()?;
    asm.inc(rbx)?;
    asm.cmp(rbx, 1000)?;
    asm.jb(again)?;
    asm.mov(eax, 60)?;
    asm.mov(rdi, rax)?;
    asm.syscall()?;
    asm.ud2()
}

#[test]
fn a_memory_limit_makes_mapping_calls_fail_and_nothing_else() {
    const MIB: u64 = 1 << 20;
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, _context) = guest(&platform, getpid_loop);
    let big = |space: &AddressSpace, len| {
        space.map_anonymous(GuestAddr::new(0x10_0000_0000), len, Protection::READ_WRITE)
    };
    space.set_memory_limit(Some(64 * MIB)).expect("a living stub process");
    let error = big(&space, 128 * MIB).expect_err("more than the limit");
    assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    big(&space, 32 * MIB).expect("less than the limit");
    let child = space.fork().expect("a fork");
    let error = big(&child, 128 * MIB).expect_err("a fork inherits the limit");
    assert_eq!(error.errno(), libc::ENOMEM, "{error}");
    space.set_memory_limit(None).expect("a living stub process");
    big(&space, 128 * MIB).expect("no limit any more");
}

#[test]
fn cpuid_is_an_event_where_the_cpu_can_make_it_one() {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let platform = match Systrap::new(Options::new().cpuid_faulting(true)) {
        Ok(platform) => platform,
        Err(error) => {
            assert!(!cpuinfo.contains("cpuid_fault"), "this CPU has it: {error}");
            assert!(error.to_string().contains("CPUID faulting"), "the error names the thing: {error}");
            eprintln!("NOT RUN: cpuid as an event: this CPU has no CPUID faulting");
            return;
        }
    };
    let code = |asm: &mut CodeAssembler| {
        asm.xor(eax, eax)?;
        asm.cpuid()?;
        asm.mov(edi, ebx)?;
        asm.mov(eax, 60)?;
        asm.syscall()
    };
    let (space, mut context) = guest(&platform, code);
    let Event::Signal(fault) = context.switch(&space).expect("a living stub") else { panic!("not a signal") };
    assert_eq!((fault.signo, fault.code), (libc::SIGSEGV, 128), "SI_KERNEL");
    context.pull_full_state().expect("a living stub");
    let registers = context.registers_mut();
    registers.rbx = 4711;
    registers.rip += 2;
    let Event::Syscall(call) = context.switch(&space).expect("a living stub") else { panic!("not a call") };
    assert_eq!((call.nr, call.args[0]), (60, 4711), "the embedder's answer");
}

#[test]
fn guests_run_with_speculation_barriers() {
    let platform = Systrap::new(Options::new().speculation_barriers(true)).expect("a platform");
    let (space, mut context) = guest(&platform, getpid_loop);
    let Event::Syscall(call) = context.switch(&space).expect("a living stub") else { panic!("not a call") };
    assert_eq!(call.nr, 39);
    let status = std::fs::read_to_string(format!("/proc/{}/status", space.pid())).unwrap_or_default();
    let bypass = status.lines().find(|line| line.starts_with("Speculation_Store_Bypass"));
    println!("{}", bypass.unwrap_or("the kernel does not say whether store bypass is controlled"));
    // "vulnerable" is what a thread is that could be mitigated and was not.
    assert!(!bypass.is_some_and(|line| line.ends_with("\tthread vulnerable")), "{bypass:?}");
}

#[test]
fn constant_answers_are_given_without_an_event_and_counted() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, mut context) = guest(&platform, getpid_loop);
    context.answer_in_stub(39, Some(1234)).expect("a number in the table");
    // The first call traps (and patches the site), the second is answered, and so on to the end.
    let Event::Syscall(call) = context.switch(&space).expect("a living stub") else { panic!("not a call") };
    assert_eq!((call.nr, call.entry), (39, Entry::Trapped));
    context.set_return(1);
    let Event::Syscall(call) = context.switch(&space).expect("a living stub") else { panic!("not a call") };
    assert_eq!((call.nr, call.args[0]), (60, 60), "all the others were answered");
    context.pull_full_state().expect("a living stub");
    assert_eq!(context.registers().rbx, 1000);
    assert_eq!(platform.stats().answered, 999);

    // Taken back: every call is seen again.
    context.answer_in_stub(39, None).expect("a number in the table");
    let registers = context.registers_mut();
    registers.rip = TEXT;
    registers.rbx = 998;
    for _ in 0..2 {
        let Event::Syscall(call) = context.switch(&space).expect("a living stub") else {
            panic!("not a call")
        };
        assert_eq!((call.nr, call.entry), (39, Entry::Patched));
        context.set_return(7);
    }
    let error = context.answer_in_stub(512, Some(0)).expect_err("beyond the table");
    assert!(error.to_string().contains("512"), "{error}");
}

#[test]
fn an_answer_changes_rax_rcx_and_r11_only() {
    let platform = Systrap::new(Options::new()).expect("a platform");
    let (space, mut context) = guest(&platform, getpid_loop);
    context.answer_in_stub(39, Some(-5)).expect("a number in the table");
    let Event::Syscall(_) = context.switch(&space).expect("a living stub") else { panic!("not a call") };
    context.pull_full_state().expect("a living stub");
    let flags = 0x8d5 | 0x202;
    let registers = context.registers_mut();
    // Once more through the patched site, and stop right behind it at a trap flag's mercy: the loop goes on to the end.
    registers.rip = TEXT;
    registers.rbx = 998;
    registers.rflags = flags;
    (registers.r12, registers.r13, registers.r14, registers.r15) = (12, 13, 14, 15);
    let before = *context.registers();
    let Event::Syscall(call) = context.switch(&space).expect("a living stub") else { panic!("not a call") };
    assert_eq!(call.nr, 60);
    context.pull_full_state().expect("a living stub");
    let after = context.registers();
    assert_eq!(after.rbx, 1000);
    let kept =
        |r: &systrap::Registers| [r.rsp, r.rbp, r.rsi, r.rdx, r.r8, r.r9, r.r10, r.r12, r.r13, r.r14, r.r15];
    assert_eq!(kept(after), kept(&before));
}
