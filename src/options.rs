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

/// Options of a [`Systrap`](crate::Systrap).
///
/// ```
/// use systrap::{Options, Patching};
/// let options = Options::new().patching(Patching::Off);
/// assert_eq!(options.patching_mode(), Patching::Off);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    patching: Patching,
    lazy_threshold: u32,
    interrupt_deadline: Duration,
    cpuid_faulting: bool,
    speculation_barriers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            patching: Patching::default(),
            lazy_threshold: 1,
            interrupt_deadline: Duration::from_secs(10),
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
    pub fn patching_mode(&self) -> Patching {
        self.patching
    }

    /// With [`Patching::Lazy`]: the call of a site, counted for each address space, after which it is patched. 1, the
    /// default, is the first.
    ///
    /// A patch takes as long as some twenty calls that trap. Programs that run for a moment make most of their calls
    /// from sites that they use only a few times.
    #[must_use]
    pub fn patch_after(mut self, calls: u32) -> Self {
        self.lazy_threshold = calls;
        self
    }

    /// What [`Options::patch_after`] was set to.
    #[must_use]
    pub fn lazy_threshold(&self) -> u32 {
        self.lazy_threshold
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
    pub fn interrupt_deadline_limit(&self) -> Duration {
        self.interrupt_deadline
    }

    /// Makes `cpuid` an event: SIGSEGV with `SI_KERNEL` (128) at the instruction, which the embedder emulates by setting
    /// the registers (arch_prctl(2), `ARCH_CPUID_OFF`). [`Systrap::new`](crate::Systrap::new) says so if the CPU
    /// cannot.
    #[must_use]
    pub fn cpuid_faulting(mut self, on: bool) -> Self {
        self.cpuid_faulting = on;
        self
    }

    /// Whether [`Options::cpuid_faulting`] was asked for.
    #[must_use]
    pub fn has_cpuid_faulting(&self) -> bool {
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

    /// Whether [`Options::speculation_barriers`] was asked for.
    #[must_use]
    pub fn has_speculation_barriers(&self) -> bool {
        self.speculation_barriers
    }
}
