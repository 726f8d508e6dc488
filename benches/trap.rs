//! What a trapped call, an address space and a fork cost, with the yardsticks of the same run: a native null call, the
//! bare one-line hand-off between two cores, a native fork, and a null call under ptrace.
//!
//! At the end a table of medians, ranges and ratios is printed. Timings on a shared machine are noisy: compare ratios.
//!
//! # Safety
//!
//! The yardsticks make raw system calls on memory of their own; forked children run only what is async-signal-safe.
#![allow(unsafe_code)]

use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use iced_x86::code_asm::*;
use systrap::{AddressSpace, Context, Entry, Event, GuestAddr, Options, Patching, Protection, Systrap};

const SAMPLES: usize = 30;
const NATIVE: &str = "native null call";
const BARE: &str = "bare one-line hand-off";
const NATIVE_FORK: &str = "native fork";
/// Memory that is touched in whatever is forked.
const FORKED_MEMORY: usize = 8 << 20;

/// Nanoseconds for one iteration, sample by sample, of each benchmark in turn.
static RECORD: Mutex<Vec<(&str, Vec<f64>)>> = Mutex::new(Vec::new());

/// One benchmark: `run` makes so many iterations and says how long they took.
fn bench(criterion: &mut Criterion, name: &'static str, mut run: impl FnMut(u64) -> Duration) {
    RECORD.lock().unwrap_or_else(PoisonError::into_inner).push((name, Vec::new()));
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let took = run(iterations);
            let mut record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
            let samples = &mut record.last_mut().expect("pushed above").1;
            samples.push(took.as_nanos() as f64 / iterations as f64);
            took
        });
    });
}

fn timed(iterations: u64, mut one: impl FnMut()) -> Duration {
    let started = Instant::now();
    for _ in 0..iterations {
        one();
    }
    started.elapsed()
}

fn native(criterion: &mut Criterion) {
    bench(criterion, NATIVE, |iterations| {
        timed(iterations, || {
            // SAFETY: getppid has no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        })
    });
}

/// What the platform's hand-off comes down to: state, number, six arguments, address in one line.
#[repr(C, align(64))]
#[derive(Default)]
struct Line {
    state: AtomicU32,
    nr: AtomicU32,
    args: [AtomicU64; 6],
    rip: AtomicU64,
}

fn bare_hand_off(criterion: &mut Criterion) {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("NOT RUN: {BARE}: it needs two cores");
        return;
    }
    let line = Arc::new(Line::default());
    let end = Arc::new(AtomicBool::new(false));
    let peer = thread::spawn({
        let (line, end) = (Arc::clone(&line), Arc::clone(&end));
        move || {
            while !end.load(Ordering::Relaxed) {
                if line.state.load(Ordering::Acquire) == 0 {
                    std::hint::spin_loop();
                    continue;
                }
                let sum = line.args.iter().map(|arg| arg.load(Ordering::Relaxed)).fold(0, u64::wrapping_add);
                line.args[0].store(sum ^ u64::from(line.nr.load(Ordering::Relaxed)), Ordering::Relaxed);
                line.state.store(0, Ordering::Release);
                fence(Ordering::SeqCst);
            }
        }
    });
    bench(criterion, BARE, |iterations| {
        timed(iterations, || {
            line.nr.store(39, Ordering::Relaxed);
            for (i, arg) in line.args.iter().enumerate() {
                arg.store(i as u64, Ordering::Relaxed);
            }
            line.rip.store(0x40_1000, Ordering::Relaxed);
            line.state.store(1, Ordering::Release);
            fence(Ordering::SeqCst);
            while line.state.load(Ordering::Acquire) != 0 {
                std::hint::spin_loop();
            }
        })
    });
    end.store(true, Ordering::Relaxed);
    peer.join().expect("the peer ends");
}

const CODE: GuestAddr = GuestAddr::new(0x1000_0000);

/// A guest that makes null calls for ever.
fn calling(platform: &Systrap) -> (AddressSpace, Context) {
    let mut asm = CodeAssembler::new(64).expect("a valid bitness");
    let mut again = asm.create_label();
    // A patch needs instruction boundaries that are proved, from wherever decoding begins in front of them.
    for _ in 0..64 {
        asm.nop().expect("an instruction");
    }
    asm.set_label(&mut again).expect("a new label");
    asm.mov(eax, libc::SYS_getppid as i32).expect("an instruction");
    asm.syscall().expect("an instruction");
    asm.jmp(again).expect("an instruction");
    let code = asm.assemble(CODE.raw()).expect("machine code");
    let space = platform.new_address_space().expect("an address space");
    space.map_anonymous(CODE, 4096, Protection::READ_WRITE).expect("free memory");
    space.write(CODE, &code).expect("writable memory");
    space.protect(CODE, 4096, Protection::READ_EXECUTE).expect("a mapping");
    let mut context = platform.new_context().expect("a context");
    context.registers_mut().rip = CODE.raw();
    (space, context)
}

fn calls(criterion: &mut Criterion, name: &'static str, patching: Patching, entry: Entry) {
    let platform = Systrap::new(Options::new().patching(patching)).expect("a platform");
    let (space, mut context) = calling(&platform);
    // The first ones trap whatever comes later.
    for _ in 0..10 {
        context.switch(&space).expect("the guest runs");
    }
    bench(criterion, name, |iterations| {
        timed(iterations, || match context.switch(&space).expect("the guest runs") {
            Event::Syscall(call) if call.entry == entry => context.set_return(1),
            other => panic!("{name}: {other:?}"),
        })
    });
}

fn new_address_space(criterion: &mut Criterion) {
    let platform = Systrap::new(Options::new()).expect("a platform");
    bench(criterion, "new_address_space + release", |iterations| {
        timed(iterations, || {
            platform.new_address_space().expect("an address space").release().expect("its end");
        })
    });
}

fn forks(criterion: &mut Criterion) {
    let touched = vec![1_u8; FORKED_MEMORY];
    bench(criterion, NATIVE_FORK, |iterations| {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            let started = Instant::now();
            // SAFETY: the child ends at once.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            total += started.elapsed();
            assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
            // SAFETY: our own child.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        total
    });
    let platform = Systrap::new(Options::new()).expect("a platform");
    let space = platform.new_address_space().expect("an address space");
    let place = GuestAddr::new(0x2000_0000);
    space.map_anonymous(place, FORKED_MEMORY as u64, Protection::READ_WRITE).expect("free memory");
    space.write(place, &touched).expect("writable memory");
    bench(criterion, "AddressSpace::fork", |iterations| {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            let started = Instant::now();
            let child = space.fork().expect("a fork");
            total += started.elapsed();
            child.release().expect("its end");
        }
        total
    });
}

/// The yardstick that everything else used to be measured by: one PTRACE_SYSEMU stop a call, the number read and the
/// result written.
fn ptrace(criterion: &mut Criterion) {
    // SAFETY: the child makes raw calls only.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above; it ends with its tracer.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            loop {
                asm!("syscall", inout("rax") libc::SYS_getppid => _, out("rcx") _, out("r11") _);
            }
        }
    }
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    let wait = || {
        let mut status = 0;
        // SAFETY: our own child.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        waited == pid && libc::WIFSTOPPED(status)
    };
    // SAFETY: all bytes zero are a valid user_regs_struct.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the child is stopped and ours; `regs` is as large as the kernel writes.
    let one = |regs: &mut libc::user_regs_struct| unsafe {
        libc::ptrace(libc::PTRACE_SYSEMU, pid, 0, 0) == 0
            && wait()
            && libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut *regs) == 0
            && {
                regs.rax = 1;
                libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &raw const *regs) == 0
            }
    };
    // What is left of raise() is emulated away with the first calls.
    if wait() && (0..10).all(|_| one(&mut regs)) {
        bench(criterion, "null call under ptrace (SYSEMU)", |iterations| {
            timed(iterations, || assert!(one(&mut regs), "ptrace: {}", std::io::Error::last_os_error()))
        });
    } else {
        println!("NOT RUN: null call under ptrace: {}", std::io::Error::last_os_error());
    }
    // SAFETY: our own child.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}

/// Median, least and most of the last samples (those before are warm-up).
fn summary(samples: &[f64]) -> Option<(f64, f64, f64)> {
    let mut last = samples[samples.len().saturating_sub(SAMPLES)..].to_vec();
    last.sort_by(f64::total_cmp);
    Some((*last.get(last.len() / 2)?, *last.first()?, *last.last()?))
}

fn print_table() {
    let record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
    let median = |wanted: &str| {
        let (_, samples) = record.iter().find(|(name, _)| *name == wanted)?;
        summary(samples).map(|(median, ..)| median)
    };
    let ratio = |value: f64, wanted: &str| {
        median(wanted).map_or("-".to_owned(), |yardstick| format!("{:.2}", value / yardstick))
    };
    println!("\n{:<34}{:>12}{:>26}{:>12}{:>12}", "", "median ns", "range", "x native", "x hand-off");
    for (name, samples) in record.iter() {
        let Some((middle, least, most)) = summary(samples) else { continue };
        let range = format!("{least:.0} - {most:.0}");
        let (native, bare) = (ratio(middle, NATIVE), ratio(middle, BARE));
        println!("{name:<34}{middle:>12.0}{range:>26}{native:>12}{bare:>12}");
    }
    if let (Some(fork), Some(native)) = (median("AddressSpace::fork"), median(NATIVE_FORK)) {
        let (factor, more) = (fork / native, (fork - native) / 1e6);
        println!("AddressSpace::fork is {factor:.2} times the native fork, {more:+.3} ms");
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(SAMPLES)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    native(&mut criterion);
    bare_hand_off(&mut criterion);
    calls(&mut criterion, "trapped null call", Patching::Off, Entry::Trapped);
    calls(&mut criterion, "patched null call", Patching::Lazy, Entry::Patched);
    ptrace(&mut criterion);
    new_address_space(&mut criterion);
    forks(&mut criterion);
    criterion.final_summary();
    print_table();
}
