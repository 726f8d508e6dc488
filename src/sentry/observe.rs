//! Who sees a guest's calls: counters, and the hooks.

use super::hook::{TaskHooks, TaskId};
use super::kernel::Kernel;
use super::socket_address::SocketAddress;
use super::syscalls::{TABLE_LEN, call_name};
use crate::{Arch, Entry, Syscall};
use std::collections::{BTreeMap, HashMap};

/// Who sees the calls of one task as they are made.
pub(crate) struct Observer {
    pub(crate) counts: Counts,
    pub(crate) hooks: TaskHooks,
    /// The address of a socket that the call which hooks watch has returned.
    pub(crate) returned_address: Option<SocketAddress>,
}

impl Observer {
    /// For a new task; `parent` watches the one that made it.
    pub(crate) fn new(kernel: &Kernel, task: TaskId, parent: Option<&Observer>) -> Self {
        let hooks = TaskHooks::attach(kernel, task, parent.map(|parent| &parent.hooks));
        Self { counts: Counts::default(), hooks, returned_address: None }
    }
}

/// Counters of one guest.
pub(crate) struct Counts {
    by_number: Box<[u64; TABLE_LEN]>,
    out_of_range: u64,
    unimplemented: BTreeMap<String, u64>,
    trapped: u64,
    patched: u64,
    /// By address behind the site: whether a call arrived through it as a patched one.
    sites: HashMap<u64, bool>,
    recent_sites: [u64; RECENT],
}

const RECENT: usize = 64;
/// A guest chooses its sites: beyond so many they are not told apart any more.
const MOST_SITES: usize = 1 << 16;
/// Made-up call numbers have made-up names: so many are told apart.
const MOST_UNIMPLEMENTED: usize = 1024;

impl Default for Counts {
    fn default() -> Self {
        Self {
            by_number: Box::new([0; TABLE_LEN]),
            out_of_range: 0,
            unimplemented: BTreeMap::new(),
            trapped: 0,
            patched: 0,
            sites: HashMap::new(),
            recent_sites: [0; RECENT],
        }
    }
}

impl Counts {
    /// Counts a call that arrived.
    pub(crate) fn record(&mut self, call: &Syscall) {
        match self.by_number.get_mut(call.nr as usize) {
            Some(count) if call.arch == Arch::X86_64 => *count += 1,
            _ => self.out_of_range += 1,
        }
        match call.entry {
            Entry::Patched => self.patched += 1,
            Entry::Trapped | Entry::Vsyscall => self.trapped += 1,
        }
        // Most calls come from few sites: a small table in front spares the set.
        let site = call.ip.raw();
        let patched = call.entry == Entry::Patched;
        let entry = site << 1 | u64::from(patched);
        let slot = &mut self.recent_sites[(site ^ site >> 6) as usize % RECENT];
        if *slot != entry {
            *slot = entry;
            if let Some(seen) = self.sites.get_mut(&site) {
                *seen |= patched;
            } else if self.sites.len() < MOST_SITES {
                self.sites.insert(site, patched);
            }
        }
    }

    /// Counts a call that nobody implements.
    pub(crate) fn record_unimplemented(&mut self, name: &str) {
        if let Some(count) = self.unimplemented.get_mut(name) {
            *count += 1;
        } else if self.unimplemented.len() < MOST_UNIMPLEMENTED {
            self.unimplemented.insert(name.to_owned(), 1);
        }
    }

    /// Adds the counts of a task that has ended.
    pub(crate) fn absorb(&mut self, task: &Counts) {
        for (sum, count) in self.by_number.iter_mut().zip(task.by_number.iter()) {
            *sum += count;
        }
        self.out_of_range += task.out_of_range;
        self.trapped += task.trapped;
        self.patched += task.patched;
        for (name, count) in &task.unimplemented {
            if let Some(sum) = self.unimplemented.get_mut(name) {
                *sum += count;
            } else if self.unimplemented.len() < MOST_UNIMPLEMENTED {
                self.unimplemented.insert(name.clone(), *count);
            }
        }
        for (site, patched) in &task.sites {
            if let Some(seen) = self.sites.get_mut(site) {
                *seen |= patched;
            } else if self.sites.len() < MOST_SITES {
                self.sites.insert(*site, *patched);
            }
        }
    }

    /// The counts in the form in which they are reported.
    pub(crate) fn report(self) -> CallCounts {
        let mut by_name: Vec<(String, u64)> = self
            .by_number
            .iter()
            .zip(0..)
            .filter(|(count, _)| **count != 0)
            .map(|(count, number)| (call_name(number), *count))
            .collect();
        if self.out_of_range != 0 {
            by_name.push(("(no such number)".to_owned(), self.out_of_range));
        }
        by_name.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        CallCounts {
            by_name,
            trapped: self.trapped,
            patched: self.patched,
            sites: self.sites.len() as u64,
            sites_patched: self.sites.values().filter(|patched| **patched).count() as u64,
            unimplemented: self.unimplemented,
        }
    }
}

/// How often a guest made which call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallCounts {
    /// Calls by name, the most frequent first. Calls that the stub answered itself are not among them.
    pub by_name: Vec<(String, u64)>,
    /// Calls that came through seccomp.
    pub trapped: u64,
    /// Calls that came through a patched site.
    pub patched: u64,
    /// Distinct instruction addresses that calls came from.
    pub sites: u64,
    /// Those of them through which a call arrived as a patched one: a site that is patched and never called again is
    /// not among them.
    pub sites_patched: u64,
    /// Calls that ended with `ENOSYS` because nobody implements them.
    pub unimplemented: BTreeMap<String, u64>,
}
