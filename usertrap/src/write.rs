//! The stores that make or undo a patch, in the order in which they may be made.
//!
//! Other threads may be executing the very bytes. What each mode promises:
//!
//! * [`WriteMode::Atomic`]: the bytes lie in one aligned 8-byte word and change by one atomic store. A thread sees the
//!   old instruction or the new one.
//! * [`WriteMode::Breakpoint`]: `int3` over the first byte, barrier, the other bytes, barrier, the first byte, as
//!   Linux' `text_poke` does. A thread that gets there in between takes a SIGTRAP with rip one behind; the caller
//!   sends it back ([`PatchMap::own_breakpoint`](crate::PatchMap::own_breakpoint)).
//! * [`WriteMode::Stopped`]: no other thread of the address space runs, and each executes a serialising instruction
//!   before it runs guest code again (returning from the kernel by `iret` is one).
//!
//! A [`Step::Barrier`] is complete when every thread of the address space has executed a core-serialising instruction
//! after it was begun: `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE)` *issued by a thread of that address
//! space*. See membarrier(2) and Intel SDM volume 3A, 9.1.3, "Handling Self- and Cross-Modifying Code".

use crate::addr::{GuestAddr, GuestRange, TrampolineAddr};

/// How bytes are changed under running threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteMode {
    /// One aligned 8-byte atomic store; only where the bytes lie in one aligned word.
    Atomic,
    /// `int3` first; anywhere, at the price of barriers and possible SIGTRAPs in between.
    Breakpoint,
    /// Plain stores while no other thread of the address space runs.
    Stopped,
}

/// One store or barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a trampoline; nobody executes these bytes yet.
    Trampoline {
        /// Where.
        at: TrampolineAddr,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Store the aligned 8-byte word atomically. It fails when the word is not `old`: the guest changed its code.
    Word {
        /// Where, a multiple of 8.
        addr: GuestAddr,
        /// The word as it has to be before.
        old: [u8; 8],
        /// The word as it is after.
        new: [u8; 8],
    },
    /// Store bytes of the guest's text; not atomic unless it is one byte. It may span two pages.
    Bytes {
        /// Where.
        addr: GuestAddr,
        /// The bytes as they have to be before.
        old: Vec<u8>,
        /// The bytes as they are after.
        new: Vec<u8>,
    },
    /// Wait for a core-serialising barrier on every thread of the address space.
    Barrier,
}

const INT3: u8 = 0xcc;

/// A change of guest bytes, before it is known how it will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub addr: GuestAddr,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

impl Change {
    pub fn range(&self) -> GuestRange {
        GuestRange::of_len(self.addr, self.old.len() as u64)
    }

    #[must_use]
    pub fn inverse(&self) -> Change {
        Change { addr: self.addr, old: self.new.clone(), new: self.old.clone() }
    }

    /// Whether all bytes lie in one aligned word.
    pub fn in_one_word(&self) -> bool {
        let last = self.addr.wrapping_offset(self.old.len() as i64 - 1);
        self.addr.qword() == last.qword()
    }

    /// The parts of the change in front of and behind `gone`.
    pub fn outside(&self, gone: GuestRange) -> Vec<Change> {
        let part = |keep: &dyn Fn(GuestAddr) -> bool| {
            let at = |i: &usize| self.addr.wrapping_offset(*i as i64);
            let kept: Vec<usize> = (0..self.old.len()).filter(|i| keep(at(i))).collect();
            let pick = |from: &[u8]| kept.iter().map(|i| from[*i]).collect();
            let addr = kept.first().map(at)?;
            Some(Change { addr, old: pick(&self.old), new: pick(&self.new) })
        };
        [part(&|a| a < gone.start), part(&|a| a >= gone.end)].into_iter().flatten().collect()
    }

    /// A store that nobody can be executing.
    pub fn plain(&self) -> Step {
        Step::Bytes { addr: self.addr, old: self.old.clone(), new: self.new.clone() }
    }

    /// The stores under the given mode. `word` is the aligned word around the change as it is before, needed by
    /// [`WriteMode::Atomic`]; `None` when the change is not in one word or the word is unknown.
    pub fn steps(&self, mode: WriteMode, word: Option<[u8; 8]>) -> Option<Vec<Step>> {
        Some(match mode {
            WriteMode::Stopped => vec![self.plain()],
            WriteMode::Atomic => {
                let (addr, old) = (self.addr.qword(), word.filter(|_| self.in_one_word())?);
                let from = addr.distance_to(self.addr) as usize;
                let within = from..from + self.new.len();
                if old[within.clone()] != self.old {
                    return None;
                }
                let mut new = old;
                new[within].copy_from_slice(&self.new);
                vec![Step::Word { addr, old, new }]
            }
            WriteMode::Breakpoint => {
                let byte = |old: u8, new: u8| Step::Bytes { addr: self.addr, old: vec![old], new: vec![new] };
                let (old_tail, new_tail) = (self.old[1..].to_vec(), self.new[1..].to_vec());
                let tail = Step::Bytes { addr: self.addr.wrapping_offset(1), old: old_tail, new: new_tail };
                vec![
                    byte(self.old[0], INT3),
                    Step::Barrier,
                    tail,
                    Step::Barrier,
                    byte(INT3, self.new[0]),
                    Step::Barrier,
                ]
            }
        })
    }
}

/// Puts those of the bytes `from`, at `addr`, into `into`, at `base`, that lie in it.
pub(crate) fn overlay(base: GuestAddr, into: &mut [u8], addr: GuestAddr, from: &[u8]) {
    for (i, byte) in from.iter().enumerate() {
        let at = base.distance_to(addr.wrapping_offset(i as i64));
        if let Some(place) = usize::try_from(at).ok().and_then(|at| into.get_mut(at)) {
            *place = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(addr: u64) -> Change {
        Change { addr: GuestAddr::new(addr), old: vec![0xb8, 1, 0, 0, 0], new: vec![0xe9, 5, 6, 7, 8] }
    }

    #[test]
    fn one_word_or_not() {
        for (addr, whole) in [(0, true), (3, true), (4, false), (7, false), (8, true)] {
            assert_eq!(change(addr).in_one_word(), whole, "{addr}");
        }
    }

    #[test]
    fn an_atomic_store_keeps_the_neighbours() {
        let word = [9, 9, 0xb8, 1, 0, 0, 0, 9];
        let steps = change(0x1002).steps(WriteMode::Atomic, Some(word)).unwrap();
        let new = [9, 9, 0xe9, 5, 6, 7, 8, 9];
        assert_eq!(steps, [Step::Word { addr: GuestAddr::new(0x1000), old: word, new }]);
        assert_eq!(change(0x1005).steps(WriteMode::Atomic, Some(word)), None, "straddles");
        assert_eq!(change(0x1001).steps(WriteMode::Atomic, Some(word)), None, "other bytes");
    }

    #[test]
    fn a_breakpoint_covers_the_change_of_the_tail() {
        let steps = change(0xfff).steps(WriteMode::Breakpoint, None).unwrap();
        let Step::Bytes { addr, new, .. } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!((addr.raw(), &new[..]), (0xfff, &[0xcc][..]));
        assert_eq!(steps[1], Step::Barrier);
        assert!(matches!(&steps[2], Step::Bytes { addr, new, .. } if addr.raw() == 0x1000 && new.len() == 4));
        assert_eq!(steps[3], Step::Barrier);
        assert!(matches!(&steps[4], Step::Bytes { old, new, .. } if old == &[0xcc] && new == &[0xe9]));
    }

    #[test]
    fn what_is_left_when_a_page_goes() {
        let gone = GuestRange::of_len(GuestAddr::new(0x1000), 0x1000);
        let left = change(0xffe).outside(gone);
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].addr.raw(), &left[0].old[..]), (0xffe, &[0xb8, 1][..]));
        assert_eq!(change(0x1ffd).outside(gone)[0].old, [0, 0]);
        assert_eq!(change(0x1100).outside(gone), []);
    }
}
