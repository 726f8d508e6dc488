//! The frame that a signal handler finds on its stack (arch/x86/kernel/signal_64.c, fpu/signal.c).
//!
//! From high to low addresses: the interrupted stack with its red zone (or the top of the alternate stack), the
//! floating-point state on a 64-byte boundary, the siginfo, the ucontext, the return address.

use super::{AltStack, FaultState, SS_AUTODISARM, SigInfo, SignalSet};
use crate::sentry::abi::{KernelSigaction, StackT};
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::{GuestAddr, Registers};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct sigcontext`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SigContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    error_code: u64,
    trapno: u64,
    old_mask: u64,
    cr2: u64,
    fpstate: u64,
    reserved: [u64; 8],
}

/// `struct rt_sigframe`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RtSigframe {
    return_address: u64,
    uc_flags: u64,
    uc_link: u64,
    uc_stack: StackT,
    context: SigContext,
    uc_sigmask: u64,
    info: [u8; 128],
}

/// What the frame says of the extended state, in bytes 464 to 511 of the fxsave area (`struct _fpx_sw_bytes`).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SoftwareBytes {
    magic1: u32,
    extended_size: u32,
    xfeatures: u64,
    xstate_size: u32,
    padding: [u32; 7],
}

const UCONTEXT: usize = 8;
const _: () = {
    use std::mem::offset_of;
    let context = offset_of!(RtSigframe, context) - UCONTEXT;
    assert!(context == offset_of!(libc::ucontext_t, uc_mcontext), "handlers read gregs here");
    assert!(
        offset_of!(RtSigframe, uc_stack) - UCONTEXT == offset_of!(libc::ucontext_t, uc_stack),
        "uc_stack"
    );
    assert!(
        offset_of!(RtSigframe, uc_sigmask) - UCONTEXT == offset_of!(libc::ucontext_t, uc_sigmask),
        "uc_sigmask"
    );
    assert!(offset_of!(SigContext, rip) == 8 * libc::REG_RIP as usize, "gregs[REG_RIP]");
    assert!(offset_of!(SigContext, rflags) == 8 * libc::REG_EFL as usize, "gregs[REG_EFL]");
    assert!(offset_of!(SigContext, error_code) == 8 * libc::REG_ERR as usize, "gregs[REG_ERR]");
    assert!(offset_of!(SigContext, cr2) == 8 * libc::REG_CR2 as usize, "gregs[REG_CR2]");
    assert!(offset_of!(SigContext, fpstate) == offset_of!(libc::mcontext_t, fpregs), "fpregs");
    assert!(size_of::<SoftwareBytes>() == SW_BYTES_LEN, "the kernel's _fpx_sw_bytes");
    assert!(size_of::<RtSigframe>() == 440, "the kernel's rt_sigframe");
};

const UC_FLAGS: u64 = 0x7; // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;
const RED_ZONE: u64 = 128;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const MAGIC2_LEN: usize = 4;
const FXSAVE_LEN: usize = 512;
const XSAVE_HEADER_END: usize = 576;
const SW_BYTES: usize = 464;
const SW_BYTES_LEN: usize = 48;
const MXCSR: usize = 24;
const SA_RESTORER: u64 = 0x0400_0000;

const FLAG_TF: u64 = 1 << 8;
const FLAG_DF: u64 = 1 << 10;
const FLAG_RF: u64 = 1 << 16;
/// The flags that a frame may set (`FIX_EFLAGS`): AC OF DF TF SF ZF AF PF CF RF.
const RESTORED_FLAGS: u64 =
    1 << 18 | 1 << 11 | FLAG_DF | FLAG_TF | 1 << 7 | 1 << 6 | 1 << 4 | 1 << 2 | 1 | FLAG_RF;

/// The thread's state that goes into a frame besides its registers.
pub(super) struct FrameContext<'a> {
    pub(super) info: &'a SigInfo,
    pub(super) action: &'a KernelSigaction,
    /// The mask that the handler's return restores.
    pub(super) mask: SignalSet,
    pub(super) stack: AltStack,
    pub(super) fault: FaultState,
    /// The features that the extended state may hold (XCR0).
    pub(super) xfeatures: u64,
}

/// The frame cannot be built or read: the guest gets SIGSEGV.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFrame;

/// Writes a frame and points the registers at the handler.
pub(super) fn push(
    memory: &dyn GuestMemory,
    registers: &mut Registers,
    xstate: &[u8],
    context: &FrameContext<'_>,
) -> Result<(), BadFrame> {
    let action = context.action;
    if action.flags & SA_RESTORER == 0 {
        return Err(BadFrame); // x86-64 has no other way to return
    }
    let on_stack = context.stack.is_active(registers.rsp);
    let mut sp = registers.rsp.wrapping_sub(RED_ZONE);
    let switches = action.flags & libc::SA_ONSTACK as u64 != 0 && !on_stack && context.stack.size != 0;
    if switches {
        sp = context.stack.sp.wrapping_add(context.stack.size);
    }
    let fpstate = sp.wrapping_sub((xstate.len() + MAGIC2_LEN) as u64) & !63;
    let frame_addr = (fpstate.wrapping_sub(size_of::<RtSigframe>() as u64) & !15).wrapping_sub(8);
    if (switches || on_stack) && !context.stack.contains(frame_addr) {
        return Err(BadFrame); // the alternate stack is too small
    }

    let mut extended = Vec::with_capacity(xstate.len() + MAGIC2_LEN);
    extended.extend_from_slice(xstate);
    extended.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    if extended.len() >= XSAVE_HEADER_END {
        let software = SoftwareBytes {
            magic1: FP_XSTATE_MAGIC1,
            extended_size: extended.len() as u32,
            xfeatures: context.xfeatures,
            xstate_size: xstate.len() as u32,
            padding: [0; 7],
        };
        extended[SW_BYTES..SW_BYTES + SW_BYTES_LEN].copy_from_slice(software.as_bytes());
    }
    memory.write(GuestAddr::new(fpstate), &extended).map_err(|_| BadFrame)?;

    let has_info = action.flags & libc::SA_SIGINFO as u64 != 0;
    let frame = RtSigframe {
        return_address: action.restorer,
        uc_flags: UC_FLAGS,
        uc_link: 0,
        uc_stack: context.stack.to_abi(context.stack.flags),
        context: SigContext {
            r8: registers.r8,
            r9: registers.r9,
            r10: registers.r10,
            r11: registers.r11,
            r12: registers.r12,
            r13: registers.r13,
            r14: registers.r14,
            r15: registers.r15,
            rdi: registers.rdi,
            rsi: registers.rsi,
            rbp: registers.rbp,
            rbx: registers.rbx,
            rdx: registers.rdx,
            rax: registers.rax,
            rcx: registers.rcx,
            rsp: registers.rsp,
            rip: registers.rip,
            rflags: registers.rflags,
            cs: USER_CS,
            gs: 0,
            fs: 0,
            ss: USER_SS,
            error_code: context.fault.error_code,
            trapno: context.fault.trapno,
            old_mask: context.mask.0,
            cr2: context.fault.cr2,
            fpstate,
            reserved: [0; 8],
        },
        uc_sigmask: context.mask.0,
        info: if has_info { context.info.0 } else { [0; 128] },
    };
    memory.write_object(GuestAddr::new(frame_addr), &frame).map_err(|_| BadFrame)?;

    registers.rdi = context.info.signo() as u64;
    registers.rsi = frame_addr + std::mem::offset_of!(RtSigframe, info) as u64;
    registers.rdx = frame_addr + UCONTEXT as u64;
    registers.rax = 0;
    registers.rsp = frame_addr;
    registers.rip = action.handler;
    registers.rflags &= !(FLAG_DF | FLAG_RF | FLAG_TF);
    Ok(())
}

/// What a frame restores besides registers and extended state.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Restored {
    pub(super) mask: SignalSet,
    pub(super) stack: AltStack,
}

/// Reads the frame that `rt_sigreturn` finds at the stack pointer.
pub(super) fn pop(
    memory: &dyn GuestMemory,
    registers: &mut Registers,
    xstate: &mut [u8],
    xfeatures: u64,
) -> Result<Restored, BadFrame> {
    // The handler's `ret` has popped the return address.
    let frame: RtSigframe =
        memory.read_object(GuestAddr::new(registers.rsp.wrapping_sub(8))).map_err(|_| BadFrame)?;
    let context = frame.context;
    restore_xstate(memory, context.fpstate, xstate, xfeatures)?;
    *registers = Registers {
        r8: context.r8,
        r9: context.r9,
        r10: context.r10,
        r11: context.r11,
        r12: context.r12,
        r13: context.r13,
        r14: context.r14,
        r15: context.r15,
        rdi: context.rdi,
        rsi: context.rsi,
        rbp: context.rbp,
        rbx: context.rbx,
        rdx: context.rdx,
        rax: context.rax,
        rcx: context.rcx,
        rsp: context.rsp,
        rip: context.rip,
        rflags: registers.rflags & !RESTORED_FLAGS | context.rflags & RESTORED_FLAGS,
        fs_base: registers.fs_base,
        gs_base: registers.gs_base,
    };
    let flags = frame.uc_stack.flags & (libc::SS_DISABLE | SS_AUTODISARM);
    Ok(Restored {
        mask: SignalSet(frame.uc_sigmask).minus(SignalSet::UNBLOCKABLE),
        stack: AltStack { sp: frame.uc_stack.sp, size: frame.uc_stack.size, flags },
    })
}

/// Loads the extended state that a frame points to; a null pointer means the initial state.
fn restore_xstate(
    memory: &dyn GuestMemory,
    fpstate: u64,
    xstate: &mut [u8],
    xfeatures: u64,
) -> Result<(), BadFrame> {
    const INITIAL_FCW: u16 = 0x37f;
    const INITIAL_MXCSR: u32 = 0x1f80;
    const MXCSR_VALID: u32 = 0xffff;
    const LEGACY_FEATURES: u64 = 0b11;
    if xstate.len() < XSAVE_HEADER_END {
        return Err(BadFrame);
    }
    let mut new = vec![0; xstate.len()];
    if fpstate == 0 {
        new[..2].copy_from_slice(&INITIAL_FCW.to_le_bytes());
        new[MXCSR..MXCSR + 4].copy_from_slice(&INITIAL_MXCSR.to_le_bytes());
        xstate.copy_from_slice(&new);
        return Ok(());
    }
    let at = |offset: usize| GuestAddr::new(fpstate.wrapping_add(offset as u64));
    memory.read(at(0), &mut new[..FXSAVE_LEN]).map_err(|_| BadFrame)?;
    let extended = extended_len(memory, &new[SW_BYTES..SW_BYTES + SW_BYTES_LEN], &at, xstate.len());
    let mut features = LEGACY_FEATURES;
    if let Some(len) = extended {
        memory.read(at(FXSAVE_LEN), &mut new[FXSAVE_LEN..len]).map_err(|_| BadFrame)?;
        let mut bv = [0; 8];
        bv.copy_from_slice(&new[FXSAVE_LEN..FXSAVE_LEN + 8]);
        features = u64::from_le_bytes(bv) & xfeatures;
    }
    // Whatever the guest wrote there: a header that XRSTOR takes and an MXCSR without reserved bits.
    new[FXSAVE_LEN..XSAVE_HEADER_END].fill(0);
    new[FXSAVE_LEN..FXSAVE_LEN + 8].copy_from_slice(&features.to_le_bytes());
    let mut mxcsr = [0; 4];
    mxcsr.copy_from_slice(&new[MXCSR..MXCSR + 4]);
    let mxcsr = u32::from_le_bytes(mxcsr) & MXCSR_VALID;
    new[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    xstate.copy_from_slice(&new);
    Ok(())
}

/// The length of the extended state in a frame, if its two magic numbers and sizes are in order.
fn extended_len(
    memory: &dyn GuestMemory,
    software: &[u8],
    at: &dyn Fn(usize) -> GuestAddr,
    limit: usize,
) -> Option<usize> {
    let software = SoftwareBytes::read_from_bytes(software).ok()?;
    let len = software.xstate_size as usize;
    let plausible = software.magic1 == FP_XSTATE_MAGIC1 && (XSAVE_HEADER_END..=limit).contains(&len);
    if !plausible || (software.extended_size as usize) < len {
        return None;
    }
    let magic2: u32 = memory.read_object(at(len)).ok()?;
    (magic2 == FP_XSTATE_MAGIC2).then_some(len)
}

#[cfg(test)]
mod tests;
