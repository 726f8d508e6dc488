//! Small copies by the task's own stub thread, which waits for its call's result anyway.

use super::Task;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::syscalls::args::Arg;
use crate::{AddressSpace, Context, CopyError, GuestAddr};
use std::cell::RefCell;
use zerocopy::{Immutable, IntoBytes};

/// Guest memory that is read through the stub thread where that is faster.
pub(crate) struct NearMemory<'a> {
    context: RefCell<&'a mut Context>,
    space: &'a AddressSpace,
}

impl GuestMemory for NearMemory<'_> {
    fn read(&self, addr: GuestAddr, buf: &mut [u8]) -> Result<(), CopyError> {
        if buf.len() <= Context::SMALL_COPY {
            self.context.borrow_mut().read_small(self.space, addr, buf)
        } else {
            self.space.read(addr, buf)
        }
    }

    fn write(&self, addr: GuestAddr, buf: &[u8]) -> Result<(), CopyError> {
        self.space.write(addr, buf)
    }
}

impl Task {
    /// The guest's memory, for reading few bytes while the guest waits.
    pub(crate) fn near_memory(&mut self) -> NearMemory<'_> {
        NearMemory { context: RefCell::new(&mut self.context), space: self.mm.space() }
    }

    /// Decodes an argument of the call that the guest waits for.
    pub(crate) fn decode<A: Arg>(&mut self, raw: u64) -> Result<A, Errno> {
        A::decode(raw, &self.near_memory())
    }

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
