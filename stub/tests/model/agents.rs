//! The three parties and what they do between hand-offs.

use systrap_stub::handoff::{Access, Stub, Supervisor, Word, prepare_sleep};
use systrap_stub::wire;

use super::{Memory, Mutation, PAYLOAD, Side, index, perform};

/// What a guest thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A system call.
    Call,
    /// It computes for ever: only an interrupt makes it an event.
    Compute,
    /// A call that the stub executes for it, and that sleeps on the host kernel for ever: only an interrupt ends it.
    Block,
    /// A call that the syshandler passes on, and that sleeps for ever: an interrupt makes it an event, and it is made again.
    Pass,
}

/// What a run consists of.
#[derive(Debug, Clone)]
pub struct Script {
    pub ops: Vec<Op>,
    /// How often another thread interrupts.
    pub interrupts: u32,
    /// The stub's and the supervisor's spin budgets.
    pub spin: [u32; 2],
    /// Sleeps may end at any time for no reason (signals, time-outs).
    pub spurious: bool,
    /// The supervisor may use the SLEEP reply and the EXECUTE reply.
    pub sleep_reply: bool,
    pub execute: bool,
    pub mutation: Mutation,
}

/// The stub's side: the guest runs, or a hand-off is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Guest {
    Runs,
    /// Writes the arguments of the event to come.
    Fills(u32),
    HandsOff(Stub),
    /// As `HandsOff` in `Sleep`, and asleep.
    Asleep(Stub),
    /// Reads the result that came with the reply.
    Takes {
        event: u32,
        reply: u32,
    },
    /// Between the reply and the `syscall` of the call that it executes: a signal is not even noticed here.
    EntersCall,
    /// Asleep in that call.
    InCall,
    /// The same of a call that is passed on.
    EntersPass,
    InPass,
    /// A mutant: the look at the flag comes before the publication.
    LookedEarly {
        event: u32,
        peer: u32,
    },
    PublishedLate {
        event: u32,
        peer: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Host {
    HandsOff(Supervisor),
    Asleep(Supervisor),
    /// Reads what came with the event.
    Reads(u32),
    /// Takes the interrupt that an INTERRUPTED event answers.
    TakesInterrupt,
    /// Decides on the reply to a call.
    Decides {
        event: u32,
    },
    /// Has put SLEEP in place of the event.
    Dozes,
    /// An executed call was interrupted: looks whether anybody asked for that.
    LooksWhy,
    Fills(u32),
    LookedEarly {
        reply: u32,
        peer: u32,
    },
    PublishedLate {
        reply: u32,
        peer: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub memory: Memory,
    pub guest: Guest,
    pub host: Host,
    /// Index of the guest's current op; the result expected for it is `100 + op`.
    pub op: usize,
    /// Calls whose arguments the supervisor has read, and calls that got their result.
    pub calls_seen: u32,
    pub calls_done: u32,
    /// The event that RESUME answers (r14 of the assembly).
    pub stopped_by: u32,
    pub executing: bool,
    pub signal_pending: bool,
    /// A signal was sent; of use to a mutant only.
    pub kicked: bool,
    pub interrupts_left: u32,
    /// The interrupter has set the word and not woken yet.
    pub wake_due: bool,
}

/// Something that must never happen.
pub type Violation = &'static str;

pub type Successors = Vec<Result<World, Violation>>;

impl World {
    pub fn new(script: &Script) -> Self {
        let mut words = [0; super::WORDS];
        words[index(Word::State)] = wire::RESUME;
        words[index(Word::Spin)] = script.spin[0];
        let waiting = Supervisor::LookAtPeer { reply: wire::RESUME, spin: script.spin[1] };
        Self {
            memory: Memory::new(words),
            guest: Guest::Runs,
            host: Host::HandsOff(waiting),
            op: 0,
            calls_seen: 0,
            calls_done: 0,
            stopped_by: 0,
            executing: false,
            signal_pending: false,
            kicked: false,
            interrupts_left: script.interrupts,
            wake_due: false,
        }
    }

    /// Nothing is left to do: the guest is past its last call, computes or sleeps for ever, and no interrupt is pending.
    pub fn is_finished(&self, script: &Script) -> bool {
        let rests = match script.ops.get(self.op) {
            Some(Op::Call) => false,
            Some(Op::Block) => self.guest == Guest::InCall,
            Some(Op::Pass) => self.guest == Guest::InPass,
            Some(Op::Compute) | None => self.guest == Guest::Runs,
        };
        rests && self.interrupts_left == 0 && self.memory.word(index(Word::Attention)) == 0
    }

    pub fn stub_steps(&self, script: &Script, out: &mut Successors) {
        if self.signal_pending {
            out.push(Ok(self.take_signal(script.mutation)));
        }
        match self.guest {
            Guest::Runs if matches!(script.ops.get(self.op), Some(Op::Call | Op::Block)) => {
                out.push(Ok(self.with(|w| w.begin(wire::TRAPPED, script.mutation))));
            }
            Guest::Runs if script.ops.get(self.op) == Some(&Op::Pass) => {
                out.push(Ok(self.with(|w| w.guest = Guest::EntersPass)));
            }
            Guest::EntersPass => out.push(Ok(self.with(|w| w.guest = Guest::InPass))),
            Guest::Runs | Guest::InPass => {}
            Guest::Fills(event) => out.push(Ok(self.with(|w| {
                w.memory.store(Side::Stub, PAYLOAD, 100 + w.op as u32);
                w.guest = Guest::HandsOff(Stub::Publish { event });
            }))),
            Guest::HandsOff(stub) => self.stub_access(stub, script, out),
            Guest::Asleep(stub) => {
                if script.spurious {
                    out.push(Ok(self.with(|w| w.guest = Guest::HandsOff(stub.next(0)))));
                }
            }
            Guest::EntersCall => out.push(Ok(self.with(|w| w.guest = Guest::InCall))),
            Guest::InCall => {}
            Guest::Takes { event, reply } => out.push(self.take_reply(event, reply, script)),
            Guest::LookedEarly { event, peer } => {
                let mut world = self.clone();
                let publish = Access::Swap(Word::State, event);
                if perform(&mut world.memory, Side::Stub, publish).is_some() {
                    world.guest = Guest::PublishedLate { event, peer };
                    out.push(Ok(world));
                }
            }
            Guest::PublishedLate { event, peer } => {
                out.push(Ok(self.with(|w| w.guest = Guest::HandsOff(Stub::LookAtPeer { event }.next(peer)))));
            }
        }
    }

    /// The interrupt signal: an event if the guest's own code runs, else it only ends a sleep.
    fn take_signal(&self, mutation: Mutation) -> Self {
        self.with(|w| {
            w.signal_pending = false;
            match w.guest {
                Guest::InPass if mutation == Mutation::ExecutedCallIsRestarted => {}
                Guest::Runs | Guest::InPass => {
                    w.stopped_by = wire::INTERRUPTED;
                    w.guest = Guest::HandsOff(Stub::Publish { event: wire::INTERRUPTED });
                }
                Guest::Asleep(stub) => w.guest = Guest::HandsOff(stub.next(0)),
                Guest::InCall if mutation != Mutation::ExecutedCallIsRestarted => {
                    w.begin(wire::DONE, mutation);
                }
                _ => {}
            }
        })
    }

    fn begin(&mut self, event: u32, mutation: Mutation) {
        if event == wire::TRAPPED {
            self.stopped_by = event;
        }
        self.guest = match mutation {
            Mutation::ArgumentsAfterPublish => Guest::HandsOff(Stub::Publish { event }),
            _ => Guest::Fills(event),
        };
    }

    fn stub_access(&self, stub: Stub, script: &Script, out: &mut Successors) {
        let Some(access) = stub.access() else {
            let Stub::Done { event, reply } = stub else { unreachable!("only Done makes no access") };
            out.push(Ok(self.with(|w| w.guest = Guest::Takes { event, reply })));
            return;
        };
        let mut world = self.clone();
        match (stub, access, script.mutation) {
            (Stub::Publish { event }, _, Mutation::StubLooksBeforePublishing) => {
                let peer = self.memory.load(Side::Stub, index(Word::SupervisorSleeps));
                world.guest = Guest::LookedEarly { event, peer };
            }
            (Stub::Barrier { .. }, _, Mutation::StubPublishesWithoutBarrier) => {
                world.guest = Guest::HandsOff(stub.next(0));
            }
            (Stub::Publish { event }, Access::Store(..), Mutation::ArgumentsAfterPublish) => {
                if perform(&mut world.memory, Side::Stub, access).is_none() {
                    return;
                }
                world.memory.store(Side::Stub, PAYLOAD, 100 + self.op as u32);
                world.guest = Guest::HandsOff(Stub::Barrier { event });
            }
            (Stub::Announce { .. }, _, Mutation::StubAnnouncesByPlainStore) => {
                world.memory.store(Side::Stub, index(Word::StubSleeps), 1);
                world.guest = Guest::HandsOff(stub.next(0));
            }
            (Stub::Announce { .. }, _, Mutation::StubSleepsUnannounced) => {
                world.guest = Guest::HandsOff(stub.next(0));
            }
            (Stub::PutBack { event }, _, Mutation::EventPutBackByPlainStore) => {
                world.memory.store(Side::Stub, index(Word::State), event);
                world.guest = Guest::HandsOff(stub.next(wire::SLEEP));
            }
            (Stub::PutBack { event }, _, Mutation::SleepReplyTakenForResume) => {
                world.guest = Guest::Takes { event, reply: wire::RESUME };
            }
            (_, Access::FutexWait(word, expected), mutation) => {
                let same = world.memory.word(index(word)) == expected;
                let sleeps = same || mutation == Mutation::FutexDoesNotCompare;
                world.guest = if sleeps { Guest::Asleep(stub) } else { Guest::HandsOff(stub.next(0)) };
            }
            (_, Access::FutexWake(word), mutation) => {
                if mutation != Mutation::StubForgetsToWake {
                    world.wake_host(word);
                }
                world.guest = Guest::HandsOff(stub.next(0));
            }
            _ => match perform(&mut world.memory, Side::Stub, access) {
                Some(seen) => world.guest = Guest::HandsOff(stub.next(seen)),
                None => return,
            },
        }
        out.push(Ok(world));
    }

    fn take_reply(&self, event: u32, reply: u32, script: &Script) -> Result<Self, Violation> {
        let mut world = self.clone();
        match reply {
            wire::EXECUTE | wire::EXECUTE_RESUME if !self.executing => {
                return Err("the stub does work that nobody asked for");
            }
            wire::EXECUTE => {
                world.executing = false;
                world.begin(wire::DONE, script.mutation);
            }
            wire::EXECUTE_RESUME => {
                world.executing = false;
                world.guest = Guest::EntersCall;
            }
            wire::RESUME if self.stopped_by == wire::TRAPPED => {
                if self.memory.load(Side::Stub, PAYLOAD) != 200 + self.op as u32 {
                    return Err("a call got a result that is not its own");
                }
                if self.calls_seen != self.calls_done + 1 {
                    return Err("a reply was consumed twice, or came before its call was seen");
                }
                world.calls_done += 1;
                world.op += 1;
                world.guest = Guest::Runs;
            }
            wire::RESUME if event == wire::INTERRUPTED => world.guest = Guest::Runs,
            _ => return Err("the stub read a reply that nobody wrote"),
        }
        Ok(world)
    }

    pub fn host_steps(&self, script: &Script, out: &mut Successors) {
        match self.host {
            Host::HandsOff(supervisor) => self.host_access(supervisor, script, out),
            Host::Asleep(supervisor) => {
                // While a kick is unanswered the sleep ends by the clock: that is part of the protocol.
                let kicks = matches!(supervisor, Supervisor::Sleep { attention: 1.., .. });
                if script.spurious || kicks {
                    out.push(Ok(self.with(|w| w.host = Host::HandsOff(supervisor.next(0)))));
                }
            }
            Host::Reads(event) => out.push(self.read_event(event, script)),
            Host::TakesInterrupt => {
                if self.memory.is_drained(Side::Supervisor) {
                    out.push(Ok(self.with(|w| {
                        w.memory.set_word(index(Word::Attention), 0);
                        w.reply(wire::RESUME, script);
                    })));
                }
            }
            Host::Decides { event } => {
                // A call that blocks is the stub's, until it was interrupted.
                let blocks = script.ops.get(self.op) == Some(&Op::Block) && event == wire::TRAPPED;
                let reply = if blocks { wire::EXECUTE_RESUME } else { wire::RESUME };
                out.push(Ok(self.with(|w| w.host = Host::Fills(reply))));
                if !blocks && script.execute && event == wire::TRAPPED {
                    out.push(Ok(self.with(|w| w.host = Host::Fills(wire::EXECUTE))));
                }
                let mut world = self.clone();
                if script.sleep_reply
                    && perform(&mut world.memory, Side::Supervisor, prepare_sleep(event)).is_some()
                {
                    world.host = Host::Dozes;
                    out.push(Ok(world));
                }
            }
            Host::Dozes => {
                let blocks = script.ops.get(self.op) == Some(&Op::Block);
                let reply = if blocks { wire::EXECUTE_RESUME } else { wire::RESUME };
                out.push(Ok(self.with(|w| w.host = Host::Fills(reply))));
            }
            Host::LooksWhy => {
                if self.memory.is_drained(Side::Supervisor) {
                    out.push(Ok(self.with(|w| {
                        let asked = w.memory.word(index(Word::Attention)) != 0;
                        w.memory.set_word(index(Word::Attention), 0);
                        w.host = Host::Fills(if asked { wire::RESUME } else { wire::EXECUTE_RESUME });
                    })));
                }
            }
            Host::Fills(reply) => out.push(Ok(self.with(|w| {
                w.executing = matches!(reply, wire::EXECUTE | wire::EXECUTE_RESUME);
                w.memory.store(Side::Supervisor, PAYLOAD, 200 + w.op as u32);
                w.reply(reply, script);
            }))),
            Host::LookedEarly { reply, peer } => {
                let mut world = self.clone();
                let publish = Access::Swap(Word::State, reply);
                if perform(&mut world.memory, Side::Supervisor, publish).is_some() {
                    world.host = Host::PublishedLate { reply, peer };
                    out.push(Ok(world));
                }
            }
            Host::PublishedLate { reply, peer } => {
                let next = Supervisor::LookAtPeer { reply, spin: script.spin[1] }.next(peer);
                out.push(Ok(self.with(|w| w.host = Host::HandsOff(next))));
            }
        }
    }

    fn reply(&mut self, reply: u32, script: &Script) {
        self.host = Host::HandsOff(Supervisor::Publish { reply, spin: script.spin[1] });
    }

    fn host_access(&self, supervisor: Supervisor, script: &Script, out: &mut Successors) {
        let Some(access) = supervisor.access() else {
            let Supervisor::Done { event } = supervisor else { unreachable!("only Done makes no access") };
            out.push(Ok(self.with(|w| w.host = Host::Reads(event))));
            return;
        };
        let mut world = self.clone();
        match (supervisor, access, script.mutation) {
            (Supervisor::Publish { reply, .. }, _, Mutation::SupervisorLooksBeforePublishing) => {
                let peer = self.memory.load(Side::Supervisor, index(Word::StubSleeps));
                world.host = Host::LookedEarly { reply, peer };
            }
            (Supervisor::Barrier { .. }, _, Mutation::SupervisorPublishesWithoutBarrier) => {
                world.host = Host::HandsOff(supervisor.next(0));
            }
            (Supervisor::Announce { .. }, _, Mutation::SupervisorAnnouncesByPlainStore) => {
                world.memory.store(Side::Supervisor, index(Word::SupervisorSleeps), 1);
                world.host = Host::HandsOff(supervisor.next(0));
            }
            (Supervisor::Announce { .. }, _, Mutation::SupervisorSleepsUnannounced) => {
                world.host = Host::HandsOff(supervisor.next(0));
            }
            (_, Access::FutexWaitTwo((one, value), (two, seen)), mutation) => {
                let mut same = world.memory.word(index(one)) == value;
                if mutation != Mutation::SupervisorIgnoresAttention {
                    same &= world.memory.word(index(two)) == seen;
                }
                let sleeps = same || mutation == Mutation::FutexDoesNotCompare;
                world.host =
                    if sleeps { Host::Asleep(supervisor) } else { Host::HandsOff(supervisor.next(0)) };
            }
            (_, Access::FutexWake(word), mutation) => {
                if mutation != Mutation::SupervisorForgetsToWake {
                    world.wake_guest(word);
                }
                world.host = Host::HandsOff(supervisor.next(0));
            }
            (_, Access::Kick, mutation) => {
                world.signal_pending |= mutation != Mutation::SupervisorKicksOnce || !world.kicked;
                world.kicked = mutation == Mutation::SupervisorKicksOnce;
                world.host = Host::HandsOff(supervisor.next(0));
            }
            _ => match perform(&mut world.memory, Side::Supervisor, access) {
                Some(seen) => world.host = Host::HandsOff(supervisor.next(seen)),
                None => return,
            },
        }
        out.push(Ok(world));
    }

    fn read_event(&self, event: u32, script: &Script) -> Result<Self, Violation> {
        let mut world = self.clone();
        match event {
            wire::TRAPPED => {
                if self.memory.load(Side::Supervisor, PAYLOAD) != 100 + self.op as u32 {
                    return Err("the supervisor read arguments that are not the call's");
                }
                if self.calls_seen != self.calls_done {
                    return Err("an event was consumed twice");
                }
                world.calls_seen += 1;
                world.host = Host::Decides { event };
            }
            wire::DONE => {
                if self.memory.load(Side::Supervisor, PAYLOAD) != 100 + self.op as u32 {
                    return Err("the supervisor read a result that is not the work's");
                }
                let blocked = script.ops.get(self.op) == Some(&Op::Block);
                world.host = if blocked { Host::LooksWhy } else { Host::Decides { event } };
            }
            wire::INTERRUPTED => {
                world.host = Host::TakesInterrupt;
            }
            _ => return Err("the supervisor read an event that nobody wrote"),
        }
        Ok(world)
    }

    pub fn interrupter_steps(&self, script: &Script, out: &mut Successors) {
        if self.wake_due {
            out.push(Ok(self.with(|w| {
                w.wake_due = false;
                if script.mutation != Mutation::InterrupterForgetsToWake {
                    w.wake_host(Word::Attention);
                }
            })));
        } else if self.interrupts_left > 0 {
            out.push(Ok(self.with(|w| {
                w.interrupts_left -= 1;
                w.wake_due = w.memory.word(index(Word::Attention)) == 0;
                w.memory.set_word(index(Word::Attention), 1);
            })));
        }
    }

    fn wake_guest(&mut self, word: Word) {
        if let (Word::State, Guest::Asleep(stub)) = (word, self.guest) {
            self.guest = Guest::HandsOff(stub.next(0));
        }
    }

    fn wake_host(&mut self, word: Word) {
        if let (Word::State | Word::Attention, Host::Asleep(supervisor)) = (word, self.host) {
            self.host = Host::HandsOff(supervisor.next(0));
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut world = self.clone();
        change(&mut world);
        world
    }
}
