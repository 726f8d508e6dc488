//! One mapping of a guest.

use crate::Protection;
use crate::sentry::file::File;
use std::sync::Arc;

/// The file behind a mapping, as `/proc/self/maps` names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MappedFile {
    /// Its path when it was mapped.
    pub(crate) path: String,
    /// `st_dev`.
    pub(crate) device: u64,
    /// `st_ino`.
    pub(crate) inode: u64,
}

/// What a mapping's pages come from.
#[derive(Debug, Clone)]
pub(crate) enum Backing {
    /// Zero pages.
    Anonymous,
    /// Zero pages of a special area, with its name in `/proc/self/maps` (`[heap]`, `[stack]`).
    Named(&'static str),
    /// A file from that offset on. A shared mapping keeps the open file (for `msync`, and because Linux does).
    File {
        /// Its identity.
        identity: Arc<MappedFile>,
        /// Where in the file the region starts.
        offset: u64,
        /// The open file of a shared mapping.
        open: Option<Arc<File>>,
    },
}

impl Backing {
    /// The backing of the part of a region that starts `bytes` later.
    pub(crate) fn advanced(&self, bytes: u64) -> Self {
        match self {
            Backing::File { identity, offset, open } => Backing::File {
                identity: Arc::clone(identity),
                offset: offset.wrapping_add(bytes),
                open: open.clone(),
            },
            other => other.clone(),
        }
    }

    /// Whether `next`, `bytes` further on, simply continues this one.
    fn continues(&self, bytes: u64, next: &Backing) -> bool {
        match (self, next) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::Named(a), Backing::Named(b)) => a == b,
            (
                Backing::File { identity: a, offset, open: open_a },
                Backing::File { identity: b, offset: next_offset, open: open_b },
            ) => {
                let same_open = match (open_a, open_b) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    _ => false,
                };
                same_open && a == b && offset.wrapping_add(bytes) == *next_offset
            }
            _ => false,
        }
    }
}

/// A range of pages with one protection and one backing.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) protection: Protection,
    pub(crate) shared: bool,
    pub(crate) backing: Backing,
}

impl Region {
    /// The part of the region within a range that overlaps it.
    pub(crate) fn clipped(&self, start: u64, end: u64) -> Self {
        let start = self.start.max(start);
        Region {
            start,
            end: self.end.min(end),
            protection: self.protection,
            shared: self.shared,
            backing: self.backing.advanced(start - self.start),
        }
    }

    /// Whether `next` can be merged into this region.
    pub(crate) fn is_continued_by(&self, next: &Region) -> bool {
        self.end == next.start
            && self.protection == next.protection
            && self.shared == next.shared
            && self.backing.continues(self.end - self.start, &next.backing)
    }
}
