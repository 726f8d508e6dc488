//! Null calls of a guest, through `Context::switch`.

use std::time::Duration;

use criterion::Criterion;
use iced_x86::code_asm::*;
use systrap::{AddressSpace, Context, Entry, Event, GuestAddr, Options, Patching, Protection, Systrap};

use crate::record::{Record, timed};
use crate::{ANSWERED, CPU_TIME};

const CODE: GuestAddr = GuestAddr::new(0x1000_0000);
/// Calls that the stub answers between two that it does not.
const ANSWERED_CALLS: u32 = 10_000;

/// Code behind enough `nop`s that instruction boundaries are proved, from wherever decoding begins.
fn padded(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).expect("a valid bitness");
    for _ in 0..64 {
        asm.nop().expect("an instruction");
    }
    write(&mut asm).expect("instructions");
    asm.assemble(CODE.raw()).expect("machine code")
}

/// A guest that makes null calls for ever.
fn calling() -> Vec<u8> {
    padded(|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.mov(eax, libc::SYS_getppid as i32)?;
        asm.syscall()?;
        asm.jmp(again)
    })
}

/// A guest that makes many calls that can be answered, then one that cannot, for ever.
fn asking() -> Vec<u8> {
    padded(|asm| {
        let (mut start, mut again) = (asm.create_label(), asm.create_label());
        asm.set_label(&mut start)?;
        asm.mov(ebx, ANSWERED_CALLS as i32)?;
        asm.set_label(&mut again)?;
        asm.mov(eax, libc::SYS_getpid as i32)?;
        asm.syscall()?;
        asm.sub(ebx, 1)?;
        asm.jnz(again)?;
        asm.mov(eax, libc::SYS_getppid as i32)?;
        asm.syscall()?;
        asm.jmp(start)
    })
}

fn guest(platform: &Systrap, code: &[u8]) -> (AddressSpace, Context) {
    let space = platform.new_address_space().expect("an address space");
    space.map_anonymous(CODE, 4096, Protection::READ_WRITE).expect("free memory");
    space.write(CODE, code).expect("writable memory");
    space.protect(CODE, 4096, Protection::READ_EXECUTE).expect("a mapping");
    let mut context = platform.new_context().expect("a context");
    context.registers_mut().rip = CODE.raw();
    (space, context)
}

/// Runs the guest until one call has arrived as it is to arrive for good: the first ones trap whatever comes later.
fn settle(context: &mut Context, space: &AddressSpace, nr: i64, entry: Entry) -> Result<(), String> {
    for _ in 0..10 {
        match context.switch(space).expect("the guest runs") {
            Event::Syscall(call) if i64::from(call.nr) == nr && call.entry == entry => {
                context.set_return(1);
                return Ok(());
            }
            Event::Syscall(_) => context.set_return(1),
            other => return Err(format!("no call but {other:?}")),
        }
    }
    Err(format!("no call arrived as {entry:?}"))
}

/// One call that is to arrive so.
fn one(context: &mut Context, space: &AddressSpace, entry: Entry) {
    match context.switch(space).expect("the guest runs") {
        Event::Syscall(call) if call.entry == entry && i64::from(call.nr) == libc::SYS_getppid => {
            context.set_return(1);
        }
        other => panic!("not a call that is {entry:?} but {other:?}"),
    }
}

pub fn null_call(
    record: &mut Record,
    criterion: &mut Criterion,
    name: &'static str,
    patching: Patching,
    entry: Entry,
) {
    let platform = Systrap::new(Options::new().patching(patching)).expect("a platform");
    let (space, mut context) = guest(&platform, &calling());
    if let Err(why) = settle(&mut context, &space, libc::SYS_getppid, entry) {
        return record.cannot(name, why);
    }
    record.bench(criterion, name, 200, |iterations| timed(iterations, || one(&mut context, &space, entry)));
}

/// Calls that the stub answers by itself. The one in [`ANSWERED_CALLS`] that it does not is counted in.
pub fn answered_call(record: &mut Record, criterion: &mut Criterion) {
    let platform = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
    let (space, mut context) = guest(&platform, &asking());
    context.answer_in_stub(libc::SYS_getpid as u32, Some(4711)).expect("a small number");
    if let Err(why) = settle(&mut context, &space, libc::SYS_getppid, Entry::Patched) {
        return record.cannot(ANSWERED, why);
    }
    context.count_answers();
    let before = platform.stats().answered;
    let mut rounds = 0;
    record.bench(criterion, ANSWERED, 1, |iterations| {
        rounds += iterations;
        timed(iterations, || one(&mut context, &space, Entry::Patched)) / ANSWERED_CALLS
    });
    context.count_answers();
    let answered = platform.stats().answered - before;
    assert_eq!(answered, rounds * u64::from(ANSWERED_CALLS), "every call in between is answered in the stub");
}

/// The CPU time, of both sides, of a call whose result comes after a millisecond: nobody spins for it.
pub fn cpu_time_of_waiting(record: &mut Record, criterion: &mut Criterion) {
    let platform = Systrap::new(Options::new().patching(Patching::Lazy)).expect("a platform");
    let (space, mut context) = guest(&platform, &calling());
    if let Err(why) = settle(&mut context, &space, libc::SYS_getppid, Entry::Patched) {
        return record.cannot(CPU_TIME, why);
    }
    let pid = space.pid();
    let both = || Some(cpu_time(0)? + cpu_time(pid)?);
    if both().is_none() {
        return record.cannot(CPU_TIME, format!("the CPU clock of process {pid}"));
    }
    record.bench(criterion, CPU_TIME, 10, |iterations| {
        let before = both().expect("the same clocks");
        for _ in 0..iterations {
            one(&mut context, &space, Entry::Patched);
            std::thread::sleep(Duration::from_millis(1));
        }
        both().expect("the same clocks") - before
    });
}

/// The CPU time that a process has used so far; 0 is the own one.
fn cpu_time(pid: libc::pid_t) -> Option<Duration> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both write to what is handed to them.
    let fine = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0 && libc::clock_gettime(clock, &raw mut time) == 0
    };
    fine.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Calls `what` while this thread, and whatever it makes, has one CPU only.
pub fn on_one_cpu(what: impl FnOnce()) -> std::io::Result<()> {
    // SAFETY: all bytes zero are an empty set.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: as large as said.
    let got = unsafe { libc::sched_getaffinity(0, size_of_val(&all), &raw mut all) };
    // SAFETY: within the set.
    let first = (0..libc::CPU_SETSIZE as usize).find(|cpu| unsafe { libc::CPU_ISSET(*cpu, &all) });
    let Some(first) = first.filter(|_| got == 0) else { return Err(std::io::Error::last_os_error()) };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `first` lies within the set.
    unsafe { libc::CPU_SET(first, &mut one) };
    // SAFETY: as large as said.
    let bind = |set: &libc::cpu_set_t| match unsafe { libc::sched_setaffinity(0, size_of_val(set), set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    bind(&one)?;
    what();
    bind(&all)
}
