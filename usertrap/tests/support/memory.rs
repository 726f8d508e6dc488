//! Stand-ins for what a caller provides: trampoline memory, and guest memory to make steps on.

use std::collections::BTreeMap;

use usertrap::{GuestAddr, Reach, Step, TrampolineAddr, TrampolineMemory};

/// Trampoline memory near the middle of the reach asked for; checks that what is freed was given.
#[derive(Default)]
pub struct Blocks {
    pub live: BTreeMap<TrampolineAddr, usize>,
    pub given: usize,
    next: u64,
}

impl TrampolineMemory for Blocks {
    type Error = std::convert::Infallible;

    fn allocate(&mut self, len: usize, reach: Reach) -> Result<TrampolineAddr, Self::Error> {
        let middle = reach.lowest.raw() + (reach.highest.raw() - reach.lowest.raw()) / 2;
        let base = (middle + 0x1000_0000 + self.next) & !0xfff;
        self.next += len as u64 + 0x1000;
        let at = TrampolineAddr::new(base);
        self.given += 1;
        assert_eq!(self.live.insert(at, len), None);
        Ok(at)
    }

    fn free(&mut self, at: TrampolineAddr, len: usize) {
        assert_eq!(self.live.remove(&at), Some(len), "freed what was not given");
    }
}

/// Guest code at `base`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub base: GuestAddr,
    pub bytes: Vec<u8>,
}

impl Guest {
    fn slice(&mut self, addr: GuestAddr, len: usize) -> &mut [u8] {
        let at = usize::try_from(self.base.distance_to(addr)).expect("a store below the guest's code");
        &mut self.bytes[at..at + len]
    }

    /// Makes a step, and insists that the bytes are what the step says they are before.
    pub fn make(&mut self, step: &Step) {
        match step {
            Step::Trampoline { .. } | Step::Barrier => {}
            Step::Word { addr, old, new } => {
                assert!(addr.raw().is_multiple_of(8), "an unaligned atomic store");
                let word = self.slice(*addr, 8);
                assert_eq!(word, old, "at {addr}");
                word.copy_from_slice(new);
            }
            Step::Bytes { addr, old, new } => {
                assert_eq!(old.len(), new.len());
                let bytes = self.slice(*addr, old.len());
                assert_eq!(bytes, old, "at {addr}");
                bytes.copy_from_slice(new);
            }
        }
    }

    pub fn make_all<'s>(&mut self, steps: impl IntoIterator<Item = &'s Step>) {
        steps.into_iter().for_each(|s| self.make(s));
    }
}
