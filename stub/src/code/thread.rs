//! The first steps of a stub thread.
//!
//! Until its filter is installed the thread uses only registers and read-only pages, and every signal is
//! blocked: a sibling that scribbles over the slots cannot make it run guest code unfiltered.

use core::arch::naked_asm;
use core::mem::offset_of;

use super::leader::exit_code;
use crate::layout;
use crate::sysmsg::{SIGSTACK, SIGSTACK_LEN, Sysmsg};
use crate::wire;

/// Where a thread clone child goes. rsp = its slot (handed over as the clone's stack), r15 = request page.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn thread_entry() {
    naked_asm!(
        "mov r12, rsp",
        "lea r13, [r15 - {rodata_below}]",
        "wrgsbase r12",
        // sigaltstack(&stacks[slot], NULL)
        "mov rax, r12",
        "sub rax, r15",
        "sub rax, {slots}",
        "shr rax, 16",
        "lea rax, [rax + 2 * rax]",
        "lea rdi, [r13 + 8 * rax + {stacks}]",
        "xor esi, esi",
        "mov eax, 131",
        "syscall",
        ".globl systrap_ip_thread_sigaltstack",
        ".hidden systrap_ip_thread_sigaltstack",
        "systrap_ip_thread_sigaltstack:",
        "mov edi, {thread}",
        "test rax, rax",
        "jnz systrap_exit_group",
        // seccomp(SECCOMP_SET_MODE_FILTER, 0, &guest_fprog)
        "mov eax, 317",
        "mov edi, 1",
        "xor esi, esi",
        "lea rdx, [r13 + {fprog}]",
        "syscall",
        ".globl systrap_ip_thread_seccomp",
        ".hidden systrap_ip_thread_seccomp",
        "systrap_ip_thread_seccomp:",
        "mov edi, {seccomp}",
        "test rax, rax",
        "jnz systrap_exit_group",
        // rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8): from here on the handler may run.
        "mov eax, 14",
        "mov edi, 2",
        "lea rsi, [r13 + {sigmask}]",
        "xor edx, edx",
        "mov r10d, 8",
        "syscall",
        ".globl systrap_ip_thread_sigmask",
        ".hidden systrap_ip_thread_sigmask",
        "systrap_ip_thread_sigmask:",
        "mov edi, {thread}",
        "test rax, rax",
        "jnz systrap_exit_group",
        // Publish READY and wait for the first state.
        "mov r15, r12",
        "lea rsp, [r15 + {stack_top}]",
        "mov r14d, {ready}",
        "jmp {publish}",
        rodata_below = const layout::REQUEST - layout::RODATA,
        slots = const layout::SYSMSG - layout::REQUEST,
        stacks = const layout::rodata::STACKS,
        fprog = const layout::rodata::GUEST_FPROG,
        sigmask = const layout::rodata::THREAD_SIGMASK,
        stack_top = const SIGSTACK + SIGSTACK_LEN - 64,
        ready = const wire::READY,
        thread = const exit_code::THREAD,
        seccomp = const exit_code::SECCOMP,
        publish = sym thread_wait,
    )
}

/// Publishes the event r14d, waits for the reply, does it.
///
/// Entered with r15 = slot, r14d = event, rsp in the signal stack, and for events of the signal handler
/// r13 = `struct sigcontext` of the frame. This is the transition function `handoff::stub` in assembly: see
/// there for the states and for why the order of the accesses is what it is.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn thread_wait() {
    naked_asm!(
        // ---- r14d = the event to which RESUME answers; ebp = the event now published.
        "mov ebp, r14d",
        "2:",
        "mov dword ptr [r15 + {state}], ebp",
        "lock or dword ptr [r15 + {barrier}], 0", // full barrier: publish before the look at the sleep flag
        "cmp dword ptr [r15 + {supervisor_sleeps}], 0",
        "je 3f",
        "lea rdi, [r15 + {state}]",
        "mov esi, 1",
        "mov edx, 0x7fffffff",
        "mov eax, 202",
        "syscall",
        ".globl systrap_ip_thread_wake",
        ".hidden systrap_ip_thread_wake",
        "systrap_ip_thread_wake:",
        // ---- Spin.
        "3:",
        "mov ebx, dword ptr [r15 + {spin}]",
        "4:",
        "mov eax, dword ptr [r15 + {state}]",
        "cmp eax, ebp",
        "jne 6f",
        "pause",
        "sub ebx, 1",
        "jnc 4b",
        // ---- Sleep.
        "5:",
        "mov eax, 1",
        "xchg dword ptr [r15 + {stub_sleeps}], eax", // full barrier: announce before the second look
        "mov eax, dword ptr [r15 + {state}]",
        "cmp eax, ebp",
        "jne 7f",
        "lea rdi, [r15 + {state}]",
        "xor esi, esi",
        "mov edx, ebp",
        "lea r10, [r15 + {timeout}]",
        "mov eax, 202",
        "syscall",
        ".globl systrap_ip_thread_wait",
        ".hidden systrap_ip_thread_wait",
        "systrap_ip_thread_wait:",
        "mov eax, dword ptr [r15 + {state}]",
        "cmp eax, ebp",
        "je 5b",
        "7:",
        "mov dword ptr [r15 + {stub_sleeps}], 0",
        // ---- A reply: eax.
        "6:",
        "test eax, eax",
        "jz {resume}",
        "cmp eax, {resume_full}",
        "je {resume_all}",
        "cmp eax, {execute_resume}",
        "je 8f",
        "cmp eax, {execute}",
        "je 8f",
        "cmp eax, {copy_from}",
        "je 20f",
        "cmp eax, {copy_to}",
        "je 21f",
        "cmp eax, {sleep}",
        "je 30f",
        "mov edi, {bad_reply}",
        "cmp eax, {exit}",
        "jne systrap_exit_group",
        "xor edi, edi",
        "mov eax, 60",
        "syscall",
        ".globl systrap_ip_thread_exit",
        ".hidden systrap_ip_thread_exit",
        "systrap_ip_thread_exit:",
        "ud2",
        // ---- EXECUTE, EXECUTE_RESUME
        "8:",
        "mov ebx, eax",
        "mov eax, dword ptr [r15 + {nr}]",
        "mov rdi, [r15 + {a0}]",
        "mov rsi, [r15 + {a0} + 8]",
        "mov rdx, [r15 + {a0} + 16]",
        "mov r10, [r15 + {a0} + 24]",
        "mov r8, [r15 + {a0} + 32]",
        "mov r9, [r15 + {a0} + 40]",
        "syscall",
        ".globl systrap_ip_thread_execute",
        ".hidden systrap_ip_thread_execute",
        "systrap_ip_thread_execute:",
        "mov [r15 + {a0}], rax",
        "cmp ebx, {execute_resume}",
        "je {resume}",
        "9:",
        "mov ebp, {done}",
        "jmp 2b",
        // ---- COPY_FROM_GUEST, COPY_TO_GUEST. A fault at the copy leaves rcx = bytes not copied (sighandler).
        "20:",
        "lea rdi, [r15 + {payload}]",
        "mov rsi, [r15 + {a0}]",
        "jmp 22f",
        "21:",
        "lea rsi, [r15 + {payload}]",
        "mov rdi, [r15 + {a0}]",
        "22:",
        "mov rcx, [r15 + {a0} + 8]",
        "cld",
        ".globl systrap_copy",
        ".hidden systrap_copy",
        "systrap_copy:",
        "rep movsb",
        ".globl systrap_copy_end",
        ".hidden systrap_copy_end",
        "systrap_copy_end:",
        "mov [r15 + {a0}], rcx",
        "jmp 9b",
        // ---- SLEEP: the event stands; put it back unless the real reply has come, and sleep at once.
        "30:",
        "mov ecx, ebp",
        "lock cmpxchg dword ptr [r15 + {state}], ecx",
        "je 5b",
        "jmp 3b",
        state = const offset_of!(Sysmsg, line.state),
        nr = const offset_of!(Sysmsg, line.nr),
        a0 = const offset_of!(Sysmsg, line.args),
        spin = const offset_of!(Sysmsg, spin),
        supervisor_sleeps = const offset_of!(Sysmsg, supervisor_sleeps),
        stub_sleeps = const offset_of!(Sysmsg, stub_sleeps),
        timeout = const offset_of!(Sysmsg, sleep_timeout),
        barrier = const offset_of!(Sysmsg, saved_nr),
        payload = const offset_of!(Sysmsg, payload),
        resume_full = const wire::RESUME_FULL,
        execute = const wire::EXECUTE,
        execute_resume = const wire::EXECUTE_RESUME,
        copy_from = const wire::COPY_FROM_GUEST,
        copy_to = const wire::COPY_TO_GUEST,
        sleep = const wire::SLEEP,
        exit = const wire::EXIT,
        done = const wire::DONE,
        bad_reply = const exit_code::BAD_REPLY,
        resume = sym super::sighandler::resume,
        resume_all = sym super::sighandler::resume_all,
    )
}
