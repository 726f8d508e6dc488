//! The template's last set-up steps, and the leader.
//!
//! The leader runs no guest code. All its signals are blocked for ever, it uses no stack, and it keeps
//! in registers (which no other thread reaches) whatever it relies on; what it reads from memory is
//! read-only in the stub process.
//!
//! Registers of the leader: r15 = request page, r14d = last sequence number seen, r13 = descriptor of the
//! address space's memfd, rbx = the hint word, rbp = current op, r12d = ops left.

use core::arch::naked_asm;
use core::mem::{offset_of, size_of};

use crate::layout;
use crate::request::{LEFT_BITS, Op, RESULT_BITS, Request, SEQ_BITS};

/// Flags with which the leader makes another stub process (`CLONE_PARENT | CLONE_FILES`).
pub const CLONE_PROCESS_FLAGS: u64 = 0x8000 | 0x400;
/// Flags with which the leader makes a stub thread
/// (`CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM`).
pub const CLONE_THREAD_FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
/// Length of the mapping of all slots, for the filter.
pub const SYSMSG_MAP_LEN: u64 = layout::SYSMSG_LEN;

/// Exit codes of a stub process that gives up, seen by the supervisor in `waitid`.
pub mod exit_code {
    /// The supervisor died before the parent-death signal was set.
    pub const ORPHAN: i32 = 101;
    /// prctl(PR_SET_PDEATHSIG) failed.
    pub const PDEATHSIG: i32 = 102;
    /// A shared area could not be mapped.
    pub const MAP: i32 = 103;
    /// madvise(MADV_DONTFORK) failed.
    pub const DONTFORK: i32 = 104;
    /// A filter could not be installed.
    pub const SECCOMP: i32 = 105;
    /// Unmapping the supervisor's memory failed.
    pub const UNMAP: i32 = 106;
    /// A stub thread could not set its signal stack or mask.
    pub const THREAD: i32 = 107;
    /// The CPU or the kernel has no CPUID faulting.
    pub const CPUID: i32 = 109;
    /// A stub thread found a reply that the supervisor never writes.
    pub const BAD_REPLY: i32 = 108;
}

/// Entered once by the template after its set-up in the supervisor's code: unmaps everything but the stub
/// region, installs the base filter, and becomes the leader of the template.
///
/// r15 = request page, r13 = memfd, rbx = end of the user range,
/// rdi = must be `CLONE_PROCESS_FLAGS`, rdx = r13, r10 = offset of the request page in its memfd,
/// r8 = the supervisor's pid, r9 = descriptor of the request memfd (the registers of a fork child).
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn template_entry() {
    naked_asm!(
        // munmap(0, base)
        "mov r12, rdx",
        "xor edi, edi",
        "lea rsi, [r15 - {request}]",
        "mov eax, 11",
        "systrap_template_unmap: syscall",
        ".globl systrap_ip_template_unmap",
        ".hidden systrap_ip_template_unmap",
        "systrap_ip_template_unmap:",
        "mov ebp, {unmap}",
        "test rax, rax",
        "jnz 9f",
        // Nothing above the stub region but its own parts; the kernel's stack of the old program goes too.
        // The second range reuses the same labelled instruction: rdi tells which turn it was.
        "test rdi, rdi",
        "jnz 2f",
        "lea rdi, [r15 + {above}]",
        "mov rsi, rbx",
        "sub rsi, rdi",
        "mov eax, 11",
        "jmp systrap_template_unmap",
        "2:",
        // seccomp(SECCOMP_SET_MODE_FILTER, 0, &base_fprog)
        "mov ebp, {seccomp}",
        "mov eax, 317",
        "mov edi, 1",
        "xor esi, esi",
        "lea rdx, [r15 - {request} + {fprog}]",
        "syscall",
        ".globl systrap_ip_template_seccomp",
        ".hidden systrap_ip_template_seccomp",
        "systrap_ip_template_seccomp:",
        "test rax, rax",
        "jnz 9f",
        "mov rdx, r12",
        "mov edi, {process}",
        "jmp systrap_fork_child",
        "9:",
        "mov edi, ebp",
        "jmp systrap_exit_group",
        request = const layout::REQUEST,
        above = const layout::STUB_LEN - layout::REQUEST,
        fprog = const layout::RODATA + layout::rodata::BASE_FPROG,
        process = const CLONE_PROCESS_FLAGS,
        unmap = const exit_code::UNMAP,
        seccomp = const exit_code::SECCOMP,
    )
}

/// The leader's loop, and the first steps of a clone child that is a process. Reached from
/// [`template_entry`] and from itself.
#[unsafe(naked)]
#[unsafe(link_section = "systrap_stub")]
pub unsafe extern "C" fn leader_entry() {
    naked_asm!(
        // ---- Wait for a request: look for a while, then sleep while seq is the one already seen.
        "2:",
        "mov ebp, dword ptr [r15 + {spin}]",
        "17:",
        "mov edx, dword ptr [r15 + {seq}]",
        "cmp edx, r14d",
        "jne 3f",
        "sub ebp, 1",
        "jb 18f",
        "pause",
        "jmp 17b",
        "18:",
        "mov eax, 202",
        "lea rdi, [r15 + {seq}]",
        "xor esi, esi",
        "xor r10d, r10d",
        "syscall",
        ".globl systrap_ip_leader_wait",
        ".hidden systrap_ip_leader_wait",
        "systrap_ip_leader_wait:",
        "jmp 2b",
        // ---- Make the calls in turn.
        "3:",
        "mov r14d, edx",
        "mov r12d, dword ptr [r15 + {count}]",
        "lea rbp, [r15 + {ops}]",
        "4:",
        "mov rax, [rbp + {nr}]",
        "mov rdi, [rbp + {a0}]",
        "mov rsi, [rbp + {a0} + 8]",
        "mov rdx, [rbp + {a0} + 16]",
        "mov r10, [rbp + {a0} + 24]",
        "mov r8, [rbp + {a0} + 32]",
        "mov r9, [rbp + {a0} + 40]",
        "syscall",
        ".globl systrap_ip_leader_op",
        ".hidden systrap_ip_leader_op",
        "systrap_ip_leader_op:",
        // A clone child sees 0; so does a successful munmap, hence the second test: every other call that the
        // filter lets through here has a page address as its first argument, which the flags are not.
        "test rax, rax",
        "jnz 5f",
        "cmp edi, {process}",
        "je systrap_fork_child",
        "cmp edi, {thread}",
        "je {thread_entry}",
        "5:",
        // [-4095, -1] is an error: stop.
        "cmp rax, -4095",
        "jae 6f",
        "add rbp, {op_len}",
        "dec r12d",
        "jnz 4b",
        // ---- Answer: lseek(memfd, seq | left | result, SEEK_SET), then the hint and a wake.
        "6:",
        "mov esi, r14d",
        "and esi, {seq_mask}",
        "shl rsi, {left_bits}",
        "and r12d, {left_mask}",
        "or rsi, r12",
        "shl rsi, {result_bits}",
        "shl rax, {unresult_bits}",
        "shr rax, {unresult_bits}",
        "or rsi, rax",
        "mov rdi, r13",
        "xor edx, edx",
        "mov eax, 8",
        "syscall",
        ".globl systrap_ip_leader_answer",
        ".hidden systrap_ip_leader_answer",
        "systrap_ip_leader_answer:",
        "mov dword ptr [rbx], r14d",
        "mov rdi, rbx",
        "mov esi, 1",
        "mov edx, 0x7fffffff",
        "mov eax, 202",
        "syscall",
        ".globl systrap_ip_leader_wake",
        ".hidden systrap_ip_leader_wake",
        "systrap_ip_leader_wake:",
        "jmp 2b",
        // ---- A new stub process. Its request page and slots do not exist yet (MADV_DONTFORK): registers only.
        // rdx = its memfd, r10 = offset of its request page, r8 = the supervisor's pid, r9 = the request memfd.
        ".globl systrap_fork_child",
        ".hidden systrap_fork_child",
        "systrap_fork_child:",
        "mov r13, rdx",
        "mov r12, r10",
        "mov r14, r8",
        "mov rbp, r9",
        "mov eax, 157",
        "mov edi, 1",
        "mov esi, 9",
        "xor edx, edx",
        "xor r10d, r10d",
        "xor r8d, r8d",
        "syscall",
        ".globl systrap_ip_fork_pdeathsig",
        ".hidden systrap_ip_fork_pdeathsig",
        "systrap_ip_fork_pdeathsig:",
        "mov edi, {pdeathsig}",
        "test rax, rax",
        "jnz systrap_exit_group",
        "mov eax, 110",
        "syscall",
        ".globl systrap_ip_fork_getppid",
        ".hidden systrap_ip_fork_getppid",
        "systrap_ip_fork_getppid:",
        "mov edi, {orphan}",
        "cmp eax, r14d",
        "jne systrap_exit_group",
        // mmap(request page) and mmap(slots), through one labelled instruction; rbx = turn.
        "xor ebx, ebx",
        "mov rdi, r15",
        "mov esi, {page}",
        "mov edx, 1",
        "mov r8, rbp",
        "mov r9, r12",
        "15:",
        "mov r10d, 0x11", // MAP_SHARED | MAP_FIXED
        "mov eax, 9",
        "syscall",
        ".globl systrap_ip_fork_map",
        ".hidden systrap_ip_fork_map",
        "systrap_ip_fork_map:",
        "cmp rax, rdi",
        "mov edi, {map}",
        "jne systrap_exit_group",
        "test ebx, ebx",
        "jnz 16f",
        "inc ebx",
        "lea rdi, [r15 + {slots}]",
        "mov esi, {slots_len}",
        "mov edx, 3",
        "mov r8, r13",
        "xor r9d, r9d",
        "jmp 15b",
        "16:",
        // madvise(MADV_DONTFORK) on both.
        "xor ebx, ebx",
        "mov rdi, r15",
        "mov esi, {page}",
        "12:",
        "mov edx, 10",
        "mov eax, 28",
        "syscall",
        ".globl systrap_ip_fork_dontfork",
        ".hidden systrap_ip_fork_dontfork",
        "systrap_ip_fork_dontfork:",
        "mov edi, {dontfork}",
        "test rax, rax",
        "jnz systrap_exit_group",
        "test ebx, ebx",
        "jnz 13f",
        "inc ebx",
        "lea rdi, [r15 + {slots}]",
        "mov esi, {slots_len}",
        "jmp 12b",
        "13:",
        // mseal(2), Linux 6.10: the three parts of the region, one turn each. Its absence is no error: the
        // filters protect the stub, the seal is one more wall.
        "xor ebx, ebx",
        "lea rdi, [r15 - {request}]",
        "mov esi, {text_len}",
        "14:",
        "xor edx, edx",
        "mov eax, 462",
        "syscall",
        ".globl systrap_ip_fork_seal",
        ".hidden systrap_ip_fork_seal",
        "systrap_ip_fork_seal:",
        "inc ebx",
        "mov rdi, r15",
        "mov esi, {page}",
        "cmp ebx, 1",
        "je 14b",
        "lea rdi, [r15 + {slots}]",
        "mov esi, {slots_len}",
        "cmp ebx, 2",
        "je 14b",
        // Say hello: sequence number 0, result 1.
        "lea rbx, [r15 + {slots}]",
        "xor r14d, r14d",
        "xor r12d, r12d",
        "mov eax, 1",
        "jmp 6b",
        // ---- edi = exit code
        ".globl systrap_exit_group",
        ".hidden systrap_exit_group",
        "systrap_exit_group:",
        "mov eax, 231",
        "syscall",
        ".globl systrap_ip_exit_group",
        ".hidden systrap_ip_exit_group",
        "systrap_ip_exit_group:",
        "ud2",
        seq = const offset_of!(Request, seq),
        count = const offset_of!(Request, count),
        spin = const offset_of!(Request, spin),
        ops = const offset_of!(Request, ops),
        nr = const offset_of!(Op, nr),
        a0 = const offset_of!(Op, args),
        op_len = const size_of::<Op>(),
        process = const CLONE_PROCESS_FLAGS,
        thread = const CLONE_THREAD_FLAGS,
        thread_entry = sym super::thread::thread_entry,
        seq_mask = const (1 << SEQ_BITS) - 1,
        left_bits = const LEFT_BITS,
        left_mask = const (1 << LEFT_BITS) - 1,
        result_bits = const RESULT_BITS,
        unresult_bits = const 64 - RESULT_BITS,
        page = const layout::PAGE_SIZE,
        slots = const layout::SYSMSG - layout::REQUEST,
        slots_len = const SYSMSG_MAP_LEN,
        request = const layout::REQUEST,
        text_len = const layout::RODATA + layout::RODATA_LEN,
        pdeathsig = const exit_code::PDEATHSIG,
        orphan = const exit_code::ORPHAN,
        map = const exit_code::MAP,
        dontfork = const exit_code::DONTFORK,
    )
}

const _: () = assert!(
    !CLONE_PROCESS_FLAGS.is_multiple_of(layout::PAGE_SIZE)
        && !CLONE_THREAD_FLAGS.is_multiple_of(layout::PAGE_SIZE),
    "the leader tells clone from the other calls by its first argument"
);
