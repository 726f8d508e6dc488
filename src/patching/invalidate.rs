//! Keeping patches right when mappings change.

use std::collections::HashMap;
use std::time::Duration;

use usertrap::{GuestRange, Limits, Loss, PatchMap, Removal, Step, WriteMode};

use super::code_map::{Code, is_patchable};
use super::hands::Hands;
use super::{Patcher, lock};
use crate::address_space::SpaceInner;
use crate::{Patching, Protection};

/// A change of a range of mappings, before it is made. Ranges are first address and address behind the last.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// Nothing is there any more, or something that cannot be patched.
    Gone((u64, u64)),
    /// A private mapping takes its place.
    Mapped(Code),
    Protected((u64, u64), Protection),
    Moved {
        old: (u64, u64),
        new: (u64, u64),
    },
}

/// How long threads that were in a trampoline have to leave it before something else is mapped over it.
const GRACE: Duration = Duration::from_millis(2);

/// What to note once a change is made: until then what it makes patchable is something else.
#[derive(Debug)]
#[must_use]
pub(crate) enum Pending {
    Nothing,
    Mapped(Vec<Code>),
    Protected((u64, u64), Protection),
}

/// Drops the patches that a change of mappings concerns, and notes what it takes away.
pub(crate) fn before_change(space: &SpaceInner, change: Change) -> Pending {
    let mut books = lock(space);
    let books = &mut *books;
    if !books.is_idle() {
        match change {
            Change::Gone(range) => drop_range(space, books, range, Loss::Unmapped),
            Change::Mapped(code) => drop_range(space, books, code.range, Loss::Unmapped),
            Change::Protected(_, prot) if is_patchable(prot) => {}
            // Patches could not be undone there.
            Change::Protected(range, _) => drop_range(space, books, range, Loss::Restored),
            Change::Moved { old, new } => {
                drop_range(space, books, old, Loss::Restored);
                drop_range(space, books, new, Loss::Unmapped);
            }
        }
    }
    match change {
        Change::Gone(range) => books.code.remove(range),
        Change::Mapped(code) => {
            books.code.remove(code.range);
            return Pending::Mapped(vec![code]);
        }
        Change::Protected(range, prot) if is_patchable(prot) => return Pending::Protected(range, prot),
        Change::Protected(range, prot) => books.code.protect(range, prot),
        Change::Moved { old, new } => return Pending::Mapped(books.code.take_moved(old, new)),
    }
    Pending::Nothing
}

/// Notes what a change that was made has brought.
pub(crate) fn after_change(space: &SpaceInner, pending: Pending) {
    match pending {
        Pending::Nothing => {}
        Pending::Mapped(parts) => {
            let mut books = lock(space);
            parts.into_iter().for_each(|code| books.code.insert(code));
        }
        Pending::Protected(range, prot) => lock(space).code.protect(range, prot),
    }
}

/// Undoes every patch of an address space; with `Patching::Off` there will be no others.
pub(crate) fn drop_all(space: &SpaceInner, mode: Patching) {
    let mut books = lock(space);
    books.mode = mode;
    if !books.patches.is_empty() {
        let removals = books.patches.remove_all(WriteMode::Atomic);
        write_back(space, &mut books, &removals, &[]);
    }
}

impl Patcher {
    /// The books of a forked address space, whose memory is a copy, patches and trampolines included.
    pub(crate) fn fork(&self) -> Self {
        // Patches are written under the lock: none is half-made.
        let (mode, patches) = match self.patches.fork() {
            Ok(patches) => (self.mode, patches),
            Err(_) => (Patching::Off, PatchMap::new(Limits::default())),
        };
        let (code, blocks) = (self.code.clone(), self.blocks.clone());
        Patcher { mode, code, patches, blocks, barriers: false, executed: HashMap::new() }
    }
}

fn drop_range(space: &SpaceInner, books: &mut Patcher, range: (u64, u64), loss: Loss) {
    let guest = |addr| usertrap::GuestAddr::new(addr);
    if books.blocks.overlap(range) {
        drop_blocks(space, books);
        return;
    }
    let gone =
        books.patches.invalidate(GuestRange::new(guest(range.0), guest(range.1)), loss, WriteMode::Atomic);
    if gone.removals.is_empty() && gone.when_left.is_empty() {
        return;
    }
    write_back(space, books, &gone.removals, &gone.when_left);
}

/// Makes the stores that undo patches, and frees their trampolines if no thread can be in one.
fn write_back(space: &SpaceInner, books: &mut Patcher, removals: &[Removal], when_left: &[Step]) {
    let Ok(thread) = space.process.take_thread() else { return };
    let hands = Hands::new(&space.platform, &thread);
    for steps in removals.iter().map(|removal| removal.steps.as_slice()) {
        run_where_mapped(books, &hands, steps);
    }
    if space.process.all_outside_trampolines() {
        for step in when_left {
            run_where_mapped(books, &hands, std::slice::from_ref(step));
        }
        reclaim(books, &hands);
    }
    thread.park();
}

/// Frees the trampolines that nothing leads to any more, and restores their padding. Nobody may be in one.
pub(super) fn reclaim(books: &mut Patcher, hands: &Hands<'_>) {
    let mut memory = books.blocks.with(hands);
    // Each is in a mapping of its own, perhaps.
    for step in books.patches.reclaim(&mut memory) {
        run_where_mapped(books, hands, std::slice::from_ref(&step));
    }
}

/// Makes steps in the mappings that are known to hold them; what is mapped no more needs none.
fn run_where_mapped(books: &mut Patcher, hands: &Hands<'_>, steps: &[Step]) {
    let addr = steps.iter().find_map(|step| match step {
        Step::Word { addr, .. } | Step::Bytes { addr, .. } => Some(*addr),
        Step::Trampoline { .. } | Step::Barrier => None,
    });
    if let Some(code) = addr.and_then(|addr| books.code.around(crate::GuestAddr::new(addr.get()))) {
        // A failure means that the guest has changed its mappings by itself.
        let _ = hands.run(steps, &code, &mut books.barriers);
    }
}

/// Something is mapped over trampolines: all patches go, new ones will be made elsewhere.
fn drop_blocks(space: &SpaceInner, books: &mut Patcher) {
    let removals = books.patches.remove_all(WriteMode::Atomic);
    write_back(space, books, &removals, &[]);
    if !space.process.all_outside_trampolines() {
        std::thread::sleep(GRACE);
    }
    if let Ok(thread) = space.process.take_thread() {
        let hands = Hands::new(&space.platform, &thread);
        for (at, len) in books.blocks.iter() {
            let _ = hands.execute(libc::SYS_munmap, [at, len, 0, 0, 0, 0]);
        }
        thread.park();
    }
    books.blocks = super::Blocks::default();
    books.patches = PatchMap::new(Limits::default());
}
