//! How a platform is set up.

use std::time::Duration;

/// When guest `syscall` instructions are patched into jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Patching {
    /// Never: no guest byte is ever changed, every call traps.
    Off,
    /// A site is patched when it traps, or has trapped a few times: see [`Options::patch_after`].
    #[default]
    Lazy,
    /// All sites of an executable file are patched when it is mapped.
    Eager,
}

/// Options of a [`Systrap`](crate::Systrap): a method named after an option sets it, its namesake with `get_` says what it
/// was set to.
///
/// ```
/// use systrap::{Options, Patching};
/// let options = Options::new().patching(Patching::Off);
/// assert_eq!(options.get_patching(), Patching::Off);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    patching: Patching,
    lazy_threshold: u32,
    trampoline_bytes: usize,
    interrupt_deadline: Duration,
    co_location: bool,
    cpuid_faulting: bool,
    speculation_barriers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patching: Patching::default(),
            lazy_threshold: 1,
            trampoline_bytes: usertrap::Limits::default().max_trampoline_bytes,
            interrupt_deadline: Duration::from_secs(10),
            co_location: false,
            cpuid_faulting: false,
            speculation_barriers: false,
        }
    }
}

impl Options {
    /// The defaults: lazy patching, 10 s for a guest to answer an interrupt.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The toggle of the patching of guest code.
    #[must_use]
    pub fn patching(mut self, patching: Patching) -> Self {
        self.patching = patching;
        self
    }

    /// What [`Options::patching`] was set to.
    #[must_use]
    pub fn get_patching(&self) -> Patching {
        self.patching
    }

    /// With [`Patching::Lazy`]: the call of a site, counted for each address space, after which it is patched. 1, the
    /// default, is the first.
    ///
    /// A patch takes as long as some sixty calls that trap. Programs that run for a moment make most of their calls
    /// from sites that they use only a few times.
    #[must_use]
    pub fn patch_after(mut self, calls: u32) -> Self {
        self.lazy_threshold = calls;
        self
    }

    /// What [`Options::patch_after`] was set to.
    #[must_use]
    pub fn get_patch_after(&self) -> u32 {
        self.lazy_threshold
    }

    /// The most memory that the trampolines of one address space take, in bytes, those included that are rolled back
    /// and not freed yet; 8 MiB at first. Sites that find none trap until some is freed.
    #[must_use]
    pub fn trampoline_bytes(mut self, bytes: usize) -> Self {
        self.trampoline_bytes = bytes;
        self
    }

    /// What [`Options::trampoline_bytes`] was set to.
    #[must_use]
    pub fn get_trampoline_bytes(&self) -> usize {
        self.trampoline_bytes
    }

    /// How long a stub process may leave an interrupt unanswered before it is killed and the switch fails with
    /// [`SwitchError::StubCorrupted`](crate::SwitchError::StubCorrupted). Only a hostile guest, or a host without a
    /// free core for so long, leaves one unanswered; hence the default of 10 s.
    #[must_use]
    pub fn interrupt_deadline(mut self, deadline: Duration) -> Self {
        self.interrupt_deadline = deadline;
        self
    }

    /// What [`Options::interrupt_deadline`] was set to.
    #[must_use]
    pub fn get_interrupt_deadline(&self) -> Duration {
        self.interrupt_deadline
    }

    /// Lets the platform choose CPUs: where a stub thread and the thread that drives its context both sleep at each event,
    /// they share one (sched_setaffinity(2)), which saves waking an idle CPU twice a call. Off by default, for it confines
    /// threads of the embedder's: those that call [`Context::switch`](crate::Context::switch), from there on until they go to
    /// wait for longer ([`Context::prepare_sleep`](crate::Context::prepare_sleep)) or the context ends. A thread or process
    /// that is made in between begins with the same affinity.
    #[must_use]
    pub fn co_location(mut self, on: bool) -> Self {
        self.co_location = on;
        self
    }

    /// What [`Options::co_location`] was set to.
    #[must_use]
    pub fn get_co_location(&self) -> bool {
        self.co_location
    }

    /// Makes `cpuid` an event: SIGSEGV with `SI_KERNEL` (128) at the instruction, which the embedder emulates by setting
    /// the registers (arch_prctl(2), `ARCH_CPUID_OFF`). [`Systrap::new`](crate::Systrap::new) says so if the CPU
    /// cannot.
    #[must_use]
    pub fn cpuid_faulting(mut self, on: bool) -> Self {
        self.cpuid_faulting = on;
        self
    }

    /// What [`Options::cpuid_faulting`] was set to.
    #[must_use]
    pub fn get_cpuid_faulting(&self) -> bool {
        self.cpuid_faulting
    }

    /// Turns speculative store bypass and indirect-branch speculation off in stub processes, as far as the host lets
    /// them be controlled (prctl(2), `PR_SET_SPECULATION_CTRL`). Without it, side channels between a stub process and
    /// its supervisor are no concern of this library.
    #[must_use]
    pub fn speculation_barriers(mut self, on: bool) -> Self {
        self.speculation_barriers = on;
        self
    }

    /// What [`Options::speculation_barriers`] was set to.
    #[must_use]
    pub fn get_speculation_barriers(&self) -> bool {
        self.speculation_barriers
    }
}
