//! Keeping patches right when mappings change.

use std::collections::HashMap;
use std::sync::MutexGuard;

use usertrap::{GuestRange, Loss, PatchMap, Removal, Step, WriteMode};

use super::announced::{Announced, ContextKey};
use super::code_map::{Code, is_patchable};
use super::hands::Hands;
use super::retired::{self, Rounds};
use super::starved::Starved;
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

impl Change {
    /// The ranges that it concerns.
    fn ranges(self) -> ([(u64, u64); 2], usize) {
        match self {
            Self::Gone(range) | Self::Protected(range, _) => ([range; 2], 1),
            Self::Mapped(code) => ([code.range; 2], 1),
            Self::Moved { old, new } => ([old, new], 2),
        }
    }
}

/// A change that was announced.
#[derive(Debug)]
#[must_use = "its range is kept free of trampolines until somebody says what became of it"]
pub(crate) struct Pending {
    change: Change,
    then: Then,
}

/// What to note once a change is made: until then what it makes patchable is something else.
#[derive(Debug)]
enum Then {
    Nothing,
    Mapped(Vec<Code>),
    Protected((u64, u64), Protection),
}

/// Drops the patches that a change of mappings concerns, and notes what it takes away.
pub(crate) fn before_change(space: &SpaceInner, change: Change) -> Pending {
    let mut books = lock(space);
    let (ranges, count) = change.ranges();
    books.announced.begin(ranges.get(..count).unwrap_or_default());
    let losses = match change {
        Change::Gone(range) => [Some((range, Loss::Unmapped)), None],
        Change::Mapped(code) => [Some((code.range, Loss::Unmapped)), None],
        Change::Protected(_, prot) if is_patchable(prot) => [None, None],
        // Patches could not be undone there.
        Change::Protected(range, _) => [Some((range, Loss::Restored)), None],
        Change::Moved { old, new } => [Some((old, Loss::Restored)), Some((new, Loss::Unmapped))],
    };
    for (range, loss) in losses.into_iter().flatten() {
        if !books.is_idle() {
            books = drop_range(space, books, range, loss);
        }
    }
    let then = match change {
        Change::Gone(range) => {
            books.code.remove(range);
            Then::Nothing
        }
        Change::Mapped(code) => {
            books.code.remove(code.range);
            Then::Mapped(vec![code])
        }
        Change::Protected(range, prot) if is_patchable(prot) => Then::Protected(range, prot),
        Change::Protected(range, prot) => {
            books.code.protect(range, prot);
            Then::Nothing
        }
        Change::Moved { old, new } => Then::Mapped(books.code.take_moved(old, new)),
    };
    Pending { change, then }
}

/// Notes what a change that was made has brought.
pub(crate) fn after_change(space: &SpaceInner, pending: Pending) {
    let mut books = lock(space);
    end(&mut books, pending.change);
    note(&mut books, pending.then);
}

/// The same for a change that the context will make when it goes on, before its guest does.
pub(crate) fn change_later(space: &SpaceInner, change: Change, key: ContextKey) -> bool {
    if !lock(space).announced.has_room(key) {
        return false;
    }
    let pending = before_change(space, change);
    let mut books = lock(space);
    let (ranges, count) = change.ranges();
    end(&mut books, change);
    for range in ranges.iter().take(count) {
        books.announced.put_off(key, *range);
    }
    note(&mut books, pending.then);
    true
}

/// A change was refused.
pub(crate) fn not_changed(space: &SpaceInner, pending: &Pending) {
    end(&mut lock(space), pending.change);
}

/// A context leaves the address space.
pub(crate) fn forget_changes(space: &SpaceInner, key: ContextKey) {
    lock(space).announced.forget(key);
}

fn end(books: &mut Patcher, change: Change) {
    let (ranges, count) = change.ranges();
    books.announced.end(ranges.get(..count).unwrap_or_default());
}

fn note(books: &mut Patcher, then: Then) {
    match then {
        Then::Nothing => {}
        Then::Mapped(parts) => parts.into_iter().for_each(|code| books.code.insert(code)),
        Then::Protected(range, prot) => books.code.protect(range, prot),
    }
}

/// Undoes every patch of an address space; with `Patching::Off` there will be no others.
pub(crate) fn drop_all(space: &SpaceInner, mode: Patching) {
    let mut books = lock(space);
    books.mode = mode;
    if !books.patches.is_empty() {
        let removals = books.patches.remove_all(WriteMode::Atomic);
        write_back(space, &mut books, &removals);
    }
}

impl Patcher {
    /// The books of a forked address space, whose memory is a copy, patches and trampolines included.
    pub(crate) fn fork(&self) -> Self {
        // Patches are written under the lock: none is half-made.
        let (mode, patches) = match self.patches.fork() {
            Ok(patches) => (self.mode, patches),
            Err(_) => (Patching::Off, PatchMap::new(self.limits)),
        };
        let (code, blocks, limits) = (self.code.clone(), self.blocks.clone(), self.limits);
        // Nobody runs in the copy: what is retired can be freed whenever that is wanted.
        let (rounds, starved, announced) = (Rounds::default(), Starved::default(), Announced::default());
        let executed = HashMap::new();
        Patcher { mode, code, patches, blocks, barriers: false, executed, limits, rounds, starved, announced }
    }
}

/// Drops what a change of mappings concerns. The lock may be let go and taken again.
fn drop_range<'a>(
    space: &'a SpaceInner,
    mut books: MutexGuard<'a, Patcher>,
    range: (u64, u64),
    loss: Loss,
) -> MutexGuard<'a, Patcher> {
    if books.blocks.overlap(range) {
        // Something is mapped over trampolines: all patches go, new ones will be made elsewhere.
        let removals = books.patches.remove_all(WriteMode::Atomic);
        write_back(space, &mut books, &removals);
        return retired::wait_until_left(space, books, &[]);
    }
    let guest = |addr| usertrap::GuestAddr::new(addr);
    let lost = GuestRange::new(guest(range.0), guest(range.1));
    let gone = books.patches.invalidate(lost, loss, WriteMode::Atomic);
    if gone.removals.is_empty() && gone.when_left.is_empty() {
        return books;
    }
    write_back(space, &mut books, &gone.removals);
    if gone.when_left.is_empty() { books } else { retired::wait_until_left(space, books, &gone.when_left) }
}

/// Makes the stores that undo patches, and frees trampolines as far as nobody can be in them.
fn write_back(space: &SpaceInner, books: &mut Patcher, removals: &[Removal]) {
    let Ok(thread) = space.process.take_thread() else { return };
    let hands = Hands::new(&space.platform, &thread);
    for steps in removals.iter().map(|removal| removal.steps.as_slice()) {
        run_where_mapped(books, &hands, steps);
    }
    retired::advance(space, books, &hands, false);
    thread.park();
}

/// Makes steps in the mappings that are known to hold them; what is mapped no more needs none.
pub(super) fn run_where_mapped(books: &mut Patcher, hands: &Hands<'_>, steps: &[Step]) {
    let addr = steps.iter().find_map(|step| match step {
        Step::Word { addr, .. } | Step::Bytes { addr, .. } => Some(*addr),
        Step::Trampoline { .. } | Step::Barrier => None,
    });
    if let Some(code) = addr.and_then(|addr| books.code.around(crate::GuestAddr::new(addr.raw()))) {
        // A failure means that the guest has changed its mappings by itself.
        let _ = hands.run(steps, &code, &mut books.barriers);
    }
}
