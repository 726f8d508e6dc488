//! Rules 1 to 7 of the trust chapter: forged completions, threads before their filter, rounding, revocation,
//! futex games, ineffective interrupts, the confused deputy. Each test fails without its rule.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use adversary::{DATA, Puppet, Slots, context, expect_call, guest, maps_of, platform, stub_base};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use systrap::seccomp::rows;
use systrap::{Event, GuestAddr, MapError, Options, Protection, Sharing, SwitchError, Systrap};
use systrap_stub::code::{SyscallSite, entries_lie_in_text, text};
use systrap_stub::layout;

const OTHER: u64 = 0x3000_0000;
const PAGE: u64 = 4096;

fn memfd(contents: &[u8]) -> File {
    // SAFETY: makes a descriptor, which the File then owns.
    let fd = unsafe { libc::memfd_create(c"a guest file".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create");
    // SAFETY: just made.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(contents).expect("writing a memfd");
    file
}

/// Runs `work` while another thread plays with the address space's shared words as a sibling guest thread would.
fn meanwhile<T>(play: impl Fn(&mut adversary::Random) + Sync, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = adversary::Random::new(7);
            while !stop.load(Ordering::Relaxed) {
                play(&mut random);
            }
        });
        let result = work();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn rule_1_a_forged_completion_hint_completes_nothing() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let slots = Slots::of(&space);
    let hint = |random: &mut adversary::Random| {
        slots.word(0).store(random.below(4096), Ordering::SeqCst);
        adversary::futex_wake(&slots.slot(0).line.state);
    };
    meanwhile(hint, || {
        for round in 0..300_u32 {
            // The descriptor is closed as soon as the mapping is said to be done, its number is used again at once.
            let file = memfd(&round.to_le_bytes());
            space
                .map_file(GuestAddr::new(OTHER), PAGE, file.as_fd(), 0, Protection::READ, Sharing::Shared)
                .expect("a mapping");
            drop(file);
            let _secret = memfd(b"not for guests");
            let mut seen = [0; 4];
            space.read(GuestAddr::new(OTHER), &mut seen).expect("the mapping is there");
            assert_eq!(u32::from_le_bytes(seen), round, "the guest got another file");
        }
    });
}

#[test]
fn rule_2_a_thread_without_its_filter_ends_the_process() {
    assert!(entries_lie_in_text());
    let (start, len) = text();
    // SAFETY: the linker's bounds of a section of initialised, never-written bytes.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    // Right after seccomp(2): a test of the result, and a way out unless it is 0.
    for (site, way_out) in
        [(SyscallSite::ThreadSeccomp, Mnemonic::Jne), (SyscallSite::TemplateSeccomp, Mnemonic::Jne)]
    {
        let at = site.ip_offset();
        let mut decoder = Decoder::with_ip(64, &code[at..], at as u64, DecoderOptions::NONE);
        let mut seen = Vec::new();
        let mut tested = false;
        for instruction in (&mut decoder).into_iter().take(3) {
            seen.push(format!("{:?}", instruction.mnemonic()));
            tested |= instruction.mnemonic() == Mnemonic::Test;
            if tested && instruction.mnemonic() == way_out {
                assert_eq!(instruction.op0_kind(), OpKind::NearBranch64);
                seen.clear();
                break;
            }
        }
        assert!(seen.is_empty(), "{site:?} is followed by {seen:?}");
    }
}

#[test]
fn rule_2_threads_run_under_both_filters_and_the_leader_hears_no_signal() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let mut context = context(&platform);
    expect_call(context.switch(&space).expect("a switch"));
    let mut filters = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", space.pid())).expect("its threads").flatten() {
        let status = fs::read_to_string(task.path().join("status")).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or(name);
            line.split_whitespace().nth(1).unwrap_or("").to_owned()
        };
        if task.file_name().to_string_lossy() == space.pid().to_string() {
            // All but SIGKILL and SIGSTOP, which cannot be blocked.
            assert_eq!(field("SigBlk:"), "fffffffffffbfeff", "the leader's signal mask");
            filters.insert(0, field("Seccomp_filters:"));
        } else {
            filters.push(field("Seccomp_filters:"));
        }
    }
    if filters[0].is_empty() {
        return println!("NOT CHECKED: the kernel does not count filters in /proc/PID/status (Linux 5.10)");
    }
    let count = |text: &String| text.parse::<u32>().expect("a number of filters");
    assert_eq!(count(&filters[1]), count(&filters[0]) + 1, "the guest filter is missing");
}

#[test]
fn rule_2_programs_and_masks_are_out_of_every_guests_reach() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    for line in maps_of(space.pid(), "systrap-stub") {
        assert!(line.contains("r--s") || line.contains("r-xs"), "writable or private: {line}");
    }
    let puppet = Puppet::new(&platform, &space);
    let base = puppet.slots.base;
    let denied = puppet.execute(libc::SYS_mprotect, [base + layout::RODATA, PAGE, 3, 0, 0, 0]);
    assert_eq!(denied, None, "mprotect of the stub's read-only data");
}

#[test]
fn rule_3_no_mapping_call_of_a_guest_thread_reaches_the_stub() {
    let top = layout::MAX_USER_ADDRESS;
    let good = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let with = |flag: i32| (good | flag) as u64;
    let none = u64::MAX;
    let calls = [
        (
            "huge pages below the stub",
            libc::SYS_mmap,
            [top - PAGE, PAGE, 3, with(libc::MAP_HUGETLB), none, 0],
        ),
        ("growing down", libc::SYS_mmap, [DATA, PAGE, 3, with(libc::MAP_GROWSDOWN), none, 0]),
        ("locked", libc::SYS_mmap, [DATA, PAGE, 3, with(libc::MAP_LOCKED), none, 0]),
        ("populated", libc::SYS_mmap, [DATA, PAGE, 3, with(libc::MAP_POPULATE), none, 0]),
        ("a file", libc::SYS_mmap, [DATA, PAGE, 3, (libc::MAP_SHARED | libc::MAP_FIXED) as u64, 0, 0]),
        ("not fixed", libc::SYS_mmap, [DATA, PAGE, 3, (good & !libc::MAP_FIXED) as u64, none, 0]),
        ("PROT_GROWSDOWN", libc::SYS_mmap, [DATA, PAGE, 3 | 0x0100_0000, with(0), none, 0]),
        ("too long", libc::SYS_mmap, [DATA, layout::MAX_CALL_LEN + PAGE, 3, with(0), none, 0]),
        ("too far", libc::SYS_mmap, [top, PAGE, 3, with(0), none, 0]),
        ("wrapping", libc::SYS_munmap, [u64::MAX - PAGE + 1, PAGE, 0, 0, 0, 0]),
        ("mprotect PROT_GROWSUP", libc::SYS_mprotect, [DATA, PAGE, 1 | 0x0200_0000, 0, 0, 0]),
        ("a protection key", libc::SYS_pkey_mprotect, [DATA, PAGE, 1, 0, 0, 0]),
        ("MADV_REMOVE", libc::SYS_madvise, [DATA, PAGE, libc::MADV_REMOVE as u64, 0, 0, 0]),
        ("MADV_HWPOISON", libc::SYS_madvise, [DATA, PAGE, libc::MADV_HWPOISON as u64, 0, 0, 0]),
        ("MADV_MERGEABLE", libc::SYS_madvise, [DATA, PAGE, libc::MADV_MERGEABLE as u64, 0, 0, 0]),
        ("mremap", libc::SYS_mremap, [DATA, PAGE, PAGE, 0, 0, 0]),
    ];
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let puppet = Puppet::new(&platform, &space);
    // Positive control: the plain mapping is made.
    assert_eq!(puppet.execute(libc::SYS_mmap, [DATA, PAGE, 3, with(0), none, 0]), Some(DATA as i64));
    // As close to the stub as the two bounds let it: still not in it.
    let stub = maps_of(space.pid(), "systrap-").len();
    assert_eq!(puppet.execute(libc::SYS_munmap, [top - PAGE, layout::MAX_CALL_LEN, 0, 0, 0, 0]), Some(0));
    assert_eq!(maps_of(space.pid(), "systrap-").len(), stub);
    for (what, nr, args) in calls {
        assert_eq!(puppet.execute(nr, args), None, "{what} was let through");
    }
}

#[test]
fn rule_3_the_stub_is_sealed_where_the_kernel_can() {
    let platform = platform();
    let space = platform.new_address_space().expect("an address space");
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", space.pid())).expect("its mappings");
    // SAFETY: an empty range: nothing but the existence of the call is asked for.
    let has_mseal = unsafe { libc::syscall(462, 0, 0, 0) } == 0;
    if !has_mseal {
        return println!("NOT CHECKED: this kernel has no mseal (Linux 6.10)");
    }
    let mut names = Vec::new();
    let mut name = "";
    for line in smaps.lines() {
        if line.contains("systrap-") {
            name = line;
        } else if line.starts_with("VmFlags:") && !name.is_empty() {
            if line.contains(" sl") {
                names.push(name.to_owned());
            }
            name = "";
        }
    }
    let all = maps_of(space.pid(), "systrap-");
    if names.is_empty() {
        return println!("NOT CHECKED: this kernel does not show seals in smaps (CONFIG_64BIT, Linux 6.10)");
    }
    assert_eq!(names.len(), all.len(), "sealed: {names:#?}");
}

#[test]
fn rule_4_what_is_mapped_read_only_from_a_read_only_descriptor_stays_so() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let mut file = memfd(&[1; PAGE as usize]);
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("opening it once more");
    let at = GuestAddr::new(OTHER);
    space.map_file(at, PAGE, read_only.as_fd(), 0, Protection::READ, Sharing::Shared).expect("a mapping");
    let puppet = Puppet::new(&platform, &space);
    let protect = [OTHER, PAGE, 3, 0, 0, 0];
    assert_eq!(puppet.execute(libc::SYS_mprotect, protect), Some(-i64::from(libc::EACCES)));
    // Through a descriptor that may write, the guest makes it writable: a protection is no boundary.
    space.map_file(at, PAGE, file.as_fd(), 0, Protection::READ, Sharing::Shared).expect("a mapping");
    assert_eq!(puppet.execute(libc::SYS_mprotect, protect), Some(0));
    space.write(at, &[2]).expect("now it is writable");
    let mut first = [0];
    file.rewind().expect("a seek");
    file.read_exact(&mut first).expect("reading it");
    assert_eq!(first, [2]);
    // Revoked by the leader it is gone, whatever the guest thread does meanwhile.
    space.unmap(at, PAGE).expect("an unmapping");
    assert_eq!(puppet.execute(libc::SYS_mprotect, protect), Some(-i64::from(libc::ENOMEM)));
}

#[test]
fn rule_5_a_guest_thread_has_no_futex_calls_on_shared_words_but_wait_and_wake() {
    const PRIVATE: u64 = libc::FUTEX_PRIVATE_FLAG as u64;
    let platform = platform();
    let table = rows(0x7fab_0000_0000);
    let mut private = 0;
    for row in table.iter().filter(|row| row.nr == libc::SYS_futex) {
        let condition = row.conditions.iter().find(|condition| condition.arg == 1).expect("an operation");
        let systrap::seccomp::Test::Eq32(op) = condition.test else { panic!("any operation: {row}") };
        private += usize::from(u64::from(op) & PRIVATE != 0);
        assert!(u64::from(op) & PRIVATE != 0 || [0, 1].contains(&op), "{row}");
    }
    assert!(private > 0, "private ones are there");
    let others = [libc::SYS_futex_waitv, 454, 455, 456, libc::SYS_set_robust_list];
    assert!(table.iter().all(|row| !others.contains(&row.nr)));
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let puppet = Puppet::new(&platform, &space);
    let word = puppet.slots.addr(1);
    let futex = |op| puppet.execute(libc::SYS_futex, [word, op, 1, 0, word + 64, 0]);
    for op in 2..=13 {
        assert_eq!(futex(op), None, "operation {op}");
    }
    // Of the private ones, none that changes priorities or is unknown; the others are made, and find nobody.
    for op in [2, 6, 7, 8, 11, 12, 13, 14, 64] {
        assert_eq!(futex(op | PRIVATE), None, "private operation {op}");
    }
    for op in [0, 1, 3, 4, 5, 10] {
        assert!(futex(op | PRIVATE).is_some_and(|result| result <= 0), "private operation {op}");
    }
}

#[test]
fn rule_5_a_guest_that_hides_its_supervisors_sleep_only_delays_itself() {
    // The stub looks at `supervisor_sleeps` before it wakes anybody: a sibling clears it all the time.
    let platform = platform();
    let space = guest(&platform, |a| {
        let mut top = a.create_label();
        let mut delay = a.create_label();
        a.set_label(&mut top).expect("code");
        a.mov(iced_x86::code_asm::ecx, 2_000_000).expect("code");
        a.set_label(&mut delay).expect("code");
        a.dec(iced_x86::code_asm::ecx).expect("code");
        a.jne(delay).expect("code");
        a.syscall().expect("code");
        a.jmp(top).expect("code");
    });
    let mut context = context(&platform);
    expect_call(context.switch(&space).expect("a switch"));
    let slots = Slots::of(&space);
    let hide = |_: &mut adversary::Random| slots.slot(1).supervisor_sleeps.store(0, Ordering::Relaxed);
    meanwhile(hide, || {
        for _ in 0..10 {
            let started = Instant::now();
            expect_call(context.switch(&space).expect("a switch"));
            assert!(started.elapsed() < Duration::from_secs(10), "a sleep without end");
        }
    });
}

#[test]
fn rule_6_no_thread_leaves_its_process_alone() {
    // Its id would become somebody else's while the supervisor still uses it.
    let table = rows(0x7fab_0000_0000);
    assert!(table.iter().all(|row| row.nr != libc::SYS_exit), "exit of a single thread is admitted");
}

#[test]
fn rule_6_an_interrupt_that_nobody_answers_kills_within_its_deadline() {
    let deadline = Duration::from_millis(400);
    let platform = Systrap::new(Options::new().interrupt_deadline(deadline)).expect("a platform");
    let space = guest(&platform, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).expect("code");
        a.jmp(top).expect("code");
    });
    let pid = space.pid();
    let mut context = context(&platform);
    let interrupter = context.interrupter();
    let asked = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        // SAFETY: takes values only; the process is ours as long as the address space is.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
        interrupter.interrupt();
        Instant::now()
    });
    let error = context.switch(&space).expect_err("nobody is there to answer");
    let waited = asked.join().expect("the interrupting thread").elapsed();
    assert!(matches!(error, SwitchError::StubCorrupted { .. }), "{error}");
    assert!(waited >= deadline * 9 / 10, "killed after {waited:?} already");
    assert!(waited < deadline * 50, "killed after {waited:?} only");
    let gone = Instant::now() + Duration::from_secs(20);
    while space.stub_exit().is_none() {
        assert!(Instant::now() < gone, "the stub process lives on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn rule_6_no_signal_mask_can_be_forged() {
    let table = rows(0x7fab_0000_0000);
    assert!(table.iter().all(|row| row.nr != libc::SYS_rt_sigreturn), "rt_sigreturn is admitted");
    let masks: Vec<_> = table.iter().filter(|row| row.nr == libc::SYS_rt_sigprocmask).collect();
    assert_eq!(masks.len(), 1);
    let fixed = systrap::seccomp::Test::Eq(0x7fab_0000_0000 + layout::RODATA);
    assert!(masks[0].conditions.iter().any(|condition| condition.test == fixed), "{}", masks[0]);
}

#[test]
fn rule_6_a_full_mask_in_the_signal_frame_blocks_nothing() {
    let platform = platform();
    let space = guest(&platform, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top).expect("code");
        a.jmp(top).expect("code");
    });
    let mut context = context(&platform);
    let mut slots: Option<Slots> = None;
    context.interrupter().interrupt();
    assert_eq!(context.switch(&space).expect("a switch"), Event::Interrupted);
    for _ in 0..200 {
        let interrupter = context.interrupter();
        // The saved signal mask of the last frame, if there is one: all blocked.
        if let Some(slots) = &slots {
            block_everything(slots);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| interrupter.interrupt());
            assert_eq!(context.switch(&space).expect("a switch"), Event::Interrupted);
        });
        slots.get_or_insert_with(|| Slots::of(&space));
    }
}

/// Writes `uc_sigmask` of the slot's last signal frame.
fn block_everything(slots: &Slots) {
    // arch/x86/include/uapi/asm/ucontext.h: the mask follows `struct sigcontext` of 256 bytes.
    let frame = slots.slot(1).frame.load(Ordering::SeqCst) + 256;
    let index = usize::try_from((frame - slots.addr(0)) / 8).expect("an index");
    slots.word(index).store(u64::MAX, Ordering::SeqCst);
}

#[test]
fn rule_7_the_supervisors_writes_and_mappings_stay_below_the_stub() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    let base = stub_base(&space);
    for at in
        [base, base + layout::RODATA, base + layout::REQUEST, base + layout::SYSMSG, base + layout::VDSO]
    {
        let addr = GuestAddr::new(at);
        assert_eq!(space.write(addr, &[0xcc; 8]).expect_err("a write to the stub").copied, 0);
        assert_eq!(space.read(addr, &mut [0; 8]).expect_err("a read of the stub").copied, 0);
        let all = [
            space.map_anonymous(addr, PAGE, Protection::READ_WRITE),
            space.unmap(addr, PAGE),
            space.protect(addr, PAGE, Protection::READ_WRITE),
            space.remap(GuestAddr::new(DATA), PAGE, addr, PAGE),
            space.remap(addr, PAGE, GuestAddr::new(DATA), PAGE),
        ];
        for result in all {
            assert!(matches!(result, Err(MapError::BadRange { .. })), "{at:#x}: {result:?}");
        }
    }
    // A range that begins in the guest's and ends in the stub.
    let most = GuestAddr::new(layout::MAX_USER_ADDRESS - PAGE);
    assert!(space.unmap(most, base - most.raw() + PAGE).is_err());
    assert!(space.map_anonymous(most, u64::MAX - PAGE, Protection::READ).is_err());
    let mut context = context(&platform);
    expect_call(context.switch(&space).expect("the stub is whole"));
}

#[test]
fn rule_7_copies_respect_the_guests_own_protections() {
    let platform = platform();
    let space = guest(&platform, |a| a.syscall().expect("code"));
    space.map_anonymous(GuestAddr::new(OTHER), PAGE, Protection::READ_EXECUTE).expect("memory");
    assert!(space.write(GuestAddr::new(OTHER), &[0x90]).is_err(), "a write to private read-only text");
    space.protect(GuestAddr::new(OTHER), PAGE, Protection::NONE).expect("a change of protection");
    assert!(space.read(GuestAddr::new(OTHER), &mut [0]).is_err(), "a read of memory without access");
}

#[test]
fn rule_7_not_even_a_debuggers_write_changes_the_stubs_text() {
    let platform = platform();
    let space = platform.new_address_space().expect("an address space");
    let base = stub_base(&space);
    let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", space.pid()));
    let Ok(memory) = memory else {
        return println!("NOT CHECKED: /proc/PID/mem cannot be opened here (Yama ptrace_scope?)");
    };
    use std::os::unix::fs::FileExt;
    let mut before = [0; 8];
    memory.read_exact_at(&mut before, base).expect("reading the text");
    assert!(memory.write_all_at(&[0xcc; 8], base).is_err(), "the text was written");
    let mut after = [0; 8];
    memory.read_exact_at(&mut after, base).expect("reading the text");
    assert_eq!(before, after);
}
