//! The yardsticks: a native null call, the bare one-line hand-off between two cores, a null call under ptrace.

use std::arch::asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::thread;

use criterion::Criterion;

use crate::record::{Record, timed};
use crate::{BARE, PTRACE};

pub fn native(record: &mut Record, criterion: &mut Criterion, name: &'static str) {
    record.bench(criterion, name, 1_000, |iterations| {
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

pub fn bare_hand_off(record: &mut Record, criterion: &mut Criterion) {
    if thread::available_parallelism().map_or(1, usize::from) < 2 {
        return record.cannot(BARE, "it needs two CPUs");
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
    record.bench(criterion, BARE, 500, |iterations| {
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

/// The yardstick that everything else used to be measured by: one PTRACE_SYSEMU stop a call, the number read and the
/// result written.
pub fn ptrace(record: &mut Record, criterion: &mut Criterion) {
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
        record.bench(criterion, PTRACE, 20, |iterations| {
            timed(iterations, || assert!(one(&mut regs), "ptrace: {}", std::io::Error::last_os_error()))
        });
    } else {
        record.cannot(PTRACE, format!("ptrace: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: our own child.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}
