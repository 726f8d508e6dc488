//! A guest with a %gs of its own: right results, its memory is its own, and patching gives way.

#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "common/small_guest.rs"]
mod small_guest;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use patch_lab::platform;
use small_guest::{CODE, DATA, STACK_END, assemble, next_call, peek};
use systrap::{AddressSpace, Context, Entry, Event, GuestAddr, PAGE_SIZE, Patching, Protection, Systrap};

const NR: i32 = 1000;
/// More pages that the guest's %gs may point to.
const AREA: u64 = 0x3000_0000;
const AREA_LEN: u64 = 0x4_0000;

/// Calls `NR` with r12 counting; `before` runs in front of each call.
fn calling(before: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        (|| {
            a.set_label(&mut again)?;
            a.inc(r12)?;
            before(a)?;
            // As in a real program: enough in front of the call for its boundaries to be proved.
            for register in [rsi, rdx, r10, r8, r9, rsi, rdx, r10, r8, r9, r14, r15, rdi] {
                a.mov(register, r12)?;
            }
            a.mov(eax, NR)?;
            a.syscall()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    })
}

fn guest(platform: &Systrap, code: &[u8]) -> (AddressSpace, Context) {
    let (space, context) = small_guest::guest(platform, code);
    space.map_anonymous(GuestAddr::new(AREA), AREA_LEN, Protection::READ_WRITE).expect("memory");
    space.write(GuestAddr::new(AREA), &pattern()).expect("memory");
    (space, context)
}

fn pattern() -> Vec<u8> {
    (0..AREA_LEN).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn assert_untouched(space: &AddressSpace, what: &str) {
    let found = patch_lab::bytes_at(space, AREA, AREA_LEN as usize);
    assert_eq!(patch_lab::first_difference(&found, &pattern()), None, "the guest's memory, {what}");
}

/// Runs until the `count`th call; says how the last one came.
fn calls(context: &mut Context, space: &AddressSpace, counts: std::ops::RangeInclusive<u64>) -> Entry {
    let mut entry = Entry::Trapped;
    for count in counts {
        let call = next_call(context, space);
        assert_eq!((call.nr, call.args[0]), (NR as u32, count));
        context.set_return(0);
        entry = call.entry;
    }
    entry
}

#[test]
fn arch_prctl_of_a_patched_guest_ends_patching() {
    let platform = platform(Patching::Lazy);
    let code = calling(|a| {
        // Once it has a %gs: count in it.
        let mut none = a.create_label();
        a.test(r13, r13)?;
        a.je(none)?;
        a.inc(qword_ptr(8).gs())?;
        a.set_label(&mut none)
    });
    let (space, mut context) = guest(&platform, &code);
    assert_eq!(calls(&mut context, &space, 1..=10), Entry::Patched);
    assert_eq!(space.patched_sites(), 1);
    // What the supervisor does for arch_prctl(ARCH_SET_GS).
    context.pull_full_state().expect("the state");
    assert_eq!(context.registers().gs_base, 0);
    context.registers_mut().gs_base = DATA.raw();
    context.registers_mut().r13 = 1;
    assert_eq!(calls(&mut context, &space, 11..=20), Entry::Trapped);
    assert_eq!(space.patched_sites(), 0);
    assert_eq!(peek(&space, GuestAddr::new(DATA.raw() + 8)), 10, "the guest counts in its own memory");
    context.pull_full_state().expect("the state");
    assert_eq!(context.registers().gs_base, DATA.raw());
    assert_eq!(patch_lab::bytes_at(&space, CODE.raw(), code.len()), code);
    assert_untouched(&space, "after arch_prctl");
}

/// Behind the platform's back, with all kinds of values: those that look like the platform's own too.
#[test]
fn wrgsbase_of_a_patched_guest_ends_patching() {
    let code = calling(|a| {
        let mut none = a.create_label();
        a.test(r13, r13)?;
        a.je(none)?;
        a.wrgsbase(r13)?;
        a.set_label(&mut none)
    });
    let platform = platform(Patching::Lazy);
    let kernel_half = 0xffff_8000_0000_0000;
    let low = AREA & 0xffff_0000;
    for base in
        [AREA, AREA + 8, AREA + 0x1_0000, AREA + 0x1_0040, low, 1, 0x7fff_ffff_f000, kernel_half, u64::MAX]
    {
        let (space, mut context) = guest(&platform, &code);
        assert_eq!(calls(&mut context, &space, 1..=5), Entry::Patched);
        context.pull_full_state().expect("the state");
        context.registers_mut().r13 = base;
        assert_eq!(calls(&mut context, &space, 6..=10), Entry::Trapped, "%gs base {base:#x}");
        assert_eq!(space.patched_sites(), 0, "%gs base {base:#x}");
        context.pull_full_state().expect("the state");
        assert_eq!(context.registers().gs_base, base);
        assert_untouched(&space, &format!("%gs base {base:#x}"));
        assert_eq!(patch_lab::bytes_at(&space, CODE.raw(), code.len()), code);
    }
}

#[test]
fn a_guest_that_gives_gs_back_before_its_call_stays_patched() {
    let code = calling(|a| {
        a.rdgsbase(rbx)?;
        a.mov(rcx, AREA)?;
        a.wrgsbase(rcx)?;
        a.mov(rbp, qword_ptr(16).gs())?;
        a.wrgsbase(rbx)
    });
    let platform = platform(Patching::Lazy);
    let (space, mut context) = guest(&platform, &code);
    assert_eq!(calls(&mut context, &space, 1..=50), Entry::Patched);
    context.pull_full_state().expect("the state");
    assert_eq!(
        context.registers().rbp,
        u64::from_le_bytes(pattern()[16..24].try_into().expect("eight bytes"))
    );
    assert_untouched(&space, "a %gs that was given back");
}

/// One thread sets its %gs, the other does not and goes on through the sites that the first one stops using.
#[test]
fn threads_with_and_without_a_gs_share_an_address_space() {
    let code = calling(|a| {
        let mut none = a.create_label();
        a.test(r13, r13)?;
        a.je(none)?;
        a.wrgsbase(r13)?;
        a.set_label(&mut none)
    });
    let platform = platform(Patching::Lazy);
    let (space, mut with) = guest(&platform, &code);
    let mut without = small_guest::start(&platform);
    without.registers_mut().rsp = STACK_END - PAGE_SIZE;
    with.registers_mut().r13 = AREA + 0x100;
    assert_eq!(calls(&mut without, &space, 1..=5), Entry::Patched);
    assert_eq!(calls(&mut with, &space, 1..=5), Entry::Trapped);
    assert_eq!(calls(&mut without, &space, 6..=500), Entry::Trapped);
    assert_eq!(calls(&mut with, &space, 6..=500), Entry::Trapped);
    assert_eq!(space.patched_sites(), 0);
    assert_untouched(&space, "two threads");
}

/// The registers of a call that the syshandler hands on to the trap path are those of any other call.
#[test]
fn a_call_that_meets_a_foreign_gs_has_the_registers_of_a_trapped_one() {
    let code = assemble(|a| {
        let mut again = a.create_label();
        (|| {
            a.set_label(&mut again)?;
            a.mov(eax, NR)?;
            a.syscall()?;
            a.wrgsbase(r13)?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    });
    let platform = platform(Patching::Lazy);
    let state = |patching| {
        let (space, mut context) = guest(&platform, &code);
        space.set_patching(patching);
        let regs = context.registers_mut();
        regs.r13 = AREA;
        for (i, register) in [
            &mut regs.r8,
            &mut regs.r9,
            &mut regs.r10,
            &mut regs.rdi,
            &mut regs.rsi,
            &mut regs.rdx,
            &mut regs.rbp,
        ]
        .into_iter()
        .enumerate()
        {
            *register = 0x0123_4567_89ab_0000 + i as u64;
        }
        regs.rflags |= 0x20_0cd5;
        let mut seen = Vec::new();
        for _ in 0..3 {
            let Event::Syscall(call) = context.switch(&space).expect("the stub lives") else {
                panic!("a call")
            };
            context.set_return(-1);
            context.pull_full_state().expect("the state");
            seen.push((call.nr, call.args, call.ip, *context.registers()));
        }
        seen
    };
    assert_eq!(state(Patching::Lazy), state(Patching::Off));
}
