//! Whatever a guest does, only the host calls of the list `systrap::seccomp::rows` reach the kernel.
//!
//! A traced copy of this program plays the supervisor of a hostile guest, which makes every call from its own
//! text and, with any registers, from every place in the stub's text; the tracer records what passed the
//! stub's filters and holds it against the list with an evaluator of its own.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;
#[path = "common/observer.rs"]
mod observer;
#[path = "common/verdict.rs"]
mod verdict;

use std::collections::{BTreeMap, HashSet};
use std::io::BufRead;
use std::time::Duration;

use adversary::{CODE, DATA, Puppet, Random, SEGMENTS, Words, context, expect_call, guest, stub_base};
use observer::{Passed, Record, Role};
use systrap::seccomp::{FilterKind, Row, Test, rows};
use systrap::{Event, Systrap};
use systrap_stub::code::{SyscallSite, entries_lie_in_text, text};
use systrap_stub::layout;
use systrap_stub::sysmsg::gregs;
use verdict::{AUDIT_ARCH_X86_64, admits};

const ROLE: &str = "SYSTRAP_TEST_HOSTILE_SUPERVISOR";
const SEED: u64 = 0x5eed_0001;
const LAST_NR: u64 = 600;
const LIMIT: Duration = Duration::from_secs(55);

#[test]
fn only_listed_calls_reach_the_kernel() {
    if std::env::var_os(ROLE).is_some() {
        return hostile_supervisor();
    }
    let (record, base) = observer::trace_own_test("only_listed_calls_reach_the_kernel", ROLE, LIMIT);
    judge(&record, base);
}

/// Holds the record against the list, and asks for the positive controls.
fn judge(record: &Record, base: u64) {
    let rows = rows(base);
    let distinct: HashSet<_> = record.passed.iter().collect();
    let mut uses: BTreeMap<String, u64> = BTreeMap::new();
    for passed in &distinct {
        if passed.role == Role::Template {
            continue;
        }
        let row = rows.iter().find(|row| admits(row, passed, base));
        let row = row.unwrap_or_else(|| panic!("this call is not on the list: {passed:#x?}"));
        let key = format!("{:?} {:?} {}", passed.role, row.site, row.name);
        *uses.entry(key).or_default() += 1;
    }
    println!("{} calls passed, {} different; {} tasks", record.passed.len(), distinct.len(), record.tasks);
    println!("signals delivered: {:?}", record.signals);
    for (key, count) in &uses {
        println!("{count:8} {key}");
    }
    let denied = record.signals.get(&libc::SIGSYS).copied().unwrap_or(0);
    assert!(denied > 601 * 20, "only {denied} calls were denied: the attack did not take place");
    // Positive controls: the observer saw what is allowed, so it would have seen what is not.
    for row in rows.iter().filter(|row| row.site != SyscallSite::ExitGroup) {
        let role = if row.filter == FilterKind::Guest { "Guest" } else { "Base" };
        let is_rare = ["mremap", "restart_syscall", "mprotect", "madvise", "munmap", "rt_sigprocmask"];
        if role == "Base" && is_rare.contains(&row.name) {
            continue;
        }
        // A stub thread sets its mask once, after its filter.
        let key = format!("{role} {:?} {}", row.site, row.name);
        assert!(uses.contains_key(&key), "the observer never saw {key}");
    }
    assert!(uses.contains_key("Guest ExitGroup exit_group"), "the observer never saw exit_group");
}

#[test]
fn the_evaluator_refuses_what_is_not_listed() {
    let base = 0x7fab_0000_0000;
    let table = rows(base);
    let ip = base + SyscallSite::ThreadExecute.ip_offset() as u64;
    let args = [0x1000_0000, 0x1000, 3, 0x4032, u64::MAX, 0];
    let good = Passed { role: Role::Guest, arch: AUDIT_ARCH_X86_64, nr: 9, args, ip };
    let listed = |call: &Passed| table.iter().any(|row| admits(row, call, base));
    assert!(listed(&good));
    assert!(!listed(&Passed { ip: ip - 2, ..good }), "another place");
    assert!(!listed(&Passed { nr: 0, ..good }), "another number");
    assert!(!listed(&Passed { arch: 0x4000_0003, ..good }), "another architecture");
    let far = [0x7700_0000_0000, 0x1000, 3, 0x4032, u64::MAX, 0];
    assert!(!listed(&Passed { args: far, ..good }), "another address");
    let huge_page = [0x1000_0000, 0x1000, 3, 0x4_4032, u64::MAX, 0];
    assert!(!listed(&Passed { args: huge_page, ..good }), "another flag");
}

// ---- The traced side.

fn hostile_supervisor() {
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new()).expect("the tracer's word");
    let platform = std::thread::spawn(|| {
        observer::trace_every_call_of_this_thread();
        adversary::platform()
    });
    let platform = platform.join().expect("a platform");
    let space = guest(&platform, |a| a.syscall().expect("an instruction"));
    println!("base {:x}", stub_base(&space));
    drop(space);
    let mut random = Random::new(SEED);
    from_its_own_text(&platform, &mut random);
    from_the_stubs_text(&platform, &mut random);
}

/// uretprobe(2) and uprobe(2): since Linux 6.14 and 6.18 the kernel does not show them to seccomp
/// (kernel/seccomp.c, `seccomp_uprobe_exception`). Outside the kernel's own uprobe trampoline, which only a
/// privileged tracer can plant, the one raises SIGILL and the other returns -ENXIO; neither does anything.
const UNFILTERED: [u64; 2] = [335, 336];

fn passed_by_the_kernel(event: &Event) -> bool {
    match event {
        Event::Signal(signal) => signal.signo == libc::SIGILL && signal.ip.raw() == CODE + 2,
        // It went on to the next instruction with the result in rax.
        Event::Syscall(call) => call.ip.raw() == CODE + 4 && call.nr as i32 == -libc::ENXIO,
        _ => false,
    }
}

/// Every number, with random arguments, from guest code; as 64-bit, x32 and i386 calls.
fn from_its_own_text(platform: &Systrap, random: &mut Random) {
    let space = guest(platform, |a| {
        a.syscall().expect("an instruction");
        a.int(0x80).expect("an instruction");
    });
    let mut context = context(platform);
    let (mut calls, mut no_i386, mut unfiltered) = (0_u64, 0_u64, 0_u64);
    for nr in 0..=LAST_NR {
        for (offset, number) in [(0, nr), (0, nr | 0x4000_0000), (2, nr), (0, nr | 0xffff_ffff_0000_0000)] {
            let args: [u64; 6] = std::array::from_fn(|_| argument(random));
            let regs = context.registers_mut();
            regs.rip = CODE + offset;
            regs.rax = number;
            [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
            let event = context.switch(&space).expect("a switch");
            context.pull_full_state().expect("the state");
            if offset == 0 && UNFILTERED.contains(&(number & 0xffff_ffff)) && passed_by_the_kernel(&event) {
                unfiltered += 1;
                continue;
            }
            if offset == 2 && matches!(event, Event::Signal(_)) {
                // A kernel without i386 calls: no call at all, which is as good.
                no_i386 += 1;
                continue;
            }
            let call = expect_call(event);
            assert_eq!(call.nr, number as u32);
            if offset == 0 {
                assert_eq!(call.args, args);
            }
            calls += 1;
        }
    }
    println!(
        "{calls} calls from guest text, all of them events; {no_i386} times the host had no int 0x80; \
         {unfiltered} calls of {UNFILTERED:?}, which this kernel answers ahead of every filter"
    );
}

/// Every place in the stub's text: all numbers at each `syscall`, random registers at each byte.
fn from_the_stubs_text(platform: &Systrap, random: &mut Random) {
    assert!(entries_lie_in_text());
    let (start, len) = text();
    // SAFETY: the linker's bounds of a section of initialised, never-written bytes.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    let pairs: Vec<u64> =
        (0..len as u64 - 1).filter(|at| code[*at as usize..].starts_with(&[0x0f, 5])).collect();
    let named: Vec<u64> = SyscallSite::ALL.iter().map(|site| site.ip_offset() as u64 - 2).collect();
    assert!(named.iter().all(|site| pairs.contains(site)));
    let mut attack = Attack::new(platform);
    for site in &pairs {
        for nr in 0..=LAST_NR {
            attack.strike(*site, nr, random);
        }
        // Numbers and arguments of the list, most of them from the wrong place.
        let table = rows(attack.puppet.slots.base);
        for row in &table {
            let own = row.site.ip_offset() as u64 - 2 == *site;
            for _ in 0..if own { 3 } else { 1 } {
                attack.strike_like(row, None, *site, random);
            }
            for missed in 0..if own { row.conditions.len() } else { 0 } {
                attack.strike_like(row, Some(missed), *site, random);
                attack.strike_like(row, Some(missed), *site, random);
            }
        }
    }
    let at_sites = attack.strikes;
    for at in 0..len as u64 {
        for _ in 0..3 {
            let nr = random.below(LAST_NR + 1);
            attack.strike(at, nr, random);
        }
    }
    println!(
        "{at_sites} calls at {} places with the bytes of `syscall` ({} of them named), {} entries at any byte; \
         {} stub processes used up, {} threads led back",
        pairs.len(),
        named.len(),
        attack.strikes - at_sites,
        attack.spaces,
        attack.recoveries
    );
}

/// An argument that has a chance of being interesting.
fn argument(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => random.word(),
        1 => random.below(4096),
        2 => DATA + random.below(64) * 4096,
        3 => layout::MAX_USER_ADDRESS - random.below(3) * 4096,
        4 => random.word() >> random.below(64),
        _ => u64::MAX - random.below(3),
    }
}

struct Attack<'a> {
    platform: &'a Systrap,
    space: systrap::AddressSpace,
    puppet: Puppet,
    strikes: u64,
    spaces: u64,
    recoveries: u64,
}

impl<'a> Attack<'a> {
    fn new(platform: &'a Systrap) -> Self {
        let (space, puppet) = Self::fresh(platform);
        Self { platform, space, puppet, strikes: 0, spaces: 1, recoveries: 0 }
    }

    fn fresh(platform: &Systrap) -> (systrap::AddressSpace, Puppet) {
        let space = guest(platform, |a| a.syscall().expect("an instruction"));
        let puppet = Puppet::new(platform, &space);
        (space, puppet)
    }

    /// Runs the stub's text from `offset` on with random registers and this call number.
    fn strike(&mut self, offset: u64, nr: u64, random: &mut Random) {
        let args = std::array::from_fn(|_| {
            if random.below(4) == 0 { self.puppet.slots.addr(random.below(4)) } else { argument(random) }
        });
        self.go(offset, nr, args, random);
    }

    /// As `strike`, with a number and arguments that the row admits (at its own site), all but one condition,
    /// which they miss by as little as possible.
    fn strike_like(&mut self, row: &Row, missed: Option<usize>, offset: u64, random: &mut Random) {
        let mut args: [u64; 6] = std::array::from_fn(|_| random.word());
        for (i, condition) in row.conditions.iter().enumerate() {
            let arg = &mut args[usize::from(condition.arg)];
            let hit = match condition.test {
                Test::Eq(value) | Test::Ge(value) => value,
                Test::Eq32(value) => random.word() << 32 | u64::from(value),
                Test::Lt(value) if value == layout::MAX_USER_ADDRESS => DATA + random.below(16) * 4096,
                Test::Lt(_) => *arg,
                // Short: a guest may use up its own memory, but the host of the tests should not suffer.
                Test::Le(_) => 4096 * (1 + random.below(16)),
                Test::OnlyBits(mask) => random.word() & mask,
            };
            *arg = match condition.test {
                _ if missed != Some(i) => hit,
                Test::Eq(value) => value ^ 1 << random.below(64),
                Test::Eq32(value) => u64::from(value ^ 1 << random.below(32)),
                Test::Lt(value) => value,
                Test::Ge(value) => value - 1,
                Test::Le(value) => value + 1,
                Test::OnlyBits(mask) => hit | (mask + 1) << random.below(32),
            };
        }
        self.go(offset, row.nr as u64, args, random);
    }

    fn go(&mut self, offset: u64, nr: u64, args: [u64; 6], random: &mut Random) {
        self.strikes += 1;
        let slots = &self.puppet.slots;
        let mut words: Words = std::array::from_fn(|_| argument(random));
        words[gregs::RAX] = nr;
        let places = [gregs::RDI, gregs::RSI, gregs::RDX, gregs::R10, gregs::R8, gregs::R9];
        for (place, arg) in places.into_iter().zip(args) {
            words[place] = arg;
        }
        // Mostly a slot register that lets the code run on.
        if random.below(4) != 0 {
            words[gregs::R15] = slots.addr(1);
        }
        words[gregs::RIP] = slots.base + offset;
        words[gregs::RFLAGS] = if random.below(8) == 0 { random.word() & 0x4_0cd5 | 0x202 } else { 0x202 };
        words[gregs::CSGSFSSS] = SEGMENTS;
        if self.puppet.run(&words, Duration::from_millis(5)).is_some() {
            return;
        }
        if self.space.stub_exit().is_none() && self.puppet.recover() {
            self.recoveries += 1;
            return;
        }
        (self.space, self.puppet) = Self::fresh(self.platform);
        self.spaces += 1;
    }
}
