//! Ranges whose mappings are about to change: no trampoline is placed there in between.
//!
//! What lies in such a range is dropped before the change is made, trampolines included. Another thread of the guest may
//! trap before the host makes the change, and find the place free that has just been cleared.

use std::collections::HashMap;

/// Changes that wait for their contexts to go on; one each.
const MAX_LATER: usize = 4096;

type Range = (u64, u64);

/// The ranges of an address space.
#[derive(Debug, Default)]
pub(super) struct Announced {
    now: Vec<Range>,
    later: HashMap<ContextKey, Range>,
}

/// Tells contexts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ContextKey(usize);

impl ContextKey {
    /// The key of the context that has this address.
    pub(crate) fn of<T>(context: *const T) -> Self {
        Self(context.addr())
    }
}

impl Announced {
    pub(super) fn begin(&mut self, ranges: &[Range]) {
        self.now.extend(ranges);
    }

    pub(super) fn end(&mut self, ranges: &[Range]) {
        for range in ranges {
            if let Some(at) = self.now.iter().position(|other| other == range) {
                self.now.swap_remove(at);
            }
        }
    }

    /// A change that was begun will be made when the context goes on; its last one has been made.
    pub(super) fn put_off(&mut self, key: ContextKey, range: Range) {
        self.end(&[range]);
        self.later.insert(key, range);
    }

    /// Whether one more change can be put off.
    pub(super) fn has_room(&self, key: ContextKey) -> bool {
        self.later.len() < MAX_LATER || self.later.contains_key(&key)
    }

    /// The context has made all its changes, or never will.
    pub(super) fn forget(&mut self, key: ContextKey) {
        self.later.remove(&key);
    }

    pub(super) fn overlap(&self, (from, to): Range) -> bool {
        self.now.iter().chain(self.later.values()).any(|range| range.0 < to && from < range.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_taken_until_its_change_is_made() {
        let mut announced = Announced::default();
        announced.begin(&[(0x1000, 0x3000)]);
        assert!(announced.overlap((0x2000, 0x2001)) && !announced.overlap((0x3000, 0x4000)));
        announced.end(&[(0x1000, 0x3000)]);
        assert!(!announced.overlap((0x2000, 0x2001)));
    }

    #[test]
    fn a_change_that_waits_is_kept_until_its_contexts_next_one() {
        let (mut announced, contexts) = (Announced::default(), [0_u8; 2]);
        let [one, other] = [0, 1].map(|i| ContextKey::of(&raw const contexts[i]));
        announced.begin(&[(0x1000, 0x2000)]);
        announced.put_off(one, (0x1000, 0x2000));
        announced.begin(&[(0x5000, 0x6000)]);
        announced.put_off(other, (0x5000, 0x6000));
        assert!(announced.overlap((0x1000, 0x1001)) && announced.overlap((0x5000, 0x5001)));
        announced.begin(&[(0x8000, 0x9000)]);
        announced.put_off(one, (0x8000, 0x9000));
        assert!(!announced.overlap((0x1000, 0x1001)) && announced.overlap((0x8000, 0x8001)));
        announced.forget(other);
        assert!(!announced.overlap((0x5000, 0x5001)));
    }
}
