//! Faults of a guest are reported with the signal, si_code, address, trap number, error code, access type and
//! registers that a signal handler sees when the same code runs natively.

mod common {
    pub mod fixture;
    pub mod guest;
    pub mod native;
}

use common::fixture::{CODE, DATA, Fixture, HOLE, STACK_TOP, Stop, assemble, load_patterns};
use common::guest::{self, Guest, Way};
use common::native;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use systrap::{AccessType, Protection};

/// `si_code`s of sigaction(2) that the libc crate lacks.
mod si_code {
    pub const SI_KERNEL: i32 = 128;
    pub const SEGV_MAPERR: i32 = 1;
    pub const SEGV_ACCERR: i32 = 2;
    pub const BUS_ADRALN: i32 = 1;
    pub const BUS_ADRERR: i32 = 2;
    pub const FPE_INTDIV: i32 = 1;
    pub const FPE_FLTDIV: i32 = 3;
    pub const FPE_FLTINV: i32 = 7;
    pub const ILL_ILLOPN: i32 = 2;
    pub const TRAP_TRACE: i32 = 2;
}
use si_code::*;

/// Runs the fixture both ways to its `count`th signal and compares everything, at the last one the expectation too.
fn same_as_native(fixture: &Fixture, count: usize, signo: i32, code: i32) -> Stop {
    let native = native::run(fixture, count);
    for way in Way::ALL {
        let here = guest::run(fixture, count, way, |_| -i64::from(libc::ENOSYS));
        for (i, (here, native)) in here.stops.iter().zip(&native.stops).enumerate() {
            assert_eq!(here, native, "stop {i}, {way:?}: left as under the platform, right as natively");
        }
    }
    let last = native.stops[count - 1];
    assert_eq!((last.signo, last.code), (signo, code), "the native run shows what it is meant to: {last:x?}");
    last
}

fn access(fixture: &Fixture) -> AccessType {
    Guest::new(fixture).signal().access().expect("a page fault")
}

/// Patterns in all registers, then `build`.
fn after_patterns(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Fixture {
    Fixture::new(|asm| {
        load_patterns(asm)?;
        build(asm)
    })
}

const NONE: Protection = Protection::NONE;
const READ: Protection = Protection::READ;

#[test]
fn read_of_an_unmapped_page() {
    let fixture = after_patterns(|asm| asm.mov(rax, qword_ptr(HOLE + 0x123)));
    let stop = same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_MAPERR);
    assert_eq!(stop.addr, HOLE + 0x123);
    assert_eq!(access(&fixture), AccessType::Read);
}

#[test]
fn write_of_an_unmapped_page() {
    let fixture = after_patterns(|asm| asm.mov(qword_ptr(HOLE + 0x321), rax));
    let stop = same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_MAPERR);
    assert_eq!(stop.addr, HOLE + 0x321);
    assert_eq!(access(&fixture), AccessType::Write);
}

#[test]
fn execution_of_an_unmapped_page() {
    let fixture = after_patterns(|asm| {
        asm.mov(rax, HOLE + 0x10)?;
        asm.jmp(rax)
    });
    let stop = same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_MAPERR);
    assert_eq!((stop.addr, stop.regs.rip), (HOLE + 0x10, HOLE + 0x10));
    assert_eq!(access(&fixture), AccessType::Execute);
}

#[test]
fn read_of_a_page_without_access() {
    let fixture = after_patterns(|asm| asm.mov(al, byte_ptr(DATA + 5))).with(DATA, 0x1000, NONE, &[1; 16]);
    same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_ACCERR);
    assert_eq!(access(&fixture), AccessType::Read);
}

#[test]
fn write_of_a_read_only_page() {
    let fixture = after_patterns(|asm| asm.inc(byte_ptr(DATA + 5))).with(DATA, 0x1000, READ, &[1; 16]);
    same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_ACCERR);
    assert_eq!(access(&fixture), AccessType::Write);
}

#[test]
fn write_of_a_read_only_page_that_was_never_touched() {
    let fixture = after_patterns(|asm| asm.inc(byte_ptr(DATA + 5))).with(DATA, 0x1000, READ, &[]);
    same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_ACCERR);
}

#[test]
fn execution_of_a_page_that_is_not_executable() {
    let fixture = after_patterns(|asm| {
        asm.mov(rax, DATA)?;
        asm.jmp(rax)
    });
    let fixture = fixture.with(DATA, 0x1000, READ, &[0x90; 16]);
    same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_ACCERR);
    assert_eq!(access(&fixture), AccessType::Execute);
}

#[test]
fn access_across_the_end_of_a_mapping_names_the_first_missing_byte() {
    let fixture = after_patterns(|asm| asm.mov(rax, qword_ptr(DATA + 0xffb))).with(DATA, 0x1000, READ, &[1]);
    let stop = same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_MAPERR);
    assert_eq!(stop.addr, DATA + 0x1000);
}

#[test]
fn access_to_a_kernel_address() {
    let fixture = after_patterns(|asm| {
        asm.mov(rax, 0xffff_8880_0000_1000_u64)?;
        asm.mov(rbx, qword_ptr(rax))
    });
    same_as_native(&fixture, 2, libc::SIGSEGV, SEGV_MAPERR);
}

#[test]
fn access_to_a_non_canonical_address_is_a_general_protection_fault() {
    let fixture = after_patterns(|asm| {
        asm.mov(rax, 0x8000_0000_0000_0000_u64)?;
        asm.mov(rbx, qword_ptr(rax))
    });
    let stop = same_as_native(&fixture, 2, libc::SIGSEGV, SI_KERNEL);
    assert_eq!((stop.trapno, stop.addr), (13, 0));
}

#[test]
fn stack_access_at_a_non_canonical_address_is_a_stack_fault() {
    let fixture = after_patterns(|asm| {
        asm.mov(rbp, 0x8000_0000_0000_0000_u64)?;
        asm.mov(rbx, qword_ptr(rbp + 8))
    });
    let stop = same_as_native(&fixture, 2, libc::SIGBUS, SI_KERNEL);
    assert_eq!(stop.trapno, 12);
}

#[test]
fn jump_to_a_non_canonical_address() {
    let fixture = after_patterns(|asm| {
        asm.mov(rax, 0x0000_8000_0000_0000_u64)?;
        asm.jmp(rax)
    });
    same_as_native(&fixture, 2, libc::SIGSEGV, SI_KERNEL);
}

#[test]
fn privileged_instruction() {
    let fixture = after_patterns(|asm| asm.hlt());
    same_as_native(&fixture, 2, libc::SIGSEGV, SI_KERNEL);
}

#[test]
fn software_interrupt_without_a_gate_for_programs() {
    let fixture = after_patterns(|asm| asm.int(0x21));
    let stop = same_as_native(&fixture, 2, libc::SIGSEGV, SI_KERNEL);
    assert_eq!(stop.error_code, 0x21 * 8 + 2, "the selector of the gate");
}

#[test]
fn misaligned_access_with_the_ac_flag() {
    let fixture = after_patterns(|asm| {
        asm.push(0x40202)?;
        asm.popfq()?;
        asm.mov(rax, qword_ptr(DATA + 1))
    });
    let fixture = fixture.with(DATA, 0x1000, READ, &[1; 16]);
    let stop = same_as_native(&fixture, 2, libc::SIGBUS, BUS_ADRALN);
    assert_eq!(stop.trapno, 17);
    assert_ne!(stop.regs.rflags & 0x40000, 0);
}

#[test]
fn misaligned_vector_access_is_a_general_protection_fault() {
    let fixture = after_patterns(|asm| asm.movaps(xmm0, ptr(DATA + 1))).with(DATA, 0x1000, READ, &[1; 64]);
    same_as_native(&fixture, 2, libc::SIGSEGV, SI_KERNEL);
}

#[test]
fn integer_division_by_zero() {
    let fixture = after_patterns(|asm| {
        asm.xor(ecx, ecx)?;
        asm.div(rcx)
    });
    let stop = same_as_native(&fixture, 2, libc::SIGFPE, FPE_INTDIV);
    assert_eq!(stop.addr, stop.regs.rip);
}

#[test]
fn unmasked_vector_exception() {
    let fixture = after_patterns(|asm| {
        // Every exception unmasked, round up.
        asm.push(0x4000)?;
        asm.ldmxcsr(dword_ptr(rsp))?;
        asm.mov(eax, 1)?;
        asm.cvtsi2sd(xmm0, eax)?;
        asm.pxor(xmm1, xmm1)?;
        asm.divsd(xmm0, xmm1)
    });
    let stop = same_as_native(&fixture, 3, libc::SIGFPE, FPE_FLTDIV);
    assert_eq!(stop.trapno, 19);
}

#[test]
fn unmasked_x87_exception() {
    let fixture = after_patterns(|asm| {
        asm.push(0x0340)?;
        asm.fldcw(word_ptr(rsp))?;
        asm.fld1()?;
        asm.fldz()?;
        asm.fdivp(st1, st0)?;
        asm.wait()
    });
    let stop = same_as_native(&fixture, 3, libc::SIGFPE, FPE_FLTDIV);
    assert_eq!(stop.trapno, 16);
}

#[test]
fn x87_stack_underflow() {
    let fixture = after_patterns(|asm| {
        asm.push(0x0340)?;
        asm.fldcw(word_ptr(rsp))?;
        asm.fsqrt()?;
        asm.wait()
    });
    same_as_native(&fixture, 2, libc::SIGFPE, FPE_FLTINV);
}

#[test]
fn illegal_instruction() {
    let fixture = after_patterns(|asm| asm.ud2());
    let stop = same_as_native(&fixture, 2, libc::SIGILL, ILL_ILLOPN);
    assert_eq!(stop.trapno, 6);
}

#[test]
fn instructions_that_64_bit_mode_lacks() {
    for byte in [0xce_u8, 0x62, 0x06, 0xd4] {
        // into, bound (an incomplete EVEX prefix here), push es, aam
        let fixture = Fixture::from_bytes(vec![byte, 0, 0, 0, 0, 0, 0]);
        same_as_native(&fixture, 2, libc::SIGILL, ILL_ILLOPN);
    }
}

#[test]
fn breakpoint_ends_behind_its_instruction() {
    let fixture = after_patterns(|asm| {
        asm.int3()?;
        asm.inc(rbx)?;
        asm.int(3)
    });
    let stop = same_as_native(&fixture, 2, libc::SIGTRAP, SI_KERNEL);
    assert_eq!(stop.trapno, 3);
}

#[test]
fn overflow_by_software_interrupt() {
    let fixture = after_patterns(|asm| asm.int(4));
    same_as_native(&fixture, 1, libc::SIGSEGV, SI_KERNEL);
}

#[test]
fn icebp() {
    let fixture = after_patterns(|asm| {
        asm.int1()?;
        asm.ud2()
    });
    let native = native::run(&fixture, 1);
    same_as_native(&fixture, 1, libc::SIGTRAP, native.stops[0].code);
}

/// Popping TF steps every instruction behind it; one by one they are reported as natively, over a system call too.
#[test]
fn single_step_over_instructions_and_a_call() {
    let fixture = Fixture::new(|asm| {
        load_patterns(asm)?;
        asm.push(0x302)?;
        asm.popfq()?;
        asm.mov(eax, 1000)?;
        asm.inc(rbx)?;
        asm.syscall()?;
        asm.inc(rbx)?;
        asm.xor(ecx, ecx)?;
        asm.push(0x202)?;
        asm.popfq()?;
        asm.ud2()
    });
    let native = native::run(&fixture, 7);
    let stepped = native.stops.iter().filter(|stop| stop.signo == libc::SIGTRAP).count();
    assert!(stepped >= 5, "single steps are reported natively: {:x?}", native.stops);
    assert!(native.stops[..stepped].iter().all(|stop| stop.code == TRAP_TRACE));
    same_as_native(&fixture, stepped + 1, libc::SIGILL, ILL_ILLOPN);
}

/// A fault in a file mapping behind the end of the file.
#[test]
fn access_behind_the_end_of_a_file() {
    use std::os::fd::AsFd;
    use systrap::{GuestAddr, Sharing};
    let file = nix::sys::memfd::memfd_create("short", nix::sys::memfd::MFdFlags::empty()).expect("a memfd");
    let mut guest = Guest::new(&after_patterns(|asm| asm.mov(al, byte_ptr(DATA))));
    let at = GuestAddr::new(DATA);
    guest.space.map_file(at, 0x1000, file.as_fd(), 0, READ, Sharing::Shared).expect("a mapping");
    let signal = guest.signal();
    assert_eq!((signal.signo, signal.code), (libc::SIGBUS, BUS_ADRERR));
    assert_eq!((signal.addr, signal.access()), (at, Some(AccessType::Read)));
}

/// In 32-bit code `into` and `bound` raise what 64-bit code cannot.
#[test]
fn overflow_and_bound_in_32_bit_code() {
    let compat = DATA as u32 + 0x800;
    for code in [
        assemble(32, u64::from(compat), |asm| {
            asm.mov(eax, i32::MAX)?;
            asm.inc(eax)?;
            asm.into()
        }),
        assemble(32, u64::from(compat), |asm| {
            asm.mov(eax, 5)?;
            asm.bound(eax, dword_ptr(DATA as u32))
        }),
    ] {
        let fixture = Fixture::new(|asm| {
            asm.mov(eax, 0x2b)?;
            asm.mov(ds, eax)?;
            asm.push(0x23)?;
            asm.push(compat as i32)?;
            asm.db(&[0x48, 0xcb])
        });
        let mut bytes = vec![0; 0x800];
        bytes.extend(code);
        let fixture = fixture.with(DATA, 0x1000, Protection::READ_EXECUTE, &bytes);
        let stop = same_as_native(&fixture, 1, libc::SIGSEGV, SI_KERNEL);
        assert!((4..=5).contains(&stop.trapno), "overflow or bound range: {stop:x?}");
    }
}

const _: () = assert!(CODE < HOLE && STACK_TOP < HOLE, "the hole is nobody's");
