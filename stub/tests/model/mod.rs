//! An exhaustive checker of the hand-off: every interleaving of a guest thread with its stub, a supervisor
//! and an interrupting thread, on memory with x86-TSO store buffers and futexes.
//!
//! The state machines are those of `systrap_stub::handoff`. A breadth-first search of some ten thousand to a
//! million small states takes less than writing them for a general model checker, and keeps the one thing
//! that general Rust checkers leave out: a store buffer per side.

mod agents;
mod search;

pub use agents::{Op, Script};
pub use search::explore;

use systrap_stub::handoff::{Access, Word};

/// A fault planted in the protocol: the checker must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    None,
    StubPublishesWithoutBarrier,
    SupervisorPublishesWithoutBarrier,
    StubLooksBeforePublishing,
    SupervisorLooksBeforePublishing,
    StubAnnouncesByPlainStore,
    SupervisorAnnouncesByPlainStore,
    StubForgetsToWake,
    SupervisorForgetsToWake,
    StubSleepsUnannounced,
    SupervisorSleepsUnannounced,
    EventPutBackByPlainStore,
    FutexDoesNotCompare,
    ArgumentsAfterPublish,
    InterrupterForgetsToWake,
    SupervisorIgnoresAttention,
    SleepReplyTakenForResume,
    /// The signal finds the executed call and lets it go on, as SA_RESTART would.
    ExecutedCallIsRestarted,
    /// An interrupt that is not answered is not repeated.
    SupervisorKicksOnce,
}

/// The words of the model: those of the protocol, and one that stands for the arguments in the line.
pub const WORDS: usize = 6;
pub const PAYLOAD: usize = 5;

pub const fn index(word: Word) -> usize {
    match word {
        Word::State => 0,
        Word::SupervisorSleeps => 1,
        Word::StubSleeps => 2,
        Word::Spin => 3,
        Word::Attention => 4,
    }
}

/// Who acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Stub = 0,
    Supervisor = 1,
}

/// Memory, with one store buffer a side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Memory {
    words: [u32; WORDS],
    buffers: [Vec<(usize, u32)>; 2],
}

impl Memory {
    pub fn new(words: [u32; WORDS]) -> Self {
        Self { words, buffers: [Vec::new(), Vec::new()] }
    }

    /// What a side's load sees: its own youngest store, else memory.
    pub fn load(&self, side: Side, word: usize) -> u32 {
        let own = self.buffers[side as usize].iter().rev().find(|(at, _)| *at == word);
        own.map_or(self.words[word], |(_, value)| *value)
    }

    pub fn store(&mut self, side: Side, word: usize, value: u32) {
        self.buffers[side as usize].push((word, value));
    }

    /// Lets the oldest store of a side become visible.
    pub fn drain_one(&mut self, side: Side) -> bool {
        let buffer = &mut self.buffers[side as usize];
        if buffer.is_empty() {
            return false;
        }
        let (word, value) = buffer.remove(0);
        self.words[word] = value;
        true
    }

    /// A locked instruction may only execute once the side's buffer is empty.
    pub fn is_drained(&self, side: Side) -> bool {
        self.buffers[side as usize].is_empty()
    }

    /// What is in memory, whatever the buffers hold: what locked instructions and the kernel see.
    pub fn word(&self, word: usize) -> u32 {
        self.words[word]
    }

    pub fn set_word(&mut self, word: usize, value: u32) {
        self.words[word] = value;
    }
}

/// Makes an access that does not block. `None`: the store buffer has to drain first.
pub fn perform(memory: &mut Memory, side: Side, access: Access) -> Option<u32> {
    match access {
        Access::Load(word) => Some(memory.load(side, index(word))),
        Access::Store(word, value) => {
            memory.store(side, index(word), value);
            Some(0)
        }
        Access::Fence => memory.is_drained(side).then_some(0),
        Access::Swap(word, value) => memory.is_drained(side).then(|| {
            let old = memory.word(index(word));
            memory.set_word(index(word), value);
            old
        }),
        Access::CompareExchange(word, expected, new) => memory.is_drained(side).then(|| {
            let old = memory.word(index(word));
            if old == expected {
                memory.set_word(index(word), new);
            }
            old
        }),
        Access::FutexWait(..) | Access::FutexWaitTwo(..) | Access::FutexWake(_) | Access::Kick => {
            unreachable!("the agents do these themselves")
        }
    }
}
