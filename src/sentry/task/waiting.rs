//! How a task waits: in a host call, or for another task.

use super::Task;
use super::handle::Place;
use crate::sentry::errno::Errno;
use crate::sentry::host::Attention;
use crate::sentry::signals::SignalSet;
use std::sync::Arc;
use std::time::Instant;

/// How a wait for another task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// The bell rang: look again.
    Rang,
    /// There is a signal to deliver, or the task has to end.
    Interrupted,
    /// The time is over.
    TimedOut,
}

impl Task {
    /// Whether the task has to go and look before it may wait: a signal to deliver, a stop, its end.
    pub(crate) fn is_wanted(&self) -> bool {
        self.handle.is_doomed()
            || self.deliverable() != SignalSet::default()
            || !self.all_pending().intersection(self.handle.awaited().union(self.handle.watched())).is_empty()
            || self.process.is_stopped()
    }

    /// Makes a host call that may wait: signals for the guest end it, and the stub does not spin meanwhile.
    ///
    /// Kicks that turn out not to matter (an ignored or blocked signal) start the call again.
    pub(crate) fn wait<T>(
        &mut self,
        mut call: impl FnMut(&mut Self, &Attention) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.context.prepare_sleep();
        self.interruptible(&mut call)
    }

    /// The same for a call that is not expected to wait, although it may: the stub goes on looking for the answer.
    pub(crate) fn interruptible<T>(
        &mut self,
        mut call: impl FnMut(&mut Self, &Attention) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let handle = Arc::clone(&self.handle);
        loop {
            match handle.while_at(Place::HostCall, || call(self, &handle.attention)) {
                Err(Errno::EINTR) => {
                    handle.attention.take();
                    if self.is_wanted() {
                        handle.attention.raise();
                        return Err(Errno::ERESTARTSYS);
                    }
                }
                other => return other,
            }
        }
    }

    /// Waits until the bell is not at `seen` any more.
    pub(crate) fn park(&mut self, seen: u32, deadline: Option<Instant>) -> Parked {
        self.context.prepare_sleep();
        let handle = Arc::clone(&self.handle);
        loop {
            if handle.attention.take() && self.is_wanted() {
                handle.attention.raise();
                return Parked::Interrupted;
            }
            if handle.bell() != seen {
                return Parked::Rang;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Parked::TimedOut;
            }
            handle.sleep(seen, left);
        }
    }
}
