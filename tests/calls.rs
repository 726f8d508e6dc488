//! A system call reaches the supervisor with the number, arguments, instruction pointer and architecture with which
//! the guest made it, whatever instruction it used, and its result reaches the guest.

mod common {
    pub mod fixture;
    pub mod guest;
}

use common::fixture::{CODE, DATA, Fixture, STACK_TOP, assemble};
use common::guest::Guest;
use iced_x86::code_asm::*;
use systrap::{Arch, Entry, Event, GuestAddr, Protection, Syscall};

/// Six words that differ in every byte.
const ARGS: [u64; 6] = [
    0x0123_4567_89ab_cdef,
    0xffff_ffff_ffff_fffe,
    0x8000_0000_0000_0001,
    0x0000_0000_ffff_ffff,
    0xfedc_ba98_7654_3210,
    0x7fff_ffff_8000_0000,
];
/// Length of `syscall`, `sysenter` and `int 0x80` in bytes.
const CALL_LEN: u64 = 2;

fn syscall_fixture() -> Fixture {
    Fixture::new(|asm| {
        asm.syscall()?;
        asm.ud2()
    })
}

/// Lets the guest run [`CODE`] with the given rax and the arguments of a 64-bit call.
fn call_with(guest: &mut Guest, number: u64, args: [u64; 6]) -> Syscall {
    let regs = guest.context.registers_mut();
    regs.rip = CODE;
    regs.rax = number;
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
    let call = guest.call();
    guest.context.pull_full_state().expect("the state is there");
    call
}

#[test]
fn number_and_six_arguments_of_a_syscall_arrive_exactly() {
    const X32: u64 = 0x4000_0000;
    let mut guest = Guest::new(&syscall_fixture());
    let numbers = [
        0,
        1,
        39,
        60,
        231,
        334,
        511,
        512,
        0x7fff_ffff,
        X32,
        X32 | 39,
        X32 | 520,
        0x8000_0000,
        0xffff_ffff,
        u64::MAX,
        0xdead_beef_0000_0027,
        0x8000_0000_4000_0001,
    ];
    for number in numbers {
        let mut args = ARGS;
        for turn in 0..6 {
            args.rotate_left(1);
            let call = call_with(&mut guest, number, args);
            assert_eq!(call.nr, number as u32, "number {number:#x}, turn {turn}");
            assert_eq!(call.args, args, "number {number:#x}");
            assert_eq!((call.arch, call.entry), (Arch::X86_64, Entry::Trapped), "number {number:#x}");
            assert_eq!(call.ip.raw(), CODE + CALL_LEN);
            assert_eq!(guest.context.registers().rip, CODE + CALL_LEN);
        }
    }
}

/// uretprobe and uprobe of newer kernels: the kernel exempts them from every seccomp filter (kernel/seccomp.c,
/// `seccomp_uprobe_exception`). Outside of the kernel's own trampolines the first raises SIGILL and the second fails
/// with ENXIO; neither does anything. The guest goes on, or stops, at the instruction behind the call, a `ud2`.
const EXEMPT: [u64; 2] = [335, 336];

#[test]
fn every_number_up_to_600_is_reported_and_none_executed() {
    let mut guest = Guest::new(&syscall_fixture());
    for number in 0..=600 {
        let regs = guest.context.registers_mut();
        regs.rip = CODE;
        regs.rax = number;
        match guest.switch() {
            Event::Syscall(call) => assert_eq!(call.nr, number as u32),
            Event::Signal(signal) if EXEMPT.contains(&number) => {
                assert_eq!((signal.signo, signal.ip.raw()), (libc::SIGILL, CODE + CALL_LEN), "{signal:x?}");
                let result = guest.registers().rax as i64;
                println!("call {number}: this kernel exempts it from seccomp; rax is {result}");
                assert!(
                    [number as i64, -1, -i64::from(libc::ENXIO)].contains(&result),
                    "nothing was done: {result}"
                );
            }
            other => panic!("call {number}: {other:?}"),
        }
        guest.context.pull_full_state().expect("the state is there");
    }
    assert_eq!(guest.space.stub_exit(), None, "neither exit nor kill nor execve took place");
}

#[test]
fn the_result_arrives_in_rax_and_is_enosys_by_default() {
    let mut guest = Guest::new(&Fixture::new(|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.syscall()?;
        asm.mov(rdi, rax)?;
        asm.mov(eax, 7)?;
        asm.jmp(again)
    }));
    guest.call();
    assert_eq!(guest.call().args[0] as i64, -i64::from(libc::ENOSYS), "without a result");
    for result in [0, 1, -1, -4095, -4096, i64::MIN, i64::MAX, -systrap::ERESTARTSYS, 0x1_0000_0000] {
        guest.context.set_return(result);
        assert_eq!(guest.call().args[0] as i64, result);
        // Not a result that is left over from the call before.
        assert_eq!(guest.call().args[0] as i64, -i64::from(libc::ENOSYS));
        // The same after a look at the registers, and by way of them.
        guest.context.pull_full_state().expect("the state is there");
        guest.context.set_return(result);
        assert_eq!(guest.call().args[0] as i64, result);
        guest.context.pull_full_state().expect("the state is there");
        guest.context.registers_mut().rax = result as u64;
        assert_eq!(guest.call().args[0] as i64, result);
    }
}

#[test]
fn int_80_is_an_i386_call_with_32_bit_arguments() {
    let mut guest = Guest::new(&Fixture::new(|asm| asm.int(0x80)));
    for number in [0_u64, 1, 20, 252, 0xffff_ffff, 0x4000_0014, 0xdead_beef_0000_0014] {
        let regs = guest.context.registers_mut();
        regs.rip = CODE;
        regs.rax = number;
        [regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp] = ARGS;
        let call = guest.call();
        assert_eq!(call.nr, number as u32);
        assert_eq!(call.args, ARGS.map(|arg| arg & 0xffff_ffff));
        assert_eq!((call.arch, call.entry), (Arch::I386, Entry::Trapped));
        assert_eq!(call.ip.raw(), CODE + CALL_LEN);
        guest.context.set_return(-1);
        assert_eq!(guest.registers().rax, u64::MAX, "the result, number {number:#x}");
    }
}

#[test]
fn a_call_through_the_vsyscall_page_is_reported_with_its_return_address() {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    if !maps.contains("[vsyscall]") {
        println!("NOT RUN: this kernel has no vsyscall page (vsyscall=none)");
        return;
    }
    let entries: [(u64, i64); 3] =
        [(0, libc::SYS_gettimeofday), (0x400, libc::SYS_time), (0x800, libc::SYS_getcpu)];
    for (offset, nr) in entries {
        let fixture = Fixture::new(|asm| {
            asm.mov(rax, 0xffff_ffff_ff60_0000_u64 + offset)?;
            asm.call(rax)?;
            asm.mov(rdi, rax)?;
            asm.mov(rsi, rsp)?;
            asm.syscall()
        });
        let code = &fixture.regions[0].bytes;
        let back = CODE + code.windows(2).position(|pair| pair == [0xff, 0xd0]).expect("call rax") as u64 + 2;
        let mut guest = Guest::new(&fixture);
        let regs = guest.context.registers_mut();
        [regs.rdi, regs.rsi, regs.rdx] = [0, 0, 0];
        let call = guest.call();
        assert_eq!(i64::from(call.nr), nr);
        assert_eq!((call.arch, call.entry), (Arch::X86_64, Entry::Vsyscall));
        assert_eq!(call.ip.raw(), back, "the return address");
        assert_eq!(&call.args[..3], &[0, 0, 0]);
        guest.context.set_return(0x1234);
        let next = guest.call();
        assert_eq!(next.args[0], 0x1234, "the result arrived behind the call");
        assert_eq!(next.args[1], STACK_TOP, "and the return address was popped");
    }
}

/// What came of `sysenter` with the number of i386 `exit_group`, which ends the stub process if it gets through.
fn assert_did_not_get_through(guest: &mut Guest, what: &str) {
    match guest.switch() {
        Event::Syscall(call) => {
            assert_eq!((call.nr, call.arch), (252, Arch::I386), "{what}");
            println!("{what}: reported as an i386 call at {}", call.ip);
        }
        Event::Signal(signal) => {
            assert!([libc::SIGSEGV, libc::SIGILL].contains(&signal.signo), "{what}: {signal:x?}");
            println!("{what}: signal {} at {}", signal.signo, signal.ip);
        }
        other => panic!("{what}: {other:?}"),
    }
    assert_eq!(guest.space.stub_exit(), None, "{what}: the stub process lives");
    let mut after = common::guest::new_context(&guest.platform);
    after.registers_mut().rip = CODE + 0x800;
    let event = after.switch(&guest.space).expect("other threads of the process run");
    assert!(matches!(event, Event::Syscall(Syscall { nr: 77, .. })), "{what}: {event:?}");
}

/// A thread of its own at `CODE + 0x800`: call 77.
fn with_witness(mut code: Vec<u8>) -> Fixture {
    code.resize(0x800, 0x90);
    code.extend(assemble(64, CODE + 0x800, |asm| {
        asm.mov(eax, 77)?;
        asm.syscall()
    }));
    Fixture::from_bytes(code)
}

#[test]
fn sysenter_in_64_bit_code_never_gets_through() {
    for frame in [0, STACK_TOP] {
        let mut guest = Guest::new(&with_witness(assemble(64, CODE, |asm| {
            asm.mov(eax, 252)?;
            asm.sysenter()
        })));
        guest.context.registers_mut().rbp = frame;
        assert_did_not_get_through(&mut guest, "sysenter in 64-bit code");
    }
}

/// 64-bit code that goes to 32-bit code at [`DATA`], and that code.
fn compat(code: Vec<u8>) -> Fixture {
    let bytes = assemble(64, CODE, |asm| {
        for segment in [ds, es] {
            asm.mov(ecx, 0x2b)?;
            asm.mov(segment, ecx)?;
        }
        asm.push(0x23)?;
        asm.push(DATA as i32)?;
        // retfq
        asm.db(&[0x48, 0xcb])
    });
    with_witness(bytes).with(DATA, 0x1000, Protection::READ_EXECUTE, &code)
}

#[test]
fn int_80_in_32_bit_code_is_reported_and_resumed_in_32_bit_mode() {
    let code = assemble(32, DATA, |asm| {
        for (i, register) in [ebx, ecx, edx, esi, edi, ebp].into_iter().enumerate() {
            asm.mov(register, 0xffff_fff0_u32 + i as u32)?;
        }
        asm.mov(eax, 20)?;
        asm.int(0x80)?;
        // `dec eax` here, a REX prefix in 64-bit mode.
        asm.dec(eax)?;
        asm.mov(ebx, eax)?;
        asm.int(0x80)
    });
    for full in [false, true] {
        let mut guest = Guest::new(&compat(code.clone()));
        let call = guest.call();
        assert_eq!((call.nr, call.arch, call.entry), (20, Arch::I386, Entry::Trapped));
        assert_eq!(call.args, [0, 1, 2, 3, 4, 5].map(|i| 0xffff_fff0 + i));
        assert!(call.ip > GuestAddr::new(DATA) && call.ip.raw() < DATA + code.len() as u64);
        guest.context.set_return(0x5555);
        if full {
            guest.context.pull_full_state().expect("the state is there");
            guest.context.full_state_changed();
        }
        let call = guest.call();
        assert_eq!((call.nr, call.args[0]), (0x5554, 0x5554), "full: {full}");
        assert_eq!(call.ip.raw(), DATA + code.len() as u64);
    }
}

#[test]
fn sysenter_and_syscall_in_32_bit_code_never_get_through() {
    for (what, call) in [("sysenter in 32-bit code", [0x0f, 0x34]), ("syscall in 32-bit code", [0x0f, 0x05])]
    {
        let code = assemble(32, DATA, |asm| {
            asm.mov(ebp, esp)?;
            asm.mov(eax, 252)?;
            asm.db(&call)
        });
        assert_did_not_get_through(&mut Guest::new(&compat(code)), what);
    }
}
