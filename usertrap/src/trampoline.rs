//! The code that a patched site runs instead of trapping.
//!
//! ```text
//!     copies of the instructions from the jump up to the `syscall`     (none in tier 2)
//!     lea  rcx, [rip + …]        ; rcx = site + 2, as the `syscall` leaves it; flags untouched
//!     jmp  [rip + …]             ; to the syshandler, through the word below
//!     int3 …                     ; stops straight-line speculation, aligns the word
//!     dq   syshandler
//! ```
//!
//! On entry to the syshandler rax holds the number, rcx the return address, and everything else, r11 and the flags and
//! the guest's stack and vector registers among it, is what it was at the site. The syshandler returns by `jmp rcx`.
//! Nothing else of rcx or r11 is touched before: the copies may read both.

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction};

use crate::addr::{GuestAddr, SyshandlerAddr, TrampolineAddr};
use crate::decode::CopyKind;
use crate::plan::{Plan, Relocated};
use crate::window::SYSCALL;

/// `lea rcx, [rip + disp32]`, without the displacement.
const LEA_RCX_RIP: [u8; 3] = [0x48, 0x8d, 0x0d];
/// `jmp [rip + disp32]`, without the displacement.
const JMP_RIP: [u8; 2] = [0xff, 0x25];
const LEA_LEN: usize = LEA_RCX_RIP.len() + 4;
const JMP_LEN: usize = JMP_RIP.len() + 4;
/// Size and alignment of the word that holds the syshandler's address: a load of it never straddles a cache line.
const WORD: usize = 8;
const INT3: u8 = 0xcc;

/// Trampolines begin at multiples of this.
pub const TRAMPOLINE_ALIGN: usize = 32;
const _: () = assert!(TRAMPOLINE_ALIGN.is_multiple_of(WORD), "the word is aligned only if the trampoline is");

/// A copy grows from a 2-byte to a 6-byte branch at most; other copies keep their length.
const BRANCH_GROWTH: usize = 4;

/// Why no trampoline was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The address breaks [`TRAMPOLINE_ALIGN`] or lies outside of [`Plan::reach`].
    #[error("a trampoline for {site} cannot be at {at}")]
    Misplaced {
        /// The site.
        site: GuestAddr,
        /// Where the trampoline was to be.
        at: TrampolineAddr,
    },
    /// An instruction does not have the same meaning when encoded for its new place. Not known to happen; checked
    /// because a wrong copy would be a wrong program.
    #[error("the instruction at {original} cannot be encoded at {at}")]
    NotEncodable {
        /// The original.
        original: GuestAddr,
        /// Where the copy was to be.
        at: TrampolineAddr,
    },
}

/// What a saved instruction pointer inside a trampoline means for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestPosition {
    /// The guest is about to execute its own instruction at this address; all its registers are right. For a fault in
    /// a copy this is the faulting instruction; for an interrupt it is where the guest may be resumed.
    At(GuestAddr),
    /// rcx is already the return address, and what it held before is lost, as a `syscall` loses it: treat the call as
    /// made. The number and the arguments are in their registers; rip becomes `ret`, rcx is `ret` already, r11 gets
    /// the flags.
    Call {
        /// The site of the call.
        site: GuestAddr,
        /// The address behind it.
        ret: GuestAddr,
    },
}

/// One instruction of a trampoline, and what its address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapped {
    trampoline_offset: u16,
    guest_offset: i32,
    call_made: bool,
}

/// A trampoline built for one site at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trampoline {
    site: GuestAddr,
    at: TrampolineAddr,
    bytes: Vec<u8>,
    map: Vec<Mapped>,
    code_len: usize,
}

impl Trampoline {
    /// How many bytes to allocate for the plan's trampoline, wherever it will be.
    #[must_use]
    pub fn max_len(plan: &Plan) -> usize {
        let copies: usize = plan.relocated.iter().map(|r| r.len as usize + growth(r)).sum();
        (copies + LEA_LEN + JMP_LEN).next_multiple_of(WORD) + WORD
    }

    /// Builds the trampoline for `plan` at `site`, to be placed at `at` and to end in `syshandler`.
    ///
    /// # Errors
    /// When `at` is unaligned or out of reach. Within [`Plan::reach`] there are no others.
    pub fn build(
        plan: &Plan,
        site: GuestAddr,
        at: TrampolineAddr,
        syshandler: SyshandlerAddr,
    ) -> Result<Self, BuildError> {
        let placed = plan.reach(site).is_some_and(|reach| reach.admits(at, Self::max_len(plan)));
        if !placed || !at.raw().is_multiple_of(TRAMPOLINE_ALIGN as u64) {
            return Err(BuildError::Misplaced { site, at });
        }
        let mut t = Self { site, at, bytes: vec![], map: vec![], code_len: 0 };
        for relocated in plan.relocated.iter() {
            t.enter(relocated.offset, false);
            let from = (relocated.offset - plan.head) as usize;
            let copy = t.copy(relocated, plan.code.get(from..from + relocated.len as usize))?;
            t.bytes.extend(copy);
        }
        // At the `lea` the guest stands in front of its `syscall` with every register right; behind it rcx is gone.
        t.enter(0, false);
        let ret = site.wrapping_offset(SYSCALL.len() as i64);
        let displacement = t.rip_after(LEA_LEN).distance_to(ret);
        t.bytes.extend(LEA_RCX_RIP);
        t.bytes.extend((displacement as i32).to_le_bytes());
        t.enter(0, true);
        let word = (t.bytes.len() + JMP_LEN).next_multiple_of(WORD);
        t.bytes.extend(JMP_RIP);
        t.bytes.extend(((word - t.bytes.len() - 4) as u32).to_le_bytes());
        t.code_len = t.bytes.len();
        t.bytes.resize(word, INT3);
        t.bytes.extend(syshandler.raw().to_le_bytes());
        Ok(t)
    }

    /// Notes that the next byte begins an instruction.
    fn enter(&mut self, guest_offset: i32, call_made: bool) {
        // A trampoline is a few hundred bytes: the planner's line is shorter than that.
        self.map.push(Mapped { trampoline_offset: self.bytes.len() as u16, guest_offset, call_made });
    }

    fn rip_after(&self, len: usize) -> GuestAddr {
        self.at.wrapping_offset((self.bytes.len() + len) as i64).as_rip()
    }

    /// The bytes of one instruction for its new place.
    fn copy(&self, relocated: &Relocated, original: Option<&[u8]>) -> Result<Vec<u8>, BuildError> {
        let from = self.site.wrapping_offset(relocated.offset.into());
        let to = self.at.wrapping_offset(self.bytes.len() as i64);
        let failed = BuildError::NotEncodable { original: from, at: to };
        let original = original.ok_or(failed)?;
        if relocated.kind == CopyKind::Verbatim {
            return Ok(original.to_vec());
        }
        let mut wanted = decode_one(original, from.raw());
        if relocated.kind == CopyKind::Branch {
            wanted.as_near_branch();
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(&wanted, to.raw()).map_err(|_| failed)?;
        let bytes = encoder.take_buffer();
        // iced keeps operand and target addresses absolute, so equal here means equal there.
        let got = decode_one(&bytes, to.raw());
        let fits = bytes.len() <= relocated.len as usize + growth(relocated);
        if got == wanted && fits { Ok(bytes) } else { Err(failed) }
    }

    /// The site served.
    #[must_use]
    pub fn site(&self) -> GuestAddr {
        self.site
    }

    /// Where it has to be put.
    #[must_use]
    pub fn at(&self) -> TrampolineAddr {
        self.at
    }

    /// Its bytes, the syshandler's address at the end included.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its instructions, without padding and the syshandler's address.
    #[must_use]
    pub fn code(&self) -> &[u8] {
        &self.bytes[..self.code_len]
    }

    /// What an instruction pointer in the trampoline means. `None` when no instruction of it begins there: a guest
    /// that jumped into the middle, which no patched program does. Its fault is its own.
    #[must_use]
    pub fn guest_position(&self, rip: GuestAddr) -> Option<GuestPosition> {
        let offset = u16::try_from(self.at.as_rip().distance_to(rip)).ok()?;
        let found = self.map.binary_search_by_key(&offset, |m| m.trampoline_offset).ok()?;
        let mapped = self.map[found];
        Some(if mapped.call_made {
            GuestPosition::Call { site: self.site, ret: self.site.wrapping_offset(SYSCALL.len() as i64) }
        } else {
            GuestPosition::At(self.site.wrapping_offset(mapped.guest_offset.into()))
        })
    }

    /// Where in the trampoline the guest's instruction at `addr` is run: a copy, or the call itself for the site.
    #[must_use]
    pub fn copy_of(&self, addr: GuestAddr) -> Option<TrampolineAddr> {
        let offset = self.site.distance_to(addr);
        let mapped = self.map.iter().find(|m| !m.call_made && i64::from(m.guest_offset) == offset)?;
        Some(self.at.wrapping_offset(mapped.trampoline_offset.into()))
    }
}

fn growth(relocated: &Relocated) -> usize {
    if relocated.kind == CopyKind::Branch { BRANCH_GROWTH } else { 0 }
}

/// Decodes bytes that were decoded once before; anything else gives an invalid instruction, which equals no other use.
fn decode_one(bytes: &[u8], ip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode()
}
