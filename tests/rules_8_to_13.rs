//! Rules 8 to 13 of the trust chapter: leaks at first entry, privileges, what fork shares, what a guest leaves
//! in the CPU, bookkeeping, slow copies. Each test fails without its rule.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adversary::{
    CODE, DATA, DATA_LEN, Puppet, SEGMENTS, Slots, Words, context, expect_call, guest, maps_of, platform,
    stub_base,
};
use iced_x86::code_asm::{self as x, CodeAssembler};
use systrap::{AddressSpace, GuestAddr, Protection, SwitchError, Systrap};
use systrap_stub::layout;
use systrap_stub::sysmsg::{Sysmsg, gregs};

/// Code that stores all sixteen general and vector registers at `DATA`, then makes call 77.
fn store_everything(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let general = [
        x::rax,
        x::rbx,
        x::rcx,
        x::rdx,
        x::rsi,
        x::rdi,
        x::rbp,
        x::rsp,
        x::r8,
        x::r9,
        x::r10,
        x::r11,
        x::r12,
        x::r13,
        x::r14,
        x::r15,
    ];
    for (i, register) in general.into_iter().enumerate() {
        a.mov(x::qword_ptr(DATA + 8 * i as u64), register)?;
    }
    let vector = [
        x::ymm0,
        x::ymm1,
        x::ymm2,
        x::ymm3,
        x::ymm4,
        x::ymm5,
        x::ymm6,
        x::ymm7,
        x::ymm8,
        x::ymm9,
        x::ymm10,
        x::ymm11,
        x::ymm12,
        x::ymm13,
        x::ymm14,
        x::ymm15,
    ];
    for (i, register) in vector.into_iter().enumerate() {
        a.vmovdqu(x::ymmword_ptr(DATA + 0x100 + 32 * i as u64), register)?;
    }
    a.rdfsbase(x::rax)?;
    a.mov(x::qword_ptr(DATA + 0x80), x::rax)?;
    a.stmxcsr(x::dword_ptr(DATA + 0x88))?;
    a.mov(x::eax, 77)?;
    a.syscall()
}

fn stored(space: &AddressSpace) -> Vec<u64> {
    let mut bytes = vec![0; 0x300];
    space.read(GuestAddr::new(DATA), &mut bytes).expect("what the guest stored");
    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect()
}

#[test]
fn rule_8_the_first_entry_shows_nothing_of_the_supervisor() {
    let platform = platform();
    let space = guest(&platform, |a| store_everything(a).expect("code"));
    let mut context = context(&platform);
    assert_eq!(expect_call(context.switch(&space).expect("a switch")).nr, 77);
    let mut words = stored(&space);
    assert_eq!(words[7], DATA + DATA_LEN - 64, "rsp is what it was set to");
    words[7] = 0;
    assert_eq!(words[17] & 0xffff_ffff, 0x1f80, "MXCSR as at exec");
    words[17] = 0;
    let left: Vec<_> = words.iter().enumerate().filter(|(_, word)| **word != 0).collect();
    assert!(left.is_empty(), "{left:x?}");
}

#[test]
fn rule_8_a_forged_first_entry_shows_nothing_of_the_supervisor() {
    // A sibling writes RESUME_FULL into the slot of a thread that never ran, with a state that loads no
    // vector registers: what it was born with shows.
    let platform = platform();
    let space = guest(&platform, |a| store_everything(a).expect("code"));
    let mut unborn = context(&platform);
    unborn.registers_mut().rip = 1 << 63;
    assert!(matches!(unborn.switch(&space), Err(SwitchError::BadState { .. })));
    drop(unborn);
    let puppet = Puppet::of_parked(&space);
    let xstate = &puppet.slots.slot(1).state.xstate.0;
    for word in xstate {
        word.store(0, Ordering::Relaxed);
    }
    let mut words: Words = [0; 24];
    words[gregs::RIP] = CODE;
    words[gregs::RSP] = DATA + DATA_LEN - 64;
    words[gregs::RFLAGS] = 0x202;
    words[gregs::CSGSFSSS] = SEGMENTS;
    let event = puppet.run(&words, Duration::from_secs(10)).expect("the guest's call");
    assert_eq!(event, systrap_stub::wire::TRAPPED);
    let left: Vec<_> = stored(&space)[32..].iter().copied().filter(|word| *word != 0).collect();
    assert!(left.is_empty(), "vector registers of the supervisor: {left:x?}");
}

#[test]
fn rule_8_stubs_lie_at_random_places_and_the_vdso_was_moved() {
    let mut bases: Vec<u64> = (0..4)
        .map(|_| {
            let platform = platform();
            let space = platform.new_address_space().expect("an address space");
            let base = stub_base(&space);
            let own = maps_of(std::process::id() as i32, "[vdso]").pop().expect("own vdso");
            let theirs = maps_of(space.pid(), "[vdso]").pop().expect("the stub's vdso");
            assert_ne!(adversary::start_of(&own), adversary::start_of(&theirs));
            assert!((base..base + layout::STUB_LEN).contains(&adversary::start_of(&theirs)));
            base
        })
        .collect();
    bases.sort_unstable();
    bases.dedup();
    assert_eq!(bases.len(), 4, "two of four platforms have their stub at the same place");
}

#[test]
fn rule_8_nothing_of_the_supervisor_is_mapped() {
    let platform = platform();
    let space = platform.new_address_space().expect("an address space");
    let maps = maps_of(space.pid(), "");
    let known = ["systrap-stub", "systrap-request", "systrap-sysmsg", "[vvar", "[vdso]", "[vsyscall]"];
    let strange: Vec<_> = maps.iter().filter(|line| !known.iter().any(|name| line.contains(name))).collect();
    assert!(!maps.is_empty() && strange.is_empty(), "{strange:#?}");
}

#[test]
fn rule_9_stub_processes_have_no_privileges_and_die_first() {
    let platform = platform();
    let parent = platform.new_address_space().expect("an address space");
    let child = parent.fork().expect("a fork");
    for space in [&parent, &child] {
        let pid = space.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("a field of the status");
            line.split_whitespace().nth(1).expect("a value").to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        assert_eq!(
            fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("its score").trim(),
            "1000"
        );
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().nth(4), Some("1"), "{core}");
    }
}

#[test]
fn rule_10_a_fork_child_has_shared_areas_of_its_own() {
    let platform = platform();
    let parent = guest(&platform, |a| a.syscall().expect("code"));
    let mut running = context(&platform);
    expect_call(running.switch(&parent).expect("a switch"));
    let child = parent.fork().expect("a fork");
    let inode = |space: &AddressSpace| {
        let line = maps_of(space.pid(), "systrap-sysmsg").pop().expect("slots");
        line.split_whitespace().nth(4).expect("an inode").to_owned()
    };
    assert_ne!(inode(&parent), inode(&child), "parent and child share their slots");
    let request = |space: &AddressSpace| {
        let line = maps_of(space.pid(), "systrap-request").pop().expect("a request page");
        line.split_whitespace().nth(2).expect("an offset").to_owned()
    };
    assert_ne!(request(&parent), request(&child), "parent and child share their request page");
    for space in [&parent, &child] {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", space.pid())).expect("its mappings");
        let mut shared = 0;
        let mut name = "";
        for line in smaps.lines() {
            if line.contains("systrap-") {
                name = line;
            } else if line.starts_with("VmFlags:") && !name.is_empty() {
                if !name.contains("systrap-stub") {
                    assert!(line.contains(" dc"), "not MADV_DONTFORK: {name}");
                    shared += 1;
                }
                name = "";
            }
        }
        assert_eq!(shared, 2);
    }
    // The parent's leader and threads go on while the child lives its own life.
    let mut other = context(&platform);
    expect_call(other.switch(&child).expect("a switch in the child"));
    running.pull_full_state().expect("the state");
    running.registers_mut().rip = CODE;
    expect_call(running.switch(&parent).expect("a switch in the parent"));
}

#[test]
fn rule_11_flags_and_segments_that_a_guest_leaves_behind_harm_nobody() {
    const AC: i32 = 1 << 18;
    const NT: i32 = 1 << 14;
    const DF: i32 = 1 << 10;
    let platform = platform();
    for (flags, name) in [(AC, "AC"), (NT, "NT"), (DF, "DF"), (AC | NT | DF, "all three")] {
        let space = guest(&platform, |a| {
            let code = |a: &mut CodeAssembler| -> Result<(), iced_x86::IcedError> {
                a.mov(x::rax, 0x1234_5678_9abc_u64)?;
                a.wrgsbase(x::rax)?;
                a.push(flags | 0x202)?;
                a.popfq()?;
                // A stack pointer that is not aligned, as AC would notice.
                a.sub(x::rsp, 3)?;
                a.mov(x::eax, 39)?;
                a.syscall()?;
                a.mov(x::edi, x::eax)?;
                a.mov(x::eax, 40)?;
                a.syscall()
            };
            code(a).expect("code");
        });
        let mut context = context(&platform);
        assert_eq!(expect_call(context.switch(&space).expect(name)).nr, 39);
        context.set_return(4711);
        let call = expect_call(context.switch(&space).expect(name));
        assert_eq!((call.nr, call.args[0]), (40, 4711), "{name}");
        context.pull_full_state().expect(name);
        let regs = *context.registers();
        assert_eq!(regs.r11 & flags as u64, flags as u64, "{name} is still set");
        assert_eq!(regs.gs_base, 0x1234_5678_9abc);
        // Through the full state as well.
        context.registers_mut().rip = CODE;
        context.registers_mut().rsp = regs.rsp + 3;
        assert_eq!(expect_call(context.switch(&space).expect(name)).nr, 39);
    }
}

#[test]
fn rule_11_a_broken_xsave_image_is_the_guests_own_fault() {
    let platform = platform();
    for (word, value, what) in [
        (64, u64::MAX, "present bits"),
        (65, u64::MAX, "compaction bits"),
        (66, u64::MAX, "reserved"),
        (3, u64::MAX, "MXCSR"),
    ] {
        let space = guest(&platform, |a| a.syscall().expect("code"));
        let mut context = context(&platform);
        expect_call(context.switch(&space).expect("a switch"));
        let slots = Slots::of(&space);
        let image = xsave_image(slots.slot(1), &slots);
        slots.word(image + word).store(value, Ordering::SeqCst);
        // Without a look at the state the stub loads the image itself: its fault, its end.
        let result = context.switch(&space);
        assert!(
            matches!(result, Err(SwitchError::StubCorrupted { .. } | SwitchError::StubDied { .. }))
                || word == 64,
            "{what}: {result:?}"
        );
        // With a look at it, it is made loadable first.
        let space = guest(&platform, |a| a.syscall().expect("code"));
        let mut context = adversary::context(&platform);
        expect_call(context.switch(&space).expect("a switch"));
        let slots = Slots::of(&space);
        let image = xsave_image(slots.slot(1), &slots);
        slots.word(image + word).store(value, Ordering::SeqCst);
        context.pull_full_state().expect("the state");
        context.registers_mut().rip = CODE;
        expect_call(context.switch(&space).unwrap_or_else(|error| panic!("{what}: {error}")));
    }
}

/// Index among the words of the slots of the xsave image of the last signal frame.
fn xsave_image(sysmsg: &Sysmsg, slots: &Slots) -> usize {
    let to_index = |addr: u64| usize::try_from((addr - slots.addr(0)) / 8).expect("an index");
    let frame = to_index(sysmsg.frame.load(Ordering::SeqCst));
    to_index(slots.word(frame + gregs::FPSTATE).load(Ordering::SeqCst))
}

#[test]
fn rule_11_sigstop_and_sigcont_in_a_timed_sleep_change_nothing() {
    let platform = platform();
    let space = guest(&platform, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).expect("code");
        a.syscall().expect("code");
        a.jmp(top).expect("code");
    });
    let mut context = context(&platform);
    for round in 0..10 {
        let event = context.switch(&space).unwrap_or_else(|error| panic!("round {round}: {error}"));
        expect_call(event);
        context.prepare_sleep();
        // Long enough for the stub thread to sleep, and the leader sleeps anyway.
        std::thread::sleep(Duration::from_millis(30));
        for (signal, state) in [(libc::SIGSTOP, 'T'), (libc::SIGCONT, 'S')] {
            // SAFETY: signals a child of ours that is alive.
            unsafe { libc::kill(space.pid(), signal) };
            wait_for_state(space.pid(), state);
        }
        std::thread::sleep(Duration::from_millis(5));
        space.protect(GuestAddr::new(DATA), 4096, Protection::READ_WRITE).expect("the leader answers");
    }
}

fn wait_for_state(pid: i32, state: char) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its state");
        let now = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
        if now == Some(state) {
            return;
        }
        assert!(Instant::now() < deadline, "the stub process is in state {now:?}, not {state}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn rule_12_calls_from_ever_new_places_cost_the_supervisor_no_memory() {
    const SITES: u64 = 20_000;
    let platform = platform();
    let space = guest(&platform, |a| {
        for _ in 0..SITES {
            a.syscall().expect("code");
        }
    });
    let mut context = context(&platform);
    expect_call(context.switch(&space).expect("a switch"));
    let before = resident_kib();
    for site in 1..SITES {
        let call = expect_call(context.switch(&space).expect("a switch"));
        assert_eq!(call.ip.raw(), CODE + 2 * (site + 1));
    }
    let grown = resident_kib().saturating_sub(before);
    println!("{SITES} sites: the supervisor grew by {grown} KiB");
    // 20,000 records of 1 KiB would be 20 MiB; other tests of this program run at the same time.
    assert!(grown < 16 * 1024, "{grown} KiB");
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("own status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("own memory");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn rule_13_copies_of_one_guest_hold_up_nobody_else() {
    let platform = platform();
    let slow = guest(&platform, |a| a.syscall().expect("code"));
    let stop = AtomicBool::new(false);
    let (copies, changes, switches) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The guest hammers its mmap lock by mapping changes of its own thread.
            let puppet = Puppet::new(&platform, &slow);
            while !stop.load(Ordering::Relaxed) {
                for prot in [1, 3] {
                    let args = [DATA + 0x8_0000, 0x8_0000, prot, 0, 0, 0];
                    assert_eq!(puppet.execute(libc::SYS_mprotect, args), Some(0));
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 0x8_0000];
            while !stop.load(Ordering::Relaxed) {
                slow.read(GuestAddr::new(DATA), &mut buffer).expect("a copy");
                copies.fetch_add(1, Ordering::Relaxed);
            }
        });
        let deadline = Instant::now() + Duration::from_millis(1500);
        let mut longest = Duration::ZERO;
        while Instant::now() < deadline {
            let started = Instant::now();
            one_life(&platform);
            longest = longest.max(started.elapsed());
            switches.fetch_add(1, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
        println!("longest life of another address space meanwhile: {longest:?}");
    });
    let counts = [copies, changes, switches].map(AtomicU64::into_inner);
    println!("copies, mapping changes, other address spaces' lives: {counts:?}");
    assert!(counts.iter().all(|count| *count > 10), "somebody stood still: {counts:?}");
}

/// Makes an address space, runs one call, copies, releases.
fn one_life(platform: &Systrap) {
    let space = guest(platform, |a| a.syscall().expect("code"));
    let mut context = context(platform);
    expect_call(context.switch(&space).expect("a switch"));
    space.write(GuestAddr::new(DATA), b"of its own").expect("a copy");
    drop(context);
    space.release().expect("its end");
}
