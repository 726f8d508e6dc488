//! Memory for trampolines: private anonymous pages of the guest's address space, near its code.

use std::collections::BTreeMap;

use systrap_stub::layout::MAX_USER_ADDRESS;
use usertrap::{Reach, TrampolineAddr, TrampolineMemory};

use super::announced::Announced;
use super::hands::{Hands, NotDone};
use crate::Protection;

/// Distances from the code at which a block is tried, far enough not to be where mappings grow to.
const DISTANCES: [i64; 12] = [
    0x6000_0000,
    -0x6000_0000,
    0x5000_0000,
    -0x5000_0000,
    0x4000_0000,
    -0x4000_0000,
    0x3000_0000,
    -0x3000_0000,
    0x2000_0000,
    -0x2000_0000,
    0x1000_0000,
    -0x1000_0000,
];
/// No block below this address: the host may refuse it, and null pointers of the guest must fault.
const LOWEST: u64 = 0x10_0000;
/// Steps from each of those distances.
const STEP: i64 = 0x10_0000;
const STEPS: i64 = 16;

/// The blocks of an address space: first address and length in bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Blocks {
    blocks: BTreeMap<u64, u64>,
}

impl Blocks {
    /// The memory as usertrap wants it, in the hands of a stub thread.
    pub(super) fn with<'a>(&'a mut self, hands: &'a Hands<'a>, announced: &'a Announced) -> Memory<'a> {
        Memory { blocks: self, hands, announced }
    }

    /// Whether a block has bytes in a range.
    pub(super) fn overlap(&self, (from, to): (u64, u64)) -> bool {
        self.blocks.range(..to).next_back().is_some_and(|(start, len)| start + len > from)
    }
}

/// Blocks being changed.
pub(super) struct Memory<'a> {
    blocks: &'a mut Blocks,
    hands: &'a Hands<'a>,
    announced: &'a Announced,
}

impl TrampolineMemory for Memory<'_> {
    type Error = NotDone;

    fn allocate(&mut self, len: usize, reach: Reach) -> Result<TrampolineAddr, NotDone> {
        let middle = reach.lowest.raw() / 2 + reach.highest.raw() / 2;
        for distance in DISTANCES {
            for step in 0..STEPS {
                let at = middle.wrapping_add_signed(distance + step * STEP * distance.signum()) & !0xfff;
                let place = TrampolineAddr::new(at);
                // The filter would take a block that reaches the stub for an attack.
                let fits =
                    at >= LOWEST && at.checked_add(len as u64).is_some_and(|end| end <= MAX_USER_ADDRESS);
                if !fits || !reach.admits(place, len) || self.announced.overlap((at, at + len as u64)) {
                    continue;
                }
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
                let prot = Protection::READ_EXECUTE.prot_bits() as u64;
                let args = [at, len as u64, prot, flags as u64, u64::MAX, 0];
                if self.hands.execute(libc::SYS_mmap, args) == Ok(at) {
                    self.blocks.blocks.insert(at, len as u64);
                    return Ok(place);
                }
            }
        }
        Err(NotDone)
    }

    fn free(&mut self, at: TrampolineAddr, len: usize) {
        self.blocks.blocks.remove(&at.raw());
        // A guest that unmapped it before has what it wanted.
        let _ = self.hands.execute(libc::SYS_munmap, [at.raw(), len as u64, 0, 0, 0, 0]);
    }
}
