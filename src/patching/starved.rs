//! Sites that found no memory for a trampoline: they are not planned and tried again at every trap.
//!
//! Such a site is tried again once trampolines were freed in its address space, or after a number of traps that doubles
//! from try to try (room may have come by other ways: the guest unmapped something near).

use std::collections::HashMap;

/// Sites that are remembered; a guest chooses them. With one more, all are forgotten and tried again once.
const MAX_SITES: usize = 8 * 1024;
/// Traps between two tries, first and most.
const FIRST_PAUSE: u32 = 4;
const LAST_PAUSE: u32 = 4096;

#[derive(Debug, Default)]
pub(super) struct Starved {
    sites: HashMap<u64, Hunger>,
}

#[derive(Debug, Clone, Copy)]
struct Hunger {
    /// What [`Rounds::freed`](super::retired::Rounds::freed) was.
    freed: u64,
    /// Traps to sit out.
    left: u32,
    pause: u32,
}

impl Starved {
    /// A site trapped: whether it is to be left alone this time.
    pub(super) fn sits_out(&mut self, site: u64, freed: u64) -> bool {
        let Some(hunger) = self.sites.get_mut(&site) else { return false };
        if hunger.freed != freed || hunger.left == 0 {
            return false;
        }
        hunger.left -= 1;
        true
    }

    /// A site was tried and found no memory.
    pub(super) fn note(&mut self, site: u64, freed: u64) {
        let before = self.sites.get(&site).map(|hunger| hunger.pause);
        if before.is_none() && self.sites.len() >= MAX_SITES {
            self.sites.clear();
        }
        let pause = before.map_or(FIRST_PAUSE, |pause| (2 * pause).min(LAST_PAUSE));
        self.sites.insert(site, Hunger { freed, left: pause, pause });
    }

    /// A site was patched.
    pub(super) fn forget(&mut self, site: u64) {
        self.sites.remove(&site);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many traps are tries that fail.
    fn tries(starved: &mut Starved, traps: u32, freed: u64) -> u32 {
        let mut tries = 0;
        for _ in 0..traps {
            if !starved.sits_out(1, freed) {
                tries += 1;
                starved.note(1, freed);
            }
        }
        tries
    }

    #[test]
    fn a_site_without_memory_is_tried_ever_more_seldom() {
        let mut starved = Starved::default();
        assert_eq!(tries(&mut starved, 1, 0), 1);
        let many = tries(&mut starved, 100_000, 0);
        assert!((10..50).contains(&many), "{many} tries");
        assert!(tries(&mut starved, 100_000, 0) >= 20, "but for ever");
    }

    #[test]
    fn freed_memory_ends_the_wait() {
        let mut starved = Starved::default();
        tries(&mut starved, 1_000, 0);
        assert!(starved.sits_out(1, 0));
        assert!(!starved.sits_out(1, 1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut starved = Starved::default();
        for site in 0..100_000 {
            starved.note(site, 0);
            assert!(starved.sites.len() <= MAX_SITES);
        }
        starved.note(7, 0);
        starved.forget(7);
        assert!(!starved.sits_out(7, 0));
    }
}
