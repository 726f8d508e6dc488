//! The whole xstate (x87, SSE, AVX, AVX-512 and PKRU where present, MXCSR) survives calls, faults, interrupts, a full
//! load of the state and a move, as natively.

mod common {
    pub mod fixture;
    pub mod guest;
    pub mod native;
}

use std::thread;
use std::time::Duration;

use common::fixture::{DATA, DUMP_XSAVE, Fixture, dump_state, load_patterns};
use common::guest::{self, Guest, Way};
use common::native;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use systrap::{Entry, Event, Patching, Protection};

/// XSTATE_BV bits of the components that are filled: x87, SSE, AVX, the three of AVX-512, PKRU.
const COMPONENTS: [(u32, &str); 7] = [
    (0, "x87"),
    (1, "SSE"),
    (2, "AVX"),
    (5, "AVX-512 opmask"),
    (6, "AVX-512 ZMM_Hi256"),
    (7, "AVX-512 Hi16_ZMM"),
    (9, "PKRU"),
];

/// Which of [`COMPONENTS`] this machine has, with offset and length in the xsave image.
#[allow(unsafe_code)]
fn present() -> Vec<(u32, usize, usize)> {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: the platform needs xsave, so that the kernel enabled it.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: as above.
    let enabled = unsafe { xcr0() };
    let mut found = Vec::new();
    for (bit, name) in COMPONENTS {
        if enabled & 1 << bit == 0 {
            println!("NOT COVERED: this machine has no {name}");
            continue;
        }
        found.push(match bit {
            0 => (bit, 32, 128),
            1 => (bit, 160, 256),
            _ => {
                let leaf = __cpuid_count(0xd, bit);
                (bit, leaf.ebx as usize, leaf.eax as usize)
            }
        });
    }
    found
}

/// An xsave image with something of its own in every component.
fn image() -> Vec<u8> {
    let mut bytes = vec![0_u8; 0x2000];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut features = 0_u64;
    for (bit, offset, len) in present() {
        features |= 1 << bit;
        for byte in &mut bytes[offset..offset + len] {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (random >> 56) as u8;
        }
        match bit {
            // Control, status (TOP = 5, exceptions seen), tags, opcode, instruction and data pointer; 10-byte registers.
            0 => {
                bytes[..24].copy_from_slice(&[
                    0x7f, 0x0e, 0x3f, 0x2a, 0xb5, 0, 0x23, 1, 0x10, 0x20, 0x30, 0x40, 0, 0, 0, 0, 0x50, 0x60,
                    0x70, 0x11, 0, 0, 0, 0,
                ]);
                for register in 0..8 {
                    bytes[offset + 16 * register + 10..offset + 16 * register + 16].fill(0);
                }
            }
            // All exceptions masked and seen, round to zero, flush to zero, denormals are zero.
            1 => bytes[24..28].copy_from_slice(&0xffff_u32.to_le_bytes()),
            // Key 0 (this memory) stays accessible.
            9 => bytes[offset..offset + 8].copy_from_slice(&0x1234_5670_u64.to_le_bytes()),
            _ => {}
        }
    }
    bytes[512..520].copy_from_slice(&features.to_le_bytes());
    bytes
}

/// Loads [`image`], does `middle`, writes down all state.
fn around(middle: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Fixture {
    let fixture = Fixture::new(|asm| {
        asm.mov(eax, -1)?;
        asm.mov(edx, -1)?;
        asm.xrstor64(ptr(DATA))?;
        load_patterns(asm)?;
        middle(asm)?;
        dump_state(asm)?;
        asm.int3()
    });
    // The features that the image lacks are loaded with their initial values, but for tiles and a PKRU of the
    // kernel's choice: those are left alone.
    let mut fixture = fixture.with(DATA, 0x2000, Protection::READ, &image());
    let code = &mut fixture.regions[0].bytes;
    assert_eq!(code[..2], [0xb8, 0xff], "mov eax, imm32");
    code[1..5].copy_from_slice(&0xfff9_ffff_u32.to_le_bytes());
    fixture
}

/// The image that was loaded is the one that was written down.
fn assert_image_arrived(dump: &[u8], what: &str) {
    let image = image();
    for (bit, offset, len) in present() {
        let got = &dump[DUMP_XSAVE + offset..][..len];
        assert_eq!(got, &image[offset..offset + len], "{what}: component {bit}");
    }
    assert_eq!(dump[DUMP_XSAVE..][..5], image[..5], "{what}: x87 control, status, tags");
    assert_eq!(dump[DUMP_XSAVE + 24..][..4], image[24..28], "{what}: MXCSR");
}

/// Natively the fixture runs to its first stop, its breakpoint.
fn same_as_native(fixture: &Fixture, answer: i64) {
    let native = native::run(fixture, 1);
    assert_eq!(native.stops[0].signo, libc::SIGTRAP, "{:x?}", native.stops);
    assert_image_arrived(&native.dump, "natively");
    for way in Way::ALL {
        guest::run(fixture, 1, way, |_| answer).assert_same_dump(&native, &format!("{way:?}"));
    }
}

#[test]
fn after_a_syscall() {
    let fixture = around(|asm| {
        asm.mov(eax, 0x1fff)?;
        asm.syscall()
    });
    same_as_native(&fixture, -i64::from(libc::ENOSYS));
}

#[test]
fn after_int_80() {
    let fixture = around(|asm| {
        asm.mov(eax, 0x1fff)?;
        asm.int(0x80)
    });
    same_as_native(&fixture, -i64::from(libc::ENOSYS));
}

#[test]
fn after_a_thousand_calls_in_a_row() {
    let fixture = around(|asm| {
        let mut again = asm.create_label();
        asm.mov(ebx, 1000)?;
        asm.set_label(&mut again)?;
        asm.mov(eax, 0x1fff)?;
        asm.syscall()?;
        asm.dec(ebx)?;
        asm.jnz(again)
    });
    let native = native::run(&fixture, 1);
    for patching in [Patching::Off, Patching::Lazy] {
        for way in [Way::Resume, Way::FullState] {
            let mut guest = Guest::with(&fixture, patching);
            let mut patched = 0;
            let here = guest::run_in(&mut guest, 1, way, |call| {
                patched += i32::from(call.entry == Entry::Patched);
                -i64::from(libc::ENOSYS)
            });
            assert_eq!(patched > 0, patching == Patching::Lazy, "{patched} calls of a patched site");
            here.assert_same_dump(&native, &format!("a thousand calls, {patching:?}, {way:?}"));
            assert_image_arrived(&here.dump, "a thousand calls");
        }
    }
}

#[test]
fn after_a_trap_and_in_the_supervisors_view_of_it() {
    let fixture = around(|asm| asm.int3());
    let native = native::run(&fixture, 2);
    for way in Way::ALL {
        let mut guest = Guest::new(&fixture);
        guest.signal();
        guest.context.pull_full_state().expect("the state is there");
        let image = image();
        for (bit, offset, len) in present() {
            let got = &guest.context.xstate()[offset..offset + len];
            assert_eq!(got, &image[offset..offset + len], "component {bit}");
        }
        guest.go(way);
        guest.signal();
        let here = common::fixture::Outcome { stops: Vec::new(), dump: guest.dump() };
        here.assert_same_dump(&native, &format!("{way:?}"));
        assert_image_arrived(&here.dump, "after a trap");
    }
}

#[test]
fn after_a_page_fault_that_the_supervisor_mends() {
    let missing = common::fixture::HOLE;
    let fixture = around(|asm| {
        asm.mov(rax, qword_ptr(missing))?;
        asm.mov(eax, 0)
    });
    let mended = fixture.clone().with(missing, 0x1000, Protection::READ, &[]);
    let native = native::run(&mended, 1);
    for way in Way::ALL {
        let mut guest = Guest::new(&fixture);
        assert_eq!(guest.signal().addr.raw(), missing);
        guest.space.map_anonymous(missing.into(), 0x1000, Protection::READ).expect("a mapping");
        guest.go(way);
        guest.signal();
        let here = common::fixture::Outcome { stops: Vec::new(), dump: guest.dump() };
        here.assert_same_dump(&native, &format!("{way:?}"));
        assert_image_arrived(&here.dump, "after a fault");
    }
}

#[test]
fn after_interrupts() {
    const TURNS: u32 = 50;
    // A loop that the supervisor ends by setting rbp; natively it ends at once.
    let looping = |asm: &mut CodeAssembler, first: u32| {
        let mut again = asm.create_label();
        asm.mov(ebp, first)?;
        asm.set_label(&mut again)?;
        asm.pause()?;
        asm.test(ebp, ebp)?;
        asm.jnz(again)
    };
    let native = native::run(&around(|asm| looping(asm, 0)), 1);
    for way in Way::ALL {
        let mut guest = Guest::new(&around(|asm| looping(asm, 1)));
        for _ in 0..TURNS {
            let interrupter = guest.context.interrupter();
            let waker = thread::spawn(move || {
                thread::sleep(Duration::from_micros(300));
                interrupter.interrupt();
            });
            assert_eq!(guest.switch(), Event::Interrupted);
            waker.join().expect("the interrupting thread");
            if way != Way::Move {
                guest.go(way);
            }
        }
        guest.go(way);
        guest.context.pull_full_state().expect("the state is there");
        guest.context.registers_mut().rbp = 0;
        guest.signal();
        let here = common::fixture::Outcome { stops: Vec::new(), dump: guest.dump() };
        here.assert_same_dump(&native, &format!("{way:?}"));
        assert_image_arrived(&here.dump, "after interrupts");
    }
}

/// Nothing of the supervisor's own vector registers is in a new context.
#[test]
fn a_new_context_starts_with_the_initial_state() {
    let fixture = Fixture::new(|asm| {
        dump_state(asm)?;
        asm.int3()
    });
    let native = native::run(&fixture, 1);
    let here = guest::run(&fixture, 1, Way::Resume, |_| 0);
    here.assert_same_dump(&native, "a new context");
    let (xmm, zmm) = (160..416, 576..0x1000);
    let xsave = here.xsave();
    let pkru = present().into_iter().find(|&(bit, ..)| bit == 9);
    let is_pkru = |at: &usize| pkru.is_some_and(|(_, offset, len)| (offset..offset + len).contains(at));
    assert!(xmm.chain(zmm).filter(|at| !is_pkru(at)).all(|at| xsave[at] == 0), "all registers are zero");
}
