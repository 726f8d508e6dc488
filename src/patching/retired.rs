//! Freeing trampolines that no patch leads to any more, while threads run that may still be in one.
//!
//! ```text
//!            jump undone            round begins              all leavers have been back
//!   live ───────────────▶ retired ──────────────▶ leaving ──────────────────────────────▶ free
//!                            ▲        (barrier, then the contexts that run are noted)      │
//!                            └── while a round lasts, what is retired waits for the next ◀─┘
//! ```
//!
//! * **retired**: the stores that undo the jump are made. Whoever is in the trampoline, in the padding in front of it, or
//!   behind an `int3` of ours finds what it found before, and the books still know what it means.
//! * **leaving**: a core-serialising barrier has passed, so that no core holds the old jump in its pipeline, and then the
//!   contexts that run were noted with the number of their turn ([`Leavers`]). Nobody else can get in: the jump is gone.
//! * **free**: each of those has been back since, which means that it stood at an instruction of its own (a context that
//!   stops in a trampoline is put outside before anybody sees it) or is dead. The memory may hold something else now; a new
//!   trampoline in it is followed by a barrier of its own (`Step::Barrier` for reused memory).
//!
//! There is one round at a time. Rounds are begun and ended by whoever holds the lock of the books and has a stub thread
//! at hand: at roll-backs, changes of mappings, and traps at sites that want memory or padding back. A context that runs
//! for ever without coming back (a loop without calls, or with calls that are answered in the stub) is *nudged* when
//! something is wanted: interrupted, put outside, and let go on, without its supervisor being told. A nudge makes a
//! futex wait that is under way begin again, so that nudges for memory come ever more seldom, up to [`LONGEST_PAUSE`].
//!
//! Without barriers (a kernel that refuses them) nothing is freed while more than one context is attached; sites that find
//! no memory then trap ([`Starved`](super::starved::Starved)).

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use usertrap::{Retirement, Step};

use super::hands::Hands;
use super::invalidate::run_where_mapped;
use super::{Patcher, lock};
use crate::address_space::SpaceInner;
use crate::subprocess::Leavers;

/// Between two nudges for the sake of memory, first and last.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks of a thread that waits for others to leave.
const LOOK: Duration = Duration::from_micros(50);
/// Beyond the deadline of interrupts: a process with a thread that has not left by then is killed.
const GRACE: Duration = Duration::from_secs(20);

/// How far the freeing of trampolines is.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    round: Option<Round>,
    /// How often memory has become free: who found none may try again.
    freed: u64,
    last_nudge: Option<Instant>,
    pause: Duration,
    /// Threads that wait for all to leave: nobody may enter meanwhile.
    closed: u32,
}

/// What is leaving.
#[derive(Debug)]
struct Round {
    until: Retirement,
    leavers: Leavers,
}

impl Rounds {
    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    /// Whether no patch may be made now.
    pub(super) fn are_closed(&self) -> bool {
        self.closed != 0
    }

    fn nudge(&mut self, now: Instant) {
        let Some(round) = &self.round else { return };
        if self.last_nudge.is_some_and(|last| now.duration_since(last) < self.pause) {
            return;
        }
        let calm = self.last_nudge.is_none_or(|last| now.duration_since(last) > 2 * LONGEST_PAUSE);
        self.pause = if calm { SHORTEST_PAUSE } else { (2 * self.pause).min(LONGEST_PAUSE) };
        self.last_nudge = Some(now);
        round.leavers.nudge();
    }
}

/// Begins and ends rounds as far as that is possible now. `wanted`: somebody lacks what would become free.
pub(super) fn advance(space: &SpaceInner, books: &mut Patcher, hands: &Hands<'_>, wanted: bool) {
    loop {
        if let Some(round) = &mut books.rounds.round {
            if !round.leavers.all_left() {
                if wanted {
                    books.rounds.nudge(Instant::now());
                }
                return;
            }
            let until = round.until;
            books.rounds.round = None;
            reclaim(books, hands, until);
        }
        if books.patches.retired() == 0 {
            return;
        }
        // To register for barriers takes milliseconds: only for somebody.
        let Some(leavers) = who_may_be_inside(space, books, hands, wanted) else { return };
        books.rounds.round = Some(Round { until: books.patches.last_retirement(), leavers });
    }
}

/// Those that may still be in what is retired by now, or may run into it because their cores have not noticed that the
/// way there is gone. `None` without a barrier where one is needed.
fn who_may_be_inside(
    space: &SpaceInner,
    books: &mut Patcher,
    hands: &Hands<'_>,
    may_register: bool,
) -> Option<Leavers> {
    // One context that stands, or none: it goes on by a return from the kernel or out of a loop that it did not expect to
    // end, neither of which its core had looked beyond.
    if space.process.attached_count() <= 1 {
        let mut leavers = space.process.running();
        if leavers.all_left() {
            return Some(leavers);
        }
    }
    if !books.barriers && !may_register {
        return None;
    }
    hands.barrier(&mut books.barriers).ok()?;
    Some(space.process.running())
}

/// Frees what was retired until then, and restores its padding.
fn reclaim(books: &mut Patcher, hands: &Hands<'_>, until: Retirement) {
    let mut memory = books.blocks.with(hands, &books.announced);
    // Each is in a mapping of its own, perhaps.
    for step in books.patches.reclaim_until(until, &mut memory) {
        run_where_mapped(books, hands, std::slice::from_ref(&step));
    }
    books.rounds.freed += 1;
}

/// Waits until everybody has left what is retired, makes the steps `when_left`, and frees it all. Nothing is patched
/// meanwhile; the lock of the books is let go, for those who come back need it.
///
/// This is for mappings that are about to change under trampolines or their padding: it cannot be put off.
pub(super) fn wait_until_left<'a>(
    space: &'a SpaceInner,
    mut books: MutexGuard<'a, Patcher>,
    when_left: &[Step],
) -> MutexGuard<'a, Patcher> {
    let until = books.patches.last_retirement();
    let Ok(thread) = space.process.take_thread() else { return books };
    let leavers = who_may_be_inside(space, &mut books, &Hands::new(&space.platform, &thread), true);
    thread.park();
    // On a kernel without barriers those that run are waited for all the same.
    let mut leavers = leavers.unwrap_or_else(|| space.process.running());
    let began = Instant::now();
    let limit = space.platform.options.get_interrupt_deadline().saturating_add(GRACE);
    books.rounds.closed += 1;
    while !leavers.all_left() && space.process.exit().is_none() {
        drop(books);
        leavers.nudge();
        std::thread::sleep(LOOK);
        if began.elapsed() > limit {
            space.process.kill();
        }
        books = lock(space);
    }
    books.rounds.closed -= 1;
    if let Ok(thread) = space.process.take_thread() {
        let hands = Hands::new(&space.platform, &thread);
        for step in when_left {
            run_where_mapped(&mut books, &hands, std::slice::from_ref(step));
        }
        if books.rounds.round.as_ref().is_none_or(|round| round.until <= until) {
            books.rounds.round = None;
        }
        reclaim(&mut books, &hands, until);
        thread.park();
    }
    books
}
