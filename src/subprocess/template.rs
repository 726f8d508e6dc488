//! Making the template: the one process that is forked from the supervisor; all others are cloned from it.
//!
//! # Safety
//!
//! Between fork and the jump into the stub the child runs [`child`] on a copy of the forking thread's stack.
//! Other threads do not exist in the child, so it takes no lock and allocates nothing: it makes raw system
//! calls and then leaves for ever. Everything it needs is computed before ([`Plan`]).
#![allow(unsafe_code)]

use std::arch::asm;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use systrap_stub::code::leader::{CLONE_PROCESS_FLAGS, exit_code};
use systrap_stub::code::{leader, offset_of_entry, sighandler};
use systrap_stub::layout;

use super::image::HANDLED_SIGNALS;
use crate::seccomp::MEMBARRIER_REGISTER_SYNC_CORE;
use crate::{Error, GuestAddr, Options, Vdso};

/// End of the addresses that a process can have mappings at (`TASK_SIZE_MAX` with 4-level paging).
const TASK_END: u64 = 0x7fff_ffff_f000;

/// The same with 5-level paging.
const LA57_TASK_END: u64 = 0x00ff_ffff_ffff_f000;

/// An xsave image that initialises every feature: no bit is set in its header.
#[repr(C, align(64))]
struct CleanXstate([u32; 144]);

static CLEAN_XSTATE: CleanXstate = {
    let mut words = [0; 144];
    // MXCSR is loaded whatever the header says.
    words[6] = 0x1f80;
    CleanXstate(words)
};

/// Address space reserved in the supervisor for the moment of the fork, so that the stub's place is free in
/// the child.
pub(crate) struct Reservation {
    base: u64,
}

impl Reservation {
    /// Finds a random free place for the stub region.
    pub(crate) fn new() -> Result<Self, Error> {
        let tries = 128;
        for _ in 0..tries {
            let base = random_base()?;
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: NOREPLACE never touches an existing mapping.
            let got = unsafe {
                libc::mmap(base as *mut _, layout::STUB_LEN as usize, libc::PROT_NONE, flags, -1, 0)
            };
            if got.addr() as u64 == base {
                return Ok(Self { base });
            }
            if got != libc::MAP_FAILED {
                // SAFETY: the kernel just made this mapping for us (a kernel without NOREPLACE put it elsewhere).
                unsafe { libc::munmap(got, layout::STUB_LEN as usize) };
            } else if io::Error::last_os_error().raw_os_error() != Some(libc::EEXIST) {
                return Err(Error::last_host("reserving the stub's place"));
            }
        }
        Err(Error::TooMany { what: "occupied places for the stub region tried", limit: tries })
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: our own PROT_NONE mapping, which nothing points into.
        unsafe { libc::munmap(self.base as *mut _, layout::STUB_LEN as usize) };
    }
}

fn random_base() -> Result<u64, Error> {
    let mut raw = [0_u8; 8];
    // SAFETY: getrandom writes at most the eight bytes given.
    let got = unsafe { libc::getrandom(raw.as_mut_ptr().cast(), raw.len(), 0) };
    if got != 8 {
        return Err(Error::last_host("getrandom"));
    }
    let raw = u64::from_le_bytes(raw);
    let highs = (layout::MAX_STUB_ADDRESS - layout::MIN_STUB_ADDRESS) >> 32;
    let lows = ((1 << 32) - layout::STUB_LEN) / layout::BASE_ALIGN;
    let high = (raw >> 32) % highs;
    let low = (raw & 0xffff_ffff) % lows;
    Ok(layout::MIN_STUB_ADDRESS + (high << 32) + low * layout::BASE_ALIGN)
}

/// Where the host's `[vvar]` and `[vdso]` lie: old start, length, and offset of the vdso's ELF header.
#[derive(Debug, Clone, Copy)]
struct HostVdso {
    start: u64,
    len: u64,
    elf_offset: u64,
    /// End of each part that has to be moved as a mapping of its own; unused ones repeat the last.
    cuts: [u64; 4],
}

fn find_vdso() -> Option<HostVdso> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut parts: Vec<(u64, u64, bool)> = Vec::new();
    for line in maps.lines() {
        let is_vdso = line.ends_with("[vdso]");
        if is_vdso || line.ends_with("[vvar]") || line.ends_with("[vvar_vclock]") {
            let (start, end) = line.split_whitespace().next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let end = u64::from_str_radix(end, 16).ok()?;
            parts.push((start, end, is_vdso));
        }
    }
    let start = parts.first()?.0;
    let end = parts.last()?.1;
    let contiguous = parts.windows(2).all(|pair| pair[0].1 == pair[1].0);
    let elf = parts.iter().find(|part| part.2)?.0;
    if !contiguous || parts.len() > 4 || end - start > layout::VDSO_MAX_LEN {
        return None;
    }
    let mut cuts = [end; 4];
    for (cut, part) in cuts.iter_mut().zip(&parts) {
        *cut = part.1;
    }
    Some(HostVdso { start, len: end - start, elf_offset: elf - start, cuts })
}

/// The rseq area that the C library registered for a thread: its offset from the thread pointer and the
/// lengths to try. Other libcs than glibc 2.35 and later have none.
#[derive(Debug, Clone, Copy)]
struct Rseq {
    offset: i64,
    size: u64,
}

fn find_rseq() -> Option<Rseq> {
    // SAFETY: looks up data symbols by name; glibc defines them as ptrdiff_t and unsigned int, constant after start-up.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<i64>();
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        if offset.is_null() || size.is_null() || *size == 0 {
            return None;
        }
        Some(Rseq { offset: *offset, size: u64::from(*size) })
    }
}

/// Everything the child needs, as plain values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    base: u64,
    cpuid_faulting: bool,
    speculation_barriers: bool,
    text_fd: i32,
    memfd: i32,
    request_fd: i32,
    request_offset: u64,
    supervisor: i32,
    vdso: Option<HostVdso>,
    rseq: Option<Rseq>,
    handler: u64,
    entry: u64,
}

/// The descriptors that the template maps.
pub(crate) struct Files<'a> {
    pub(crate) text: BorrowedFd<'a>,
    pub(crate) slots: BorrowedFd<'a>,
    pub(crate) request: BorrowedFd<'a>,
    pub(crate) request_offset: u64,
}

impl Plan {
    pub(crate) fn new(base: u64, files: &Files<'_>, options: &Options) -> Self {
        Self {
            base,
            cpuid_faulting: options.get_cpuid_faulting(),
            speculation_barriers: options.get_speculation_barriers(),
            text_fd: files.text.as_raw_fd(),
            memfd: files.slots.as_raw_fd(),
            request_fd: files.request.as_raw_fd(),
            request_offset: files.request_offset,
            // SAFETY: takes no arguments.
            supervisor: unsafe { libc::getpid() },
            vdso: find_vdso(),
            rseq: find_rseq(),
            handler: base + offset_of_entry(handler_entry()) as u64,
            entry: base + offset_of_entry(leader::template_entry) as u64,
        }
    }

    /// Where guests find the vdso.
    pub(crate) fn vdso(&self) -> Option<Vdso> {
        self.vdso.map(|vdso| Vdso {
            start: GuestAddr::new(self.base + layout::VDSO),
            len_bytes: vdso.len,
            base: GuestAddr::new(self.base + layout::VDSO + vdso.elf_offset),
        })
    }
}

fn handler_entry() -> unsafe extern "C" fn() {
    sighandler::sighandler
}

/// Forks the template from the calling thread, whose death will end it and everything cloned from it.
///
/// All signals of the calling thread must be blocked.
pub(crate) fn fork(plan: &Plan) -> io::Result<i32> {
    // SAFETY: without CLONE_VM the child has a copy of everything; it only runs `child`, which never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_FILES, 0, 0, 0, 0) };
    match pid {
        0 => child(plan),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).unwrap_or(-1)),
    }
}

/// A system call that does not touch errno.
fn raw(nr: i64, args: [u64; 6]) -> i64 {
    let result;
    // SAFETY: made in the child only, on its own memory; what each call does is said at the call.
    unsafe {
        asm!("syscall", inlateout("rax") nr => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _);
    }
    result
}

fn must(result: i64, code: i32) {
    if result < 0 {
        raw(libc::SYS_exit_group, [code as u64, 0, 0, 0, 0, 0]);
    }
}

/// `struct sigaction` of the kernel.
#[repr(C)]
struct KernelSigaction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

fn child(plan: &Plan) -> ! {
    // The C library leaves its own signals 32 and 33 out of "all".
    let all = u64::MAX;
    raw(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, (&raw const all).addr() as u64, 0, 8, 0, 0]);
    unregister_rseq(plan);
    raw(libc::SYS_setsid, [0; 6]);
    let name = c"systrap-stub";
    raw(libc::SYS_prctl, [libc::PR_SET_NAME as u64, name.as_ptr().addr() as u64, 0, 0, 0, 0]);
    raw(libc::SYS_chdir, [c"/".as_ptr().addr() as u64, 0, 0, 0, 0, 0]);
    set_signal_actions(plan);
    drop_privileges();
    set_cpu_features(plan);
    // For patches under running threads. Cheap while there is one thread, and inherited; later it takes milliseconds.
    raw(libc::SYS_membarrier, [MEMBARRIER_REGISTER_SYNC_CORE.into(), 0, 0, 0, 0, 0]);
    let core = libc::rlimit64 { rlim_cur: 1, rlim_max: 1 };
    let core_limit = [0, libc::RLIMIT_CORE.into(), (&raw const core).addr() as u64, 0, 0, 0];
    raw(libc::SYS_prlimit64, core_limit);
    // After the change of credentials, which would clear it.
    let death = raw(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
    must(death, exit_code::PDEATHSIG);
    if raw(libc::SYS_getppid, [0; 6]) != i64::from(plan.supervisor) {
        must(-1, exit_code::ORPHAN);
    }
    build_region(plan);
    // With 5-level paging the supervisor may have mappings up here, which `template_entry` does not reach; without
    // it the range is none and the call fails.
    raw(
        libc::SYS_munmap,
        [TASK_END + crate::PAGE_SIZE, LA57_TASK_END - TASK_END - crate::PAGE_SIZE, 0, 0, 0, 0],
    );
    // SAFETY: the stub's text is mapped at its place, and the registers are what `template_entry` asks for.
    unsafe {
        asm!(
            "mov rbx, {end}",
            "xor esp, esp",
            "xor ebp, ebp",
            "xor r14d, r14d",
            // What the supervisor's thread had in its vector registers and segment bases is not for guests: all of
            // them inherit these.
            "mov r12, rax",
            "mov eax, -1",
            "mov edx, -1",
            "xrstor64 [rsi]",
            "xor eax, eax",
            "wrfsbase rax",
            "wrgsbase rax",
            "mov rdx, r13",
            "jmp r12",
            end = in(reg) TASK_END,
            in("rsi") &raw const CLEAN_XSTATE,
            in("rax") plan.entry,
            in("r15") plan.base + layout::REQUEST,
            in("r13") plan.memfd as u64,
            in("rdi") CLONE_PROCESS_FLAGS,
            in("r10") plan.request_offset,
            in("r8") plan.supervisor as u64,
            in("r9") plan.request_fd as u64,
            options(noreturn),
        )
    }
}

/// The kernel writes into a registered rseq area at every preemption, and kills a process that unmapped it.
fn unregister_rseq(plan: &Plan) {
    const RSEQ_FLAG_UNREGISTER: u64 = 1;
    const RSEQ_SIG: u64 = 0x5305_3053;
    const ORIGINAL_LEN: u64 = 32;
    let Some(rseq) = plan.rseq else { return };
    let thread_pointer: u64;
    // SAFETY: fs:0 holds the thread pointer itself in the x86-64 TLS ABI.
    unsafe { asm!("mov {}, fs:0", out(reg) thread_pointer) };
    let area = thread_pointer.wrapping_add_signed(rseq.offset);
    let rounded = rseq.size.wrapping_add(31) & !31;
    let mut result = 0;
    for len in [ORIGINAL_LEN, rounded, rseq.size] {
        result = raw(libc::SYS_rseq, [area, len, RSEQ_FLAG_UNREGISTER, RSEQ_SIG, 0, 0]);
        if result == 0 {
            return;
        }
    }
    must(result, exit_code::UNMAP);
}

fn set_signal_actions(plan: &Plan) {
    const SA_RESTORER: u64 = 0x0400_0000;
    let default = KernelSigaction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    // The restorer is never used, but the kernel wants one.
    let flags = libc::SA_SIGINFO as u64 | libc::SA_ONSTACK as u64 | libc::SA_NODEFER as u64 | SA_RESTORER;
    let handled = KernelSigaction { handler: plan.handler, flags, restorer: plan.handler, mask: 0 };
    for signal in 1..=64_u64 {
        let action = if HANDLED_SIGNALS.contains(&(signal as i32)) { &handled } else { &default };
        raw(libc::SYS_rt_sigaction, [signal, (&raw const *action).addr() as u64, 0, 8, 0, 0]);
    }
}

/// Both are inherited by everything cloned from the template.
fn set_cpu_features(plan: &Plan) {
    const ARCH_SET_CPUID: u64 = 0x1012;
    const PR_SET_SPECULATION_CTRL: u64 = 53;
    const PR_SPEC_FORCE_DISABLE: u64 = 1 << 3;
    const STORE_BYPASS_AND_INDIRECT_BRANCH: [u64; 2] = [0, 1];
    if plan.cpuid_faulting {
        must(raw(libc::SYS_arch_prctl, [ARCH_SET_CPUID, 0, 0, 0, 0, 0]), exit_code::CPUID);
    }
    if plan.speculation_barriers {
        // What cannot be controlled is off already, or needs no control.
        for which in STORE_BYPASS_AND_INDIRECT_BRANCH {
            raw(libc::SYS_prctl, [PR_SET_SPECULATION_CTRL, which, PR_SPEC_FORCE_DISABLE, 0, 0, 0]);
        }
    }
}

fn drop_privileges() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let no_new_privs = raw(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0]);
    must(no_new_privs, exit_code::SECCOMP);
    let clear_ambient = [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0, 0];
    raw(libc::SYS_prctl, clear_ambient);
    let header = Header { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let none = [0_u32; 6];
    let header = (&raw const header).addr() as u64;
    must(raw(libc::SYS_capset, [header, (&raw const none).addr() as u64, 0, 0, 0, 0]), exit_code::SECCOMP);
}

/// Clears the stub region, moves the vdso there and maps the text and the read-only data.
fn build_region(plan: &Plan) {
    must(raw(libc::SYS_munmap, [plan.base, layout::STUB_LEN, 0, 0, 0, 0]), exit_code::MAP);
    if let Some(vdso) = plan.vdso {
        let mut from = vdso.start;
        for to in vdso.cuts {
            if to > from {
                let target = plan.base + layout::VDSO + (from - vdso.start);
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                must(raw(libc::SYS_mremap, [from, to - from, to - from, flags, target, 0]), exit_code::MAP);
                from = to;
            }
        }
    }
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    let text = [plan.base, layout::TEXT_LEN, libc::PROT_READ as u64 | libc::PROT_EXEC as u64, flags];
    let [addr, len, prot, flags] = text;
    must(raw(libc::SYS_mmap, [addr, len, prot, flags, plan.text_fd as u64, 0]), exit_code::MAP);
    let data = plan.base + layout::RODATA;
    let args = [data, layout::RODATA_LEN, libc::PROT_READ as u64, flags, plan.text_fd as u64, layout::RODATA];
    must(raw(libc::SYS_mmap, args), exit_code::MAP);
}
