//! The list of every host call that can come out of a stub process.
//!
//! This is the security promise as data: the filters are compiled from it, the documentation prints it,
//! a snapshot test shows every change to it. Everything not listed is `SECCOMP_RET_TRAP`.

use std::fmt;

use systrap_stub::code::SyscallSite;
use systrap_stub::code::leader::{CLONE_PROCESS_FLAGS, CLONE_THREAD_FLAGS, SYSMSG_MAP_LEN};
use systrap_stub::layout::{self, rodata};

/// Which filter a row belongs to.
///
/// Every thread of a stub process runs under the base filter, which has all rows; stub threads run under the guest filter
/// as well, and the stricter answer counts. No site has rows of both, so that the guest filter need only ask where a call
/// comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterKind {
    /// Leader, fork children, and threads that have not installed the guest filter yet.
    Base,
    /// Stub threads.
    Guest,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Equal to a 64-bit value.
    Eq(u64),
    /// The low 32 bits equal a value (arguments that the kernel reads as `int`).
    Eq32(u32),
    /// Less than a value.
    Lt(u64),
    /// Not less than a value.
    Ge(u64),
    /// Less than or equal to a value.
    Le(u64),
    /// No bit outside the mask is set.
    OnlyBits(u64),
}

/// A test of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Condition {
    /// Index of the argument, 0 to 5.
    pub arg: u8,
    /// What it has to be.
    pub test: Test,
}

/// One admitted host call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The filter that admits it.
    pub filter: FilterKind,
    /// The one instruction it may come from.
    pub site: SyscallSite,
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub nr: i64,
    /// What its arguments have to be, all of them.
    pub conditions: Vec<Condition>,
    /// Why it is harmless whoever makes it.
    pub why: &'static str,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arg = self.arg;
        match self.test {
            Test::Eq(value) => write!(f, "arg{arg} == {value:#x}"),
            Test::Eq32(value) => write!(f, "int arg{arg} == {value:#x}"),
            Test::Lt(value) => write!(f, "arg{arg} < {value:#x}"),
            Test::Ge(value) => write!(f, "arg{arg} >= {value:#x}"),
            Test::Le(value) => write!(f, "arg{arg} <= {value:#x}"),
            Test::OnlyBits(mask) => write!(f, "arg{arg} & ~{mask:#x} == 0"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {}(", self.filter, self.site, self.name)?;
        for (i, condition) in self.conditions.iter().enumerate() {
            write!(f, "{}{condition}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, "): {}", self.why)
    }
}

const fn eq(arg: u8, value: u64) -> Condition {
    Condition { arg, test: Test::Eq(value) }
}
const fn eq32(arg: u8, value: u32) -> Condition {
    Condition { arg, test: Test::Eq32(value) }
}

/// Advice that changes nothing but the caller's own private memory and its paging.
const HARMLESS_ADVICE: [i32; 10] = [
    libc::MADV_NORMAL,
    libc::MADV_RANDOM,
    libc::MADV_SEQUENTIAL,
    libc::MADV_WILLNEED,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_POPULATE_READ,
    libc::MADV_POPULATE_WRITE,
];

/// Futex operations that can only touch sleepers of the caller's own address space (futex(2)).
///
/// With FUTEX_PRIVATE_FLAG the kernel (kernel/futex/core.c, `get_futex_key`) makes the key from the address space and
/// the address alone, whatever is mapped there, and marks it so in the low bits of its offset. The words on which stub
/// threads, leader and supervisor sleep are used without the flag: their keys hold the inode of the memfd behind them.
/// Keys of the two kinds are never equal (`futex_match`), so that no private operation wakes, moves or counts those
/// sleepers. The PI operations are not here: they change priorities of threads named by a word in memory.
const PRIVATE_FUTEX_OPS: [i32; 9] = [
    libc::FUTEX_WAIT,
    libc::FUTEX_WAIT | libc::FUTEX_CLOCK_REALTIME,
    libc::FUTEX_WAKE,
    libc::FUTEX_REQUEUE,
    libc::FUTEX_CMP_REQUEUE,
    libc::FUTEX_WAKE_OP,
    libc::FUTEX_WAIT_BITSET,
    libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME,
    libc::FUTEX_WAKE_BITSET,
];

/// Whether stub threads may make a futex call with this operation for their guests.
pub(crate) fn is_private_futex_op(op: u32) -> bool {
    PRIVATE_FUTEX_OPS.iter().any(|admitted| (admitted | libc::FUTEX_PRIVATE_FLAG) as u32 == op)
}

/// Flags of anonymous mappings that any stub thread may make.
const ANONYMOUS_FLAGS: [i32; 3] = [
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
];

/// Flags of mappings of files, which only the leader makes.
const FILE_FLAGS: [i32; 2] = [libc::MAP_PRIVATE | libc::MAP_FIXED, libc::MAP_SHARED | libc::MAP_FIXED];

/// Conditions that keep a range (address in `addr_arg`, length in `len_arg`) below the stub: the bounds are
/// separate, and their sum does not reach it.
fn guest_range(addr_arg: u8, len_arg: u8) -> [Condition; 2] {
    [
        Condition { arg: addr_arg, test: Test::Lt(layout::MAX_USER_ADDRESS) },
        Condition { arg: len_arg, test: Test::Le(layout::MAX_CALL_LEN) },
    ]
}

const PROT_RWX: Condition = Condition { arg: 2, test: Test::OnlyBits(7) };

/// The rows for a stub at `base`.
#[must_use]
pub fn rows(base: u64) -> Vec<Row> {
    let mut table = Table { rows: Vec::new() };
    table.fork_child(base);
    table.leader(base);
    table.thread_start(base);
    table.stub_thread(base);
    table.rows
}

struct Table {
    rows: Vec<Row>,
}

impl Table {
    fn add(
        &mut self,
        filter: FilterKind,
        site: SyscallSite,
        name: &'static str,
        nr: i64,
        conditions: impl IntoIterator<Item = Condition>,
        why: &'static str,
    ) {
        let conditions = conditions.into_iter().collect();
        self.rows.push(Row { filter, site, name, nr, conditions, why });
    }

    fn fork_child(&mut self, base: u64) {
        use FilterKind::Base;
        use SyscallSite::{ForkDontfork, ForkGetppid, ForkMap, ForkPdeathsig, ForkSeal};
        let request = base + layout::REQUEST;
        let slots = base + layout::SYSMSG;
        let why = "ends the caller with the supervisor";
        self.add(Base, ForkPdeathsig, "prctl", libc::SYS_prctl, [eq32(0, 1), eq(1, 9)], why);
        self.add(Base, ForkGetppid, "getppid", libc::SYS_getppid, [], "tells the supervisor's pid");
        let why = "one read-only page of the sealed request memfd at its fixed place";
        let map = [eq(0, request), eq(1, layout::PAGE_SIZE), eq(2, 1), eq(3, 0x11)];
        self.add(Base, ForkMap, "mmap", libc::SYS_mmap, map, why);
        let why = "the address space's own slots at their fixed place";
        let map = [eq(0, slots), eq(1, SYSMSG_MAP_LEN), eq(2, 3), eq(3, 0x11)];
        self.add(Base, ForkMap, "mmap", libc::SYS_mmap, map, why);
        for (addr, len) in [(request, layout::PAGE_SIZE), (slots, SYSMSG_MAP_LEN)] {
            let conditions = [eq(0, addr), eq(1, len), eq32(2, libc::MADV_DONTFORK as u32)];
            let why = "keeps the shared areas out of fork children";
            self.add(Base, ForkDontfork, "madvise", libc::SYS_madvise, conditions, why);
        }
        let text = (base, layout::RODATA + layout::RODATA_LEN);
        for (addr, len) in [text, (request, layout::PAGE_SIZE), (slots, SYSMSG_MAP_LEN)] {
            let why = "makes the stub's own mappings immutable";
            self.add(Base, ForkSeal, "mseal", SYS_MSEAL, [eq(0, addr), eq(1, len), eq(2, 0)], why);
        }
    }

    fn leader(&mut self, base: u64) {
        use FilterKind::Base;
        use SyscallSite::{LeaderAnswer, LeaderOp, LeaderWait, LeaderWake};
        let request = base + layout::REQUEST;
        let slots = base + layout::SYSMSG;
        let why = "sleeps on the request page";
        self.add(Base, LeaderWait, "futex", libc::SYS_futex, [eq(0, request), eq32(1, 0)], why);
        let why = "moves a file offset; only the leader reaches this row";
        self.add(Base, LeaderAnswer, "lseek", libc::SYS_lseek, [eq32(2, 0)], why);
        let why = "wakes the supervisor";
        self.add(Base, LeaderWake, "futex", libc::SYS_futex, [eq(0, slots), eq32(1, 1)], why);
        for flags in FILE_FLAGS.into_iter().chain(ANONYMOUS_FLAGS) {
            let conditions = guest_range(0, 1).into_iter().chain([PROT_RWX, eq(3, flags as u64)]);
            let why = "a guest mapping below the stub; the descriptor is the supervisor's choice";
            self.add(Base, LeaderOp, "mmap", libc::SYS_mmap, conditions, why);
        }
        let move_flags = eq32(3, (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u32);
        let bounded = Condition { arg: 2, test: Test::Le(layout::MAX_CALL_LEN) };
        let target = Condition { arg: 4, test: Test::Lt(layout::MAX_USER_ADDRESS) };
        let conditions = guest_range(0, 1).into_iter().chain([bounded, move_flags, target]);
        let why = "moves a guest mapping within the guest's range";
        self.add(Base, LeaderOp, "mremap", libc::SYS_mremap, conditions, why);
        let conditions = guest_range(0, 1).into_iter().chain([bounded, eq32(3, 0)]);
        let why = "resizes a guest mapping in place; the kernel never grows it over another mapping";
        self.add(Base, LeaderOp, "mremap", libc::SYS_mremap, conditions, why);
        self.guest_memory(Base, LeaderOp);
        let why = "a new stub process without signals, shared descriptors, own memory";
        self.add(Base, LeaderOp, "clone", libc::SYS_clone, [eq(0, CLONE_PROCESS_FLAGS)], why);
        let stack = Condition { arg: 1, test: Test::Ge(slots) };
        let why = "a new stub thread, which filters itself before it runs guest code";
        self.add(Base, LeaderOp, "clone", libc::SYS_clone, [eq(0, CLONE_THREAD_FLAGS), stack], why);
    }

    fn thread_start(&mut self, base: u64) {
        use FilterKind::{Base, Guest};
        use SyscallSite::{ThreadSeccomp, ThreadSigaltstack, ThreadSigmask};
        let data = base + layout::RODATA;
        let stacks = [
            Condition { arg: 0, test: Test::Ge(data + rodata::STACKS) },
            Condition { arg: 0, test: Test::Lt(data + layout::RODATA_LEN) },
            eq(1, 0),
        ];
        let why = "sets the caller's signal stack to that of a slot";
        self.add(Base, ThreadSigaltstack, "sigaltstack", libc::SYS_sigaltstack, stacks, why);
        let conditions = [eq32(0, 1), eq32(1, 0), eq(2, data + rodata::GUEST_FPROG)];
        let why = "adds the guest filter, which only takes away";
        self.add(Base, ThreadSeccomp, "seccomp", libc::SYS_seccomp, conditions, why);
        let conditions = [eq32(0, 2), eq(1, data + rodata::THREAD_SIGMASK), eq(2, 0), eq(3, 8)];
        let why = "sets the one signal mask that stub threads have";
        self.add(Guest, ThreadSigmask, "rt_sigprocmask", libc::SYS_rt_sigprocmask, conditions, why);
    }

    fn stub_thread(&mut self, base: u64) {
        use FilterKind::Guest;
        use SyscallSite::{
            ExitGroup, FastExecute, FastPass, FastWait, FastWake, ThreadExecute, ThreadWait, ThreadWake,
        };
        let slots = base + layout::SYSMSG;
        let in_slots = [
            Condition { arg: 0, test: Test::Ge(slots) },
            Condition { arg: 0, test: Test::Lt(slots + layout::SYSMSG_LEN) },
        ];
        for site in [ThreadWait, FastWait] {
            let why = "sleeps on the address space's own slots";
            let wait = in_slots.into_iter().chain([eq32(1, 0)]);
            self.add(Guest, site, "futex", libc::SYS_futex, wait, why);
            let why = "goes on with that sleep after SIGSTOP and SIGCONT";
            self.add(Guest, site, "restart_syscall", libc::SYS_restart_syscall, [], why);
        }
        for site in [ThreadWake, FastWake] {
            let why = "wakes sleepers on the address space's own slots";
            let wake = in_slots.into_iter().chain([eq32(1, 1)]);
            self.add(Guest, site, "futex", libc::SYS_futex, wake, why);
        }
        for site in [ThreadExecute, FastExecute] {
            for flags in ANONYMOUS_FLAGS {
                let conditions =
                    guest_range(0, 1).into_iter().chain([PROT_RWX, eq(3, flags as u64), eq32(4, u32::MAX)]);
                let why = "private memory below the stub";
                self.add(Guest, site, "mmap", libc::SYS_mmap, conditions, why);
            }
            self.guest_memory(Guest, site);
            self.guest_futexes(site);
        }
        self.guest_futexes(FastPass);
        for command in [MEMBARRIER_REGISTER_SYNC_CORE, MEMBARRIER_SYNC_CORE] {
            let why = "serialises the cores that run this address space";
            let conditions = [eq32(0, command), eq32(1, 0)];
            self.add(Guest, ThreadExecute, "membarrier", libc::SYS_membarrier, conditions, why);
        }
        self.add(Guest, ExitGroup, "exit_group", libc::SYS_exit_group, [], "ends the stub process");
    }

    /// What a guest's threads may do among themselves.
    fn guest_futexes(&mut self, site: SyscallSite) {
        use FilterKind::Guest;
        for op in PRIVATE_FUTEX_OPS {
            let conditions = [eq32(1, (op | libc::FUTEX_PRIVATE_FLAG) as u32)];
            let why =
                "sleeps on or wakes private keys of the caller's own address space, which nobody else uses";
            self.add(Guest, site, "futex", libc::SYS_futex, conditions, why);
        }
        let why = "goes on with such a sleep after SIGSTOP and SIGCONT";
        self.add(Guest, site, "restart_syscall", libc::SYS_restart_syscall, [], why);
        self.add(Guest, site, "sched_yield", libc::SYS_sched_yield, [], "lets others run");
    }

    /// munmap, mprotect and madvise of the guest's range.
    fn guest_memory(&mut self, filter: FilterKind, site: SyscallSite) {
        let why = "takes away the guest's own memory";
        self.add(filter, site, "munmap", libc::SYS_munmap, guest_range(0, 1), why);
        let why = "protects the guest's own memory";
        let conditions = guest_range(0, 1).into_iter().chain([PROT_RWX]);
        self.add(filter, site, "mprotect", libc::SYS_mprotect, conditions, why);
        for advice in HARMLESS_ADVICE {
            let conditions = guest_range(0, 1).into_iter().chain([eq32(2, advice as u32)]);
            let why = "advice on the guest's own memory that changes nothing else";
            self.add(filter, site, "madvise", libc::SYS_madvise, conditions, why);
        }
    }
}

/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE` of membarrier(2).
pub(crate) const MEMBARRIER_SYNC_CORE: u32 = 1 << 5;
/// `MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE`.
pub(crate) const MEMBARRIER_REGISTER_SYNC_CORE: u32 = 1 << 6;
/// mseal(2), Linux 6.10; not in every libc crate.
const SYS_MSEAL: i64 = 462;
