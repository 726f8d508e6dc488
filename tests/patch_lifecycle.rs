//! Patches over the life of an address space: many sites, mappings that come and go, forks, moves, roll-backs,
//! single-stepping, code that rewrites itself.

#[path = "common/patch_guest.rs"]
mod patch_guest;
#[path = "common/patch_lab.rs"]
mod patch_lab;
#[path = "common/small_guest.rs"]
mod small_guest;

use iced_x86::code_asm::*;
use patch_guest::{CODE, LEAD, at, functions, guest, guest_in, mappings, round, site, trampolines};
use patch_lab::{bytes_at, first_difference, platform, put_code};
use systrap::{AddressSpace, Context, Entry, Event, PAGE_SIZE, Patching, Protection};

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn five_thousand_sites_are_all_patched() {
    const SITES: usize = 5_000;
    let platform = platform(Patching::Lazy);
    let code = functions(SITES, 10_000);
    let (space, mut context) = guest(&platform, &code);
    assert_eq!(round(&mut context, &space, CODE, SITES, 10_000), 0);
    assert_eq!(space.patched_sites(), SITES as u64);
    assert_eq!(round(&mut context, &space, CODE, SITES, 10_000), SITES);
    println!("{SITES} sites, trampolines in {:x?}", trampolines(&space));
    space.set_patching(Patching::Off);
    assert_eq!(first_difference(&bytes_at(&space, CODE, code.len()), &code), None);
    assert_eq!(trampolines(&space), [], "the trampolines are given back");
    assert_eq!(round(&mut context, &space, CODE, SITES, 10_000), 0);
}

#[test]
fn code_that_comes_and_goes_leaves_nothing_behind() {
    const TURNS: u64 = 10_000;
    let platform = platform(Patching::Lazy);
    let code = functions(1, 500);
    let space = platform.new_address_space().expect("an address space");
    let mut context = guest_in(&platform, &space, CODE);
    let (mut before, mut patched) = ((0, 0), 0);
    for turn in 0..TURNS {
        // Other places now and then, so that it is not the same trampoline for ever.
        let place = CODE + turn % 37 * 0x1_0000;
        put_code(&space, place, &code);
        context.pull_full_state().expect("the state");
        context.registers_mut().rip = place;
        let calls = if turn % 10 == 0 { 2 } else { 1 };
        for _ in 0..calls {
            patched += round(&mut context, &space, place, 1, 500);
        }
        assert_eq!(space.patched_sites(), 1, "turn {turn}");
        space.unmap(at(place), PAGE_SIZE).expect("the code is unmapped");
        assert_eq!(space.patched_sites(), 0, "turn {turn}");
        if turn == 1_000 {
            before = (resident_kib(), mappings(&space));
        }
    }
    let after = (resident_kib(), mappings(&space));
    println!("{TURNS} times; resident KiB and guest mappings {before:?}, at the end {after:?}");
    assert_eq!(patched as u64, TURNS / 10);
    assert!(after.1 <= before.1 + 1, "mappings of the guest: {before:?}, {after:?}");
    // Other tests of this binary run in the same process.
    assert!(after.0 < before.0 + 64 * 1024, "the supervisor grows: {before:?}, {after:?}");
    assert!(trampolines(&space).len() <= 1);
}

#[test]
fn both_sides_of_a_fork_patch_on() {
    let platform = platform(Patching::Lazy);
    let code = functions(40, 600);
    let (space, mut context) = guest(&platform, &code);
    round(&mut context, &space, CODE, 20, 600);
    let child = space.fork().expect("a fork");
    assert_eq!(child.patched_sites(), 20);
    context.pull_full_state().expect("the state");
    let mut other = context.duplicate().expect("a context");
    let rest = |context: &mut Context, space: &AddressSpace| {
        for i in 20..40 {
            let call = small_guest::next_call(context, space);
            assert_eq!((call.nr, call.entry), (600 + i, Entry::Trapped));
            context.set_return(0);
        }
        assert_eq!(round(context, space, CODE, 40, 600), 40, "all sites, old and new");
    };
    rest(&mut other, &child);
    assert_eq!(space.patched_sites(), 20, "the parent's patches are its own");
    rest(&mut context, &space);
    child.set_patching(Patching::Off);
    assert_eq!(first_difference(&bytes_at(&child, CODE, code.len()), &code), None);
    assert_eq!(trampolines(&child), []);
    assert_eq!(round(&mut context, &space, CODE, 40, 600), 40);
    assert_eq!(round(&mut other, &child, CODE, 40, 600), 0);
}

/// What execve does, and a context that comes back.
#[test]
fn a_context_moves_between_patched_address_spaces() {
    let platform = platform(Patching::Lazy);
    let (first, mut context) = guest(&platform, &functions(4, 700));
    let (second, _) = guest(&platform, &functions(4, 800));
    round(&mut context, &first, CODE, 4, 700);
    // It moves in the middle of a patched call, with its registers, to where that code is another.
    assert_eq!(round(&mut context, &first, CODE, 3, 700), 3);
    let call = small_guest::next_call(&mut context, &second);
    assert_eq!((call.nr, call.entry), (803, Entry::Trapped));
    for _ in 0..3 {
        round(&mut context, &second, CODE, 4, 800);
    }
    assert_eq!(round(&mut context, &second, CODE, 4, 800), 4);
    assert_eq!(round(&mut context, &first, CODE, 4, 700), 4, "what was patched there still is");
    first.release().expect("it dies");
    assert_eq!(round(&mut context, &second, CODE, 0, 800), 0);
}

#[test]
fn roll_back_on_request_and_patching_again() {
    let platform = platform(Patching::Lazy);
    let code = functions(10, 900);
    let (space, mut context) = guest(&platform, &code);
    for _ in 0..20 {
        assert_eq!(round(&mut context, &space, CODE, 10, 900), 0);
        assert_eq!(round(&mut context, &space, CODE, 10, 900), 10);
        assert_ne!(bytes_at(&space, CODE, code.len()), code);
        space.roll_back_patches();
        assert_eq!((space.patched_sites(), bytes_at(&space, CODE, code.len())), (0, code.clone()));
        assert_eq!(trampolines(&space), []);
    }
}

/// The rips at which a guest stops that sets TF by itself.
fn steps(patching: Patching, first_round: bool) -> Vec<u64> {
    let platform = platform(Patching::Lazy);
    let code = small_guest::assemble(|a| {
        (|| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.pushfq()?;
            a.or(qword_ptr(rsp), r13d)?;
            a.popfq()?;
            for register in [rdi, rsi, rdx, r8, r9, r10, r14, r15] {
                a.mov(register, r12)?;
            }
            a.mov(eax, 950)?;
            a.mov(rdi, r12)?;
            a.syscall()?;
            a.mov(rbx, rax)?;
            a.nop()?;
            a.jmp(again)
        })()
        .expect("valid instructions");
    });
    let (space, mut context) = guest(&platform, &code);
    space.set_patching(patching);
    if !first_round {
        for _ in 0..2 {
            small_guest::next_call(&mut context, &space);
        }
    }
    context.pull_full_state().expect("the state");
    context.registers_mut().r13 = 0x100;
    let mut seen = Vec::new();
    let mut calls = 0;
    while calls < 4 {
        match context.switch(&space).expect("the stub process lives") {
            Event::Signal(signal) if signal.signo == libc::SIGTRAP => {
                seen.push(signal.ip.raw());
                if seen.len() % 2 == 0 {
                    context.pull_full_state().expect("the state");
                    assert_eq!(context.registers().rip, signal.ip.raw());
                }
            }
            Event::Syscall(call) => {
                calls += 1;
                seen.push(call.ip.raw() << 32);
            }
            other => panic!("{other:?} after {seen:x?}"),
        }
    }
    seen
}

#[test]
fn single_steps_over_a_patched_site_are_those_over_an_unpatched_one() {
    let native = steps(Patching::Off, false);
    assert!(native.len() > 50);
    let site = native.iter().filter(|ip| **ip >> 32 != 0).count();
    assert_eq!(site, 4);
    assert_eq!(steps(Patching::Lazy, false), native, "a site that was patched before");
    assert_eq!(steps(Patching::Lazy, true), steps(Patching::Off, true), "a site first met while stepping");
}

#[test]
fn a_guest_rewrites_its_code() {
    let platform = platform(Patching::Lazy);
    let space = platform.new_address_space().expect("an address space");
    let mut context = guest_in(&platform, &space, CODE);
    space.map_anonymous(at(CODE), PAGE_SIZE, Protection::READ_WRITE).expect("memory");
    for generation in 0..200_u32 {
        let code = functions(3, 1_000 + generation * 10);
        space.protect(at(CODE), PAGE_SIZE, Protection::READ_WRITE).expect("writable");
        if generation > 0 {
            // What the guest reads before it writes is what it wrote before.
            let old = functions(3, 1_000 + (generation - 1) * 10);
            assert_eq!(bytes_at(&space, CODE, old.len()), old, "generation {generation}");
        }
        space.write(at(CODE), &code).expect("code is written");
        space.protect(at(CODE), PAGE_SIZE, Protection::READ_EXECUTE).expect("executable");
        context.pull_full_state().expect("the state");
        context.registers_mut().rip = CODE;
        for patched in [0, 3] {
            assert_eq!(round(&mut context, &space, CODE, 3, 1_000 + generation * 10), patched);
        }
    }
    // Code that stays writable is nobody's to patch.
    let all = Protection { read: true, write: true, execute: true };
    space.protect(at(CODE), PAGE_SIZE, all).expect("a change of protection");
    context.pull_full_state().expect("the state");
    context.registers_mut().rip = CODE;
    for _ in 0..3 {
        assert_eq!(round(&mut context, &space, CODE, 3, 2_990), 0);
    }
}

/// A guest that sets breakpoints of its own where patches were, while another thread keeps the old trampolines alive.
#[test]
fn a_guests_own_breakpoint_is_reported_where_a_patch_was() {
    let platform = platform(Patching::Lazy);
    // The `mov` straddles a page, so that it is written with an `int3` first.
    let before = PAGE_SIZE as usize - LEAD - 17;
    let mut code = vec![0x90; before];
    code.extend(functions(1, 970));
    let (space, mut context) = guest(&platform, &code);
    put_code(&space, 0x80_0000, &[0xeb, 0xfe]); // a thread that runs for ever
    let mut runner = platform.new_context().expect("a context");
    runner.registers_mut().rip = 0x80_0000;
    let interrupter = runner.interrupter();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| runner.switch(&space));
        while std::fs::read_dir(format!("/proc/{}/task", space.pid())).expect("threads").count() < 2 {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        for _ in 0..3 {
            round(&mut context, &space, CODE + before as u64, 1, 970);
        }
        let patched = space.patched_sites();
        let head = site(CODE + before as u64, 0) - 5;
        let (page, len) = patch_lab::pages(CODE, code.len());
        space.protect(at(page), len, Protection::READ_WRITE).expect("writable");
        space.write(at(head), &[0xcc]).expect("a breakpoint is written");
        space.protect(at(page), len, Protection::READ_EXECUTE).expect("executable");
        let watchdog = context.interrupter();
        let late = scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(5));
            watchdog.interrupt();
        });
        let event = context.switch(&space);
        interrupter.interrupt();
        assert_eq!(running.join().expect("it ends").expect("it lives"), Event::Interrupted);
        assert_eq!(patched, 1);
        assert!(
            matches!(event, Ok(Event::Signal(signal)) if signal.signo == libc::SIGTRAP && signal.ip.raw() == head + 1),
            "{event:?}"
        );
        drop(late);
    });
}

/// A jump in padding is only taken back when no thread can be on its way through it; its site is patched again then.
#[test]
fn a_site_that_waits_for_its_padding_is_patched_in_the_end() {
    let platform = platform(Patching::Lazy);
    // mov eax, r14d; jmp over eight int3; syscall; jmp to the beginning
    let mut code = [0x49, 0x89, 0xe5, 0x90].repeat(LEAD / 4);
    code.extend([0x44, 0x89, 0xf0, 0xeb, 8, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 5, 0xeb]);
    code.push((-(code.len() as i64) - 1) as i8 as u8);
    let (space, mut context) = guest(&platform, &code);
    context.registers_mut().r14 = 980;
    let mut call = || {
        let call = small_guest::next_call(&mut context, &space);
        assert_eq!(call.nr, 980);
        call.entry
    };
    assert_eq!([call(), call()], [Entry::Trapped, Entry::Patched]);
    put_code(&space, 0x80_0000, &[0xeb, 0xfe]); // a thread that runs for ever
    let mut runner = platform.new_context().expect("a context");
    runner.registers_mut().rip = 0x80_0000;
    let interrupter = runner.interrupter();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| runner.switch(&space));
        std::thread::sleep(std::time::Duration::from_millis(50));
        space.roll_back_patches();
        for _ in 0..5 {
            call();
        }
        interrupter.interrupt();
        assert_eq!(running.join().expect("it ends").expect("it lives"), Event::Interrupted);
    });
    // The thread that ran may have been put outside before, if the machine was slow.
    let entries = [call(), call()];
    assert_eq!(entries[1], Entry::Patched, "{entries:?}");
    space.set_patching(Patching::Off);
    assert_eq!(bytes_at(&space, CODE, code.len()), code);
}
