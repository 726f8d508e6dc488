//! After a system call the guest's registers, flags and segments are what they are natively: the guest writes them
//! down itself, here and in a native run of the same code.

mod common {
    pub mod fixture;
    pub mod guest;
    pub mod native;
}

use common::fixture::{
    CODE, DATA, DUMP, DUMP_LEN, Fixture, Outcome, assemble, dump_state, load_patterns, pattern,
};
use common::guest::{self, Guest, Way};
use common::native;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use systrap::{Entry, Event, Patching, Protection, Registers};

/// A number that no kernel has: natively the result is `-ENOSYS`.
const NO_SUCH_CALL: i32 = 0x1fff;
/// Flags by their bits: CF PF AF ZF SF DF OF NT AC ID.
const FLAGS: [(&str, i32); 11] = [
    ("CF", 0x1),
    ("PF", 0x4),
    ("AF", 0x10),
    ("ZF", 0x40),
    ("SF", 0x80),
    ("DF", 0x400),
    ("OF", 0x800),
    ("NT", 0x4000),
    ("AC", 0x4_0000),
    ("ID", 0x20_0000),
    ("all", 0x24_4cd5),
];

/// How often the code around a call runs: lazily patched, only the first time traps.
const TURNS: i32 = 4;
/// Where the turns are counted, behind the guest's dump.
const COUNTER: u64 = DUMP + DUMP_LEN - 8;

/// Patterns in all registers and below rsp, the given flags, then `call`, then the guest's dump, [`TURNS`] times, and
/// a breakpoint.
fn around(flags: i32, call: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Fixture {
    let fixture = Fixture::new(|asm| {
        let mut again = asm.create_label();
        asm.mov(qword_ptr(COUNTER), TURNS)?;
        asm.set_label(&mut again)?;
        load_patterns(asm)?;
        asm.push(0x202 | flags)?;
        asm.popfq()?;
        asm.mov(qword_ptr(rsp - 8), r15)?;
        call(asm)?;
        dump_state(asm)?;
        asm.dec(qword_ptr(COUNTER))?;
        asm.jnz(again)?;
        asm.int3()
    });
    assert!(fixture.regions[0].bytes.len() < 0x800, "it fits in front of other code");
    fixture
}

fn enosys(fixture: &Fixture, way: Way) -> Outcome {
    guest::run(fixture, 1, way, |_| -i64::from(libc::ENOSYS))
}

fn same_as_native(fixture: &Fixture, what: &str) -> Outcome {
    let native = native::run(fixture, 1);
    assert_eq!(
        native.stops[0].signo,
        libc::SIGTRAP,
        "{what}: natively it runs to its end: {:x?}",
        native.stops
    );
    for way in Way::ALL {
        enosys(fixture, way).assert_same_dump(&native, &format!("{what}, {way:?}"));
    }
    native
}

#[test]
fn registers_and_flags_after_a_syscall() {
    for (name, flags) in FLAGS {
        let fixture = around(flags, |asm| {
            asm.mov(eax, NO_SUCH_CALL)?;
            asm.syscall()
        });
        let native = same_as_native(&fixture, name);
        // The native run shows what it is meant to: the words are those of `dump_state`.
        assert_eq!(native.word(0) as i64, -i64::from(libc::ENOSYS), "rax");
        assert_eq!(native.word(8 * 11), native.word(8 * 16), "r11 is rflags");
        assert_eq!(native.word(8 * 16), 0x202 | flags as u64, "rflags");
        assert_eq!(native.word(8 * 15), pattern(14), "r15");
        assert_eq!(native.word(8 * 22), pattern(14), "the red zone is untouched");
    }
}

/// The same where all but the first turn go through a patched site.
#[test]
fn registers_and_flags_after_a_patched_syscall() {
    for (name, flags) in FLAGS {
        let fixture = around(flags, |asm| {
            asm.mov(eax, NO_SUCH_CALL)?;
            asm.syscall()
        });
        let native = native::run(&fixture, 1);
        for way in Way::ALL {
            let mut guest = Guest::with(&fixture, Patching::Lazy);
            let mut patched = 0;
            let here = guest::run_in(&mut guest, 1, way, |call| {
                patched += i32::from(call.entry == Entry::Patched);
                assert!(
                    (CODE..CODE + 0x800).contains(&call.ip.raw()),
                    "the site, not the trampoline: {}",
                    call.ip
                );
                -i64::from(libc::ENOSYS)
            });
            assert!(patched > 0, "{name}, {way:?}: the site was patched");
            here.assert_same_dump(&native, &format!("patched, {name}, {way:?}"));
        }
    }
}

#[test]
fn registers_and_flags_after_int_80() {
    for (name, flags) in FLAGS {
        let fixture = around(flags, |asm| {
            asm.mov(eax, NO_SUCH_CALL)?;
            asm.int(0x80)
        });
        let native = same_as_native(&fixture, name);
        assert_eq!(native.word(8), pattern(1), "rcx is not clobbered");
        assert_eq!(native.word(8 * 11), pattern(10), "nor is r11");
    }
}

#[test]
fn registers_and_flags_after_a_vsyscall() {
    if !std::fs::read_to_string("/proc/self/maps").expect("procfs").contains("[vsyscall]") {
        println!("NOT RUN: this kernel has no vsyscall page (vsyscall=none)");
        return;
    }
    for (name, flags) in FLAGS {
        // gettimeofday(NULL, NULL) is 0 natively too.
        let fixture = around(flags, |asm| {
            asm.mov(edi, 0)?;
            asm.mov(esi, 0)?;
            asm.mov(rax, 0xffff_ffff_ff60_0000_u64)?;
            asm.call(rax)
        });
        let native = native::run(&fixture, 1);
        assert_eq!(native.word(0), 0, "rax");
        for way in Way::ALL {
            guest::run(&fixture, 1, way, |_| 0).assert_same_dump(&native, &format!("{name}, {way:?}"));
        }
    }
}

#[test]
fn a_chosen_result_changes_nothing_but_rax() {
    let fixture = around(0, |asm| {
        asm.mov(eax, libc::SYS_getppid as i32)?;
        asm.syscall()
    });
    let native = native::run(&fixture, 1);
    assert_eq!(native.word(0), u64::from(std::process::id()), "the native child asks for us");
    for way in Way::ALL {
        let here = guest::run(&fixture, 1, way, |_| i64::from(std::process::id()));
        here.assert_same_dump(&native, &format!("{way:?}"));
    }
}

#[test]
fn the_trap_flag_steps_on_behind_a_call() {
    let fixture = around(0x100, |asm| {
        asm.mov(eax, NO_SUCH_CALL)?;
        asm.syscall()?;
        asm.nop()?;
        asm.push(0x202)?;
        asm.popfq()
    });
    let native = native::run(&fixture, 6);
    assert!(native.stops.iter().all(|stop| stop.signo == libc::SIGTRAP), "{:x?}", native.stops);
    for way in Way::ALL {
        let here = guest::run(&fixture, 6, way, |_| -i64::from(libc::ENOSYS));
        assert_eq!(here.stops, native.stops, "{way:?}");
    }
}

#[test]
fn data_segments_and_a_gs_base_of_the_guests_own_stay() {
    let fixture = around(0, |asm| {
        asm.mov(ecx, 0x2b)?;
        asm.mov(ds, ecx)?;
        asm.mov(es, ecx)?;
        asm.mov(rcx, DATA)?;
        asm.wrgsbase(rcx)?;
        asm.mov(eax, NO_SUCH_CALL)?;
        asm.syscall()?;
        asm.rdgsbase(rbx)?;
        asm.mov(rbp, qword_ptr(8).gs())
    });
    let fixture = fixture.with(DATA, 0x1000, Protection::READ, &[0x77; 64]);
    let native = native::run(&fixture, 1);
    assert_eq!((native.word(8 * 3), native.word(8 * 5)), (DATA, 0x7777_7777_7777_7777), "rbx, rbp");
    assert_eq!((native.word(8 * 20), native.word(8 * 21)), (0x2b, 0x2b), "ds, es");
    // ds and es are no part of a signal frame: a thread of another address space does not have them.
    for way in [Way::Resume, Way::FullState] {
        enosys(&fixture, way).assert_same_dump(&native, &format!("{way:?}"));
    }
}

#[test]
fn a_call_in_32_bit_code_comes_back_to_32_bit_code() {
    let code = assemble(32, DATA, |asm| {
        asm.mov(ebp, 0x1111_2222)?;
        asm.mov(eax, NO_SUCH_CALL)?;
        asm.int(0x80)?;
        asm.mov(dword_ptr(DUMP as u32), eax)?;
        asm.mov(dword_ptr(DUMP as u32 + 4), ebp)?;
        asm.mov(dword_ptr(DUMP as u32 + 8), esp)?;
        asm.mov(eax, cs)?;
        asm.mov(dword_ptr(DUMP as u32 + 12), eax)?;
        asm.int3()
    });
    let fixture = Fixture::new(|asm| {
        asm.mov(ecx, 0x2b)?;
        asm.mov(ds, ecx)?;
        asm.push(0x23)?;
        asm.push(DATA as i32)?;
        // retfq
        asm.db(&[0x48, 0xcb])
    });
    let fixture = fixture.with(DATA, 0x1000, Protection::READ_EXECUTE, &code);
    let native = native::run(&fixture, 1);
    assert_eq!(native.word(8) >> 32, 0x23, "32-bit code ran natively: {:x?}", native.stops);
    for way in [Way::Resume, Way::FullState] {
        let here = enosys(&fixture, way);
        assert_eq!(here.stops, native.stops, "{way:?}");
        assert_eq!(here.dump[..16], native.dump[..16], "{way:?}");
    }
}

/// What the supervisor sees between call and result is what the guest will see behind it.
#[test]
fn the_supervisors_view_in_a_call_is_the_guests_behind_it() {
    let fixture = around(0x24_4cd5, |asm| {
        asm.mov(eax, NO_SUCH_CALL)?;
        asm.syscall()
    });
    let mut guest = Guest::new(&fixture);
    let mut seen = Registers::default();
    for _ in 0..TURNS {
        guest.call();
        guest.context.set_return(42);
        seen = guest.registers();
    }
    assert!(matches!(guest.switch(), Event::Signal(_)));
    let dump = guest.dump();
    let outcome = Outcome { stops: Vec::new(), dump };
    let viewed = [
        seen.rax,
        seen.rcx,
        seen.rdx,
        seen.rbx,
        seen.rsp,
        seen.rbp,
        seen.rsi,
        seen.rdi,
        seen.r8,
        seen.r9,
        seen.r10,
        seen.r11,
        seen.r12,
        seen.r13,
        seen.r14,
        seen.r15,
        seen.rflags,
        seen.fs_base,
    ];
    for (i, value) in viewed.into_iter().enumerate() {
        assert_eq!(value, outcome.word(8 * i), "word {i}");
    }
    assert_eq!(seen.rax, 42);
    assert!((CODE..CODE + 0x800).contains(&seen.rip));
}
