//! Running the same code in address spaces that differ in whether they patch, and comparing everything.
#![allow(dead_code, reason = "each test crate uses its own part")]

use systrap::{
    AddressSpace, Context, Entry, Event, GuestAddr, Options, PAGE_SIZE, Patching, Protection, Registers,
    Systrap,
};

#[path = "vectors.rs"]
pub mod vectors;

pub fn platform(patching: Patching) -> Systrap {
    Systrap::new(Options::new().patching(patching)).expect("a platform")
}

/// Maps writable memory with these bytes at its start.
pub fn put_data(space: &AddressSpace, at: u64, len: u64, bytes: &[u8]) {
    space.map_anonymous(GuestAddr::new(at), len, Protection::READ_WRITE).expect("memory for data");
    space.write(GuestAddr::new(at), bytes).expect("the data is written");
}

/// Maps code that may be executed and read.
pub fn put_code(space: &AddressSpace, at: u64, bytes: &[u8]) {
    let (page, len) = pages(at, bytes.len());
    space.map_anonymous(GuestAddr::new(page), len, Protection::READ_WRITE).expect("memory for code");
    space.write(GuestAddr::new(at), bytes).expect("the code is written");
    space.protect(GuestAddr::new(page), len, Protection::READ_EXECUTE).expect("the code is protected");
}

/// The pages around a range: the first address and the length.
pub fn pages(at: u64, len: usize) -> (u64, u64) {
    let first = at & !(PAGE_SIZE - 1);
    (first, (at + len as u64).next_multiple_of(PAGE_SIZE) - first)
}

pub fn bytes_at(space: &AddressSpace, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    space.read(GuestAddr::new(at), &mut bytes).expect("readable memory");
    bytes
}

/// The first byte that differs, as an offset.
pub fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).position(|(a, b)| a != b)
}

/// How a site was patched, from its code before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Made {
    Nothing,
    /// `e9` over an instruction at this offset.
    Jump(usize),
    /// `eb` over the `syscall`.
    ShortJump,
}

pub fn what_was_made(before: &[u8], after: &[u8], site: usize) -> Made {
    if after[site..site + 2] != before[site..site + 2] {
        assert_eq!(after[site], 0xeb, "only a short jump replaces a `syscall` in lazy patching");
        return Made::ShortJump;
    }
    match first_difference(&before[..site], &after[..site]) {
        None => Made::Nothing,
        Some(head) => {
            // A jump over an `e9`-like byte differs further on.
            let head = (0..=head).rev().find(|at| after[*at] == 0xe9).expect("a jump");
            Made::Jump(head)
        }
    }
}

/// What the supervisor answers, so that a call that was seen with other arguments shows in the guest.
pub fn answer(nr: u32, args: &[u64; 6]) -> i64 {
    let sum = args.iter().fold(u64::from(nr), |sum, arg| sum.wrapping_mul(31).wrapping_add(*arg));
    sum.wrapping_add(1) as i64
}

/// A call as the supervisor saw it, but for the way it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub nr: u32,
    pub args: [u64; 6],
    pub ip: u64,
}

/// A synchronous signal, as far as a tracer sees it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub signo: i32,
    pub code: i32,
    pub addr: u64,
    pub ip: u64,
}

/// What a run did, and the state at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub calls: Vec<Seen>,
    /// The signal that ended it, if it was not cut off.
    pub signal: Option<Ended>,
    /// Trap number and error code of that; a tracer does not see them.
    pub cause: Option<(u64, u64)>,
    pub registers: Registers,
    /// x87, SSE, AVX and AVX-512 registers and their controls.
    pub vectors: Vec<u8>,
}

impl Run {
    /// As a tracer would have seen it.
    pub fn traced(&self) -> Self {
        Self { cause: None, ..self.clone() }
    }

    /// Insists that two runs did the same and ended alike.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: impl Fn() -> String) {
        assert_eq!(self.calls, other.calls, "{}", what());
        assert_eq!((self.signal, self.cause), (other.signal, other.cause), "{}", what());
        assert_eq!(self.registers, other.registers, "{}", what());
        let differs = first_difference(&self.vectors, &other.vectors);
        assert_eq!(differs, None, "vector state at this offset, {}", what());
    }
}

/// How the calls of a run arrived.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ways {
    pub trapped: u64,
    pub patched: u64,
    pub restarted: u64,
}

/// Runs a context until a signal, or until it has made `most` calls. Each call that `restart` picks is first sent back
/// to its `syscall`, as for an interrupted call.
pub fn run(
    context: &mut Context,
    space: &AddressSpace,
    most: usize,
    ways: &mut Ways,
    mut restart: impl FnMut(&Seen) -> bool,
) -> Run {
    let mut calls = Vec::new();
    let mut again: Option<Seen> = None;
    let signal = loop {
        if calls.len() == most {
            break None;
        }
        match context.switch(space).expect("the stub process lives") {
            Event::Syscall(call) => {
                let seen = Seen { nr: call.nr, args: call.args, ip: call.ip.raw() };
                match call.entry {
                    Entry::Patched => ways.patched += 1,
                    _ => ways.trapped += 1,
                }
                if let Some(before) = again.take() {
                    assert_eq!(before, seen, "a restarted call is the same call");
                } else if restart(&seen) {
                    ways.restarted += 1;
                    context.pull_full_state().expect("the state");
                    let regs = context.registers_mut();
                    regs.rip -= 2;
                    regs.rax = seen.nr.into();
                    again = Some(seen);
                    continue;
                }
                calls.push(seen);
                context.set_return(answer(call.nr, &call.args));
            }
            Event::Signal(signal) => break Some(signal),
            other => panic!("nothing raises {other:?}"),
        }
    };
    context.pull_full_state().expect("the state");
    let image = context.xstate();
    let vectors = vectors::contents(image, &vectors::components(image.len()));
    let cause = signal.map(|signal| (signal.trapno, signal.error_code));
    let signal = signal.map(|signal| Ended {
        signo: signal.signo,
        code: signal.code,
        addr: signal.addr.raw(),
        ip: signal.ip.raw(),
    });
    Run { calls, signal, cause, registers: *context.registers(), vectors }
}
