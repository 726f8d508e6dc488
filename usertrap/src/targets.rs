//! Where direct branches near a site go.
//!
//! Seen from a plan, a target too many costs coverage, a target too few costs correctness. Hence 32-bit branches are
//! taken at *every* byte of the window, decodable or not: four random displacement bytes practically never point into
//! a window, so this superset is free. 8-bit branches would point into it all the time; they are taken from every
//! instruction of several decodings with different starts.

use std::ops::Range;

use crate::decode::Lengths;
use crate::window::Hints;

/// So many starts at the window's beginning are decoded from, and as many behind each invalid opcode: after the first
/// few instructions all decodings agree.
const STARTS: i32 = 16;

/// Known branch targets, as offsets from the site.
#[derive(Debug)]
pub(crate) struct Targets(Vec<i32>);

impl Targets {
    /// Targets of the branches in the window and of those the caller knows.
    pub fn collect(lengths: &mut Lengths<'_>, hints: &Hints<'_>) -> Self {
        let mut found = vec![];
        long_branches(lengths, &mut found);
        short_branches(lengths, hints, &mut found);
        let window = lengths.window();
        found.extend(hints.targets.iter().filter_map(|t| window.offset_of(*t)));
        found.retain(|t| (window.first()..window.end()).contains(t));
        found.sort_unstable();
        found.dedup();
        Self(found)
    }

    /// The first target within `range`.
    pub fn first_in(&self, range: Range<i32>) -> Option<i32> {
        let at = self.0.partition_point(|t| *t < range.start);
        self.0.get(at).copied().filter(|t| *t < range.end)
    }
}

/// `call`, `jmp`, `jcc` and `xbegin` with 32-bit displacements, at every byte.
fn long_branches(lengths: &Lengths<'_>, found: &mut Vec<i32>) {
    let window = lengths.window();
    let first = window.first();
    let bytes = window.from(first);
    for (i, four) in bytes.windows(4).enumerate().skip(1) {
        let is_branch = match bytes[i - 1] {
            0xe8 | 0xe9 => true,
            0x80..=0x8f => i >= 2 && bytes[i - 2] == 0x0f,
            0xf8 => i >= 2 && bytes[i - 2] == 0xc7,
            _ => false,
        };
        if is_branch && let Ok(rel) = four.try_into().map(i32::from_le_bytes) {
            let from = i64::from(first) + i as i64 + 4;
            found.extend(i32::try_from(from + i64::from(rel)));
        }
    }
}

/// `jmp`, `jcc`, `loop` and `jrcxz` with 8-bit displacements, at every instruction of several decodings.
fn short_branches(lengths: &mut Lengths<'_>, hints: &Hints<'_>, found: &mut Vec<i32>) {
    let (first, end) = (lengths.window().first(), lengths.window().end());
    let mut seen = vec![false; (end - first) as usize];
    // The site itself is a start too, so that what follows it is decoded right whatever is in front.
    let function = hints.function.and_then(|f| lengths.window().offset_of(f.start));
    let mut starts: Vec<i32> = (first..(first + STARTS).min(end)).chain([0]).chain(function).collect();
    while let Some(start) = starts.pop() {
        let mut here = start;
        while (first..end).contains(&here) && !std::mem::replace(&mut seen[(here - first) as usize], true) {
            let Some(next) = lengths.next(here) else {
                starts.extend((here + 1..=here + STARTS).filter(|s| *s < end));
                break;
            };
            found.extend(short_target(lengths, here, next));
            here = next;
        }
    }
}

/// The target of the instruction at `here..next`, if it is a branch with an 8-bit displacement.
fn short_target(lengths: &Lengths<'_>, here: i32, next: i32) -> Option<i32> {
    let bytes = lengths.window().get(here, (next - here) as usize)?;
    let (displacement, before) = bytes.split_last()?;
    let (opcode, prefixes) = before.split_last()?;
    let branch = matches!(opcode, 0x70..=0x7f | 0xe0..=0xe3 | 0xeb);
    // Branch hints, bnd, data size, segment, address size (jecxz) and REX prefixes may precede such an opcode.
    let plain = prefixes
        .iter()
        .all(|b| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf2 | 0xf3));
    (branch && plain).then(|| next + i32::from(*displacement as i8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::GuestAddr;
    use crate::window::CodeWindow;

    fn targets(before: &[u8], after: &[u8], known: &[GuestAddr]) -> Vec<i32> {
        let mut code = before.to_vec();
        code.extend([0x0f, 0x05]);
        code.extend(after);
        let base = GuestAddr::new(0x1000);
        let window = CodeWindow::new(base, &code, base.wrapping_offset(before.len() as i64)).unwrap();
        Targets::collect(&mut Lengths::new(window), &Hints { targets: known, ..Hints::default() }).0
    }

    #[test]
    fn short_and_long_branches_on_both_sides() {
        assert_eq!(targets(&[0x74, 0x03, 0x31, 0xc0, 0x90], &[], &[]), [0]); // je site
        assert_eq!(targets(&[0x90; 8], &[0xeb, 0xf6], &[]), [-6]); // jmp back
        assert_eq!(targets(&[0x90; 8], &[0xe9, 0xf1, 0xff, 0xff, 0xff], &[]), [-8]);
        assert_eq!(targets(&[0x90; 8], &[0x0f, 0x85, 0xf6, 0xff, 0xff, 0xff], &[]), [-2]);
    }

    #[test]
    fn long_branches_count_wherever_their_bytes_are() {
        // movabs whose immediate looks like `call +0`
        assert!(targets(&[0x48, 0xb8, 0xe8, 0, 0, 0, 0, 0, 0, 0], &[], &[]).contains(&-3));
    }

    #[test]
    fn what_the_caller_knows_counts() {
        assert_eq!(targets(&[0x90; 8], &[], &[GuestAddr::new(0x1003), GuestAddr::new(0x9000)]), [-5]);
    }

    #[test]
    fn branches_behind_bytes_that_are_no_code_count() {
        // 06 is invalid in 64-bit mode
        assert!(targets(&[0x90, 0x06, 0x06, 0x90, 0x90, 0x90, 0xeb, 0xfb], &[], &[]).contains(&-5));
    }
}
