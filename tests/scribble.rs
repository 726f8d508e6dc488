//! Guest threads scribble over every page that they share with the supervisor while address spaces are made,
//! forked, switched, interrupted, copied and released from several supervisor threads. The supervisor neither
//! panics, nor hangs, nor reads out of bounds; what becomes of the guests is their own affair.
#![allow(unsafe_code)]

#[path = "common/adversary.rs"]
mod adversary;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, FromRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use adversary::{CODE, DATA, DATA_LEN, Random, load, stub_base};
use iced_x86::code_asm as x;
use systrap::{
    AddressSpace, Context, Event, GuestAddr, Interrupter, Options, Protection, Sharing, SwitchError, Systrap,
};
use systrap_stub::layout;

/// Where guests see their counter of scribbles.
const COUNTER: u64 = 0x5000_0000;
/// Where the scribbler's code begins; the others begin at `CODE`.
const SCRIBBLER: u64 = CODE + 64;
const WORKERS: u64 = 3;
const RUN: Duration = Duration::from_secs(8);
/// Everything takes at most some of the platform's 10 s deadlines in a row.
const HANG: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Tally {
    spaces: AtomicU64,
    forks: AtomicU64,
    switches: AtomicU64,
    interrupted: AtomicU64,
    copies: AtomicU64,
    states: AtomicU64,
    deaths: AtomicU64,
    corrupted: AtomicU64,
    refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A victim that calls for ever, and behind it a scribbler: r12 = first slot, r13 = seed, r14 = counter.
fn code(a: &mut x::CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut victim = a.create_label();
    a.set_label(&mut victim)?;
    a.syscall()?;
    a.jmp(victim)?;
    for _ in 0..SCRIBBLER - CODE - 4 {
        a.nop()?;
    }
    let (mut top, mut anywhere, mut store) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut top)?;
    // xorshift
    a.mov(x::rax, x::r13)?;
    a.shl(x::rax, 13)?;
    a.xor(x::r13, x::rax)?;
    a.mov(x::rax, x::r13)?;
    a.shr(x::rax, 7)?;
    a.xor(x::r13, x::rax)?;
    a.mov(x::rax, x::r13)?;
    a.shl(x::rax, 17)?;
    a.xor(x::r13, x::rax)?;
    // A word of the first four slots: sometimes any, sometimes one of the hot 256 bytes with a small value.
    a.mov(x::rbx, x::r13)?;
    a.shr(x::rbx, 20)?;
    a.and(x::ebx, 0x3_fff8)?;
    a.mov(x::rdx, x::r13)?;
    a.test(x::r13d, 1)?;
    a.je(anywhere)?;
    a.and(x::ebx, 0x3_00f8)?;
    a.and(x::edx, 0x8000_000fu32 as i32)?;
    a.jmp(store)?;
    a.set_label(&mut anywhere)?;
    a.test(x::r13d, 6)?;
    a.jne(store)?;
    // An address in the slots: frames and xsave images are looked for there.
    a.lea(x::rdx, x::qword_ptr(x::r12 + x::rbx * 1))?;
    a.set_label(&mut store)?;
    a.mov(x::qword_ptr(x::r12 + x::rbx * 1), x::rdx)?;
    a.inc(x::qword_ptr(x::r14))?;
    // About a millisecond between scribbles on average: a victim that dies at once shows little.
    a.mov(x::ecx, x::r13d)?;
    a.and(x::ecx, 0xffff)?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.dec(x::ecx)?;
    a.jg(wait)?;
    a.jmp(top)
}

struct Arena<'a> {
    platform: &'a Systrap,
    tally: &'a Tally,
    stop: &'a AtomicBool,
    counter: &'a File,
    /// Where the stubs of the platform lie.
    base: u64,
    /// Whom the interrupting thread interrupts.
    running: &'a Mutex<Vec<Interrupter>>,
}

impl Arena<'_> {
    fn note(&self, result: Result<Event, SwitchError>) -> bool {
        match result {
            Ok(event) => {
                count(&self.tally.switches);
                if event == Event::Interrupted {
                    count(&self.tally.interrupted);
                }
                true
            }
            Err(SwitchError::StubDied { .. }) => {
                count(&self.tally.deaths);
                false
            }
            Err(SwitchError::StubCorrupted { .. }) => {
                count(&self.tally.corrupted);
                false
            }
            Err(_) => {
                count(&self.tally.refused);
                false
            }
        }
    }

    fn context(&self, at: u64) -> Context {
        let mut context = self.platform.new_context().expect("a context");
        context.registers_mut().rip = at;
        context.registers_mut().rsp = DATA + DATA_LEN - 64;
        self.running.lock().expect("the list").push(context.interrupter());
        context
    }

    /// The scribbler's own supervisor thread: resumes it whatever happens, until its process is dead.
    fn scribble(&self, space: &AddressSpace, seed: u64) {
        let mut context = self.context(SCRIBBLER);
        let regs = context.registers_mut();
        regs.r12 = self.base + layout::SYSMSG;
        regs.r13 = seed | 1;
        regs.r14 = COUNTER;
        while !self.stop.load(Ordering::Relaxed) && self.note(context.switch(space)) {}
        space.clone().release().expect("its process ends");
    }

    /// One address space from birth to death.
    fn life(&self, random: &mut Random) {
        let Ok(space) = self.platform.new_address_space() else { return count(&self.tally.refused) };
        count(&self.tally.spaces);
        load(&space, |a| code(a).expect("code"));
        let rw = Protection::READ_WRITE;
        let counter = GuestAddr::new(COUNTER);
        space.map_file(counter, 4096, self.counter.as_fd(), 0, rw, Sharing::Shared).expect("a counter");
        let seed = random.word();
        std::thread::scope(|scope| {
            scope.spawn(|| self.scribble(&space, seed));
            let mut victim = self.context(CODE);
            for _ in 0..10_000 {
                if !self.step(&space, &mut victim, random) {
                    break;
                }
            }
            space.clone().release().expect("its process ends");
        });
    }

    /// One random thing that supervisors do; false once the process is dead.
    fn step(&self, space: &AddressSpace, victim: &mut Context, random: &mut Random) -> bool {
        let page = GuestAddr::new(DATA + 4096 * random.below(16));
        match random.below(24) {
            0 => {
                if let Ok(child) = space.fork() {
                    count(&self.tally.forks);
                    let mut other = self.context(CODE);
                    self.note(other.switch(&child));
                    if random.below(2) == 0 {
                        child.release().expect("its process ends");
                    }
                }
            }
            1 => {
                let mut buffer = [0; 256];
                if space.read(page, &mut buffer).is_ok() && space.write(page, &buffer).is_ok() {
                    count(&self.tally.copies);
                }
            }
            2 | 3 => {
                if victim.pull_full_state().is_err() {
                    return false;
                }
                count(&self.tally.states);
                victim.registers_mut().rip = CODE;
                victim.xstate_mut()[160] = 1;
            }
            4 => victim.prepare_sleep(),
            5 => drop(space.protect(page, 4096, Protection::READ_WRITE)),
            6 => {
                // Let go of the stub thread, and take one again.
                if victim.release().is_err() {
                    return false;
                }
            }
            _ => return self.note(victim.switch(space)),
        }
        space.stub_exit().is_none()
    }
}

#[test]
fn the_supervisor_survives_guests_that_scribble() {
    // SAFETY: makes a descriptor, which the File then owns.
    let mut counter =
        unsafe { File::from_raw_fd(libc::memfd_create(c"scribbles".as_ptr(), libc::MFD_CLOEXEC)) };
    counter.set_len(4096).expect("a counter");
    let tally = Arc::new(Tally::default());
    let (done, ended) = mpsc::channel();
    let (of_thread, file) = (Arc::clone(&tally), counter.try_clone().expect("a descriptor"));
    // In a thread of its own, so that a hang is seen from outside.
    let run = std::thread::spawn(move || {
        everything(&of_thread, &file);
        let _ = done.send(());
    });
    let hang = ended.recv_timeout(RUN + HANG) == Err(mpsc::RecvTimeoutError::Timeout);
    let mut scribbles = [0; 8];
    counter.rewind().expect("a seek");
    counter.read_exact(&mut scribbles).expect("the counter");
    let scribbles = u64::from_le_bytes(scribbles);
    let Tally { spaces, forks, switches, interrupted, copies, states, deaths, corrupted, refused } = &*tally;
    let [spaces, forks, switches, interrupted, copies, states, deaths, corrupted, refused] =
        [spaces, forks, switches, interrupted, copies, states, deaths, corrupted, refused]
            .map(|counter| counter.load(Ordering::Relaxed));
    println!(
        "{scribbles} scribbles; {switches} switches ({interrupted} interrupted), {spaces} address spaces, \
         {forks} forks, {copies} copies, {states} full states; ends: {deaths} died, {corrupted} killed for \
         breaking the protocol, {refused} other errors"
    );
    assert!(!hang, "the supervisor hangs");
    run.join().expect("no supervisor thread panics");
    assert!(scribbles > 0 && switches > 0 && spaces > WORKERS, "nothing overlapped: nothing is shown");
    assert!(deaths + corrupted > 0, "no scribble ever did harm: they hit nothing");
}

fn everything(tally: &Tally, counter: &File) {
    let options = Options::new().interrupt_deadline(Duration::from_millis(200));
    let platform = Systrap::new(options).expect("a platform");
    let (stop, running) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let base = stub_base(&platform.new_address_space().expect("an address space"));
    let arena = Arena { platform: &platform, base, tally, stop: &stop, counter, running: &running };
    let deadline = Instant::now() + RUN;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let arena = &arena;
                scope.spawn(move || {
                    let mut random = Random::new(0x5c21_bb1e + worker);
                    while Instant::now() < deadline {
                        arena.life(&mut random);
                    }
                })
            })
            .collect();
        // Also gets threads out of a switch whose stub thread was scribbled away.
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(3));
            let mut list = running.lock().expect("the list");
            let start = list.len().saturating_sub(32);
            list.drain(..start);
            list.iter().for_each(Interrupter::interrupt);
            if Instant::now() > deadline {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}
