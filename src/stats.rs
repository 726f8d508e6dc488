//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a platform, or a context, has counted.
///
/// `calls = trapped + patched + answered`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// System calls of guests.
    pub calls: u64,
    /// Those that came through seccomp.
    pub trapped: u64,
    /// Those that came through a patched site.
    pub patched: u64,
    /// Those answered in the stub: only the stub can count them, so this is the guests' claim.
    pub answered: u64,
    /// Distinct sites that were executed.
    pub sites: u64,
    /// Those of them that are patched.
    pub sites_patched: u64,
}

/// The counters behind [`Stats`]. Contexts count for themselves and add up when they let go of a stub thread,
/// so that nothing shared is written in a hand-off.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    trapped: AtomicU64,
    patched: AtomicU64,
}

impl Counters {
    pub(crate) fn add(&self, local: &Local) {
        self.trapped.fetch_add(local.trapped, Ordering::Relaxed);
        self.patched.fetch_add(local.patched, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let trapped = self.trapped.load(Ordering::Relaxed);
        let patched = self.patched.load(Ordering::Relaxed);
        Stats { calls: trapped + patched, trapped, patched, ..Stats::default() }
    }
}

/// A context's own counts since it last added them up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Local {
    pub(crate) trapped: u64,
    pub(crate) patched: u64,
}
