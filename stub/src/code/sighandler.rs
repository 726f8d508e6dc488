//! The signal handler of stub threads and the ways back to the guest.
//!
//! ```text
//!   slot base                      rsp at entry                    slot end
//!   │ Sysmsg … │ SIGSTACK   …   ▼ frame: return address, ucontext, siginfo, xsave image │
//! ```
//!
//! The kernel pushes its frame at the top of the signal stack; the handler works below it with rsp as the
//! kernel left it. It never returns through rt_sigreturn (which would let a forged frame change the signal
//! mask) but loads the frame's registers itself.
//!
//! Two properties make that safe against a second signal at any instruction: SA_NODEFER with an empty
//! sa_mask means that the mask never changes, and every way back reads the frame upwards with rsp *inside*
//! it, so that a nested frame (pushed 128 bytes below rsp) only overwrites what was read already.

use core::arch::naked_asm;
use core::mem::offset_of;

use super::thread::thread_wait;
use crate::layout::SLOT_SIZE;
use crate::sysmsg::{Sysmsg, gregs};
use crate::wire;

/// The signal that interrupts a guest. Stub processes have no children, so nothing else raises it, and as
/// a standard signal it does not queue.
pub const INTERRUPT_SIGNAL: i32 = 17;
const SIGSYS: i32 = 31;
const SIGILL: i32 = 4;
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Offset of `uc_mcontext` in `ucontext_t` (arch/x86/include/uapi/asm/ucontext.h).
pub const UC_MCONTEXT: u64 = 40;
/// Offset of `xfeatures` in the software bytes of an xsave image in a signal frame.
pub const SW_XFEATURES: u64 = 464 + 8;

/// `void handler(int signo, siginfo_t *info, void *ucontext)` for every signal that a stub thread handles.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn sighandler() {
    naked_asm!(
        // The guest may have left AC or NT set: misaligned frames and iretq do not bear them.
        "push 2",
        "popfq",
        "mov r15, rsp",
        "and r15, {slot_mask}",
        "lea r13, [rdx + {mcontext}]",
        "mov rax, [r13 + {rip}]",
        // Did the signal hit stub code? The text is the only code with these upper 48 bits.
        "lea rcx, [rip]",
        "xor rcx, rax",
        "shr rcx, 16",
        "jz 7f",
        "rdfsbase rcx",
        "mov [r15 + {fs_base}], rcx",
        "rdgsbase rcx",
        "mov [r15 + {gs_base}], rcx",
        "mov [r15 + {frame}], r13",
        "mov [r15 + {line_rip}], rax",
        "cmp edi, {sigsys}",
        "jne 5f",
        // ---- A system call.
        "mov eax, [r13 + {rax}]",
        "mov dword ptr [r15 + {nr}], eax",
        "cmp dword ptr [rsi + 28], {arch}", // si_arch
        "jne 4f",
        "mov r14d, {vsyscall}",
        "cmp qword ptr [rsi + 16], 0", // si_call_addr: negative in the vsyscall page only
        "jl 20f",
        "mov r14d, {trapped}",
        "20:",
        "mov rax, [r13 + {rdi}]",
        "mov [r15 + {a0}], rax",
        "mov rax, [r13 + {rsi}]",
        "mov [r15 + {a0} + 8], rax",
        "mov rax, [r13 + {rdx}]",
        "mov [r15 + {a0} + 16], rax",
        "mov rax, [r13 + {r10}]",
        "mov [r15 + {a0} + 24], rax",
        "mov rax, [r13 + {r8}]",
        "mov [r15 + {a0} + 32], rax",
        "mov rax, [r13 + {r9}]",
        "mov [r15 + {a0} + 40], rax",
        "jmp {wait}",
        "4:",
        "mov eax, [r13 + {rbx}]",
        "mov [r15 + {a0}], rax",
        "mov eax, [r13 + {rcx}]",
        "mov [r15 + {a0} + 8], rax",
        "mov eax, [r13 + {rdx}]",
        "mov [r15 + {a0} + 16], rax",
        "mov eax, [r13 + {rsi}]",
        "mov [r15 + {a0} + 24], rax",
        "mov eax, [r13 + {rdi}]",
        "mov [r15 + {a0} + 32], rax",
        "mov eax, [r13 + {rbp}]",
        "mov [r15 + {a0} + 40], rax",
        "mov r14d, {compat}",
        "jmp {wait}",
        // ---- An interrupt or a fault.
        "5:",
        "mov r14d, {interrupted}",
        "cmp edi, {interrupt_signal}",
        "je {wait}",
        "mov dword ptr [r15 + {nr}], edi",
        "movsxd rax, dword ptr [rsi + 8]", // si_code
        "mov [r15 + {a0}], rax",
        "mov rax, [rsi + 16]", // si_addr
        "mov [r15 + {a0} + 8], rax",
        "mov rax, [r13 + {trapno}]",
        "mov [r15 + {a0} + 16], rax",
        "mov rax, [r13 + {err}]",
        "mov [r15 + {a0} + 24], rax",
        "mov rax, [r13 + {cr2}]",
        "mov [r15 + {a0} + 32], rax",
        "mov rax, [rsi + 32]", // si_pkey, or the upper bound
        "mov [r15 + {a0} + 40], rax",
        "mov r14d, {fault}",
        "jmp {wait}",
        // ---- In stub code. An interrupt: the event or reply under way goes on, the supervisor asks again.
        "7:",
        "cmp edi, {interrupt_signal}",
        "je 30f",
        // A fault of a guest copy or store: end it; rcx or edx says how far it got.
        "lea rcx, [rip + systrap_copy]",
        "lea rbx, [rip + systrap_copy_end]",
        "cmp rax, rcx",
        "je 21f",
        "lea rcx, [rip + systrap_fast_copy]",
        "lea rbx, [rip + systrap_fast_copy_end]",
        "cmp rax, rcx",
        "je 21f",
        "lea rcx, [rip + systrap_store]",
        "lea rbx, [rip + systrap_store_end]",
        "cmp rax, rcx",
        "je 21f",
        "lea rcx, [rip + systrap_send]",
        "lea rbx, [rip + systrap_send_end]",
        "cmp rax, rcx",
        "jb 9f",
        "cmp rax, rbx",
        "jae 9f",
        "21:",
        "cmp edi, {sigsegv}",
        "je 6f",
        "cmp edi, {sigbus}",
        "jne 9f",
        "6:",
        "mov [r13 + {rip}], rbx",
        "8:",
        "mov r12, [r13 + {fpstate}]",
        "jmp {restore}",
        // Before or in a call that the syshandler passes on to the host kernel, an interrupt is one of the guest at its
        // `syscall`, with the call still to be made.
        "30:",
        "lea rcx, [rip + systrap_pass]",
        "cmp rax, rcx",
        "je 31f",
        "lea rcx, [rip + systrap_ip_fast_pass]",
        "cmp rax, rcx",
        "jne 8b",
        "cmp qword ptr [r13 + {rax}], -4",
        "jne 8b",
        "31:",
        "mov dword ptr [r15 + {in_passed_call}], 0",
        "mov eax, dword ptr [r15 + {saved_nr}]",
        "mov [r13 + {rax}], rax",
        "mov rcx, [r15 + {saved_r11}]",
        "mov [r13 + {r11}], rcx",
        "mov [r13 + {rflags}], rcx",
        "mov rax, [r15 + {saved_rcx}]",
        "mov [r13 + {rcx}], rax",
        "sub rax, 2",
        "mov [r13 + {rip}], rax",
        "mov [r15 + {line_rip}], rax",
        "rdfsbase rcx",
        "mov [r15 + {fs_base}], rcx",
        "rdgsbase rcx",
        "mov [r15 + {gs_base}], rcx",
        "mov [r15 + {frame}], r13",
        "mov r14d, {interrupted}",
        "jmp {wait}",
        // The syshandler met a foreign %gs: a call like any other, all registers still the guest's but for rip.
        "9:",
        "lea rcx, [rip + systrap_foreign_gs]",
        "cmp rax, rcx",
        "jne 3f",
        "cmp edi, {sigill}",
        "jne 3f",
        "mov rax, [r13 + {rcx}]",
        "mov [r13 + {rip}], rax",
        "mov [r15 + {line_rip}], rax",
        "rdfsbase rcx",
        "mov [r15 + {fs_base}], rcx",
        "rdgsbase rcx",
        "mov [r15 + {gs_base}], rcx",
        "mov [r15 + {frame}], r13",
        "mov eax, [r13 + {rax}]",
        "mov dword ptr [r15 + {nr}], eax",
        "mov r14d, {trapped}",
        "jmp 20b",
        // Anything else: no state is worth anything now.
        "3:",
        "mov [r15 + {line_rip}], rax",
        "mov dword ptr [r15 + {nr}], edi",
        "mov r14d, {stub_fault}",
        "jmp {wait}",
        slot_mask = const -(SLOT_SIZE as i64),
        mcontext = const UC_MCONTEXT,
        rip = const gregs::RIP * 8,
        rax = const gregs::RAX * 8,
        rbx = const gregs::RBX * 8,
        rcx = const gregs::RCX * 8,
        rdx = const gregs::RDX * 8,
        rsi = const gregs::RSI * 8,
        rdi = const gregs::RDI * 8,
        rbp = const gregs::RBP * 8,
        r8 = const gregs::R8 * 8,
        r9 = const gregs::R9 * 8,
        r10 = const gregs::R10 * 8,
        r11 = const gregs::R11 * 8,
        rflags = const gregs::RFLAGS * 8,
        saved_nr = const offset_of!(Sysmsg, saved_nr),
        in_passed_call = const offset_of!(Sysmsg, in_passed_call),
        saved_rcx = const offset_of!(Sysmsg, state.sigcontext) + gregs::RCX * 8,
        saved_r11 = const offset_of!(Sysmsg, state.sigcontext) + gregs::R11 * 8,
        trapno = const gregs::TRAPNO * 8,
        err = const gregs::ERR * 8,
        cr2 = const gregs::CR2 * 8,
        fpstate = const gregs::FPSTATE * 8,
        fs_base = const offset_of!(Sysmsg, fs_base),
        gs_base = const offset_of!(Sysmsg, gs_base),
        frame = const offset_of!(Sysmsg, frame),
        line_rip = const offset_of!(Sysmsg, line.rip),
        nr = const offset_of!(Sysmsg, line.nr),
        a0 = const offset_of!(Sysmsg, line.args),
        sigsys = const SIGSYS,
        sigill = const SIGILL,
        sigsegv = const SIGSEGV,
        sigbus = const SIGBUS,
        interrupt_signal = const INTERRUPT_SIGNAL,
        arch = const AUDIT_ARCH_X86_64,
        trapped = const wire::TRAPPED,
        compat = const wire::COMPAT,
        vsyscall = const wire::VSYSCALL,
        interrupted = const wire::INTERRUPTED,
        fault = const wire::FAULT,
        stub_fault = const wire::STUB_FAULT,
        wait = sym thread_wait,
        restore = sym restore,
    )
}

/// Reply RESUME (or EXECUTE_RESUME) to the event r14d, whose frame is r13; r15 = slot.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn resume() {
    naked_asm!(
        "cmp r14d, {spilled}",
        "je 7f",
        "cmp r14d, {ready}",
        "je 8f",
        "mov r12, [r13 + {fpstate}]",
        "cmp r14d, {trapped}",
        "jne 5f",
        "mov rcx, [r15 + {a0}]",
        "mov [r13 + {rax}], rcx",
        // With TF set only iretq steps as natively.
        "mov rcx, [r13 + {rflags}]",
        "test ecx, 0x100",
        "jnz {restore}",
        // The kernel reset the vector state for the handler.
        "mov eax, [r12 + {xfeatures}]",
        "mov edx, [r12 + {xfeatures} + 4]",
        "xrstor64 [r12]",
        // As after `syscall`: rcx = rip, r11 = rflags. `push` uses the stack below the frame.
        "mov rax, [r13 + {rip}]",
        "mov [r13 + {rcx}], rax",
        "mov [r13 + {r11}], rcx",
        "push rcx",
        "popfq",
        "mov rsp, r13",
        "pop r8",
        "pop r9",
        "pop r10",
        "pop r11",
        "pop r12",
        "pop r13",
        "pop r14",
        "pop r15",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rax",
        "pop rcx",
        "pop rsp",
        "jmp rcx",
        // ---- int 0x80 and vsyscall clobber nothing but rax; faults and interrupts nothing at all.
        "5:",
        "cmp r14d, {compat}",
        "je 6f",
        "cmp r14d, {vsyscall}",
        "je 6f",
        "cmp r14d, {fault}",
        "je {restore}",
        "cmp r14d, {interrupted}",
        "je {restore}",
        // READY and STUB_FAULT have nothing to resume.
        "8:",
        "mov edi, {bad_reply}",
        "jmp systrap_exit_group",
        "6:",
        "mov rcx, [r15 + {a0}]",
        "mov [r13 + {rax}], rcx",
        "jmp {restore}",
        // A call through a patched site whose registers were spilled.
        "7:",
        "mov rcx, [r15 + {a0}]",
        "mov [r15 + {state_rax}], rcx",
        "jmp {resume_all}",
        fpstate = const gregs::FPSTATE * 8,
        rax = const gregs::RAX * 8,
        rcx = const gregs::RCX * 8,
        r11 = const gregs::R11 * 8,
        rip = const gregs::RIP * 8,
        rflags = const gregs::RFLAGS * 8,
        xfeatures = const SW_XFEATURES,
        a0 = const offset_of!(Sysmsg, line.args),
        trapped = const wire::TRAPPED,
        compat = const wire::COMPAT,
        vsyscall = const wire::VSYSCALL,
        fault = const wire::FAULT,
        interrupted = const wire::INTERRUPTED,
        spilled = const wire::SPILLED,
        ready = const wire::READY,
        state_rax = const offset_of!(Sysmsg, state.sigcontext) + gregs::RAX * 8,
        bad_reply = const super::leader::exit_code::BAD_REPLY,
        resume_all = sym resume_all,
        restore = sym restore,
    )
}

/// Reply RESUME_FULL: the state area is the guest's state; r15 = slot.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn resume_all() {
    naked_asm!(
        "mov rax, [r15 + {fs_base}]",
        "wrfsbase rax",
        "mov rax, [r15 + {gs_base}]",
        "wrgsbase rax",
        "lea r13, [r15 + {sigcontext}]",
        "lea r12, [r15 + {xstate}]",
        "jmp {restore}",
        fs_base = const offset_of!(Sysmsg, fs_base),
        gs_base = const offset_of!(Sysmsg, gs_base),
        sigcontext = const offset_of!(Sysmsg, state.sigcontext),
        xstate = const offset_of!(Sysmsg, state.xstate),
        restore = sym restore,
    )
}

/// Loads everything: r13 = `struct sigcontext`, r12 = its xsave image.
///
/// The five words behind cx hold sp, ip, flags, segments, err; iretq wants ip, cs, flags, sp, ss. They are
/// rearranged in place.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn restore() {
    naked_asm!(
        "mov eax, [r12 + {xfeatures}]",
        "mov edx, [r12 + {xfeatures} + 4]",
        "xrstor64 [r12]",
        "mov rax, [r13 + {rsp}]",
        "mov rcx, [r13 + {rip}]",
        "movzx edx, word ptr [r13 + {segments}]",
        "movzx ebx, word ptr [r13 + {segments} + 6]",
        "mov [r13 + {rsp}], rcx",
        "mov [r13 + {rip}], rdx",
        "mov [r13 + {segments}], rax",
        "mov [r13 + {err}], rbx",
        "mov rsp, r13",
        "pop r8",
        "pop r9",
        "pop r10",
        "pop r11",
        "pop r12",
        "pop r13",
        "pop r14",
        "pop r15",
        "pop rdi",
        "pop rsi",
        "pop rbp",
        "pop rbx",
        "pop rdx",
        "pop rax",
        "pop rcx",
        "iretq",
        rsp = const gregs::RSP * 8,
        rip = const gregs::RIP * 8,
        segments = const gregs::CSGSFSSS * 8,
        err = const gregs::ERR * 8,
        xfeatures = const SW_XFEATURES,
    )
}
