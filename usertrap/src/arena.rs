//! Memory for trampolines: the caller's trait, and the arenas made of it.

use std::collections::BTreeMap;

use crate::addr::{Reach, TrampolineAddr};
use crate::trampoline::TRAMPOLINE_ALIGN;

/// Where trampolines live: executable memory of the guest's address space that the guest cannot change, which the
/// caller provides in blocks.
pub trait TrampolineMemory {
    /// What can go wrong.
    type Error;

    /// Gives `len` bytes (a multiple of 4096) at a page boundary, all within `reach`.
    ///
    /// # Errors
    /// When there is no room, or the host refuses.
    fn allocate(&mut self, len: usize, reach: Reach) -> Result<TrampolineAddr, Self::Error>;

    /// Takes back a block of `len` bytes that [`allocate`](Self::allocate) gave.
    fn free(&mut self, at: TrampolineAddr, len: usize);
}

/// Size of the first block in a region; each further one is twice as large as the largest before, up to the largest.
const SMALLEST_BLOCK: usize = 4096;
const LARGEST_BLOCK: usize = 64 * 1024;
const _: () = assert!(SMALLEST_BLOCK.is_multiple_of(TRAMPOLINE_ALIGN), "blocks consist of whole cells");

/// Why there is no memory for a trampoline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError<E> {
    /// The cap of this address space is reached.
    #[error("the trampolines would need more than {max_bytes} bytes")]
    Full {
        /// The cap.
        max_bytes: usize,
    },
    /// The caller's memory has an error.
    #[error("no memory for trampolines")]
    Memory(#[source] E),
    /// The caller's memory gave a block that is unaligned or out of reach; it was given back.
    #[error("the memory for trampolines at {at} is not where it was asked for")]
    Misplaced {
        /// The block.
        at: TrampolineAddr,
    },
}

/// A piece of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub at: TrampolineAddr,
    len: usize,
    /// Held another trampoline before: cores may have old instructions of these bytes in their pipelines.
    pub reused: bool,
}

#[derive(Clone, Debug)]
struct Block {
    cells: Vec<Cell>,
    in_use: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Fresh,
    Used,
    Freed,
}

/// Blocks cut into cells of [`TRAMPOLINE_ALIGN`] bytes. Grows by blocks, gives empty blocks back.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    blocks: BTreeMap<TrampolineAddr, Block>,
    bytes: usize,
    max_bytes: usize,
}

impl Arena {
    pub fn new(max_bytes: usize) -> Self {
        Self { blocks: BTreeMap::new(), bytes: 0, max_bytes }
    }

    /// Bytes in blocks.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn allocate<M: TrampolineMemory>(
        &mut self,
        len: usize,
        reach: Reach,
        memory: &mut M,
    ) -> Result<Slot, ArenaError<M::Error>> {
        let cells = len.div_ceil(TRAMPOLINE_ALIGN);
        if let Some(slot) = self.take(cells, reach) {
            return Ok(slot);
        }
        self.grow(cells * TRAMPOLINE_ALIGN, reach, memory)?;
        self.take(cells, reach).ok_or(ArenaError::Full { max_bytes: self.max_bytes })
    }

    /// First fit; the newest block is the most likely to have room, the oldest the most likely to be full.
    fn take(&mut self, cells: usize, reach: Reach) -> Option<Slot> {
        let len = cells * TRAMPOLINE_ALIGN;
        for (base, block) in self.blocks.iter_mut().rev() {
            if block.cells.len() - block.in_use < cells {
                continue;
            }
            let place = |i: usize| base.wrapping_offset((i * TRAMPOLINE_ALIGN) as i64);
            let free = |run: &[Cell]| run.iter().all(|c| *c != Cell::Used);
            let found = block.cells.windows(cells).enumerate();
            let found =
                found.filter(|(_, run)| free(run)).map(|(i, _)| i).find(|i| reach.admits(place(*i), len));
            if let Some(i) = found {
                let run = &mut block.cells[i..i + cells];
                let reused = run.contains(&Cell::Freed);
                run.fill(Cell::Used);
                block.in_use += cells;
                return Some(Slot { at: place(i), len, reused });
            }
        }
        None
    }

    fn grow<M: TrampolineMemory>(
        &mut self,
        at_least: usize,
        reach: Reach,
        memory: &mut M,
    ) -> Result<(), ArenaError<M::Error>> {
        let largest = self.blocks.values().map(|b| b.cells.len() * TRAMPOLINE_ALIGN).max();
        let len = largest.map_or(SMALLEST_BLOCK, |l| (2 * l).min(LARGEST_BLOCK));
        let len = len.max(at_least.next_multiple_of(SMALLEST_BLOCK));
        if self.bytes + len > self.max_bytes {
            return Err(ArenaError::Full { max_bytes: self.max_bytes });
        }
        let at = memory.allocate(len, reach).map_err(ArenaError::Memory)?;
        let aligned = at.raw().is_multiple_of(SMALLEST_BLOCK as u64);
        if !aligned || !reach.admits(at, len) || self.overlaps(at, len) {
            memory.free(at, len);
            return Err(ArenaError::Misplaced { at });
        }
        self.bytes += len;
        self.blocks.insert(at, Block { cells: vec![Cell::Fresh; len / TRAMPOLINE_ALIGN], in_use: 0 });
        Ok(())
    }

    fn overlaps(&self, at: TrampolineAddr, len: usize) -> bool {
        let end = at.wrapping_offset(len as i64);
        self.blocks.range(..end).next_back().is_some_and(|(base, block)| {
            base.wrapping_offset((block.cells.len() * TRAMPOLINE_ALIGN) as i64) > at
        })
    }

    /// Takes a slot back, and gives its block back if it was the last one in it.
    pub fn free<M: TrampolineMemory>(&mut self, slot: Slot, memory: &mut M) {
        self.put_back(slot, Cell::Freed, memory);
    }

    /// The same for a slot whose bytes were never executed: it is as fresh as it was.
    pub fn free_unused<M: TrampolineMemory>(&mut self, slot: Slot, memory: &mut M) {
        self.put_back(slot, if slot.reused { Cell::Freed } else { Cell::Fresh }, memory);
    }

    fn put_back<M: TrampolineMemory>(&mut self, slot: Slot, as_what: Cell, memory: &mut M) {
        let Some((base, block)) = self.blocks.range_mut(..=slot.at).next_back() else { return };
        let base = *base;
        let first = base.as_rip().distance_to(slot.at.as_rip()) as usize / TRAMPOLINE_ALIGN;
        let cells = slot.len / TRAMPOLINE_ALIGN;
        let Some(run) = block.cells.get_mut(first..first + cells) else { return };
        run.fill(as_what);
        block.in_use -= cells;
        if block.in_use == 0 {
            let len = block.cells.len() * TRAMPOLINE_ALIGN;
            self.blocks.remove(&base);
            self.bytes -= len;
            memory.free(base, len);
        }
    }
}
