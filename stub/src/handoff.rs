//! The hand-off between a stub thread and the supervisor as two state machines.
//!
//! Each state makes **one** access to shared memory (or one futex call, or sends one signal):
//! [`Stub::access`] and [`Supervisor::access`] say which, `next` says what follows from the value it saw.
//! Nothing else of either side touches the words, but that the supervisor adapts `spin` before it publishes, after a
//! look at `stub_sleeps` on which nothing else depends. A few `pause`s before the first look of `Spin` are no access. The assembly of
//! [`thread_wait`](crate::code::thread::thread_wait) and the supervisor's hand-off are these machines;
//! `tests/handoff_model.rs` checks the machines exhaustively, with the store buffers of x86-TSO, and
//! `tests/thread_wait_follows_model.rs` runs the assembly in lock-step with [`Stub`].
//!
//! ```text
//!   stub                                          supervisor
//!   Publish      store state = event              Publish          store state = reply
//!   Barrier      full fence                       Barrier          full fence
//!   LookAtPeer   load supervisor_sleeps           LookAtPeer       load stub_sleeps
//!   Wake         futex wake state                 Wake             futex wake state
//!   ReadSpin     load spin
//!   Spin         load state        ◀──┐           Spin             load state      ◀──┐
//!      │ unchanged, budget left  ─────┘              │ unchanged, budget left  ───────┘
//!   Announce     xchg stub_sleeps = 1  ◀──┐       Announce         xchg supervisor_sleeps = 1 ◀─┐
//!   LookAgain    load state               │       LookAgain        load state                   │
//!   Sleep        futex wait state == event│       LookAtAttention  load attention               │
//!   AfterSleep   load state               │       Kick             interrupt signal             │
//!      │ unchanged  ──────────────────────┘       Sleep            futex wait on both words     │
//!   Retract      store stub_sleeps = 0               └──────────────────────────────────────────┘
//!   PutBack      (SLEEP only) cmpxchg state       Retract          store supervisor_sleeps = 0
//!   Done         do the reply                     Done             the event
//! ```
//!
//! **No wake-up is lost** because each side stores, then loads what the other side stores before it loads:
//! the publisher writes `state` and then reads the sleep flag, the sleeper writes its sleep flag and then
//! reads `state`. With a full barrier between store and load on both sides, at least one of the loads sees
//! the other side's store: either the publisher wakes, or the sleeper does not sleep. `futex wait` compares
//! atomically with respect to `futex wake`, so nothing slips in between the last look and the sleep.
//! Without the barrier the store would wait in the store buffer while the load overtakes it.
//!
//! The state is published by a store and a fence rather than by one `xchg`, for speed only: the other side spins on
//! the line, and a locked instruction on it would first wait for the stores before it and then find the line stolen.
//!
//! **[`wire::SLEEP`]** replaces an event while the supervisor thinks about it. The stub puts the event back
//! by compare-and-exchange, which fails if the real reply came meanwhile.

use crate::wire;

/// The shared words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Word {
    /// [`Line::state`](crate::sysmsg::Line::state).
    State,
    /// [`Sysmsg::supervisor_sleeps`](crate::sysmsg::Sysmsg::supervisor_sleeps).
    SupervisorSleeps,
    /// [`Sysmsg::stub_sleeps`](crate::sysmsg::Sysmsg::stub_sleeps).
    StubSleeps,
    /// [`Sysmsg::spin`](crate::sysmsg::Sysmsg::spin).
    Spin,
    /// The word by which other threads of the supervisor reach a waiting one; no stub sees it.
    Attention,
}

/// One access to shared memory, or one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// A plain load.
    Load(Word),
    /// A plain store: may become visible later than what follows it.
    Store(Word, u32),
    /// A full barrier: nothing overtakes it.
    Fence,
    /// An atomic exchange: a full barrier.
    Swap(Word, u32),
    /// An atomic compare-and-exchange (word, expected, new) that sees the old value: a full barrier.
    CompareExchange(Word, u32, u32),
    /// FUTEX_WAIT: sleeps if the word has the value; may return at any time.
    FutexWait(Word, u32),
    /// futex_waitv(2) on two words: as `FutexWait`, and sleeps only if both have their value.
    FutexWaitTwo((Word, u32), (Word, u32)),
    /// FUTEX_WAKE of everybody who sleeps on the word.
    FutexWake(Word),
    /// The interrupt signal to the stub thread.
    Kick,
}

/// The stub thread's side. `event` is what it published last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the picture above names what each state does; the fields are wire values")]
pub enum Stub {
    Publish { event: u32 },
    Barrier { event: u32 },
    LookAtPeer { event: u32 },
    Wake { event: u32 },
    ReadSpin { event: u32 },
    Spin { event: u32, left: u32 },
    Announce { event: u32 },
    LookAgain { event: u32 },
    Sleep { event: u32 },
    AfterSleep { event: u32 },
    Retract { event: u32, reply: u32 },
    PutBack { event: u32 },
    Done { event: u32, reply: u32 },
}

impl Stub {
    /// The access that this state makes; `None` when the hand-off is over.
    #[must_use]
    pub const fn access(self) -> Option<Access> {
        use Access::{CompareExchange, Fence, FutexWait, FutexWake, Load, Store, Swap};
        Some(match self {
            Self::Publish { event } => Store(Word::State, event),
            Self::Barrier { .. } => Fence,
            Self::LookAtPeer { .. } => Load(Word::SupervisorSleeps),
            Self::Wake { .. } => FutexWake(Word::State),
            Self::ReadSpin { .. } => Load(Word::Spin),
            Self::Spin { .. } | Self::LookAgain { .. } | Self::AfterSleep { .. } => Load(Word::State),
            Self::Announce { .. } => Swap(Word::StubSleeps, 1),
            Self::Sleep { event } => FutexWait(Word::State, event),
            Self::Retract { .. } => Store(Word::StubSleeps, 0),
            Self::PutBack { event } => CompareExchange(Word::State, wire::SLEEP, event),
            Self::Done { .. } => return None,
        })
    }

    /// The state after the access saw `seen` (which only loads and compare-and-exchange use).
    #[must_use]
    pub const fn next(self, seen: u32) -> Self {
        match self {
            Self::Publish { event } => Self::Barrier { event },
            Self::Barrier { event } => Self::LookAtPeer { event },
            Self::LookAtPeer { event } if seen != 0 => Self::Wake { event },
            Self::LookAtPeer { event } | Self::Wake { event } => Self::ReadSpin { event },
            Self::ReadSpin { event } => Self::Spin { event, left: seen },
            Self::Spin { event, .. } if seen != event => Self::replied(event, seen),
            Self::Spin { event, left: 0 } => Self::Announce { event },
            Self::Spin { event, left } => Self::Spin { event, left: left - 1 },
            Self::Announce { event } => Self::LookAgain { event },
            Self::LookAgain { event } if seen == event => Self::Sleep { event },
            Self::Sleep { event } => Self::AfterSleep { event },
            Self::AfterSleep { event } if seen == event => Self::Announce { event },
            Self::LookAgain { event } | Self::AfterSleep { event } => Self::Retract { event, reply: seen },
            Self::Retract { event, reply } => Self::replied(event, reply),
            Self::PutBack { event } if seen == wire::SLEEP => Self::Announce { event },
            Self::PutBack { event } => Self::ReadSpin { event },
            Self::Done { .. } => self,
        }
    }

    const fn replied(event: u32, reply: u32) -> Self {
        if reply == wire::SLEEP { Self::PutBack { event } } else { Self::Done { event, reply } }
    }
}

/// The supervisor's side. `reply` is what it published last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the picture above names what each state does; the fields are wire values")]
pub enum Supervisor {
    Publish { reply: u32, spin: u32 },
    Barrier { reply: u32, spin: u32 },
    LookAtPeer { reply: u32, spin: u32 },
    Wake { reply: u32, spin: u32 },
    Spin { reply: u32, left: u32 },
    Announce { reply: u32 },
    LookAgain { reply: u32 },
    LookAtAttention { reply: u32 },
    Kick { reply: u32, attention: u32 },
    Sleep { reply: u32, attention: u32 },
    Retract { event: u32 },
    Done { event: u32 },
}

impl Supervisor {
    /// The access that this state makes; `None` when the hand-off is over.
    #[must_use]
    pub const fn access(self) -> Option<Access> {
        use Access::{Fence, FutexWaitTwo, FutexWake, Kick, Load, Store, Swap};
        Some(match self {
            Self::Publish { reply, .. } => Store(Word::State, reply),
            Self::Barrier { .. } => Fence,
            Self::LookAtPeer { .. } => Load(Word::StubSleeps),
            Self::Wake { .. } => FutexWake(Word::State),
            Self::Spin { .. } | Self::LookAgain { .. } => Load(Word::State),
            Self::Announce { .. } => Swap(Word::SupervisorSleeps, 1),
            Self::LookAtAttention { .. } => Load(Word::Attention),
            Self::Kick { .. } => Kick,
            Self::Sleep { reply, attention } => {
                FutexWaitTwo((Word::State, reply), (Word::Attention, attention))
            }
            Self::Retract { .. } => Store(Word::SupervisorSleeps, 0),
            Self::Done { .. } => return None,
        })
    }

    /// The state after the access saw `seen`. A kick is due whenever attention is asked for: the real
    /// supervisor leaves some out by the clock.
    #[must_use]
    pub const fn next(self, seen: u32) -> Self {
        match self {
            Self::Publish { reply, spin } => Self::Barrier { reply, spin },
            Self::Barrier { reply, spin } => Self::LookAtPeer { reply, spin },
            Self::LookAtPeer { reply, spin } if seen != 0 => Self::Wake { reply, spin },
            Self::LookAtPeer { reply, spin: 0 } | Self::Wake { reply, spin: 0 } => Self::Announce { reply },
            Self::LookAtPeer { reply, spin } | Self::Wake { reply, spin } => {
                Self::Spin { reply, left: spin - 1 }
            }
            Self::Spin { reply, .. } if seen != reply => Self::Done { event: seen },
            Self::Spin { reply, left: 0 } => Self::Announce { reply },
            Self::Spin { reply, left } => Self::Spin { reply, left: left - 1 },
            Self::Announce { reply } => Self::LookAgain { reply },
            Self::LookAgain { reply } if seen != reply => Self::Retract { event: seen },
            Self::LookAgain { reply } => Self::LookAtAttention { reply },
            Self::LookAtAttention { reply } if seen != 0 => Self::Kick { reply, attention: seen },
            Self::LookAtAttention { reply } => Self::Sleep { reply, attention: 0 },
            Self::Kick { reply, attention } => Self::Sleep { reply, attention },
            Self::Sleep { reply, .. } => Self::Announce { reply },
            Self::Retract { event } => Self::Done { event },
            Self::Done { .. } => self,
        }
    }
}

/// What a supervisor that is about to block does with the event it holds: one access. It owns the word, so
/// the exchange fails only if a hostile stub wrote it.
#[must_use]
pub const fn prepare_sleep(event: u32) -> Access {
    Access::CompareExchange(Word::State, event, wire::SLEEP)
}
