//! What a stub thread does for the patcher: host calls, copies and stores in its own address space.

use std::sync::atomic::Ordering;

use systrap_stub::sysmsg::PAYLOAD_LEN;
use systrap_stub::wire::{self, StubEvent};
use usertrap::{Step, TRAMPOLINE_ALIGN};

use super::code_map::Code;
use crate::context::HandOff;
use crate::platform::Inner;
use crate::seccomp::{MEMBARRIER_REGISTER_SYNC_CORE, MEMBARRIER_SYNC_CORE};
use crate::subprocess::StubThread;
use crate::{PAGE_SIZE, Protection};

/// A stub thread that waits in its loop and can be given work.
///
/// Its results are the guest's claims. The work overwrites `nr` and `args` of the line: what an event said has to be
/// read before.
pub(crate) struct Hands<'a> {
    platform: &'a Inner,
    thread: &'a StubThread,
}

/// Some work was not done: the guest changed its mappings or its code, or its process is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotDone;

impl<'a> Hands<'a> {
    pub(crate) fn new(platform: &'a Inner, thread: &'a StubThread) -> Self {
        Self { platform, thread }
    }

    fn work(&self, reply: u32, nr: u32, args: &[u64]) -> Result<u64, NotDone> {
        let line = &self.thread.sysmsg().line;
        line.nr.store(nr, Ordering::Relaxed);
        for (shared, arg) in line.args.iter().zip(args) {
            shared.store(*arg, Ordering::Relaxed);
        }
        let hand_off = HandOff::detached(self.platform, self.thread);
        match hand_off.exchange(reply) {
            Ok(StubEvent::Done) => Ok(line.args[0].load(Ordering::Relaxed)),
            Ok(_) => {
                // The switch that follows finds the process dead and says so.
                let _ = hand_off.corrupted("an event that answers nothing");
                Err(NotDone)
            }
            Err(_) => Err(NotDone),
        }
    }

    /// Makes a host call that the guest filter admits.
    pub(super) fn execute(&self, nr: i64, args: [u64; 6]) -> Result<u64, NotDone> {
        let result = self.work(wire::EXECUTE, nr as u32, &args)?;
        if result as i64 >= -4095 && (result as i64) < 0 { Err(NotDone) } else { Ok(result) }
    }

    pub(super) fn protect(&self, from: u64, to: u64, prot: Protection) -> Result<(), NotDone> {
        self.execute(libc::SYS_mprotect, [from, to - from, prot.prot_bits() as u64, 0, 0, 0]).map(drop)
    }

    /// Copies bytes to guest memory, not atomically.
    pub(super) fn copy(&self, addr: u64, bytes: &[u8]) -> Result<(), NotDone> {
        for (i, part) in bytes.chunks(PAYLOAD_LEN).enumerate() {
            for (chunk, shared) in part.chunks(8).zip(&self.thread.sysmsg().payload) {
                let mut raw = [0_u8; 8];
                raw[..chunk.len()].copy_from_slice(chunk);
                shared.store(u64::from_le_bytes(raw), Ordering::Relaxed);
            }
            let at = addr.wrapping_add((i * PAYLOAD_LEN) as u64);
            if self.work(wire::COPY_TO_GUEST, 0, &[at, part.len() as u64])? != 0 {
                return Err(NotDone);
            }
        }
        Ok(())
    }

    fn store_word(&self, addr: u64, old: [u8; 8], new: [u8; 8]) -> Result<(), NotDone> {
        let args = [addr, u64::from_le_bytes(old), u64::from_le_bytes(new)];
        if self.work(wire::STORE_WORD, 0, &args)? == 0 { Ok(()) } else { Err(NotDone) }
    }

    /// A core-serialising barrier on every thread of the address space.
    pub(super) fn barrier(&self, registered: &mut bool) -> Result<(), NotDone> {
        let barrier = || self.execute(libc::SYS_membarrier, [MEMBARRIER_SYNC_CORE.into(), 0, 0, 0, 0, 0]);
        // The template registered, where the kernel lets the registration be inherited.
        if barrier().is_err() {
            if *registered {
                return Err(NotDone);
            }
            self.execute(libc::SYS_membarrier, [MEMBARRIER_REGISTER_SYNC_CORE.into(), 0, 0, 0, 0, 0])?;
            *registered = true;
            barrier()?;
        }
        *registered = true;
        Ok(())
    }

    /// Makes the steps of a patch in `code`, in order. Its pages are writable meanwhile, and stay executable: other
    /// threads run there. What a step that is no single store says was there before is checked by the caller, who read it
    /// under the same lock.
    pub(crate) fn run(&self, steps: &[Step], code: &Code, registered: &mut bool) -> Result<(), NotDone> {
        let open = self.open(steps.iter(), code)?;
        let result = self.make(steps, registered);
        if let Some((from, to)) = open {
            self.protect(from, to, code.prot)?;
        }
        result
    }

    /// Makes the steps of many patches in `code`. The steps of each are made in order; a barrier is one for all. Says
    /// which were made completely.
    pub(super) fn run_all(&self, patches: &[&[Step]], code: &Code, registered: &mut bool) -> Vec<bool> {
        let mut fine = vec![false; patches.len()];
        if patches.is_empty() {
            return fine;
        }
        let steps = || patches.iter().copied().flatten();
        if self.place_trampolines(steps()).is_err() {
            return fine;
        }
        let Ok(open) = self.open(steps(), code) else { return fine };
        fine.fill(true);
        let phases: Vec<Vec<&[Step]>> =
            patches.iter().map(|steps| steps.split(|step| *step == Step::Barrier).collect()).collect();
        let last = phases.iter().map(Vec::len).max().unwrap_or(0);
        for phase in 0..last {
            if phase > 0 && self.barrier(registered).is_err() {
                // What has no further phase is complete.
                fine.iter_mut().zip(&phases).for_each(|(fine, phases)| *fine &= phases.len() <= phase);
                break;
            }
            for (fine, phases) in fine.iter_mut().zip(&phases).filter(|(fine, _)| **fine) {
                *fine =
                    phases.get(phase).is_none_or(|steps| steps.iter().all(|step| self.store(step).is_ok()));
            }
        }
        if let Some((from, to)) = open
            && self.protect(from, to, code.prot).is_err()
        {
            fine.fill(false);
        }
        fine
    }

    /// Makes a store in pages that are writable already. Trampolines are placed, and barriers made, elsewhere.
    fn store(&self, step: &Step) -> Result<(), NotDone> {
        match step {
            Step::Word { addr, old, new } => self.store_word(addr.raw(), *old, *new),
            Step::Bytes { addr, new, .. } => self.copy(addr.raw(), new),
            Step::Trampoline { .. } | Step::Barrier => Ok(()),
        }
    }

    /// Makes the steps in pages that are writable already.
    pub(super) fn make(&self, steps: &[Step], registered: &mut bool) -> Result<(), NotDone> {
        for step in steps {
            match step {
                Step::Trampoline { .. } => self.place_trampolines(std::iter::once(step))?,
                Step::Barrier => self.barrier(registered)?,
                Step::Word { .. } | Step::Bytes { .. } => self.store(step)?,
            }
        }
        Ok(())
    }

    /// Makes the pages writable that the steps change, and says which.
    fn open<'s>(
        &self,
        steps: impl Iterator<Item = &'s Step>,
        code: &Code,
    ) -> Result<Option<(u64, u64)>, NotDone> {
        let Some((first, last)) = extent(steps) else { return Ok(None) };
        let from = first & !(PAGE_SIZE - 1);
        let to = (last & !(PAGE_SIZE - 1)) + PAGE_SIZE;
        if from < code.range.0 || to > code.range.1 {
            return Err(NotDone);
        }
        self.protect(from, to, Protection { write: true, ..code.prot })?;
        Ok(Some((from, to)))
    }

    /// Writes the trampolines among the steps. They lie in pages of their own, which other threads may be executing.
    fn place_trampolines<'s>(&self, steps: impl Iterator<Item = &'s Step>) -> Result<(), NotDone> {
        let mut trampolines: Vec<(u64, &[u8])> = steps
            .filter_map(|step| match step {
                Step::Trampoline { at, bytes } => Some((at.raw(), bytes.as_slice())),
                _ => None,
            })
            .collect();
        trampolines.sort_unstable_by_key(|(at, _)| *at);
        for pages in trampolines.chunk_by(|a, b| page_behind(*a) >= b.0 & !(PAGE_SIZE - 1)) {
            let (Some(first), Some(last)) = (pages.first(), pages.last()) else { continue };
            let (from, to) = (first.0 & !(PAGE_SIZE - 1), page_behind(*last));
            self.protect(from, to, Protection { read: true, write: true, execute: true })?;
            let result = joined(pages).try_for_each(|(at, bytes)| self.copy(at, &bytes));
            self.protect(from, to, Protection::READ_EXECUTE)?;
            result?;
        }
        Ok(())
    }
}

/// The first page behind a trampoline.
fn page_behind((at, bytes): (u64, &[u8])) -> u64 {
    (at + bytes.len() as u64).next_multiple_of(PAGE_SIZE)
}

/// Trampolines (ascending) whose places are next to each other, as one piece each. The bytes between the end of a
/// trampoline and its next multiple of [`TRAMPOLINE_ALIGN`] are its own.
fn joined<'s>(trampolines: &'s [(u64, &'s [u8])]) -> impl Iterator<Item = (u64, Vec<u8>)> + 's {
    const INT3: u8 = 0xcc;
    let end = |(at, bytes): (u64, &[u8])| (at + bytes.len() as u64).next_multiple_of(TRAMPOLINE_ALIGN as u64);
    trampolines.chunk_by(move |a, b| end(*a) == b.0).map(|pieces| {
        let at = pieces.first().map_or(0, |(at, _)| *at);
        let mut all = Vec::new();
        for (start, bytes) in pieces {
            all.resize((start - at) as usize, INT3);
            all.extend_from_slice(bytes);
        }
        (at, all)
    })
}

/// First and last address that the steps change in the guest's own code.
fn extent<'s>(steps: impl Iterator<Item = &'s Step>) -> Option<(u64, u64)> {
    let ranges = steps.filter_map(|step| match step {
        Step::Word { addr, .. } => Some((addr.raw(), addr.raw() + 7)),
        Step::Bytes { addr, new, .. } => Some((addr.raw(), addr.raw() + new.len() as u64 - 1)),
        Step::Trampoline { .. } | Step::Barrier => None,
    });
    ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}
