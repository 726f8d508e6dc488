//! One pass over the code for everything that could be entered near a site.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use super::image::{Code, Image};
use crate::addr::GuestAddr;

/// Targets further than this from every `syscall` are of no interest, and are not kept.
const NEAR: i64 = 256;

/// What the code names near a site, ascending.
#[derive(Default)]
pub(super) struct Named {
    /// What a branch, a `lea`, a symbol or a relocation names: it may be entered.
    pub targets: Vec<GuestAddr>,
    /// What other instructions name: it is data.
    pub data: Vec<GuestAddr>,
}

/// Everything named near one of `candidates` (ascending).
pub(super) fn named_near(image: &Image<'_>, candidates: &[GuestAddr]) -> Named {
    let near = |at: &GuestAddr| {
        let i = candidates.partition_point(|c| c < at);
        let around = [i.checked_sub(1), Some(i)];
        around.into_iter().flatten().filter_map(|i| candidates.get(i)).any(|c| {
            let distance = c.distance_to(*at);
            (-NEAR..=NEAR).contains(&distance)
        })
    };
    let mut named = Named { targets: image.named.iter().copied().filter(near).collect(), data: vec![] };
    for code in &image.code {
        sweep(code, image, |instr| {
            let operand = instr.is_ip_rel_memory_operand().then(|| instr.ip_rel_memory_address());
            let operand = operand.map(GuestAddr::new).filter(near);
            match matches!(instr.op0_kind(), OpKind::NearBranch64) {
                true => named.targets.extend(Some(GuestAddr::new(instr.near_branch64())).filter(near)),
                false if instr.mnemonic() == Mnemonic::Lea => named.targets.extend(operand),
                false => named.data.extend(operand),
            }
        });
        for found in [&mut named.targets, &mut named.data] {
            found.sort_unstable();
            found.dedup();
        }
    }
    named
}

/// Decodes linearly; falls into step again at every known function start, and behind every invalid opcode.
fn sweep(code: &Code<'_>, image: &Image<'_>, mut visit: impl FnMut(&Instruction)) {
    let mut decoder = Decoder::with_ip(64, code.bytes, code.addr.raw(), DecoderOptions::NONE);
    let first = image.functions.partition_point(|f| f.start <= code.addr);
    let mut starts = image.functions[first..].iter().map(|f| f.start.raw()).peekable();
    let mut instr = Instruction::default();
    while decoder.can_decode() {
        let at = decoder.ip();
        while starts.next_if(|s| *s <= at).is_some() {}
        decoder.decode_out(&mut instr);
        let next_start = starts.peek().copied().unwrap_or(u64::MAX);
        let resume = if instr.is_invalid() { at + 1 } else { instr.next_ip().min(next_start) };
        if !instr.is_invalid() {
            visit(&instr);
        }
        if resume != decoder.ip() {
            let position = (resume - code.addr.raw()) as usize;
            if decoder.set_position(position).is_err() {
                return;
            }
            decoder.set_ip(resume);
        }
    }
}
