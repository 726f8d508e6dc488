//! What a guest did that made [`Context::switch`](crate::Context::switch) return.

use crate::GuestAddr;

/// Why [`Context::switch`](crate::Context::switch) returned.
///
/// The counterpart of the results of gVisor's `platform.Context.Switch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The guest made a system call and waits for its result.
    Syscall(Syscall),
    /// The guest raised a synchronous signal (a fault, a breakpoint, a single step).
    Signal(Signal),
    /// [`Interrupter::interrupt`](crate::Interrupter::interrupt) was called.
    Interrupted,
}

/// A system call, exactly as the guest made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Syscall {
    /// The guest's rax at the call: the number is its low half (the kernel ignores the rest), the x32 bit (bit 30) included.
    pub nr: u32,
    /// The six arguments: rdi, rsi, rdx, r10, r8, r9 for a 64-bit call; ebx, ecx, edx, esi, edi, ebp for an i386 one.
    pub args: [u64; 6],
    /// The address after the call instruction, where the guest goes on.
    pub ip: GuestAddr,
    /// The `AUDIT_ARCH_*` of the call (seccomp(2)).
    pub arch: Arch,
    /// The way by which the call arrived.
    pub entry: Entry,
}

/// The architecture of a system call, as seccomp(2) sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Arch {
    /// `syscall` in 64-bit code (`AUDIT_ARCH_X86_64`); x32 calls too, their number has bit 30 set.
    X86_64,
    /// `int 0x80`, or code in compatibility mode (`AUDIT_ARCH_I386`).
    I386,
}

/// How a call reached the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Entry {
    /// Through seccomp and SIGSYS.
    Trapped,
    /// Through a patched site's trampoline, without entering the host kernel.
    Patched,
    /// Through the vsyscall page (trapped as well); `Syscall::ip` is the return address.
    Vsyscall,
}

/// A synchronous signal with what the kernel said of it (sigaction(2), `siginfo_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signal {
    /// The signal number: SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGTRAP.
    pub signo: i32,
    /// `si_code`, for example `SEGV_MAPERR`.
    pub code: i32,
    /// `si_addr`.
    pub addr: GuestAddr,
    /// The CPU's trap number, as in `uc_mcontext.gregs[REG_TRAPNO]`.
    pub trapno: u64,
    /// The CPU's error code, as in `uc_mcontext.gregs[REG_ERR]`.
    pub error_code: u64,
    /// `uc_mcontext.gregs[REG_CR2]`: the faulting address of the last page fault.
    pub cr2: u64,
    /// The guest's instruction pointer, as a native signal handler would see it.
    pub ip: GuestAddr,
}

/// What a page fault tried to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AccessType {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

impl Signal {
    /// The kind of access of a page fault (trap 14), from the error code; `None` for any other trap.
    ///
    /// Source: arch/x86/include/asm/trap_pf.h (`X86_PF_WRITE`, `X86_PF_INSTR`).
    #[must_use]
    pub fn access(&self) -> Option<AccessType> {
        const PAGE_FAULT: u64 = 14;
        const PF_WRITE: u64 = 1 << 1;
        const PF_INSTR: u64 = 1 << 4;
        if self.trapno != PAGE_FAULT {
            None
        } else if self.error_code & PF_INSTR != 0 {
            Some(AccessType::Execute)
        } else if self.error_code & PF_WRITE != 0 {
            Some(AccessType::Write)
        } else {
            Some(AccessType::Read)
        }
    }
}
