//! Address types: what an address may be used for is part of its type.
//!
//! Nothing in this crate dereferences an address. They are numbers that a caller gives and gets back.

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw address.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw address.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The address `delta` bytes further; wraps like the processor's address arithmetic.
            #[must_use]
            pub const fn wrapping_offset(self, delta: i64) -> Self {
                Self(self.0.wrapping_add_signed(delta))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// An address of the guest program: a site, an instruction before it, a branch target, an instruction pointer.
    GuestAddr
);
address!(
    /// An address of generated code. It lies in the guest's address space too, but belongs to the supervisor's
    /// bookkeeping; a guest must never be shown one.
    TrampolineAddr
);
address!(
    /// The entry of the syshandler: where every trampoline ends. It may be any distance away from the trampolines.
    SyshandlerAddr
);

impl GuestAddr {
    /// How far `other` lies behind `self`, in bytes.
    #[must_use]
    pub const fn distance_to(self, other: GuestAddr) -> i64 {
        other.0.wrapping_sub(self.0) as i64
    }

    /// The aligned 8-byte word that holds this address.
    #[must_use]
    pub const fn qword(self) -> GuestAddr {
        GuestAddr(self.0 & !7)
    }
}

impl TrampolineAddr {
    /// The same address as the value an instruction pointer would have there.
    #[must_use]
    pub const fn as_rip(self) -> GuestAddr {
        GuestAddr(self.0)
    }
}

/// A half-open range of guest addresses, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestRange {
    /// First address of the range.
    pub start: GuestAddr,
    /// First address behind the range.
    pub end: GuestAddr,
}

impl GuestRange {
    /// The range `start..end`; empty when `end <= start`.
    #[must_use]
    pub const fn new(start: GuestAddr, end: GuestAddr) -> Self {
        Self { start, end }
    }

    /// The range of `len` bytes at `start`, cut off at the end of the address space.
    #[must_use]
    pub const fn of_len(start: GuestAddr, len: u64) -> Self {
        Self { start, end: GuestAddr(start.0.saturating_add(len)) }
    }

    /// Whether `addr` lies in the range.
    #[must_use]
    pub const fn contains(&self, addr: GuestAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }

    /// Whether the two ranges share a byte.
    #[must_use]
    pub const fn overlaps(&self, other: &GuestRange) -> bool {
        self.start.0 < other.end.0
            && other.start.0 < self.end.0
            && self.start.0 < self.end.0
            && other.start.0 < other.end.0
    }
}

/// Where a trampoline may begin and end so that every 32-bit displacement between it and the guest code fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reach {
    /// Lowest address that a byte of the trampoline may have.
    pub lowest: TrampolineAddr,
    /// Highest address that a byte of the trampoline may have.
    pub highest: TrampolineAddr,
}

/// Displacements are counted from the end of an instruction, a trampoline has a length: both are far below this.
const REACH_MARGIN: u64 = 4096;

impl Reach {
    /// Everything that a 32-bit displacement can bridge to and from `addr`, with a page of margin.
    #[must_use]
    pub const fn around(addr: GuestAddr) -> Self {
        let far = (1u64 << 31) - REACH_MARGIN;
        Self {
            lowest: TrampolineAddr(addr.0.saturating_sub(far)),
            highest: TrampolineAddr(addr.0.saturating_add(far)),
        }
    }

    /// What both allow; `None` when nothing is left.
    #[must_use]
    pub fn intersect(self, other: Reach) -> Option<Reach> {
        let both = Reach { lowest: self.lowest.max(other.lowest), highest: self.highest.min(other.highest) };
        (both.lowest <= both.highest).then_some(both)
    }

    /// Whether `len` bytes at `addr` lie within.
    #[must_use]
    pub fn admits(&self, addr: TrampolineAddr, len: usize) -> bool {
        let Some(last) = (len as u64).checked_sub(1).and_then(|n| addr.0.checked_add(n)) else {
            return false;
        };
        self.lowest <= addr && last <= self.highest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reach_is_cut_off_at_the_ends_of_the_address_space() {
        assert_eq!(Reach::around(GuestAddr::new(0)).lowest.raw(), 0);
        assert_eq!(Reach::around(GuestAddr::new(u64::MAX)).highest.raw(), u64::MAX);
        assert!(!Reach::around(GuestAddr::new(u64::MAX)).admits(TrampolineAddr::new(u64::MAX), 2));
    }

    #[test]
    fn far_apart_reaches_have_nothing_in_common() {
        let low = Reach::around(GuestAddr::new(0x40_0000));
        let high = Reach::around(GuestAddr::new(0x7f00_0000_0000));
        assert_eq!(low.intersect(high), None);
        assert_eq!(low.intersect(low), Some(low));
    }

    #[test]
    fn an_empty_range_overlaps_nothing() {
        let (a, b) = (GuestAddr::new(4), GuestAddr::new(8));
        assert!(!GuestRange::new(b, a).overlaps(&GuestRange::new(GuestAddr::new(0), b)));
        assert!(GuestRange::new(a, b).overlaps(&GuestRange::of_len(GuestAddr::new(7), 1)));
    }
}
