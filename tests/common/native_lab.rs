//! The same code on the host itself: a forked child runs it outside of any platform, and this thread observes it by
//! ptrace(2).
//!
//! Each `syscall` instruction enters the host's kernel, which stops the child there (PTRACE_SYSEMU): the call is noted,
//! not made, and given its result. What rcx, r11 and the flags are then is the kernel's and the CPU's doing.
//!
//! # Safety
//!
//! The child comes from a program with several threads: between fork and its first stop it makes raw system calls and
//! reads memory that was prepared before.
#![allow(unsafe_code, dead_code, reason = "the observer needs ptrace; each test crate uses its own part")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::ptr;

use systrap::Registers;

use crate::patch_lab::{Ended, Run, Seen, answer, vectors};

const NT_X86_XSTATE: u64 = 0x202;
/// The child is killed after so many seconds.
const LIMIT_SECONDS: u32 = 540;

/// Memory of the child: first address, length, protection (mmap(2)).
pub type Area = (u64, u64, i32);

/// A stopped process that can be given any state.
pub struct Native {
    pid: i32,
    memory: File,
    initial: libc::user_regs_struct,
    xstate: Vec<u8>,
}

impl Native {
    /// A child with this memory.
    pub fn new(areas: &[Area]) -> Self {
        // SAFETY: the child only runs `child`, which keeps to the rule above.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child(areas);
        }
        assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"));
        // SAFETY: plain numbers.
        let initial = unsafe { std::mem::zeroed() };
        let memory = memory.expect("the memory of a child");
        let mut native = Self { pid, memory, initial, xstate: vec![0; 64 * 1024] };
        assert_eq!(native.wait(), libc::SIGSTOP, "the child could not map its memory");
        native.request(libc::PTRACE_SETOPTIONS, 0, libc::PTRACE_O_EXITKILL as u64);
        native.initial = native.registers();
        native.xstate = native.vector_image();
        native
    }

    /// Writes memory of the child, read-only or not.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, addr).expect("memory of the child");
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_exact_at(&mut bytes, addr).expect("memory of the child");
        bytes
    }

    /// An xsave image, to be changed and given to [`run`](Self::run).
    pub fn vectors(&self) -> Vec<u8> {
        self.xstate.clone()
    }

    /// Runs from a state until a signal, or until `most` calls are made.
    pub fn run(&mut self, regs: &Registers, image: &[u8], components: &[u32], most: usize) -> Run {
        let from = self.with(regs);
        self.request(libc::PTRACE_SETREGS, 0, (&raw const from).addr() as u64);
        self.set_vector_image(image);
        let mut calls = Vec::new();
        let signal = loop {
            if calls.len() == most {
                break None;
            }
            self.request(libc::PTRACE_SYSEMU, 0, 0);
            let signal = self.wait();
            if signal != libc::SIGTRAP | 0x80 && signal != libc::SIGTRAP {
                break Some(self.signal(signal));
            }
            let mut regs = self.registers();
            let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
            let call = Seen { nr: regs.orig_rax as u32, args, ip: regs.rip };
            regs.rax = answer(call.nr, &call.args) as u64;
            // Nothing is to be restarted, whatever the result looks like.
            regs.orig_rax = u64::MAX;
            self.request(libc::PTRACE_SETREGS, 0, (&raw const regs).addr() as u64);
            calls.push(call);
        };
        let regs = self.registers();
        let vectors = vectors::contents(&self.vector_image(), components);
        Run { calls, signal, cause: None, registers: named(&regs), vectors }
    }

    fn with(&self, regs: &Registers) -> libc::user_regs_struct {
        let mut all = self.initial;
        let Registers { r8, r9, r10, r11, r12, r13, r14, r15, .. } = *regs;
        let Registers { rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags, fs_base, gs_base, .. } = *regs;
        (all.r8, all.r9, all.r10, all.r11) = (r8, r9, r10, r11);
        (all.r12, all.r13, all.r14, all.r15) = (r12, r13, r14, r15);
        (all.rdi, all.rsi, all.rbp, all.rbx) = (rdi, rsi, rbp, rbx);
        (all.rdx, all.rax, all.rcx, all.rsp) = (rdx, rax, rcx, rsp);
        (all.rip, all.eflags, all.fs_base, all.gs_base) = (rip, rflags, fs_base, gs_base);
        all.orig_rax = u64::MAX;
        all
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: plain numbers.
        let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, (&raw mut regs).addr() as u64);
        regs
    }

    fn vector_image(&self) -> Vec<u8> {
        let mut image = vec![0_u8; 64 * 1024];
        let mut vector = libc::iovec { iov_base: image.as_mut_ptr().cast(), iov_len: image.len() };
        self.request(libc::PTRACE_GETREGSET, NT_X86_XSTATE, (&raw mut vector).addr() as u64);
        image.truncate(vector.iov_len);
        image
    }

    fn set_vector_image(&self, image: &[u8]) {
        let mut vector = libc::iovec { iov_base: image.as_ptr().cast_mut().cast(), iov_len: image.len() };
        self.request(libc::PTRACE_SETREGSET, NT_X86_XSTATE, (&raw mut vector).addr() as u64);
    }

    fn signal(&self, signo: i32) -> Ended {
        // SAFETY: plain numbers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETSIGINFO, 0, (&raw mut info).addr() as u64);
        assert_eq!(info.si_signo, signo, "the signal that stopped the child");
        // SAFETY: a fault's.
        let addr = unsafe { info.si_addr() }.addr() as u64;
        Ended { signo, code: info.si_code, addr, ip: self.registers().rip }
    }

    fn request(&self, request: u32, addr: u64, data: u64) {
        // SAFETY: what is written to are buffers of the callers that outlive the call.
        let result = unsafe { libc::ptrace(request, self.pid, addr, data) };
        assert_eq!(result, 0, "ptrace {request:#x}: {}", std::io::Error::last_os_error());
    }

    /// The signal of the next stop.
    fn wait(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: writes the status.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
        assert_eq!(pid, self.pid, "waitpid: {}", std::io::Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "the native run ended with status {status:#x}");
        libc::WSTOPSIG(status)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: a child that nobody else reaps.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), libc::__WALL);
        }
    }
}

fn named(regs: &libc::user_regs_struct) -> Registers {
    Registers {
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rdi: regs.rdi,
        rsi: regs.rsi,
        rbp: regs.rbp,
        rbx: regs.rbx,
        rdx: regs.rdx,
        rax: regs.rax,
        rcx: regs.rcx,
        rsp: regs.rsp,
        rip: regs.rip,
        rflags: regs.eflags,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
    }
}

fn child(areas: &[Area]) -> ! {
    // SAFETY: as said at the top; the areas' addresses are free, else NOREPLACE fails.
    unsafe {
        libc::alarm(LIMIT_SECONDS);
        for (addr, len, prot) in areas {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let place = ptr::without_provenance_mut(*addr as usize);
            if libc::mmap(place, *len as usize, *prot, flags, -1, 0) != place {
                libc::_exit(3);
            }
        }
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        libc::raise(libc::SIGSTOP);
        libc::_exit(4)
    }
}
