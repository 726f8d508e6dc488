//! A guest that jumps into trampolines and into the syshandler, at every byte, with random registers and a random %gs:
//! its supervisor goes on, and no host call beyond the list reaches the kernel.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;
#[path = "common/observer.rs"]
mod observer;
#[path = "common/verdict.rs"]
mod verdict;

use std::collections::{BTreeMap, HashSet};
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adversary::{
    CODE, DATA, Puppet, Random, SEGMENTS, Words, context, expect_call, maps_of, start_of, stub_base,
};
use iced_x86::code_asm::*;
use observer::Role;
use systrap::seccomp::rows;
use systrap::{AddressSpace, Entry, Event, GuestAddr, Options, Protection, Systrap};
use systrap_stub::code::{ENTRIES, SyscallSite, offset_of_entry, syshandler::syshandler, text};
use systrap_stub::sysmsg::{SIGCONTEXT_WORDS, gregs};
use systrap_stub::{layout, wire};
use verdict::admits;

const ROLE: &str = "SYSTRAP_TEST_PATCH_HOSTILE";
const LIMIT: Duration = Duration::from_secs(55);
/// Calls whose sites are patched at the beginning of the guest.
const SITES: u64 = 6;

/// Code with a few sites that can be patched, in front of a jump with a %gs of choice: r13 to r14's address.
fn build(a: &mut CodeAssembler) {
    (|| {
        for i in 0..SITES {
            for register in [rdi, rsi, rdx, r10, r8, r9, rdi, rsi, rdx, r10, r8, r9] {
                a.mov(register, register)?;
            }
            a.mov(eax, 1000 + i as u32)?;
            a.mov(rbx, qword_ptr(rsp - 8))?;
            a.syscall()?;
        }
        a.push(r14)?;
        a.wrgsbase(r13)?;
        a.mov(r14, rbp)?;
        a.ret()
    })()
    .expect("valid instructions");
}

/// A guest whose sites are patched, and where its jump begins.
fn patched_guest(platform: &Systrap) -> (AddressSpace, u64) {
    let space = adversary::guest(platform, build);
    let code = adversary::assemble(CODE, build);
    let len = (code.len() as u64).next_multiple_of(systrap::PAGE_SIZE);
    space.protect(GuestAddr::new(CODE), len, Protection::READ_EXECUTE).expect("a change of protection");
    let mut context = context(platform);
    let mut jump = CODE;
    for round in 0..2 {
        context.pull_full_state().expect("the state");
        context.registers_mut().rip = CODE;
        for _ in 0..SITES {
            let call = expect_call(context.switch(&space).expect("a switch"));
            assert_eq!(call.entry == Entry::Patched, round == 1, "patched when it first trapped");
            jump = call.ip.raw();
        }
    }
    (space, jump)
}

/// The trampolines' bytes in use: addresses.
fn trampoline_bytes(space: &AddressSpace) -> Vec<u64> {
    let block = maps_of(space.pid(), " r-xp ")
        .into_iter()
        .filter(|line| line.split_whitespace().count() == 5)
        .map(|line| start_of(&line))
        .find(|at| *at != CODE)
        .expect("a block of trampolines");
    let mut bytes = vec![0; systrap::PAGE_SIZE as usize];
    space.read(GuestAddr::new(block), &mut bytes).expect("trampolines can be read");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("they are not empty") as u64 + 16;
    (block..block + used).collect()
}

/// The syshandler's bytes: addresses.
fn syshandler_bytes(base: u64) -> Vec<u64> {
    let start = offset_of_entry(syshandler) as u64;
    let entries = ENTRIES.iter().map(|(_, entry)| offset_of_entry(*entry) as u64);
    let end = entries.filter(|offset| *offset > start).min().unwrap_or(text().1 as u64);
    (base + start..base + end).collect()
}

/// A %gs base: the thread's slot, one beside it, the guest's, the stub's, anything.
fn gs_base(random: &mut Random, slot: impl Fn(u64) -> u64, base: u64) -> u64 {
    match random.below(8) {
        0..3 => slot(1),
        3 => slot(0),
        4 => DATA + random.below(64) * 8,
        5 => slot(1) + random.below(0x1_0000),
        6 => base + random.below(0x20_0000),
        _ => random.word() >> 17,
    }
}

fn value(random: &mut Random, base: u64) -> u64 {
    match random.below(5) {
        0 => random.below(4096),
        1 => DATA + random.below(64) * 4096,
        2 => base + random.below(0x20_0000),
        3 => layout::MAX_USER_ADDRESS - random.below(3) * 4096,
        _ => random.word(),
    }
}

/// From the guest's own code, under its supervisor: whatever comes of it is an event or an error.
#[test]
fn a_supervisor_outlives_its_guests_jumps_into_trampolines_and_the_syshandler() {
    let options = Options::new().interrupt_deadline(Duration::from_millis(100));
    let platform = Systrap::new(options).expect("a platform");
    let mut random = Random::new(0x6a09_e667);
    let (mut space, jump) = patched_guest(&platform);
    let places: Vec<u64> =
        trampoline_bytes(&space).into_iter().chain(syshandler_bytes(stub_base(&space))).collect();
    let base = stub_base(&space);
    let mut outcomes = BTreeMap::<&str, u64>::new();
    let (witness, _) = patched_guest(&platform);
    let begun = std::time::Instant::now();
    for place in &places {
        let slots_at = |slot| base + layout::SYSMSG + slot * layout::SLOT_SIZE;
        let mut regs =
            systrap::Registers { rip: jump, rsp: DATA + 0x8000, rflags: 0x202, ..Default::default() };
        for register in [
            &mut regs.rax,
            &mut regs.rbx,
            &mut regs.rcx,
            &mut regs.rdx,
            &mut regs.rsi,
            &mut regs.rdi,
            &mut regs.rbp,
            &mut regs.r8,
            &mut regs.r9,
            &mut regs.r10,
            &mut regs.r11,
            &mut regs.r12,
            &mut regs.r15,
        ] {
            *register = value(&mut random, base);
        }
        regs.r13 = gs_base(&mut random, slots_at, base);
        regs.r14 = *place;
        let mut attacker = context(&platform);
        *attacker.registers_mut() = regs;
        let done = AtomicBool::new(false);
        let interrupter = attacker.interrupter();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Whoever has not come back in time is interrupted.
                let since = std::time::Instant::now();
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_micros(200));
                    if since.elapsed() > Duration::from_millis(20) {
                        return interrupter.interrupt();
                    }
                }
            });
            let event = attacker.switch(&space);
            done.store(true, Ordering::Relaxed);
            match event {
                Ok(Event::Syscall(call)) if call.entry == Entry::Patched => "patched calls",
                Ok(Event::Syscall(_)) => "trapped calls",
                Ok(Event::Signal(_)) => "signals",
                Ok(Event::Interrupted) => "interrupted",
                Ok(_) => "other events",
                Err(systrap::SwitchError::StubDied { .. }) => "deaths",
                Err(_) => "errors",
            }
        });
        *outcomes.entry(outcome).or_default() += 1;
        if space.stub_exit().is_some()
            || matches!(outcome, "deaths" | "errors")
            || space.patched_sites() < SITES
        {
            drop(attacker);
            space = patched_guest(&platform).0;
        }
        // Another guest of the same supervisor is none the wiser.
        let mut other = context(&platform);
        let call = expect_call(other.switch(&witness).expect("the other guest lives"));
        assert_eq!((call.nr, call.entry), (1000, Entry::Patched));
    }
    println!("{} places, {:?}: {outcomes:?}", places.len(), begun.elapsed());
    assert!(outcomes.len() >= 3, "the attack did not take place: {outcomes:?}");
}

/// As above, driven by a sibling thread that also writes replies and lines of its choice, and observed.
#[test]
fn only_listed_calls_come_of_jumps_into_trampolines_and_the_syshandler() {
    if std::env::var_os(ROLE).is_some() {
        return hostile_supervisor();
    }
    let (record, base) = observer::trace_own_test(
        "only_listed_calls_come_of_jumps_into_trampolines_and_the_syshandler",
        ROLE,
        LIMIT,
    );
    let rows = rows(base);
    let mut uses = BTreeMap::<String, u64>::new();
    for passed in record.passed.iter().collect::<HashSet<_>>() {
        if passed.role == Role::Template {
            continue;
        }
        let row = rows.iter().find(|row| admits(row, passed, base));
        let row = row.unwrap_or_else(|| panic!("this call is not on the list: {passed:#x?}"));
        *uses.entry(format!("{:?} {:?} {}", passed.role, row.site, row.name)).or_default() += 1;
    }
    println!("{} calls passed; signals {:?}; {uses:#?}", record.passed.len(), record.signals);
    // The observer saw what the syshandler may do, so it would have seen what it may not.
    for site in [SyscallSite::FastWait, SyscallSite::FastWake, SyscallSite::FastExecute] {
        assert!(uses.keys().any(|key| key.contains(&format!("{site:?}"))), "never a call at {site:?}");
    }
    assert!(
        record.signals.get(&libc::SIGSYS).is_some_and(|denied| *denied > 100),
        "hardly any call was denied"
    );
}

fn hostile_supervisor() {
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new()).expect("the tracer's word");
    let platform = std::thread::spawn(|| {
        observer::trace_every_call_of_this_thread();
        adversary::platform()
    });
    let platform = platform.join().expect("a platform");
    let (mut space, _) = patched_guest(&platform);
    let base = stub_base(&space);
    println!("base {base:x}");
    let places: Vec<u64> = trampoline_bytes(&space).into_iter().chain(syshandler_bytes(base)).collect();
    let mut puppet = Puppet::of_parked(&space);
    let mut random = Random::new(0xbb67_ae85);
    let (mut strikes, mut spaces, mut replies) = (0, 1, 0);
    for place in places.iter().flat_map(|place| [*place; 2]) {
        strikes += 1;
        let mut words: Words = [0; SIGCONTEXT_WORDS];
        words.fill_with(|| value(&mut random, base));
        words[gregs::RAX] = random.below(601);
        words[gregs::RIP] = place;
        words[gregs::RFLAGS] = random.word() & 0x4_0cd5 | 0x202;
        words[gregs::CSGSFSSS] = SEGMENTS;
        let base_of_gs = gs_base(&mut random, |slot| puppet.slots.addr(slot), base);
        if !strike(&puppet, &words, base_of_gs, &mut random, &mut replies) && !puppet.recover() {
            space = patched_guest(&platform).0;
            puppet = Puppet::of_parked(&space);
            spaces += 1;
        }
    }
    println!(
        "{strikes} entries at {} bytes, {replies} replies forged, {spaces} stub processes",
        places.len()
    );
}

/// One jump, and replies to what comes of it. False if the thread does not come back.
fn strike(puppet: &Puppet, words: &Words, gs_base: u64, random: &mut Random, replies: &mut u64) -> bool {
    const SHORT: Duration = Duration::from_millis(4);
    let sysmsg = puppet.slots.slot(puppet.slot);
    let Some(mut event) = puppet.run_with_gs(words, gs_base, SHORT) else { return false };
    for _ in 0..3 {
        if event != wire::PATCHED {
            return true;
        }
        *replies += 1;
        let reply = [wire::RESUME, wire::EXECUTE_RESUME, wire::EXECUTE_RESUME, wire::SLEEP, wire::SPILL];
        let reply = random.pick(&reply);
        sysmsg.line.nr.store(random.below(601) as u32, Ordering::Relaxed);
        for arg in &sysmsg.line.args {
            arg.store(value(random, puppet.slots.base), Ordering::Relaxed);
        }
        // Calls that the filter admits, too.
        if random.below(3) == 0 {
            sysmsg.line.nr.store(libc::SYS_mprotect as u32, Ordering::Relaxed);
            for (arg, value) in sysmsg.line.args.iter().zip([DATA, 4096, 3]) {
                arg.store(value, Ordering::Relaxed);
            }
        }
        sysmsg
            .line
            .rip
            .store(random.pick(&[0x7000, puppet.slots.base, words[gregs::RIP]]), Ordering::Relaxed);
        if random.below(4) == 0 {
            sysmsg.supervisor_sleeps.store(1, Ordering::Relaxed);
            sysmsg.spin.store(0, Ordering::Relaxed);
        }
        puppet.publish(reply);
        match puppet.wait(reply, SHORT) {
            Some(next) => event = next,
            None => return false,
        }
    }
    true
}
