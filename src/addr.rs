//! Addresses in a guest, kept apart from the supervisor's own pointers.

use std::fmt;

/// An address in a guest's address space. Never dereferenced by the supervisor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct GuestAddr(u64);

impl GuestAddr {
    /// The address zero.
    pub const NULL: GuestAddr = GuestAddr(0);

    /// Wraps a raw guest address. Any value is allowed; it is checked where it is used.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw value, as the guest would see it in a register.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The address `bytes` further up, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// Whether the address is a multiple of the host's page size (4096 bytes on x86-64).
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(crate::PAGE_SIZE)
    }

    /// The address rounded down to a page boundary.
    #[must_use]
    pub const fn page_down(self) -> Self {
        Self(self.0 & !(crate::PAGE_SIZE - 1))
    }
}

impl fmt::Debug for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestAddr({:#x})", self.0)
    }
}

impl fmt::Display for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl From<GuestAddr> for u64 {
    fn from(addr: GuestAddr) -> Self {
        addr.raw()
    }
}

impl From<u64> for GuestAddr {
    fn from(raw: u64) -> Self {
        Self(raw)
    }
}
