//! The host calls that the platform makes in the supervisor, so that a supervisor can confine itself.

use std::collections::BTreeMap;
use std::fmt;

use seccompiler::SeccompRule;
use systrap_stub::code::sighandler::INTERRUPT_SIGNAL;
use systrap_stub::layout;

use super::assemble::compile_condition;
use super::table::{Condition, Test};
use crate::Systrap;

/// One host call that the platform makes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SupervisorRow {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub nr: i64,
    /// What its arguments are, where that is fixed.
    pub conditions: Vec<Condition>,
    /// What it is made for.
    pub why: &'static str,
}

impl fmt::Display for SupervisorRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name)?;
        for (i, condition) in self.conditions.iter().enumerate() {
            write!(f, "{}{condition}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, "): {}", self.why)
    }
}

/// See [`Systrap::syscall_filters`].
pub(crate) fn syscall_filters(platform: &Systrap) -> BTreeMap<i64, Vec<SeccompRule>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = Vec::new();
    for row in supervisor_rows(platform) {
        let of_call = rules.entry(row.nr).or_default();
        if row.conditions.is_empty() {
            unconditional.push(row.nr);
            continue;
        }
        let conditions: Result<Vec<_>, _> = row.conditions.iter().map(compile_condition).collect();
        if let Ok(rule) = conditions.and_then(|conditions| Ok(SeccompRule::new(conditions)?)) {
            of_call.push(rule);
        }
    }
    // No rule at all means any arguments, for seccompiler.
    for nr in unconditional {
        rules.insert(nr, Vec::new());
    }
    rules
}

/// The rows behind [`Systrap::syscall_filters`], to be read.
#[must_use]
pub fn supervisor_rows(platform: &Systrap) -> Vec<SupervisorRow> {
    let mut table = Table(Vec::new());
    table.hand_off();
    if platform.inner.options.get_co_location() {
        let why = "Options::co_location: confines stub threads, leaders and their supervisor's threads, and lets them go";
        table.add("sched_setaffinity", libc::SYS_sched_setaffinity, [], why);
    }
    table.address_spaces();
    table.files();
    table.copies();
    table.reaper(platform.inner.template_pid());
    table.thread_end();
    table.0
}

const fn eq(arg: u8, value: u64) -> Condition {
    Condition { arg, test: Test::Eq(value) }
}

const fn int(arg: u8, value: i32) -> Condition {
    Condition { arg, test: Test::Eq32(value as u32) }
}

struct Table(Vec<SupervisorRow>);

impl Table {
    fn add<const N: usize>(
        &mut self,
        name: &'static str,
        nr: i64,
        conditions: [Condition; N],
        why: &'static str,
    ) {
        self.0.push(SupervisorRow { name, nr, conditions: conditions.into(), why });
    }

    /// Waiting for stubs and waking them; interrupts; the locks of the standard library.
    fn hand_off(&mut self) {
        const PRIVATE: i32 = libc::FUTEX_PRIVATE_FLAG;
        const NO_FLAGS: u64 = 0;
        let futex = libc::SYS_futex;
        self.add("futex", futex, [int(1, libc::FUTEX_WAKE)], "wakes a stub thread or a leader");
        self.add("futex", futex, [int(1, libc::FUTEX_WAIT)], "waits for a leader or a new stub thread");
        let why = "wakes a thread that waits for an interrupt, a death, or a lock";
        self.add("futex", futex, [int(1, libc::FUTEX_WAKE | PRIVATE)], why);
        let why = "waits for a lock (standard library)";
        self.add("futex", futex, [int(1, libc::FUTEX_WAIT_BITSET | PRIVATE)], why);
        let why = "waits for a lock of the C library (allocator, thread list)";
        self.add("futex", futex, [int(1, libc::FUTEX_WAIT | PRIVATE)], why);
        let why = "joins the reaper thread (C library)";
        let join = libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME;
        self.add("futex", futex, [int(1, join)], why);
        let why = "waits for an event of the guest, an interrupt or a death, whichever comes first";
        self.add("futex_waitv", libc::SYS_futex_waitv, [int(1, 2), int(2, 0)], why);
        let why = "makes a running guest report an interrupt";
        self.add("tgkill", libc::SYS_tgkill, [int(2, INTERRUPT_SIGNAL)], why);
        let why = "AddressSpace::set_memory_limit";
        self.add("prlimit64", libc::SYS_prlimit64, [int(1, libc::RLIMIT_AS as i32)], why);
        let why = "waits by the clock for a stub that wakes its supervisor without reason";
        self.add("clock_nanosleep", libc::SYS_clock_nanosleep, [eq(1, NO_FLAGS)], why);
        let why = "Systrap::global_memory_barrier";
        self.add("membarrier", libc::SYS_membarrier, [int(0, 1), eq(1, NO_FLAGS)], why);
    }

    /// Making and dropping address spaces; answers of leaders.
    fn address_spaces(&mut self) {
        let flags = (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as i32;
        let why = "the slots of a new address space";
        self.add("memfd_create", libc::SYS_memfd_create, [int(1, flags)], why);
        let most = Condition { arg: 1, test: Test::Le(layout::SYSMSG_LEN) };
        self.add("ftruncate", libc::SYS_ftruncate, [most], "makes slots usable");
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        let why = "keeps anybody from shrinking the slots";
        self.add("fcntl", libc::SYS_fcntl, [int(1, libc::F_ADD_SEALS), int(2, seals)], why);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let slots = [eq(0, 0), eq(1, layout::SYSMSG_LEN), int(2, prot), int(3, libc::MAP_SHARED), eq(5, 0)];
        self.add("mmap", libc::SYS_mmap, slots, "maps the slots into the supervisor");
        self.add("munmap", libc::SYS_munmap, [eq(1, layout::SYSMSG_LEN)], "and unmaps them");
        let why = "gives back the descriptors of an address space, and of the platform at its end";
        self.add("close", libc::SYS_close, [], why);
        let why = "closes a descriptor's last use in debug builds (standard library: is it open?)";
        self.add("fcntl", libc::SYS_fcntl, [int(1, libc::F_GETFD)], why);
        let why = "reads a leader's answer, the offset of the address space's memfd";
        self.add("lseek", libc::SYS_lseek, [eq(1, 0), int(2, libc::SEEK_CUR)], why);
        let why = "a name for a new stub process that cannot become another's";
        self.add("pidfd_open", libc::SYS_pidfd_open, [int(1, 0)], why);
        let why = "ends a stub process";
        let kill = [int(1, libc::SIGKILL), eq(2, 0), int(3, 0)];
        self.add("pidfd_send_signal", libc::SYS_pidfd_send_signal, kill, why);
        let why = "looks at a stub process, and reaps it";
        self.add("waitid", libc::SYS_waitid, [int(0, libc::P_PIDFD as i32)], why);
    }

    /// Files that guests map.
    fn files(&mut self) {
        let why = "the identity of a file that is mapped, for its plans";
        self.add("fstat", libc::SYS_fstat, [], why);
        let by_descriptor = [int(3, libc::AT_EMPTY_PATH)];
        self.add("newfstatat", libc::SYS_newfstatat, by_descriptor, why);
        let why = "Patching::Eager reads the file";
        self.add("pread64", libc::SYS_pread64, [], why);
    }

    /// Guest memory.
    fn copies(&mut self) {
        let one_range = [eq(2, 1), eq(4, 1), eq(5, 0)];
        self.add("process_vm_readv", libc::SYS_process_vm_readv, one_range, "AddressSpace::read");
        self.add("process_vm_writev", libc::SYS_process_vm_writev, one_range, "AddressSpace::write");
    }

    /// The thread that hears of deaths, and the end of the platform.
    fn reaper(&mut self, template: i32) {
        let why = "registers a new stub process with the reaper";
        self.add("epoll_ctl", libc::SYS_epoll_ctl, [int(1, libc::EPOLL_CTL_ADD)], why);
        let why = "and strikes off a dead one";
        self.add("epoll_ctl", libc::SYS_epoll_ctl, [int(1, libc::EPOLL_CTL_DEL)], why);
        let why = "the reaper waits for deaths and for the end of the platform";
        self.add("epoll_wait", libc::SYS_epoll_wait, [int(3, -1)], why);
        self.add("write", libc::SYS_write, [eq(2, 8)], "tells the reaper of the end (eventfd)");
        self.add("read", libc::SYS_read, [eq(2, 8)], "and the reaper hears of it");
        let why = "looks for stub processes that a killed template did not tell of";
        let group = [int(0, libc::P_PGID as i32), int(1, template)];
        self.add("waitid", libc::SYS_waitid, group, why);
        let why = "and ends them";
        self.add("kill", libc::SYS_kill, [int(0, -template), int(1, libc::SIGKILL)], why);
    }

    /// What the standard library and the C library do when the reaper thread ends.
    fn thread_end(&mut self) {
        let why = "the reaper's stack for overflow reports is given back";
        self.add("sigaltstack", libc::SYS_sigaltstack, [eq(1, 0)], why);
        let why = "the reaper ends with all signals blocked";
        self.add("rt_sigprocmask", libc::SYS_rt_sigprocmask, [int(0, libc::SIG_BLOCK), eq(3, 8)], why);
        let why = "the reaper's stack is given back";
        self.add("madvise", libc::SYS_madvise, [int(2, libc::MADV_DONTNEED)], why);
        self.add("munmap", libc::SYS_munmap, [], why);
        self.add("exit", libc::SYS_exit, [int(0, 0)], "the reaper ends");
    }
}
