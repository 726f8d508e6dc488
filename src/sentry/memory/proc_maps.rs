//! What `/proc` shows of a memory map: the text of `maps`, and sizes.

use super::{Backing, Mm};
use crate::Vdso;
use std::fmt::Write as _;

/// How much of a memory map is of which kind, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct AreaSizes {
    pub(crate) total: u64,
    /// Private and writable, but for the stack.
    pub(crate) data: u64,
    pub(crate) stack: u64,
    /// The program's own code.
    pub(crate) executable: u64,
    /// All other code.
    pub(crate) libraries: u64,
}

const STACK: &str = "[stack]";

impl Mm {
    /// Sizes by kind; `executable` is the path of the program.
    pub(crate) fn area_sizes(&self, executable: &str) -> AreaSizes {
        let mut sizes = AreaSizes::default();
        for region in self.state().map.iter() {
            let bytes = region.end - region.start;
            sizes.total += bytes;
            if matches!(region.backing, Backing::Named(STACK)) {
                sizes.stack += bytes;
            } else if region.protection.execute {
                match &region.backing {
                    Backing::File { identity, .. } if identity.path == executable => {
                        sizes.executable += bytes
                    }
                    _ => sizes.libraries += bytes,
                }
            } else if region.protection.write && !region.shared {
                sizes.data += bytes;
            }
        }
        sizes
    }

    /// Where the heap starts.
    pub(crate) fn heap_start(&self) -> u64 {
        self.state().brk_start
    }

    /// Whether any of a range is the guest's.
    pub(crate) fn has_part_of(&self, start: u64, end: u64) -> bool {
        !self.state().map.is_free(start, end)
    }

    /// The name of the special area at an address.
    pub(crate) fn area_name(&self, addr: u64) -> Option<&'static str> {
        match self.state().map.find(addr)?.backing {
            Backing::Named(name) => Some(name),
            _ => None,
        }
    }

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
