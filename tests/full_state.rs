//! The full state can be read and written after every kind of event, and a state that cannot be loaded is an error
//! that leaves the context and its address space usable.

mod common {
    pub mod fixture;
    pub mod guest;
}

use std::thread;
use std::time::Duration;

use common::fixture::{CODE, DATA, DUMP_XSAVE, Fixture, HOLE, Outcome, STACK, STACK_TOP, dump_state};
use common::guest::Guest;
use iced_x86::code_asm::*;
use systrap::{Context, Event, Protection, Registers, SwitchError};

/// Where [`fixture`] has its dump code.
const DUMP_CODE: u64 = CODE + 0x400;

/// At [`CODE`]: a call, a fault or a loop, chosen by rdi. At [`DUMP_CODE`]: the guest writes down its state.
fn fixture() -> Fixture {
    let fixture = Fixture::new(|asm| {
        let mut call = asm.create_label();
        let mut again = asm.create_label();
        let mut fault = asm.create_label();
        asm.cmp(edi, 1)?;
        asm.je(call)?;
        asm.cmp(edi, 2)?;
        asm.je(fault)?;
        asm.set_label(&mut again)?;
        asm.pause()?;
        asm.jmp(again)?;
        asm.set_label(&mut call)?;
        asm.syscall()?;
        asm.ud2()?;
        asm.set_label(&mut fault)?;
        asm.mov(rax, qword_ptr(HOLE))?;
        asm.ud2()
    });
    let mut fixture = fixture;
    let code = &mut fixture.regions[0].bytes;
    code.resize((DUMP_CODE - CODE) as usize, 0x90);
    code.extend(common::fixture::assemble(64, DUMP_CODE, |asm| {
        dump_state(asm)?;
        asm.int3()
    }));
    fixture
}

/// What the guest waits with.
#[derive(Debug, Clone, Copy)]
enum After {
    Call,
    Fault,
    Interrupt,
    Nothing,
}

impl After {
    const ALL: [After; 4] = [After::Call, After::Fault, After::Interrupt, After::Nothing];

    /// Brings a new guest to its event.
    fn reach(self) -> Guest {
        let mut guest = Guest::new(&fixture());
        match self {
            After::Call => {
                guest.context.registers_mut().rdi = 1;
                guest.call();
            }
            After::Fault => {
                guest.context.registers_mut().rdi = 2;
                guest.signal();
            }
            After::Interrupt => {
                let interrupter = guest.context.interrupter();
                let waker = thread::spawn(move || {
                    thread::sleep(Duration::from_millis(5));
                    interrupter.interrupt();
                });
                assert_eq!(guest.switch(), Event::Interrupted);
                waker.join().expect("the interrupting thread");
            }
            After::Nothing => {}
        }
        guest.context.pull_full_state().expect("the state is there");
        guest
    }
}

/// Registers with a value of their own each, about to run the dump code.
fn chosen() -> Registers {
    let of = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Registers {
        rax: of(1),
        rcx: of(2),
        rdx: of(3),
        rbx: of(4),
        rsp: STACK_TOP - 0x100,
        rbp: of(5),
        rsi: of(6),
        rdi: of(7),
        r8: of(8),
        r9: of(9),
        r10: of(10),
        r11: of(11),
        r12: of(12),
        r13: of(13),
        r14: of(14),
        r15: of(15),
        rip: DUMP_CODE,
        // AC, NT, DF and ID with all arithmetic flags.
        rflags: 0x24_4cd7 | 0x202,
        fs_base: DATA + 0x10,
        gs_base: STACK + 0x20,
    }
}

/// Lets the guest write down its state and compares it with what was set.
fn assert_arrived(guest: &mut Guest, set: &Registers, what: &str) -> Outcome {
    let signal = guest.signal();
    assert_eq!(signal.signo, libc::SIGTRAP, "{what}: {signal:x?}");
    let seen = Outcome { stops: Vec::new(), dump: guest.dump() };
    let values = [
        set.rax,
        set.rcx,
        set.rdx,
        set.rbx,
        set.rsp,
        set.rbp,
        set.rsi,
        set.rdi,
        set.r8,
        set.r9,
        set.r10,
        set.r11,
        set.r12,
        set.r13,
        set.r14,
        set.r15,
        set.rflags,
        set.fs_base,
    ];
    for (i, value) in values.into_iter().enumerate() {
        assert_eq!(seen.word(8 * i), value, "{what}: word {i}");
    }
    assert_eq!(guest.registers().gs_base, set.gs_base, "{what}: gs_base");
    seen
}

#[test]
fn every_register_can_be_written_after_every_event() {
    for after in After::ALL {
        let mut guest = after.reach();
        let set = chosen();
        *guest.context.registers_mut() = set;
        assert_eq!(*guest.context.registers(), set, "{after:?}: read back");
        assert_arrived(&mut guest, &set, &format!("{after:?}"));
    }
}

#[test]
fn the_vector_state_can_be_written_after_every_event() {
    for after in After::ALL {
        let mut guest = after.reach();
        let set = chosen();
        *guest.context.registers_mut() = set;
        let image = guest.context.xstate_mut();
        for (i, byte) in image[160..416].iter_mut().enumerate() {
            *byte = i as u8 ^ 0x5a;
        }
        image[24..28].copy_from_slice(&0x7fc0_u32.to_le_bytes());
        image[512] |= 2;
        let seen = assert_arrived(&mut guest, &set, &format!("{after:?}"));
        let xmm = &seen.dump[DUMP_XSAVE + 160..][..256];
        assert!(xmm.iter().enumerate().all(|(i, byte)| *byte == i as u8 ^ 0x5a), "{after:?}: {xmm:x?}");
        assert_eq!(seen.dump[DUMP_XSAVE + 24..][..4], 0x7fc0_u32.to_le_bytes(), "{after:?}: MXCSR");
        // And it is what the supervisor reads at the next event.
        assert_eq!(guest.context.xstate()[160..416], *xmm, "{after:?}");
    }
}

#[test]
fn reading_the_state_changes_nothing() {
    let mut guest = After::Call.reach();
    let before = *guest.context.registers();
    for _ in 0..3 {
        assert_eq!(guest.registers(), before, "a second look shows the same");
    }
    guest.context.set_return(5);
    let signal = guest.signal();
    assert_eq!(signal.ip.raw(), before.rip, "the ud2 behind the call");
    assert_eq!(
        guest.registers(),
        Registers { rax: 5, rflags: before.rflags | 1 << 16, ..before },
        "and RF by the fault"
    );
}

#[test]
fn a_duplicate_starts_with_the_whole_state() {
    for after in After::ALL {
        let mut guest = after.reach();
        let set = chosen();
        *guest.context.registers_mut() = set;
        guest.context.xstate_mut()[160..176].fill(0x77);
        guest.context.xstate_mut()[512] |= 2;
        let twin = guest.context.duplicate().expect("a context");
        let original = std::mem::replace(&mut guest.context, twin);
        drop(original);
        let seen = assert_arrived(&mut guest, &set, &format!("twin, {after:?}"));
        assert_eq!(seen.dump[DUMP_XSAVE + 160..][..16], [0x77; 16], "twin, {after:?}");
    }
}

#[test]
fn a_released_context_keeps_its_state_and_runs_on() {
    for after in After::ALL {
        let mut guest = after.reach();
        let set = chosen();
        *guest.context.registers_mut() = set;
        if !matches!(after, After::Nothing) {
            guest.context.release().expect("the state is there");
        }
        assert_eq!(*guest.context.registers(), set, "{after:?}");
        assert_arrived(&mut guest, &set, &format!("released, {after:?}"));
    }
}

#[test]
#[should_panic(expected = "call pull_full_state before")]
fn looking_at_registers_that_were_not_pulled_is_a_clear_panic() {
    let mut guest = Guest::new(&Fixture::new(|asm| asm.syscall()));
    guest.call();
    let _ = guest.context.registers();
}

#[test]
fn an_address_that_cannot_be_loaded_is_an_error_that_can_be_mended() {
    type Set = fn(&mut Registers, u64);
    let fields: [(&str, Set); 3] = [
        ("rip", |regs, value| regs.rip = value),
        ("fs_base", |regs, value| regs.fs_base = value),
        ("gs_base", |regs, value| regs.gs_base = value),
    ];
    for (name, set_field) in fields {
        for after in After::ALL {
            let mut guest = after.reach();
            for bad in [1 << 47, 0x8000_0000_0000_0000, 0x7fff_ffff_ffff_ffff] {
                let mut set = chosen();
                set_field(&mut set, bad);
                *guest.context.registers_mut() = set;
                let error = guest.context.switch(&guest.space).expect_err("it cannot be loaded");
                assert!(
                    matches!(error, SwitchError::BadState { .. }),
                    "{name} {bad:#x} {after:?}: {error:?}"
                );
                assert!(error.to_string().contains(name), "the message says which: {error}");
            }
            assert_eq!(guest.space.stub_exit(), None, "{name}, {after:?}: the stub process lives");
            let set = chosen();
            *guest.context.registers_mut() = set;
            assert_arrived(&mut guest, &set, &format!("mended {name}, {after:?}"));
        }
    }
}

#[test]
fn a_stack_pointer_of_any_value_can_be_loaded() {
    for after in After::ALL {
        let mut guest = after.reach();
        for bad in [0, 1 << 47, 0x8000_0000_0000_0001, u64::MAX] {
            guest.context.pull_full_state().expect("the state is there");
            *guest.context.registers_mut() = Registers { rsp: bad, rip: DUMP_CODE, ..Registers::default() };
            // The dump code pushes.
            let signal = guest.signal();
            assert!([libc::SIGSEGV, libc::SIGBUS].contains(&signal.signo), "{after:?} {bad:#x}: {signal:x?}");
            assert_eq!(guest.registers().rsp, bad, "{after:?}");
        }
    }
}

#[test]
fn flags_that_no_program_may_have_are_not_loaded() {
    for after in After::ALL {
        let mut guest = after.reach();
        let set = Registers { rflags: !0x100, ..chosen() };
        *guest.context.registers_mut() = set;
        // Of the system flags only IF, NT, AC and ID are left; RF is gone by the time the guest looks.
        assert_arrived(&mut guest, &Registers { rflags: 0x24_4ed7, ..set }, &format!("{after:?}"));
    }
}

/// Random bytes, reserved MXCSR bits, garbage in the xsave header: whatever is written is made loadable.
#[test]
fn garbage_in_the_vector_state_is_made_loadable() {
    fn run(guest: &mut Guest, what: &str, damage: impl FnOnce(&mut Context)) -> Vec<u8> {
        guest.context.pull_full_state().expect("the state is there");
        let set = chosen();
        *guest.context.registers_mut() = set;
        damage(&mut guest.context);
        let seen = assert_arrived(guest, &set, what);
        seen.dump[DUMP_XSAVE..].to_vec()
    }
    for after in After::ALL {
        let mut guest = after.reach();
        for byte in [0xff, 0x55, 0x80] {
            run(&mut guest, &format!("{byte:#x}, {after:?}"), |context| context.xstate_mut().fill(byte));
        }
        let mxcsr = run(&mut guest, "MXCSR", |context| context.xstate_mut()[24..28].fill(0xff));
        assert_eq!(mxcsr[26..28], [0, 0], "reserved bits of MXCSR are gone, {after:?}");
        run(&mut guest, "header", |context| context.xstate_mut()[512..576].fill(0xff));
        let mut random = 1_u64;
        for turn in 0..50 {
            run(&mut guest, &format!("random {turn}, {after:?}"), |context| {
                for byte in context.xstate_mut() {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (random >> 56) as u8;
                }
            });
        }
        assert_eq!(guest.space.stub_exit(), None);
    }
}

/// A guest can give itself a base in the kernel's half; it is canonical, and survives a full load.
#[test]
fn a_base_in_the_kernels_half_survives() {
    let high = 0xffff_9000_1234_5000_u64;
    let mut guest = Guest::new(&Fixture::new(|asm| {
        asm.mov(rax, high)?;
        asm.wrfsbase(rax)?;
        asm.syscall()?;
        asm.rdfsbase(rbx)?;
        asm.mov(rcx, qword_ptr(0).fs())
    }));
    guest.call();
    assert_eq!(guest.registers().fs_base, high);
    guest.context.full_state_changed();
    let signal = guest.signal();
    assert_eq!((signal.signo, guest.registers().rbx), (libc::SIGSEGV, high));
}

#[test]
fn a_jump_of_the_guest_to_nowhere_is_its_own_fault() {
    let mut guest = Guest::new(&Fixture::new(|asm| asm.ud2()));
    for rip in [0, 0x1000, HOLE, 0x7fff_ffff_f000, 0x7fff_ffff_ffff] {
        guest.context.pull_full_state().expect("the state is there");
        guest.context.registers_mut().rip = rip;
        let signal = guest.signal();
        assert_eq!((signal.signo, signal.ip.raw()), (libc::SIGSEGV, rip), "{signal:x?}");
    }
    guest.space.map_anonymous(HOLE.into(), 0x1000, Protection::READ).expect("a mapping");
    guest.context.pull_full_state().expect("the state is there");
    guest.context.registers_mut().rip = CODE;
    assert_eq!(guest.signal().signo, libc::SIGILL, "and it runs on");
}
