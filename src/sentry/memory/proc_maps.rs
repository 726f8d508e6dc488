//! The text of `/proc/self/maps`.

use super::{Backing, Mm};
use crate::Vdso;
use std::fmt::Write as _;

impl Mm {
    /// The guest's mappings in the format of proc_pid_maps(5).
    pub(crate) fn proc_maps(&self, vdso: Option<Vdso>) -> String {
        let mut text = String::new();
        let state = self.state();
        for region in state.map.iter() {
            let (offset, device, inode, name) = match &region.backing {
                Backing::Anonymous => (0, 0, 0, ""),
                Backing::Named(name) => (0, 0, 0, *name),
                Backing::File { identity, offset, .. } => {
                    (*offset, identity.device, identity.inode, identity.path.as_str())
                }
            };
            let flag = |set: bool, letter: char| if set { letter } else { '-' };
            let line_start = text.len();
            let _ = write!(
                text,
                "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
                region.start,
                region.end,
                flag(region.protection.read, 'r'),
                flag(region.protection.write, 'w'),
                flag(region.protection.execute, 'x'),
                if region.shared { 's' } else { 'p' },
                offset,
                libc::major(device),
                libc::minor(device),
                inode,
            );
            finish_line(&mut text, line_start, name);
        }
        if let Some(vdso) = vdso {
            let line_start = text.len();
            let (start, end) = (vdso.start.raw(), vdso.start.raw() + vdso.len_bytes);
            if vdso.base.raw() > start {
                let _ = write!(text, "{start:08x}-{:08x} r--p 00000000 00:00 0 ", vdso.base.raw());
                finish_line(&mut text, line_start, "[vvar]");
            }
            let line_start = text.len();
            let _ = write!(text, "{:08x}-{end:08x} r-xp 00000000 00:00 0 ", vdso.base.raw());
            finish_line(&mut text, line_start, "[vdso]");
        }
        text
    }
}

/// Pads to the column of the name, as the kernel does, and ends the line.
fn finish_line(text: &mut String, line_start: usize, name: &str) {
    const NAME_COLUMN: usize = 73;
    if !name.is_empty() {
        while text.len() - line_start < NAME_COLUMN {
            text.push(' ');
        }
        text.push_str(&name.replace('\n', "\\012"));
    }
    text.push('\n');
}
