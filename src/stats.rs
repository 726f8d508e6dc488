//! Counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a platform has counted, contexts that are running included.
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
    /// Those answered in the stub: only the stub can count them, so this is the guests' claim. As far as contexts
    /// have counted them, see [`Context::count_answers`](crate::Context::count_answers).
    pub answered: u64,
    /// Distinct sites that were executed, of all address spaces together.
    pub sites: u64,
    /// Those of them through which a call arrived as a patched one.
    pub sites_patched: u64,
    /// What eager patching did.
    pub eager: EagerStats,
}

/// What eager patching did ([`Patching::Eager`](crate::Patching::Eager)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EagerStats {
    /// Files whose sites were planned.
    pub files_scanned: u64,
    /// Mappings of files that could not be scanned (no ELF file for x86-64, too big, not readable): their sites are
    /// patched lazily.
    pub mappings_left: u64,
    /// Sites planned, with a plan for them.
    pub sites_planned: u64,
    /// Patches made when code was mapped.
    pub sites_patched: u64,
    /// Time in scans.
    pub scan_time: Duration,
    /// Time in making those patches.
    pub patch_time: Duration,
}

/// The counters behind [`Stats`]. Contexts count for themselves, each in a line of its own, so that nothing shared
/// is written in a hand-off; the sums are made when somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    contexts: Mutex<Contexts>,
    pub(crate) sites: AtomicU64,
    pub(crate) sites_patched: AtomicU64,
    eager: Mutex<EagerStats>,
}

#[derive(Debug, Default)]
struct Contexts {
    live: BTreeMap<u64, Arc<Local>>,
    next: u64,
    /// Calls of contexts that are gone: trapped, patched, answered.
    ended: [u64; 3],
}

impl Counters {
    /// The counts of a new context.
    pub(crate) fn register(&self) -> Registered {
        let local = Arc::<Local>::default();
        let mut contexts = lock(&self.contexts);
        contexts.next += 1;
        let id = contexts.next;
        contexts.live.insert(id, Arc::clone(&local));
        Registered { id, local }
    }

    /// The context is gone; its counts stay.
    pub(crate) fn unregister(&self, registered: &Registered) {
        let mut contexts = lock(&self.contexts);
        if let Some(local) = contexts.live.remove(&registered.id) {
            contexts.ended = sum(contexts.ended, local.get());
        }
    }

    pub(crate) fn count_eager(&self, count: impl FnOnce(&mut EagerStats)) {
        count(&mut lock(&self.eager));
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let contexts = lock(&self.contexts);
        let live = contexts.live.values().map(|local| local.get());
        let [trapped, patched, answered] = live.fold(contexts.ended, sum);
        drop(contexts);
        Stats {
            calls: trapped.saturating_add(patched).saturating_add(answered),
            trapped,
            patched,
            answered,
            sites: self.sites.load(Ordering::Relaxed),
            sites_patched: self.sites_patched.load(Ordering::Relaxed),
            eager: *lock(&self.eager),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A context's own counts. Only its own thread writes them: plain loads and stores do, and no other counter shares
/// the line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Local {
    trapped: AtomicU64,
    patched: AtomicU64,
    answered: AtomicU64,
}

/// Saturating: what the stub claims may be anything.
fn sum(a: [u64; 3], b: [u64; 3]) -> [u64; 3] {
    [a[0].saturating_add(b[0]), a[1].saturating_add(b[1]), a[2].saturating_add(b[2])]
}

impl Local {
    pub(crate) fn count_trapped(&self) {
        self.trapped.store(self.trapped.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(crate) fn count_patched(&self) {
        self.patched.store(self.patched.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(crate) fn count_answered(&self, count: u64) {
        let before = self.answered.load(Ordering::Relaxed);
        self.answered.store(before.saturating_add(count), Ordering::Relaxed);
    }

    fn get(&self) -> [u64; 3] {
        [&self.trapped, &self.patched, &self.answered].map(|count| count.load(Ordering::Relaxed))
    }
}

/// A context's counts, and under which number the platform knows them.
#[derive(Debug)]
pub(crate) struct Registered {
    id: u64,
    pub(crate) local: Arc<Local>,
}

/// Sites that a context called from lately, so that the books of its address space are asked about new ones only.
#[derive(Debug)]
pub(crate) struct RecentSites([u64; RECENT]);

const RECENT: usize = 64;

impl RecentSites {
    pub(crate) fn new() -> Self {
        Self([0; RECENT])
    }

    /// Whether a call from here, arriving in this way, is not among the last ones; it is from now on.
    pub(crate) fn is_new(&mut self, site: u64, patched: bool) -> bool {
        let entry = site << 1 | u64::from(patched);
        let slot = &mut self.0[(site ^ site >> 6) as usize % RECENT];
        let new = *slot != entry;
        *slot = entry;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_and_ended_contexts_are_counted_once() {
        let counters = Counters::default();
        let (a, b) = (counters.register(), counters.register());
        a.local.count_trapped();
        b.local.count_patched();
        b.local.count_patched();
        let stats = counters.snapshot();
        assert_eq!((stats.calls, stats.trapped, stats.patched), (3, 1, 2));
        counters.unregister(&b);
        assert_eq!(counters.snapshot(), stats, "the same when a context has ended");
    }

    #[test]
    fn a_recent_site_is_new_again_when_it_arrives_otherwise() {
        let mut recent = RecentSites::new();
        assert!(recent.is_new(0x40_1000, false));
        assert!(!recent.is_new(0x40_1000, false));
        assert!(recent.is_new(0x40_1000, true));
        assert!(!recent.is_new(0x40_1000, true));
    }
}
