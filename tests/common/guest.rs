//! Running a fixture under the platform.
#![allow(dead_code, reason = "each test crate uses a part")]

use systrap::{
    AddressSpace, Context, Event, GuestAddr, Options, Patching, Registers, Signal, Syscall, Systrap,
};

use super::fixture::{CODE, DUMP, DUMP_LEN, Fixture, Outcome, STACK_TOP, Stop};

/// How the guest goes on after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Its registers stay in the stub thread.
    Resume,
    /// The whole state is pulled and loaded again.
    FullState,
    /// The whole state goes on in another address space (a fork of the first).
    Move,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Resume, Way::FullState, Way::Move];
}

/// A context in an address space that holds a fixture.
#[derive(Debug)]
pub struct Guest {
    pub platform: Systrap,
    pub space: AddressSpace,
    pub context: Context,
}

impl Guest {
    /// Maps the fixture on a platform of its own, on which every call traps.
    pub fn new(fixture: &Fixture) -> Self {
        Self::with(fixture, Patching::Off)
    }

    /// Maps the fixture on a platform of its own.
    pub fn with(fixture: &Fixture, patching: Patching) -> Self {
        let platform = Systrap::new(Options::new().patching(patching)).expect("a platform");
        Self::on(&platform, fixture)
    }

    /// Maps the fixture in a new address space.
    pub fn on(platform: &Systrap, fixture: &Fixture) -> Self {
        let space = platform.new_address_space().expect("an address space");
        map(&space, fixture);
        let context = new_context(platform);
        Self { platform: platform.clone(), space, context }
    }

    /// The next event.
    pub fn switch(&mut self) -> Event {
        self.context.switch(&self.space).expect("the guest runs")
    }

    /// The next event, which is a call.
    pub fn call(&mut self) -> Syscall {
        match self.switch() {
            Event::Syscall(call) => call,
            other => panic!("a call was expected, not {other:?} at {:x?}", self.registers()),
        }
    }

    /// The next event, which is a signal.
    pub fn signal(&mut self) -> Signal {
        match self.switch() {
            Event::Signal(signal) => signal,
            other => panic!("a signal was expected, not {other:?} at {:x?}", self.registers()),
        }
    }

    /// The registers, pulled.
    pub fn registers(&mut self) -> Registers {
        self.context.pull_full_state().expect("the state is there");
        *self.context.registers()
    }

    /// Prepares the next switch to go the given way.
    pub fn go(&mut self, way: Way) {
        match way {
            Way::Resume => {}
            Way::FullState => {
                self.context.pull_full_state().expect("the state is there");
                self.context.full_state_changed();
            }
            Way::Move => self.space = self.space.fork().expect("a fork"),
        }
    }

    /// What the guest left in its dump area.
    pub fn dump(&self) -> Vec<u8> {
        let mut dump = vec![0; DUMP_LEN as usize];
        self.space.read(GuestAddr::new(DUMP), &mut dump).expect("the dump area is mapped");
        dump
    }
}

/// A context about to run [`CODE`].
pub fn new_context(platform: &Systrap) -> Context {
    let mut context = platform.new_context().expect("a context");
    let regs = context.registers_mut();
    regs.rip = CODE;
    regs.rsp = STACK_TOP;
    context
}

/// Puts a fixture's memory into an address space.
pub fn map(space: &AddressSpace, fixture: &Fixture) {
    for region in &fixture.regions {
        let at = GuestAddr::new(region.addr);
        space.map_anonymous(at, region.len, systrap::Protection::READ_WRITE).expect("free memory");
        space.write(at, &region.bytes).expect("writable memory");
        space.protect(at, region.len, region.prot).expect("a mapping");
    }
}

/// Runs a fixture until its `wanted`th signal, every call trapped; `answer` gives the calls' results.
pub fn run(fixture: &Fixture, wanted: usize, way: Way, answer: impl FnMut(&Syscall) -> i64) -> Outcome {
    run_in(&mut Guest::new(fixture), wanted, way, answer)
}

/// The same in a given guest.
pub fn run_in(
    guest: &mut Guest,
    wanted: usize,
    way: Way,
    mut answer: impl FnMut(&Syscall) -> i64,
) -> Outcome {
    let mut stops = Vec::new();
    loop {
        match guest.switch() {
            Event::Syscall(call) => guest.context.set_return(answer(&call)),
            Event::Signal(signal) => stops.push(stop_of(guest, &signal)),
            other => panic!("nothing causes {other:?}"),
        }
        if stops.len() == wanted {
            return Outcome { stops, dump: guest.dump() };
        }
        guest.go(way);
    }
}

/// What a native signal handler would be told.
pub fn stop_of(guest: &mut Guest, signal: &Signal) -> Stop {
    const PAGE_FAULT: u64 = 14;
    let regs = guest.registers();
    assert_eq!(signal.ip.raw(), regs.rip, "the event and the state agree on rip");
    Stop {
        signo: signal.signo,
        code: signal.code,
        addr: signal.addr.raw(),
        trapno: signal.trapno,
        error_code: signal.error_code,
        cr2: if signal.trapno == PAGE_FAULT { signal.cr2 } else { 0 },
        regs,
    }
}
