//! The bytes around one site, and what the caller knows about them.

use crate::addr::{GuestAddr, GuestRange};

/// The `syscall` instruction.
pub const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Bytes in front of a site that a caller should supply when it can: enough for every proof and for nearby branches.
pub const WINDOW_BEFORE: usize = 384;

/// Bytes behind a site that a caller should supply when it can: everything that a `jmp rel8` reaches, and a bit.
pub const WINDOW_AFTER: usize = 256;

/// The longest window that is accepted. It bounds the time one plan can take, whoever chose the bytes.
pub const MAX_WINDOW: usize = 64 * 1024;

/// Why bytes are no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The site does not lie in the bytes with both of its own.
    #[error("the site {site} is not within the bytes given")]
    SiteOutside {
        /// The site asked for.
        site: GuestAddr,
    },
    /// More bytes than [`MAX_WINDOW`].
    #[error("a window of {len_bytes} bytes is longer than {MAX_WINDOW}")]
    TooLong {
        /// Bytes given.
        len_bytes: usize,
    },
}

/// The code around a site: bytes of *one* executable mapping, without any patch of ours in them
/// (see [`PatchMap::overlay_original`](crate::PatchMap::overlay_original)).
///
/// Positions in a window are offsets in bytes from the site, so that a plan made from it holds at any load address
/// with the same offset within a page.
#[derive(Clone, Copy, Debug)]
pub struct CodeWindow<'a> {
    bytes: &'a [u8],
    index: usize,
    site: GuestAddr,
}

impl<'a> CodeWindow<'a> {
    /// The window that `bytes`, which begin at `base`, are around `site`.
    ///
    /// # Errors
    /// When the two bytes at `site` are not all in `bytes`, or `bytes` is too long.
    pub fn new(base: GuestAddr, bytes: &'a [u8], site: GuestAddr) -> Result<Self, WindowError> {
        if bytes.len() > MAX_WINDOW {
            return Err(WindowError::TooLong { len_bytes: bytes.len() });
        }
        let index = usize::try_from(base.distance_to(site)).map_err(|_| WindowError::SiteOutside { site })?;
        if index.checked_add(SYSCALL.len()).is_none_or(|end| end > bytes.len()) {
            return Err(WindowError::SiteOutside { site });
        }
        Ok(Self { bytes, index, site })
    }

    /// The site's address.
    #[must_use]
    pub fn site(&self) -> GuestAddr {
        self.site
    }

    /// Offset of the first byte, 0 or less.
    #[must_use]
    pub fn first(&self) -> i32 {
        -(self.index as i32)
    }

    /// Offset behind the last byte, 2 or more.
    #[must_use]
    pub fn end(&self) -> i32 {
        (self.bytes.len() - self.index) as i32
    }

    /// The address at an offset from the site.
    #[must_use]
    pub fn addr(&self, offset: i32) -> GuestAddr {
        self.site.wrapping_offset(offset.into())
    }

    /// The offset of an address, if it lies within ±2 GiB of the site.
    #[must_use]
    pub fn offset_of(&self, addr: GuestAddr) -> Option<i32> {
        i32::try_from(self.site.distance_to(addr)).ok()
    }

    /// The bytes from `offset` to the end of the window; empty when the offset is outside.
    #[must_use]
    pub fn from(&self, offset: i32) -> &'a [u8] {
        usize::try_from(self.index as i64 + i64::from(offset))
            .ok()
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default()
    }

    /// Exactly `len` bytes at `offset`, if the window has them.
    #[must_use]
    pub fn get(&self, offset: i32, len: usize) -> Option<&'a [u8]> {
        self.from(offset).get(..len)
    }

    /// Exactly `len` bytes at `addr`, if the window has them.
    #[must_use]
    pub fn get_at(&self, addr: GuestAddr, len: usize) -> Option<&'a [u8]> {
        self.get(self.offset_of(addr)?, len)
    }

    /// Whether the site holds a `syscall`.
    #[must_use]
    pub fn holds_syscall(&self) -> bool {
        self.get(0, SYSCALL.len()) == Some(&SYSCALL)
    }
}

/// A function whose bounds are known from somewhere else than its bytes: an `.eh_frame` FDE, a symbol, Go's pclntab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownFunction {
    /// Its first instruction.
    pub start: GuestAddr,
    /// Behind its last instruction, if known. Tier 3 needs it.
    pub end: Option<GuestAddr>,
}

/// What the caller knows about the code beyond its bytes. `Hints::default()` knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'a> {
    /// The site was executed (it trapped), hence is an instruction and needs no proof of its own.
    pub site_executed: bool,
    /// The function that holds the site: a second witness for instruction boundaries.
    pub function: Option<KnownFunction>,
    /// Addresses known to be entered by a branch or call from anywhere, in any order.
    pub targets: &'a [GuestAddr],
    /// `targets` holds every direct branch target near the site, wherever in the file the branch is: parts of a
    /// function that a compiler moved away as cold jump back from afar. Tier 3 needs it.
    pub targets_complete: bool,
    /// Addresses that the program is known to read as data, in any order: bytes there are not changed.
    pub data: &'a [GuestAddr],
    /// Bytes that other patches use: no plan touches them.
    pub occupied: &'a [GuestRange],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_needs_both_of_its_bytes() {
        let base = GuestAddr::new(0x1000);
        let bytes = [0x90, 0x0f, 0x05];
        assert!(CodeWindow::new(base, &bytes, GuestAddr::new(0x1001)).unwrap().holds_syscall());
        let half = CodeWindow::new(base, &bytes, GuestAddr::new(0x1002)).unwrap_err();
        assert_eq!(half, WindowError::SiteOutside { site: GuestAddr::new(0x1002) });
        assert!(CodeWindow::new(base, &bytes, GuestAddr::new(0xfff)).is_err());
        assert!(CodeWindow::new(base, &[0; MAX_WINDOW + 1], base).is_err());
    }

    #[test]
    fn offsets_outside_give_no_bytes() {
        let bytes = [0x90, 0x0f, 0x05];
        let w = CodeWindow::new(GuestAddr::new(0), &bytes, GuestAddr::new(1)).unwrap();
        assert_eq!(w.from(i32::MIN), []);
        assert_eq!(w.from(i32::MAX), []);
        assert_eq!(w.get(-1, 3), Some(&bytes[..]));
        assert_eq!(w.get(-1, 4), None);
    }
}
