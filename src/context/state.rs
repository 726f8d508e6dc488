//! The full state: reading it from a signal frame, writing it to the state area.

use std::sync::atomic::{AtomicU64, Ordering};

use systrap_stub::layout::SLOT_SIZE;
use systrap_stub::sysmsg::{SIGCONTEXT_WORDS, SIGSTACK, SIGSTACK_LEN, gregs};

use crate::Registers;
use crate::arch::xstate;
use crate::subprocess::StubThread;

/// The user code and stack segments of 64-bit Linux (arch/x86/include/asm/segment.h).
const USER_CS: u64 = 0x33;
const USER_DS: u64 = 0x2b;
/// The flags that a signal return lets a program change (`FIX_EFLAGS`), NT and ID, which a program changes by popf,
/// and the two that are always set.
const USER_FLAGS: u64 = 0x25_4dd5;
const FIXED_FLAGS: u64 = 0x202;

/// A guest thread's complete state.
#[derive(Debug, Clone)]
pub(crate) struct FullState {
    pub(crate) regs: Registers,
    /// cs and ss as `struct sigcontext` holds them: a guest may have far-jumped to 32-bit code.
    segments: u64,
    xstate: Vec<u64>,
}

impl FullState {
    pub(crate) fn initial(layout: &xstate::Layout) -> Self {
        let regs = Registers { rflags: FIXED_FLAGS, ..Registers::default() };
        Self { regs, segments: USER_CS | USER_DS << 48, xstate: layout.initial() }
    }

    pub(crate) fn xstate_bytes(&self, layout: &xstate::Layout) -> &[u8] {
        &as_bytes(&self.xstate)[..layout.len()]
    }

    pub(crate) fn xstate_bytes_mut(&mut self, layout: &xstate::Layout) -> &mut [u8] {
        &mut as_bytes_mut(&mut self.xstate)[..layout.len()]
    }

    /// Reads the state of the signal frame that the stub names. Every word is read once; the frame and its
    /// xsave image have to lie within the thread's own signal stack.
    pub(crate) fn read_frame(
        &mut self,
        thread: &StubThread,
        layout: &xstate::Layout,
    ) -> Result<(), &'static str> {
        let sysmsg = thread.sysmsg();
        let stack = SignalStack {
            words: thread.process().slots().signal_stack(thread.slot()),
            start: thread.stub_addr() + SIGSTACK,
        };
        let frame = stack.words(sysmsg.frame.load(Ordering::Acquire), SIGCONTEXT_WORDS, 8);
        let frame = frame.ok_or("the signal frame lies outside the signal stack")?;
        let mut words = [0_u64; SIGCONTEXT_WORDS];
        for (word, shared) in words.iter_mut().zip(frame) {
            *word = shared.load(Ordering::Relaxed);
        }
        let image = stack.words(words[gregs::FPSTATE], layout.words(), 64);
        let image = image.ok_or("the xsave image lies outside the signal stack")?;
        for (word, shared) in self.xstate.iter_mut().zip(image) {
            *word = shared.load(Ordering::Relaxed);
        }
        layout.sanitise(&mut self.xstate);
        self.take_registers(&words, thread);
        Ok(())
    }

    /// Reads the state area after SPILL.
    pub(crate) fn read_area(&mut self, thread: &StubThread, layout: &xstate::Layout) {
        let area = &thread.sysmsg().state;
        let mut words = [0_u64; SIGCONTEXT_WORDS];
        for (word, shared) in words.iter_mut().zip(&area.sigcontext) {
            *word = shared.load(Ordering::Relaxed);
        }
        for (word, shared) in self.xstate.iter_mut().zip(&area.xstate.0) {
            *word = shared.load(Ordering::Relaxed);
        }
        layout.sanitise(&mut self.xstate);
        self.take_registers(&words, thread);
    }

    fn take_registers(&mut self, words: &[u64; SIGCONTEXT_WORDS], thread: &StubThread) {
        let sysmsg = thread.sysmsg();
        self.segments = words[gregs::CSGSFSSS];
        self.regs = from_sigcontext(words);
        self.regs.fs_base = sysmsg.fs_base.load(Ordering::Relaxed);
        // While the guest does not use %gs itself, it holds the slot's address.
        let gs_base = sysmsg.gs_base.load(Ordering::Relaxed);
        self.regs.gs_base = if gs_base == thread.stub_addr() { 0 } else { gs_base };
    }

    /// Writes the state to the state area for RESUME_FULL.
    pub(crate) fn write_area(
        &mut self,
        thread: &StubThread,
        layout: &xstate::Layout,
    ) -> Result<(), &'static str> {
        let regs = &self.regs;
        if regs.rip >> 47 != 0 {
            return Err("rip is not a canonical user address");
        }
        // The kernel's half is allowed: wrfsbase lets a program set any canonical base.
        let is_canonical = |base: u64| (base << 16) as i64 >> 16 == base as i64;
        if !is_canonical(regs.fs_base) {
            return Err("fs_base is not a canonical address");
        }
        if !is_canonical(regs.gs_base) {
            return Err("gs_base is not a canonical address");
        }
        let sysmsg = thread.sysmsg();
        let words = to_sigcontext(regs, self.segments);
        for (word, shared) in words.iter().zip(&sysmsg.state.sigcontext) {
            shared.store(*word, Ordering::Relaxed);
        }
        layout.sanitise(&mut self.xstate);
        for (word, shared) in self.xstate.iter().zip(&sysmsg.state.xstate.0) {
            shared.store(*word, Ordering::Relaxed);
        }
        sysmsg.fs_base.store(regs.fs_base, Ordering::Relaxed);
        let gs_base = if regs.gs_base == 0 { thread.stub_addr() } else { regs.gs_base };
        sysmsg.gs_base.store(gs_base, Ordering::Relaxed);
        Ok(())
    }
}

/// A signal stack: its shared words and the address at which the stub sees them.
struct SignalStack<'a> {
    words: &'a [AtomicU64],
    start: u64,
}

const _: () = assert!(SIGSTACK + SIGSTACK_LEN == SLOT_SIZE, "the signal stack ends with its slot");

impl SignalStack<'_> {
    /// `count` words at a stub address, if they lie in the stack and the address is aligned to `align` bytes.
    fn words(&self, addr: u64, count: usize, align: u64) -> Option<&[AtomicU64]> {
        let offset = addr.checked_sub(self.start)?;
        if !addr.is_multiple_of(align) {
            return None;
        }
        let first = usize::try_from(offset / 8).ok()?;
        self.words.get(first..first.checked_add(count)?)
    }
}

fn from_sigcontext(words: &[u64; SIGCONTEXT_WORDS]) -> Registers {
    Registers {
        r8: words[gregs::R8],
        r9: words[gregs::R9],
        r10: words[gregs::R10],
        r11: words[gregs::R11],
        r12: words[gregs::R12],
        r13: words[gregs::R13],
        r14: words[gregs::R14],
        r15: words[gregs::R15],
        rdi: words[gregs::RDI],
        rsi: words[gregs::RSI],
        rbp: words[gregs::RBP],
        rbx: words[gregs::RBX],
        rdx: words[gregs::RDX],
        rax: words[gregs::RAX],
        rcx: words[gregs::RCX],
        rsp: words[gregs::RSP],
        rip: words[gregs::RIP],
        rflags: words[gregs::RFLAGS],
        fs_base: 0,
        gs_base: 0,
    }
}

fn to_sigcontext(regs: &Registers, segments: u64) -> [u64; SIGCONTEXT_WORDS] {
    let mut words = [0_u64; SIGCONTEXT_WORDS];
    words[gregs::R8] = regs.r8;
    words[gregs::R9] = regs.r9;
    words[gregs::R10] = regs.r10;
    words[gregs::R11] = regs.r11;
    words[gregs::R12] = regs.r12;
    words[gregs::R13] = regs.r13;
    words[gregs::R14] = regs.r14;
    words[gregs::R15] = regs.r15;
    words[gregs::RDI] = regs.rdi;
    words[gregs::RSI] = regs.rsi;
    words[gregs::RBP] = regs.rbp;
    words[gregs::RBX] = regs.rbx;
    words[gregs::RDX] = regs.rdx;
    words[gregs::RAX] = regs.rax;
    words[gregs::RCX] = regs.rcx;
    words[gregs::RSP] = regs.rsp;
    words[gregs::RIP] = regs.rip;
    words[gregs::RFLAGS] = regs.rflags & USER_FLAGS | FIXED_FLAGS;
    words[gregs::CSGSFSSS] = segments;
    words
}

#[allow(unsafe_code)]
fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: every u64 is eight initialised bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

#[allow(unsafe_code)]
fn as_bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: as above; every byte pattern is a valid u64.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
