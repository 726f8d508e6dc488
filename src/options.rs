//! How a platform is set up.

use std::time::Duration;

/// When guest `syscall` instructions are patched into jumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Patching {
    /// Never: no guest byte is ever changed, every call traps.
    Off,
    /// A site is patched when it first traps.
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
    interrupt_deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { patching: Patching::default(), interrupt_deadline: Duration::from_secs(10) }
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
}
