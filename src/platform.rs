//! The platform: one template stub process, and everything cloned from it.

use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::thread;

use systrap_stub::layout;

use crate::arch::xstate;
use crate::patching::{self, Patcher};
use crate::shared::RequestPages;
use crate::stats::Counters;
use crate::subprocess::{self, Cpus, Gangs, Plan, Prepared, Reaper, Reservation, Subprocess};
use crate::{AddressSpace, Context, Error, GuestAddr, Options, PAGE_SIZE, Patching, Stats};

/// The platform; the counterpart of gVisor's `systrap.Systrap`.
///
/// A cheap handle: clones refer to the same platform. When the last handle, address space and context are
/// gone, every stub process has been killed and reaped.
#[derive(Debug, Clone)]
pub struct Systrap {
    pub(crate) inner: Arc<Inner>,
}

/// Where guests find the host's vDSO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vdso {
    /// Its ELF header: the value for `AT_SYSINFO_EHDR`.
    pub base: GuestAddr,
    /// First address of `[vvar]` and `[vdso]`.
    pub start: GuestAddr,
    /// Length of both in bytes.
    pub len_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) xstate: xstate::Layout,
    pub(crate) counters: Counters,
    pub(crate) supervisor: i32,
    pub(crate) plans: patching::Plans,
    pub(crate) files: Mutex<patching::Files>,
    vdso: Option<Vdso>,
    /// Read once, so that a confined supervisor need not open files.
    min_user_address: GuestAddr,
    cpus: usize,
    pub(crate) places: Cpus,
    pub(crate) gangs: Gangs,
    template: Arc<Subprocess>,
    pub(crate) reaper: Reaper,
}

impl Systrap {
    /// Sets up a platform: forks the template stub process from a thread of its own.
    ///
    /// Counterpart: gVisor `systrap.New`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the CPU or kernel lacks something, [`Error::Host`] if the host refuses a
    /// resource, [`Error::StubDied`] if the template could not set itself up.
    pub fn new(options: Options) -> Result<Self, Error> {
        require_fsgsbase()?;
        require_host_calls()?;
        let xstate = xstate::Layout::detect()?;
        let requests = Arc::new(RequestPages::new()?);
        let prepared = Prepared::new(&requests)?;
        let reservation = Reservation::new()?;
        let base = reservation.base();
        let text = subprocess::build_image(base)?;
        let plan = Plan::new(base, &prepared.files(&text, &requests), &options);
        let vdso = plan.vdso();
        let (reaper, template) = Reaper::start(plan, base, &requests, prepared, patches_soon(&options))?;
        make_expendable(template.pid());
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let gangs = Gangs::new(cpus, options.get_co_location());
        let inner = Inner {
            options,
            xstate,
            counters: Counters::default(),
            supervisor: i32::try_from(std::process::id()).unwrap_or(-1),
            plans: patching::new_plans(),
            files: Mutex::default(),
            vdso,
            min_user_address: min_user_address(),
            cpus,
            places: Cpus::detect(options.get_co_location()),
            gangs,
            template,
            reaper,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes an empty address space: a new stub process.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`], [`Error::TemplateDied`], or that of the host call that failed.
    pub fn new_address_space(&self) -> Result<AddressSpace, Error> {
        let template = &self.inner.template;
        let process = template
            .clone_process(&self.inner.reaper, self.inner.supervisor, self.inner.cpus > 1)
            .map_err(|error| match template.exit() {
                Some(how) => Error::TemplateDied { how },
                None => error,
            })?;
        let patcher = Patcher::new(&self.inner.options);
        Ok(AddressSpace::new(Arc::clone(&self.inner), process, patcher))
    }

    /// Makes a context: the execution state of one guest thread, all registers zero.
    ///
    /// # Errors
    ///
    /// None today; making a context may need host resources in a later version.
    pub fn new_context(&self) -> Result<Context, Error> {
        Ok(Context::new(Arc::clone(&self.inner)))
    }

    /// The unit in which mappings are made, in bytes (gVisor `MapUnit`): the page size.
    #[must_use]
    pub fn map_unit(&self) -> u64 {
        PAGE_SIZE
    }

    /// The lowest address that a guest can map (gVisor `MinUserAddress`): `vm.mmap_min_addr`.
    #[must_use]
    pub fn min_user_address(&self) -> GuestAddr {
        self.inner.min_user_address
    }

    /// The first address that a guest cannot map (gVisor `MaxUserAddress`).
    #[must_use]
    pub fn max_user_address(&self) -> GuestAddr {
        GuestAddr::new(layout::MAX_USER_ADDRESS)
    }

    /// Whether an [`AddressSpace`] maps and copies by itself (gVisor `SupportsAddressSpaceIO`): yes.
    #[must_use]
    pub fn supports_address_space_io(&self) -> bool {
        true
    }

    /// Whether contexts must yield to each other in one address space (gVisor
    /// `CooperativelySchedulesAddressSpace`): no, each has a host thread.
    #[must_use]
    pub fn cooperatively_schedules_address_space(&self) -> bool {
        false
    }

    /// Whether a switch notices that another context ran on its CPU meanwhile (gVisor
    /// `DetectsCPUPreemption`): no.
    #[must_use]
    pub fn detects_cpu_preemption(&self) -> bool {
        false
    }

    /// Whether the platform owns the page tables (gVisor `OwnsPageTables`): no, the host kernel does.
    #[must_use]
    pub fn owns_page_tables(&self) -> bool {
        false
    }

    /// How many contexts can make progress at once (gVisor `ConcurrencyCount`): the CPUs this process may use.
    #[must_use]
    pub fn concurrency_count(&self) -> usize {
        self.inner.cpus
    }

    /// A full memory barrier on every CPU that runs a guest (gVisor `GlobalMemoryBarrier`), by
    /// membarrier(2) `MEMBARRIER_CMD_GLOBAL`: it covers all processes, stubs included.
    ///
    /// # Errors
    ///
    /// [`Error::Host`] if the kernel was built without membarrier.
    pub fn global_memory_barrier(&self) -> Result<(), Error> {
        crate::sys::membarrier_global().map_err(|source| Error::host("membarrier", source))
    }

    /// The host calls that the platform makes in this process from now on, as rules for seccompiler (gVisor
    /// `SyscallFilters`). A supervisor admits them, and what it needs itself, in a filter of its own: after
    /// [`Systrap::new`], which needs many more, and on all threads
    /// ([`seccompiler::apply_filter_all_threads`](crate::seccomp::seccompiler::apply_filter_all_threads)). For several platforms the lists of each call are appended.
    ///
    /// Stub processes are not affected: they are cloned from the template, which was there before.
    ///
    /// Not in it is what depends on the program around the platform: its allocator (for glibc's: `brk`, and `mmap`,
    /// `munmap`, `mremap`, `mprotect` and `madvise` of private anonymous memory) and the clock if there is no vDSO.
    /// [`supervisor_rows`](crate::seccomp::supervisor_rows) says what each is for.
    ///
    /// ```
    /// use systrap::seccomp::seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let platform = systrap::Systrap::new(systrap::Options::new())?;
    /// let mut rules = platform.syscall_filters();
    /// rules.insert(libc::SYS_exit_group, vec![]); // and the rest of what the program needs
    /// let (mismatch, matched) = (SeccompAction::KillProcess, SeccompAction::Allow);
    /// let filter = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?;
    /// let program = BpfProgram::try_from(filter)?;
    /// // seccompiler::apply_filter_all_threads(&program)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn syscall_filters(&self) -> std::collections::BTreeMap<i64, Vec<seccompiler::SeccompRule>> {
        crate::seccomp::syscall_filters(self)
    }

    /// Where guests find the host's vDSO, the same in all address spaces; `None` if the host has none.
    #[must_use]
    pub fn vdso(&self) -> Option<Vdso> {
        self.inner.vdso
    }

    /// The counters of the platform.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// How many stub processes exist, the template included.
    #[must_use]
    pub fn stub_process_count(&self) -> usize {
        self.inner.reaper.process_count()
    }

    /// The host's ids of all stub processes.
    #[cfg(feature = "sentry")]
    pub(crate) fn stub_pids(&self) -> Vec<i32> {
        self.inner.reaper.pids()
    }
}

impl Inner {
    /// Where trampolines jump to.
    pub(crate) fn syshandler(&self) -> u64 {
        let syshandler = systrap_stub::code::syshandler::syshandler;
        self.template.base() + systrap_stub::code::offset_of_entry(syshandler) as u64
    }

    pub(crate) fn template_pid(&self) -> i32 {
        self.template.pid()
    }
}

/// Whether guests that make a few calls will have sites patched, so that what patching needs is better made at once.
fn patches_soon(options: &Options) -> bool {
    /// Calls of a site that come before the first ones of most sites are over.
    const SOON: u32 = 16;
    match options.get_patching() {
        Patching::Off => false,
        Patching::Lazy => options.get_patch_after() < SOON,
        Patching::Eager => true,
    }
}

/// The stub sets fs and gs bases in user mode: HWCAP2_FSGSBASE, Linux 5.9.
fn require_fsgsbase() -> Result<(), Error> {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    if crate::sys::hwcap2() & HWCAP2_FSGSBASE != 0 {
        return Ok(());
    }
    let remedy = "use Linux 5.9 or later on a CPU of 2012 or later, without `nofsgsbase`";
    Err(Error::Unsupported { what: "the instructions rdfsbase and wrgsbase for user code", remedy })
}

/// `vm.mmap_min_addr`, in whole pages.
fn min_user_address() -> GuestAddr {
    const USUAL: u64 = 65536;
    let text = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr").unwrap_or_default();
    let min = text.trim().parse::<u64>().unwrap_or(USUAL);
    GuestAddr::new(min.next_multiple_of(PAGE_SIZE))
}

/// Host calls that cannot be done without and that old kernels and seccomp profiles of containers lack. Found
/// here, a lack costs nothing that has to be undone.
fn require_host_calls() -> Result<(), Error> {
    const REMEDY: &str = "use Linux 5.16 or later; in a container, a seccomp profile that permits it";
    let own_pid = i32::try_from(std::process::id()).unwrap_or(-1);
    let probes = [
        ("pidfd_open", crate::sys::pidfd_open(own_pid).map(drop)),
        ("futex_waitv", crate::sys::probe_futex_waitv()),
    ];
    for (what, probe) in probes {
        match probe {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES)) => {
                return Err(Error::Unsupported { what, remedy: REMEDY });
            }
            Err(source) => return Err(Error::host(what, source)),
        }
    }
    Ok(())
}

/// A stub process dies before anything else when memory is short; its children inherit that. Best effort:
/// `/proc` may not be there.
fn make_expendable(pid: i32) {
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "1000");
}
