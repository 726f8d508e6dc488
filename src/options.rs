//! How a platform is set up.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    patching: Patching,
}

impl Options {
    /// The defaults: lazy patching.
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
}
