//! Small results travel with the call's result to the task's own stub thread.

use super::Task;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use zerocopy::{Immutable, IntoBytes};

impl Task {
    /// Writes what a call returns in memory. Few bytes travel with the call's result: a bad address then turns the
    /// result into `EFAULT`.
    ///
    /// For the last thing that a call does: what is read back before the guest goes on may be the old bytes.
    pub(crate) fn give(&mut self, addr: GuestAddr, bytes: &[u8]) -> Result<(), Errno> {
        // A hook may look at what was written.
        if !self.observer.hooks.is_watching() && self.context.set_return_with(0, addr, bytes) {
            return Ok(());
        }
        Ok(self.memory().write(addr, bytes)?)
    }

    /// The same for a structure, unless the guest passed a null pointer.
    pub(crate) fn give_optional<T: IntoBytes + Immutable>(
        &mut self,
        addr: GuestAddr,
        object: &T,
    ) -> Result<(), Errno> {
        if addr == GuestAddr::NULL { Ok(()) } else { self.give(addr, object.as_bytes()) }
    }
}
