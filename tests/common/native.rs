//! Running a fixture natively, in a forked child with signal handlers: what the platform is compared with.
//!
//! # Safety
//!
//! The child comes from a program with several threads, so that between fork and exit it makes raw system calls
//! and touches memory that was prepared before: no allocation, no lock, no thread-local variable (its fs base is
//! the guest's).
#![allow(unsafe_code, dead_code)]

use std::arch::{asm, naked_asm};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use systrap::Registers;

use super::fixture::{CODE, DUMP, DUMP_LEN, Fixture, Outcome, STACK_TOP, Stop};

/// The most stops of one run.
pub const MAX_STOPS: usize = 64;
const SIGNAL_STACK_LEN: usize = 64 * 1024;

/// What child and parent share.
#[repr(C)]
struct Report {
    wanted: usize,
    count: usize,
    stops: [Stop; MAX_STOPS],
    dump: [u8; DUMP_LEN as usize],
}

// Only the child sets these, in its own copy of the memory.
static REPORT: AtomicPtr<Report> = AtomicPtr::new(ptr::null_mut());
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Runs a fixture until its `wanted`th signal.
pub fn run(fixture: &Fixture, wanted: usize) -> Outcome {
    assert!((1..=MAX_STOPS).contains(&wanted), "a run ends at one of its stops");
    let len = size_of::<Report>();
    // SAFETY: a new shared mapping, zeroed: a valid `Report`.
    let report = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(report, libc::MAP_FAILED, "memory for the report");
    let report = report.cast::<Report>();
    let mut signal_stack = vec![0_u8; SIGNAL_STACK_LEN];
    // SAFETY: a `Report` as said; nobody else has it yet.
    unsafe { (*report).wanted = wanted };
    // SAFETY: the child only runs `child`, which keeps to the rules above.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(fixture, report, &mut signal_stack);
    }
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: our own child.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(reaped, pid, "waitpid: {}", std::io::Error::last_os_error());
    // SAFETY: the child is gone; what it wrote stands.
    let outcome = unsafe {
        let stops = (&(*report).stops)[..(*report).count.min(MAX_STOPS)].to_vec();
        let dump = (*report).dump.to_vec();
        libc::munmap(report.cast(), len);
        Outcome { stops, dump }
    };
    assert!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "the native run ended with status {status:#x} after {:?}",
        outcome.stops
    );
    outcome
}

fn child(fixture: &Fixture, report: *mut Report, signal_stack: &mut [u8]) -> ! {
    REPORT.store(report, Ordering::Relaxed);
    // SAFETY: as said at the top; the regions' addresses are free, else NOREPLACE fails.
    unsafe {
        libc::alarm(20);
        for region in &fixture.regions {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let write = libc::PROT_READ | libc::PROT_WRITE;
            let place = region.addr as *mut u8;
            if libc::mmap(place.cast(), region.len as usize, write, flags, -1, 0) != place.cast() {
                libc::_exit(3);
            }
            ptr::copy_nonoverlapping(region.bytes.as_ptr(), place, region.bytes.len());
            libc::mprotect(place.cast(), region.len as usize, region.prot.prot_bits());
        }
        let stack = libc::stack_t {
            ss_sp: signal_stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: signal_stack.len(),
        };
        libc::sigaltstack(&raw const stack, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as unsafe extern "C" fn() as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGTRAP, libc::SIGILL, libc::SIGSYS] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        enter()
    }
}

/// The state that a new context has: everything zero or initial.
///
/// # Safety
///
/// The fixture's memory is mapped; the caller gives up its stack.
unsafe fn enter() -> ! {
    #[repr(C, align(64))]
    struct Image([u8; 4096]);
    let mut image = Image([0; 4096]);
    image.0[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    // SAFETY: the caller's promise; PKRU (bit 9) and the tiles (bits 17, 18) stay as they are.
    unsafe {
        asm!(
            "xrstor64 [rdi]",
            "mov edi, 0",
            "wrfsbase rdi",
            "push 0x202",
            "popfq",
            "mov esp, {stack}",
            "mov eax, 0", "mov ecx, 0", "mov edx, 0", "mov ebx, 0", "mov ebp, 0", "mov esi, 0",
            "mov r8d, 0", "mov r9d, 0", "mov r10d, 0", "mov r11d, 0", "mov r12d, 0", "mov r13d, 0",
            "mov r14d, 0", "mov r15d, 0",
            "jmp qword ptr [rip + 2f]",
            "2: .quad {code}",
            stack = const STACK_TOP,
            code = const CODE,
            in("rdi") &raw const image, in("eax") 0xfff9_fdff_u32, in("edx") -1,
            options(noreturn),
        )
    }
}

/// Entered with the flags of the fixture: AC would make compiled code fault.
#[unsafe(naked)]
unsafe extern "C" fn handler() {
    naked_asm!("push 2", "popfq", "jmp {}", sym record)
}

/// Notes the stop. Returns to the fixture, or ends the process at the last one.
extern "C" fn record(signo: i32, info: *const libc::siginfo_t, context: *const libc::ucontext_t) {
    const CR2: usize = libc::REG_CR2 as usize;
    const PAGE_FAULT: u64 = 14;
    let report = REPORT.load(Ordering::Relaxed);
    // SAFETY: what the kernel hands to a handler; the report is mapped; DUMP is a region of every fixture.
    unsafe {
        let gregs = &(*context).uc_mcontext.gregs;
        let mut regs = ptr::read(gregs.as_ptr().cast::<Registers>());
        asm!("rdfsbase {}", out(reg) regs.fs_base);
        asm!("rdgsbase {}", out(reg) regs.gs_base);
        let trapno = gregs[libc::REG_TRAPNO as usize] as u64;
        let stop = Stop {
            signo,
            code: (*info).si_code,
            addr: (*info).si_addr() as u64,
            trapno,
            error_code: gregs[libc::REG_ERR as usize] as u64,
            cr2: if trapno == PAGE_FAULT { gregs[CR2] as u64 } else { 0 },
            regs,
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        ptr::write((&raw mut (*report).stops).cast::<Stop>().add(count), stop);
        (*report).count = count + 1;
        if count + 1 == (*report).wanted {
            ptr::copy_nonoverlapping(
                DUMP as *const u8,
                (&raw mut (*report).dump).cast::<u8>(),
                DUMP_LEN as usize,
            );
            asm!("syscall", in("rax") libc::SYS_exit_group, in("rdi") 0, options(noreturn));
        }
    }
}
