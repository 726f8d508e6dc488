//! Interrupting a context from another thread.

use std::sync::Arc;

use crate::subprocess::Attention;

/// Interrupts one context; the counterpart of gVisor's `Context.Interrupt`. Cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Interrupter {
    attention: Arc<Attention>,
}

impl Interrupter {
    pub(super) fn new(attention: Arc<Attention>) -> Self {
        Self { attention }
    }

    /// Makes the running or the next [`switch`](crate::Context::switch) return
    /// [`Event::Interrupted`](crate::Event::Interrupted). An event that the guest raised first is returned first;
    /// the interrupt then ends the switch after it. Interrupts do not count: one that is pending swallows others.
    pub fn interrupt(&self) {
        self.attention.raise(Attention::INTERRUPT);
    }

    /// The host's id of the stub thread that runs the context's guest code, for accounting in /proc: a fact of the
    /// moment, and not one to send signals by. `None` before the first switch.
    #[must_use]
    pub fn stub_thread(&self) -> Option<i32> {
        self.attention.thread()
    }

    /// Whether an interrupt was asked for and not reported yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.attention.get() & Attention::INTERRUPT != 0
    }
}
