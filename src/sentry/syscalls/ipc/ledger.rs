//! What messages in queues cost the supervisor: their memory belongs to no process of the guest, and so is bounded here.

use crate::sentry::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all messages of a guest may cost together.
const MOST_BYTES: usize = 64 << 20;
/// What a message costs beside its bytes, about.
const OVERHEAD: usize = 96;

/// What is held at the moment.
#[derive(Debug, Default)]
pub(super) struct Ledger(Arc<AtomicUsize>);

/// A share of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    ledger: Arc<AtomicUsize>,
    bytes: usize,
}

impl Ledger {
    /// Room for a message; `ENOMEM` if there is none, as the kernel says when it has no memory for one.
    pub(super) fn charge(&self, len: usize) -> Result<Charge, Errno> {
        let bytes = len.saturating_add(OVERHEAD);
        let add = |held: usize| held.checked_add(bytes).filter(|held| *held <= MOST_BYTES);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Charge { ledger: Arc::clone(&self.0), bytes }),
            Err(_) => Err(Errno::ENOMEM),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_all_queues_are_bounded_and_what_is_received_makes_room() {
        let ledger = Ledger::default();
        let mut held: Vec<Charge> = std::iter::from_fn(|| ledger.charge(8192).ok()).collect();
        assert_eq!(held.len(), MOST_BYTES / (8192 + OVERHEAD));
        // Empty ones are not for nothing.
        let empty: Vec<Charge> = std::iter::from_fn(|| ledger.charge(0).ok()).collect();
        assert!(empty.len() < 8192 / OVERHEAD + 2, "{}", empty.len());
        held.pop();
        assert!(ledger.charge(8192).is_ok());
        drop((held, empty));
        assert_eq!(ledger.0.load(Ordering::Relaxed), 0);
    }
}
