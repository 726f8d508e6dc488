//! Where things go in a new guest address space, with randomisation of its own.

use crate::PAGE_SIZE;
use crate::sentry::host;

/// Addresses chosen for one program image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// The lowest address that may be mapped.
    pub(crate) bottom: u64,
    /// The first address that may not be mapped.
    pub(crate) top: u64,
    /// The end of the stack.
    pub(crate) stack_top: u64,
    /// The size of the stack.
    pub(crate) stack_len: u64,
    /// Mappings without a wish go below this address.
    pub(crate) mmap_top: u64,
    /// Where a position-independent executable is loaded.
    pub(crate) pie_base: u64,
    /// How far behind the executable the heap starts.
    pub(crate) brk_gap: u64,
}

/// The stack's size when there is no limit or an absurd one.
const DEFAULT_STACK: u64 = 8 << 20;
const LARGEST_STACK: u64 = 1 << 30;
/// Unmapped space below the stack, as the kernel's `stack_guard_gap`.
const STACK_GAP: u64 = 1 << 20;

impl Layout {
    /// Chooses addresses between `bottom` and `top`; `stack_limit` is the soft `RLIMIT_STACK`.
    pub(crate) fn random(bottom: u64, top: u64, stack_limit: u64) -> Self {
        let stack_len = match stack_limit {
            limit if limit > LARGEST_STACK => DEFAULT_STACK,
            limit => limit.max(32 * PAGE_SIZE).next_multiple_of(PAGE_SIZE),
        };
        let stack_top = top - PAGE_SIZE - random_pages(22);
        let mmap_top = stack_top - stack_len - STACK_GAP - random_pages(26);
        // As Linux: two thirds up, so that the heap has room above it and the mappings below `mmap_top` never meet it.
        let pie_base = 0x5555_5555_4000 + random_pages(26);
        Layout { bottom, top, stack_top, stack_len, mmap_top, pie_base, brk_gap: random_pages(13) }
    }
}

/// A random multiple of the page size below 2^bits pages.
fn random_pages(bits: u32) -> u64 {
    let mut bytes = [0; 8];
    // Without entropy the layout is only predictable, not wrong.
    let _ = host::getrandom(&mut bytes[..], libc::GRND_NONBLOCK);
    (u64::from_ne_bytes(bytes) & ((1 << bits) - 1)) * PAGE_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_apart_and_differ_between_programs() {
        let layouts: Vec<Layout> =
            (0..100).map(|_| Layout::random(0x10000, 0x7f00_0000_0000, 8 << 20)).collect();
        for layout in &layouts {
            assert!(layout.stack_top < layout.top);
            assert!(layout.mmap_top + STACK_GAP <= layout.stack_top - layout.stack_len);
            assert!(layout.pie_base + (1 << 40) < layout.mmap_top);
            assert_eq!(
                (layout.stack_top | layout.mmap_top | layout.pie_base | layout.brk_gap) % PAGE_SIZE,
                0
            );
        }
        assert!(layouts.windows(2).any(|pair| pair[0].stack_top != pair[1].stack_top));
        assert_eq!(Layout::random(0x10000, 0x7f00_0000_0000, u64::MAX).stack_len, DEFAULT_STACK);
    }
}
