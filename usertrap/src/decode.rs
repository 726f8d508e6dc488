//! One instruction at a time: its length, and whether a copy of it may run somewhere else.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::window::CodeWindow;

/// Where the site lies when a plan is made: any address with room around it, so that nothing in a plan depends on the
/// real one. RIP-relative operands and branch targets are turned into offsets from the site with it.
const NOMINAL_SITE: u64 = 1 << 46;

/// Longest x86 instruction.
pub(crate) const MAX_INSTRUCTION: usize = 15;

/// A decoded instruction and its offset from the site.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    pub offset: i32,
    pub instr: Instruction,
}

impl Decoded {
    /// Offset behind the instruction.
    pub fn end(&self) -> i32 {
        self.offset + self.instr.len() as i32
    }

    /// The offset from the site that a direct branch goes to or a RIP-relative operand names.
    pub fn refers_to(&self) -> Option<i64> {
        let address = match self.instr.op0_kind() {
            OpKind::NearBranch64 => self.instr.near_branch64(),
            _ if self.instr.is_ip_rel_memory_operand() => self.instr.ip_rel_memory_address(),
            _ => return None,
        };
        Some(address.wrapping_sub(NOMINAL_SITE) as i64)
    }
}

/// Makes the tables of decoder and encoder, which otherwise the first plan and the first trampoline do: some 0.9 ms, which
/// another thread may have to spare.
pub fn prepare_tables() {
    let nop = Decoder::with_ip(64, &[0x90], 0, DecoderOptions::NONE).decode();
    // That there is an encoder is all that matters.
    let _ = std::hint::black_box(Encoder::new(64).encode(&nop, 0));
}

/// Decodes the instruction at `offset`, if there is a valid one.
pub(crate) fn decode_at(window: &CodeWindow<'_>, offset: i32) -> Option<Decoded> {
    let bytes = window.from(offset);
    let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION)];
    let ip = NOMINAL_SITE.wrapping_add_signed(offset.into());
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    if !decoder.can_decode() {
        return None;
    }
    let instr = decoder.decode();
    (!instr.is_invalid()).then_some(Decoded { offset, instr })
}

/// Instruction lengths in a window, each decoded at most once however many walks pass it.
pub(crate) struct Lengths<'a> {
    window: CodeWindow<'a>,
    /// One decoder for all instructions: making one costs more than decoding an instruction.
    decoder: Decoder<'a>,
    instr: Instruction,
    /// One entry per byte of the window: 0 = not decoded yet, `INVALID`, or the length.
    known: Vec<u8>,
}

const INVALID: u8 = u8::MAX;
const _: () = assert!(MAX_INSTRUCTION < INVALID as usize, "a length must not read as INVALID");

impl<'a> Lengths<'a> {
    pub fn new(window: CodeWindow<'a>) -> Self {
        let bytes = window.from(window.first());
        let decoder = Decoder::with_ip(64, bytes, NOMINAL_SITE, DecoderOptions::NONE);
        Self { window, decoder, instr: Instruction::default(), known: vec![0; bytes.len()] }
    }

    pub fn window(&self) -> &CodeWindow<'a> {
        &self.window
    }

    /// Offset behind the instruction at `offset`; `None` when there is no valid one.
    pub fn next(&mut self, offset: i32) -> Option<i32> {
        let index = usize::try_from(i64::from(offset) - i64::from(self.window.first())).ok()?;
        let slot = self.known.get_mut(index)?;
        if *slot == 0 {
            // Lengths do not depend on the instruction pointer, so it is not set.
            let placed = self.decoder.set_position(index).is_ok();
            self.decoder.decode_out(&mut self.instr);
            *slot = if placed && !self.instr.is_invalid() { self.instr.len() as u8 } else { INVALID };
        }
        (*slot != INVALID).then(|| offset + i32::from(*slot))
    }
}

/// How a copy of an instruction is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopyKind {
    /// The same bytes mean the same anywhere.
    Verbatim,
    /// Has a RIP-relative memory operand: the displacement is encoded anew.
    RipRelative,
    /// A conditional branch: becomes its 32-bit form with the same target.
    Branch,
}

/// Why an instruction must run where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Pinned {
    /// Control does not simply fall through: jump, call, return, interrupt, another `syscall`, `ud2`, transactions.
    #[error("control leaves the straight line")]
    Flow,
    /// `loop`, `loope`, `loopne`, `jcxz`: no 32-bit form.
    #[error("a branch without a 32-bit form")]
    ShortOnlyBranch,
    /// Privileged, or one whose fault the host kernel may emulate by the address of the instruction.
    #[error("a privileged or system instruction")]
    System,
    /// Writes a segment register or base: what it does to the syshandler and to pending traps is the trap path's matter.
    #[error("changes a segment register or base")]
    Segment,
    /// Loads the flags register, with it the trap flag.
    #[error("may set the trap flag")]
    TrapFlag,
}

/// Whether a copy of the instruction elsewhere does the same as the original, and how to make it.
pub(crate) fn copy_kind(instr: &Instruction) -> Result<CopyKind, Pinned> {
    use Mnemonic::*;
    match instr.mnemonic() {
        // SHSTK and FRED control, enclaves, user interrupts, SMM: not seen in front of system calls; nothing to gain.
        Int | Int1 | Int3 | Into | Enclu | Encls | Enclv | Getsec | Rsm | Uiret | Senduipi | Clui | Stui
        | Sysenter | Sysexit | Sysexitq | Sysret | Sysretq | In | Out | Insb | Insw | Insd | Outsb
        | Outsw | Outsd | Cli | Sti | Saveprevssp | Rstorssp | Setssbsy | Clrssbsy | Incsspd | Incsspq
        | Mwait | Monitor | Umwait | Tpause | Sgdt | Sidt | Sldt | Str | Smsw | Cpuid | Rdtsc | Rdtscp
        | Rdpmc => {
            return Err(Pinned::System);
        }
        Popf | Popfd | Popfq => return Err(Pinned::TrapFlag),
        Wrfsbase | Wrgsbase | Swapgs | Lfs | Lgs | Lss => return Err(Pinned::Segment),
        _ => {}
    }
    if instr.is_privileged() {
        return Err(Pinned::System);
    }
    let segment_written = matches!(instr.op0_kind(), OpKind::Register)
        && instr.op0_register().is_segment_register()
        && matches!(instr.mnemonic(), Mov | Pop);
    if segment_written {
        return Err(Pinned::Segment);
    }
    match instr.flow_control() {
        FlowControl::Next => {}
        FlowControl::ConditionalBranch if instr.is_jcc_short_or_near() => return Ok(CopyKind::Branch),
        FlowControl::ConditionalBranch => return Err(Pinned::ShortOnlyBranch),
        _ => return Err(Pinned::Flow),
    }
    // EIP-relative addressing (67 prefix) truncates to 32 bits: a copy elsewhere cannot be told to do the same.
    if instr.is_ip_rel_memory_operand() {
        return if instr.memory_base() == Register::RIP {
            Ok(CopyKind::RipRelative)
        } else {
            Err(Pinned::System)
        };
    }
    Ok(CopyKind::Verbatim)
}

/// Whether control never goes on behind the instruction: a jump or a return. `ud2` and `hlt` do not count, because a
/// guest's signal handler may step over them.
pub(crate) fn leaves_for_good(instr: &Instruction) -> bool {
    matches!(
        instr.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
    ) && !matches!(
        instr.mnemonic(),
        Mnemonic::Sysret | Mnemonic::Sysretq | Mnemonic::Sysexit | Mnemonic::Sysexitq
    )
}

/// Whether control goes on behind the instruction only if a handler says so: `ud2`, `hlt`, `int3`.
pub(crate) fn traps(instr: &Instruction) -> bool {
    instr.flow_control() == FlowControl::Exception
        || matches!(instr.mnemonic(), Mnemonic::Hlt | Mnemonic::Int3 | Mnemonic::Int1)
}

/// What compilers, assemblers and linkers put between functions and in front of loop heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Padding {
    /// `int3`.
    Breakpoints,
    /// `nop`s of any length.
    Nops,
}

/// Which padding the instruction is, if it is any. `endbr64` and `pause` are not: control arrives at them.
pub(crate) fn padding_kind(instr: &Instruction) -> Option<Padding> {
    match instr.code() {
        Code::Int3 => Some(Padding::Breakpoints),
        Code::Nopw | Code::Nopd | Code::Nopq | Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 => {
            Some(Padding::Nops)
        }
        // `xchg ax, ax` with an operand size prefix
        Code::Xchg_r16_AX if instr.op0_register() == Register::AX => Some(Padding::Nops),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::GuestAddr;

    fn kind(bytes: &[u8]) -> Result<CopyKind, Pinned> {
        let mut code = bytes.to_vec();
        code.extend([0x0f, 0x05]);
        let site = GuestAddr::new(0x1000 + bytes.len() as u64);
        let window = CodeWindow::new(GuestAddr::new(0x1000), &code, site).unwrap();
        let decoded = decode_at(&window, window.first()).expect("valid");
        assert_eq!(decoded.end(), 0, "test bytes are one instruction");
        copy_kind(&decoded.instr)
    }

    #[test]
    fn ordinary_instructions_may_move() {
        for bytes in [
            &[0xb8, 1, 0, 0, 0][..],                  // mov eax, 1
            &[0xf0, 0xff, 0x04, 0x25, 0, 0, 0, 0],    // lock inc dword [0]
            &[0xf3, 0xa4],                            // rep movsb
            &[0xf3, 0x0f, 0x1e, 0xfa],                // endbr64
            &[0x64, 0x48, 0x8b, 4, 0x25, 0, 0, 0, 0], // mov rax, fs:[0]
            &[0x57],                                  // push rdi
            &[0x9c],                                  // pushfq
            &[0x48, 0x8b, 0x44, 0x24, 0x10],          // mov rax, [rsp+0x10]
        ] {
            assert_eq!(kind(bytes), Ok(CopyKind::Verbatim), "{bytes:x?}");
        }
        assert_eq!(kind(&[0x48, 0x8d, 0x05, 0, 0, 0, 0]), Ok(CopyKind::RipRelative));
        assert_eq!(kind(&[0x74, 0x10]), Ok(CopyKind::Branch));
        assert_eq!(kind(&[0x0f, 0x84, 0, 1, 0, 0]), Ok(CopyKind::Branch));
    }

    #[test]
    fn what_depends_on_its_place_may_not() {
        for (bytes, why) in [
            (&[0x0f, 0x05][..], Pinned::Flow),                  // syscall
            (&[0xe8, 0, 0, 0, 0], Pinned::Flow),                // call
            (&[0xff, 0xd0], Pinned::Flow),                      // call rax
            (&[0xeb, 0], Pinned::Flow),                         // jmp
            (&[0xff, 0x2c, 0x24], Pinned::Flow),                // jmp far [rsp]
            (&[0xc3], Pinned::Flow),                            // ret
            (&[0x0f, 0x0b], Pinned::Flow),                      // ud2
            (&[0xc7, 0xf8, 0, 0, 0, 0], Pinned::Flow),          // xbegin
            (&[0xcd, 0x80], Pinned::System),                    // int 0x80
            (&[0xcc], Pinned::System),                          // int3
            (&[0xf4], Pinned::System),                          // hlt
            (&[0x0f, 0xa2], Pinned::System),                    // cpuid
            (&[0x0f, 0x34], Pinned::System),                    // sysenter
            (&[0xe2, 0], Pinned::ShortOnlyBranch),              // loop
            (&[0xe3, 0], Pinned::ShortOnlyBranch),              // jrcxz
            (&[0x9d], Pinned::TrapFlag),                        // popfq
            (&[0x8e, 0xe8], Pinned::Segment),                   // mov gs, eax
            (&[0xf3, 0x48, 0x0f, 0xae, 0xd8], Pinned::Segment), // wrgsbase rax
            (&[0x67, 0x8d, 0x05, 0, 0, 0, 0], Pinned::System),  // lea eax, [eip+0]
        ] {
            assert_eq!(kind(bytes), Err(why), "{bytes:x?}");
        }
    }

    #[test]
    fn padding_is_told_from_landing_pads() {
        let pad = |b: &[u8]| {
            let mut d = Decoder::with_ip(64, b, 0, DecoderOptions::NONE);
            padding_kind(&d.decode())
        };
        assert_eq!(pad(&[0xcc]), Some(Padding::Breakpoints));
        assert_eq!(pad(&[0x90]), Some(Padding::Nops));
        assert_eq!(pad(&[0x66, 0x90]), Some(Padding::Nops));
        assert_eq!(pad(&[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0]), Some(Padding::Nops));
        assert_eq!(pad(&[0xf3, 0x90]), None, "pause");
        assert_eq!(pad(&[0xf3, 0x0f, 0x1e, 0xfa]), None, "endbr64");
        assert_eq!(pad(&[0x48, 0x87, 0xc0]), None, "xchg rax, rax through a modrm byte");
    }
}
