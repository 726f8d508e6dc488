//! One pass over the code for everything that could be entered near a site.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};

use super::image::{Code, Image};
use crate::addr::GuestAddr;

/// Targets further than this from every `syscall` are of no interest, and are not kept.
const NEAR: i64 = 256;

/// Addresses near one of `candidates` (ascending) that a branch, a `lea`, a symbol or a relocation names. Ascending.
pub(super) fn targets_near(image: &Image<'_>, candidates: &[GuestAddr]) -> Vec<GuestAddr> {
    let near = |at: GuestAddr| {
        let i = candidates.partition_point(|c| *c < at);
        let around = [i.checked_sub(1), Some(i)];
        around.into_iter().flatten().filter_map(|i| candidates.get(i)).any(|c| {
            let distance = c.distance_to(at);
            (-NEAR..=NEAR).contains(&distance)
        })
    };
    let mut found: Vec<GuestAddr> = image.named.iter().copied().filter(|at| near(*at)).collect();
    for code in &image.code {
        sweep(code, image, |instr| found.extend(named_by(instr).filter(|at| near(*at))));
        found.sort_unstable();
        found.dedup();
    }
    found
}

/// Decodes linearly; falls into step again at every known function start, and behind every invalid opcode.
fn sweep(code: &Code<'_>, image: &Image<'_>, mut visit: impl FnMut(&Instruction)) {
    let mut decoder = Decoder::with_ip(64, code.bytes, code.addr.get(), DecoderOptions::NONE);
    let first = image.functions.partition_point(|f| f.start <= code.addr);
    let mut starts = image.functions[first..].iter().map(|f| f.start.get()).peekable();
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
            let position = (resume - code.addr.get()) as usize;
            if decoder.set_position(position).is_err() {
                return;
            }
            decoder.set_ip(resume);
        }
    }
}

fn named_by(instr: &Instruction) -> impl Iterator<Item = GuestAddr> {
    let branch = matches!(instr.op0_kind(), OpKind::NearBranch64).then(|| instr.near_branch64());
    let operand = instr.is_ip_rel_memory_operand().then(|| instr.ip_rel_memory_address());
    branch.into_iter().chain(operand).map(GuestAddr::new)
}
