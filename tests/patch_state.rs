//! The state around calls through patched sites: as behind a trapped call, whatever the supervisor does with it; and
//! what signals and interrupts show of a guest inside of a trampoline.

#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "common/small_guest.rs"]
mod small_guest;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use patch_lab::{Ways, platform};
use small_guest::{CODE, DATA, STACK_END, guest, next_call};
use systrap::{
    AccessType, AddressSpace, Context, Entry, Event, GuestAddr, PAGE_SIZE, Patching, Protection, Registers,
    Systrap,
};

const NR: i32 = 1000;
/// All flags that a program can set by popf: CF PF AF ZF SF DF OF NT AC ID.
const FLAGS: u64 = 0x24_4cd5;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn registers(&mut self) -> Registers {
        let mut word = || self.word();
        Registers {
            r8: word(),
            r9: word(),
            r10: word(),
            r11: word(),
            r12: word(),
            r13: word(),
            r14: word(),
            r15: word(),
            rdi: word(),
            rsi: word(),
            rbp: word(),
            rbx: word(),
            rdx: word(),
            rax: word(),
            rcx: word(),
            rsp: STACK_END - 1024,
            fs_base: word() >> 20,
            rflags: word() & FLAGS | 0x202,
            rip: CODE.raw(),
            ..Registers::default()
        }
    }
}

fn assemble(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    small_guest::assemble(|a| build(a).expect("valid instructions"))
}

/// Enough in front of a call for its boundaries to be proved. Changes nothing, flags included.
fn lead_in(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for register in [rdi, rsi, rdx, r10, r8, r9, r12, r13, rdi, rsi, rdx, r10, r8, r9, r12, r13] {
        a.mov(register, register)?;
    }
    Ok(())
}

/// One call, and a stop.
fn one_call() -> Vec<u8> {
    assemble(|a| {
        lead_in(a)?;
        a.mov(eax, NR)?;
        a.mov(rdi, rdi)?;
        a.syscall()?;
        a.hlt()
    })
}

/// Fills the vector registers that every CPU has.
fn randomise_vectors(context: &mut Context, random: &mut Random) {
    let image = context.xstate_mut();
    for byte in &mut image[160..416] {
        *byte = random.word() as u8;
    }
    // They are in use: XSTATE_BV.
    image[512] |= 2;
}

/// The registers at a fault, without the resume flag that the CPU sets in its frame.
fn resumable(context: &Context) -> Registers {
    let regs = *context.registers();
    Registers { rflags: regs.rflags & !0x1_0000, ..regs }
}

#[test]
fn a_random_state_comes_through_a_patched_call_as_through_a_trapped_one() {
    const STATES: u64 = 1_500;
    let platform = platform(Patching::Lazy);
    let spaces = [Patching::Off, Patching::Lazy].map(|patching| {
        let (space, context) = guest(&platform, &one_call());
        space.set_patching(patching);
        (space, context)
    });
    let mut ways = [Ways::default(); 2];
    let mut spaces = spaces;
    for seed in 1..=STATES {
        let mut results = Vec::new();
        for ((space, context), ways) in spaces.iter_mut().zip(&mut ways) {
            let mut random = Random(seed);
            let red_zone: Vec<u8> = (0..256).map(|_| random.word() as u8).collect();
            let around_rsp = GuestAddr::new(STACK_END - 1024 - 128);
            space.write(around_rsp, &red_zone).expect("the stack is mapped");
            *context.registers_mut() = random.registers();
            randomise_vectors(context, &mut random);
            let mut run = patch_lab::run(context, space, 10, ways, |_| false);
            run.vectors = context.xstate().to_vec();
            // XSTATE_BV says what the CPU tracks as being initial, which is its own business.
            run.vectors[464..520].fill(0);
            let after = patch_lab::bytes_at(space, around_rsp.raw(), red_zone.len());
            assert_eq!(after, red_zone, "red zone and stack");
            results.push(run);
        }
        assert_eq!(results[0].registers, results[1].registers, "state {seed}");
        assert_eq!(results[0], results[1], "state {seed}");
    }
    println!("{STATES} states, trapped: {:?}, patched: {:?}", ways[0], ways[1]);
    assert_eq!((ways[0].patched, ways[1].trapped), (0, 1));
}

/// The supervisor pulls the state in a patched call, changes all of it, and the guest finds it so.
#[test]
fn the_state_pulled_in_a_patched_call_can_be_changed() {
    let platform = platform(Patching::Lazy);
    let (space, mut context) = guest(&platform, &one_call());
    for seed in 1..=500 {
        let mut random = Random(seed);
        let before = random.registers();
        *context.registers_mut() = before;
        randomise_vectors(&mut context, &mut random);
        let vectors = context.xstate()[160..416].to_vec();
        let call = next_call(&mut context, &space);
        assert_eq!(call.entry, if seed == 1 { Entry::Trapped } else { Entry::Patched });
        context.pull_full_state().expect("the state");
        let ip = call.ip.raw();
        let seen = Registers { rax: -38_i64 as u64, rcx: ip, r11: before.rflags, rip: ip, ..before };
        assert_eq!(*context.registers(), seen, "state {seed} as the supervisor sees it");
        assert_eq!(context.xstate()[160..416], vectors);
        if seed % 3 == 0 {
            // Looked at only: the result still counts.
            context.set_return(seed as i64);
            assert!(matches!(context.switch(&space), Ok(Event::Signal(_))));
            context.pull_full_state().expect("the state");
            assert_eq!(resumable(&context), Registers { rax: seed, ..seen });
            continue;
        }
        let changed = Registers { rip: ip, ..random.registers() };
        *context.registers_mut() = changed;
        randomise_vectors(&mut context, &mut random);
        let vectors = context.xstate()[160..416].to_vec();
        assert!(matches!(context.switch(&space), Ok(Event::Signal(_))));
        context.pull_full_state().expect("the state");
        assert_eq!(resumable(&context), changed, "state {seed} as the guest had it");
        assert_eq!(context.xstate()[160..416], vectors);
    }
}

#[test]
fn prepare_sleep_before_the_answer_of_a_patched_call() {
    let platform = platform(Patching::Lazy);
    let (space, mut context) = guest(&platform, &looping(|_| Ok(())));
    let mut patched = 0;
    for count in 1..=300 {
        let call = next_call(&mut context, &space);
        assert_eq!((call.nr, call.args[0]), (NR as u32, count));
        patched += u64::from(call.entry == Entry::Patched);
        context.prepare_sleep();
        match count % 4 {
            0 => {}
            1 => thread::sleep(Duration::from_micros(300)),
            2 => {
                context.pull_full_state().expect("the state");
                assert_eq!(context.registers().r12, count);
            }
            _ => {
                thread::sleep(Duration::from_micros(100));
                context.pull_full_state().expect("the state");
                context.full_state_changed();
            }
        }
        context.set_return(count as i64);
    }
    assert!(patched >= 298, "{patched} of 300 calls came patched");
}

/// Counts its calls in r12, which is the argument; `between` lies between the number and the `syscall`.
fn looping(between: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(r12)?;
        for register in [rsi, rdx, r10, r8, r9, rsi, rdx, r10, r8, r9, r14, r15, rdi] {
            a.mov(register, r12)?;
        }
        a.mov(eax, NR)?;
        between(a)?;
        a.syscall()?;
        a.jmp(again)
    })
}

/// Thousands of interrupts of guests that spend their time in trampolines.
#[test]
fn interrupts_in_trampolines_show_the_guests_own_code() {
    const INTERRUPTS: u64 = 3_000;
    /// How many find the guest in a trampoline depends on how the two threads share the CPUs: so many are made at most.
    const MOST_INTERRUPTS: u64 = 20 * INTERRUPTS;
    const ENOUGH_INSIDE: u64 = 200;
    /// Bytes that are read in the trampoline: long enough for the signal to find it there.
    const TURNS: u64 = 200_000;
    const AREA: GuestAddr = GuestAddr::new(0x3000_0000);
    let platform = platform(Patching::Lazy);
    let code = looping(|a| {
        a.mov(ebp, eax)?;
        a.mov(esi, AREA.raw() as u32)?;
        a.mov(ecx, TURNS as u32)?; // becomes the jump
        a.lodsb()?;
        a.not(r14)?;
        a.mov(eax, ebp)
    });
    // The assembler has no way to say `rep` here that is shorter than finding it.
    let mut code = code;
    let lods = code.windows(4).position(|w| w == [0xac, 0x49, 0xf7, 0xd6]).expect("lodsb; not r14");
    code.insert(lods, 0xf3);
    let jmp = code.len() - 1;
    code[jmp] = code[jmp].wrapping_sub(1);
    let lods = CODE.raw() + lods as u64;
    // mov ecx, imm32 (5 bytes); rep lodsb (2); not r14 (3); mov eax, ebp (2); syscall
    let (head, not, last, site) = (lods - 5, lods + 2, lods + 5, lods + 7);
    let (space, mut context) = guest(&platform, &code);
    space.map_anonymous(AREA, TURNS, Protection::READ).expect("memory");
    let interrupter = context.interrupter();
    let mut where_seen = BTreeMap::<u64, u64>::new();
    let (mut calls, mut interrupts, mut patched) = (0, 0, 0);
    let mut random = Random(99);
    let inside = |where_seen: &BTreeMap<u64, u64>| where_seen.range(1..8).map(|(_, n)| n).sum::<u64>();
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..MOST_INTERRUPTS {
                if enough.load(Ordering::SeqCst) {
                    break;
                }
                interrupter.interrupt();
                while interrupter.is_pending() && !enough.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_micros(1));
                }
                for _ in 0..i % 64 {
                    std::hint::spin_loop();
                }
            }
        });
        while interrupts < INTERRUPTS || inside(&where_seen) <= ENOUGH_INSIDE && interrupts < MOST_INTERRUPTS
        {
            match context.switch(&space).expect("the stub process lives") {
                Event::Syscall(call) => {
                    calls += 1;
                    patched += u64::from(call.entry == Entry::Patched);
                    let args = [calls, AREA.raw() + TURNS, calls, calls, calls, calls];
                    assert_eq!(
                        (call.nr, call.args, call.ip.raw()),
                        (NR as u32, args, site + 2),
                        "call {calls}"
                    );
                    context.set_return(calls as i64);
                }
                Event::Interrupted => {
                    interrupts += 1;
                    context.pull_full_state().expect("the state");
                    let regs = *context.registers();
                    *where_seen.entry(regs.rip.wrapping_sub(head)).or_default() += 1;
                    assert!((CODE.raw()..CODE.raw() + code.len() as u64).contains(&regs.rip), "{regs:x?}");
                    if (head..=site).contains(&regs.rip) {
                        assert!([head, lods, not, last, site].contains(&regs.rip), "{regs:x?}");
                        let done = calls + 1;
                        assert_eq!([regs.r12, regs.rdi, regs.rdx, regs.r10], [done; 4], "{regs:x?}");
                        assert_eq!(regs.r14, if regs.rip < last { done } else { !done }, "{regs:x?}");
                        assert_eq!(regs.rbp, NR as u64, "{regs:x?}");
                        assert!(regs.rip != site || regs.rax == NR as u64, "{regs:x?}");
                    }
                    if regs.rip == lods {
                        assert_eq!(regs.rsi + regs.rcx, AREA.raw() + TURNS, "{regs:x?}");
                    }
                    match random.word() % 8 {
                        0 => context.full_state_changed(),
                        1 => space.roll_back_patches(),
                        _ => {}
                    }
                }
                other => panic!("nothing raises {other:?}"),
            }
        }
        enough.store(true, Ordering::SeqCst);
    });
    println!(
        "{interrupts} interrupts, {calls} calls, {patched} patched; seen at this distance from the jump: {where_seen:?}"
    );
    let inside = inside(&where_seen);
    assert!(inside > ENOUGH_INSIDE, "only {inside} interrupts hit a trampoline");
    assert!(patched > 100);
}

/// A guest with this instruction between number and `syscall`, run until it is patched.
fn patched_guest(
    platform: &Systrap,
    between: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (AddressSpace, Context, u64) {
    let code = looping(between);
    let mov = code.windows(5).position(|w| w == [0xb8, 0xe8, 3, 0, 0]).expect("the number is loaded");
    let (space, mut context) = guest(platform, &code);
    context.registers_mut().rbx = DATA.raw();
    for count in 1..=3 {
        let call = next_call(&mut context, &space);
        assert_eq!(call.args[0], count);
    }
    assert_eq!(space.patched_sites(), 1);
    (space, context, CODE.raw() + mov as u64 + 5)
}

#[test]
fn a_fault_in_a_trampoline_is_the_guests_own_instructions_fault() {
    let platform = platform(Patching::Lazy);
    type Operand = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let operands: [(&str, AccessType, Operand); 4] = [
        ("load", AccessType::Read, |a| a.mov(rdx, qword_ptr(rbx + 24))),
        ("store", AccessType::Write, |a| a.mov(qword_ptr(rbx + 24), rsi)),
        ("RIP-relative load", AccessType::Read, |a| a.mov(r9, qword_ptr(DATA.raw() + 24))),
        ("RIP-relative store", AccessType::Write, |a| a.mov(qword_ptr(DATA.raw() + 24), r9)),
    ];
    for (what, access, operand) in operands {
        for pulled in [false, true] {
            let (space, mut context, ip) = patched_guest(&platform, operand);
            let to = if access == AccessType::Read { Protection::NONE } else { Protection::READ };
            space.protect(DATA, PAGE_SIZE, to).expect("a change of protection");
            let Event::Signal(signal) = context.switch(&space).expect("the stub lives") else {
                panic!("a fault")
            };
            assert_eq!((signal.signo, signal.access()), (libc::SIGSEGV, Some(access)), "{what}");
            // SEGV_ACCERR
            assert_eq!(
                (signal.code, signal.addr.raw(), signal.cr2),
                (2, DATA.raw() + 24, DATA.raw() + 24),
                "{what}"
            );
            assert_eq!(signal.ip.raw(), ip, "{what}");
            if pulled {
                context.pull_full_state().expect("the state");
                let regs = context.registers();
                assert_eq!((regs.rip, regs.rax, regs.r12), (ip, NR as u64, 4), "{what}");
                context.full_state_changed();
            }
            space.protect(DATA, PAGE_SIZE, Protection::READ_WRITE).expect("a change of protection");
            let call = next_call(&mut context, &space);
            assert_eq!((call.nr, call.args[0]), (NR as u32, 4), "{what}");
            // From an address between jump and site it runs into its own `syscall`.
            let behind_the_jump = !what.starts_with("RIP");
            assert_eq!(call.entry, if behind_the_jump { Entry::Trapped } else { Entry::Patched }, "{what}");
            assert_eq!(next_call(&mut context, &space).entry, Entry::Patched);
        }
    }
}

/// A context that stands in a trampoline because of a fault, while its patches go and something else comes there.
#[test]
fn a_guest_that_stands_in_a_trampoline_outlives_it() {
    let platform = platform(Patching::Lazy);
    let (space, mut context, ip) = patched_guest(&platform, |a| a.mov(rdx, qword_ptr(rbx + 24)));
    space.protect(DATA, PAGE_SIZE, Protection::NONE).expect("a change of protection");
    assert!(matches!(context.switch(&space), Ok(Event::Signal(signal)) if signal.ip.raw() == ip));
    let blocks = trampolines(&space);
    assert_eq!(blocks.len(), 1, "{blocks:x?}");
    space.roll_back_patches();
    for (at, len) in blocks {
        space
            .map_anonymous(GuestAddr::new(at), len, Protection::READ_EXECUTE)
            .expect("the guest may map there");
    }
    space.protect(DATA, PAGE_SIZE, Protection::READ_WRITE).expect("a change of protection");
    let call = next_call(&mut context, &space);
    assert_eq!((call.nr, call.args[0]), (NR as u32, 4));
}

/// Executable memory that neither the guest nor the stub has: first address and length.
fn trampolines(space: &AddressSpace) -> Vec<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", space.pid())).expect("the stub's mappings");
    let anonymous = maps.lines().filter(|line| line.contains("r-xp") && line.split_whitespace().count() == 5);
    let ranges = anonymous.map(|line| {
        let (from, to) =
            line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        (number(from), number(to) - number(from))
    });
    ranges.filter(|(at, _)| *at != CODE.raw()).collect()
}
