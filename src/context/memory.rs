//! Changes of a guest's mappings by its own stub thread: no other thread has to be woken for them.

use super::execute::{Executing, StubCall};
use super::{Context, Stop};
use crate::mapping::Mapping;
use crate::{AddressSpace, Advice, GuestAddr, MapError, Protection};

/// The memory of the address space in which a context waits, changed by the context's stub thread: see
/// [`Context::memory`].
#[derive(Debug)]
pub struct ContextMemory<'a> {
    context: &'a mut Context,
    aspace: &'a AddressSpace,
}

/// As [`ContextMemory`], for calls whose result is that of the guest's call: see [`ContextMemory::on_return`].
#[derive(Debug)]
pub struct MemoryOnReturn<'a> {
    memory: ContextMemory<'a>,
}

/// When a change of mappings is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It has been made, and the result of the guest's call is set.
    Now,
    /// The next switch makes it.
    OnReturn,
}

impl Context {
    /// The memory of `aspace`, changed by this context's stub thread.
    ///
    /// The methods are those of [`AddressSpace`] of the same names, with the same checks, limits and errors, at the price
    /// of one hand-off: some hundred nanoseconds where waking the leader takes tens of microseconds. If the context waits
    /// with no event in `aspace`, they are those of [`AddressSpace`].
    ///
    /// The host's answer comes from the guest's stub thread: it is the guest's claim. A guest that forges it misleads its
    /// supervisor about its own memory. Where somebody else relies on what is mapped, as when a shared mapping is taken
    /// away from a guest, use the methods of [`AddressSpace`], which do not return before the host has done it.
    pub fn memory<'a>(&'a mut self, aspace: &'a AddressSpace) -> ContextMemory<'a> {
        ContextMemory { context: self, aspace }
    }
}

impl<'a> ContextMemory<'a> {
    /// As [`AddressSpace::map_anonymous`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn map_anonymous(
        &mut self,
        addr: GuestAddr,
        len_bytes: u64,
        prot: Protection,
    ) -> Result<(), MapError> {
        self.make(&Mapping::anonymous(addr, len_bytes, prot)?)
    }

    /// As [`AddressSpace::unmap`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn unmap(&mut self, addr: GuestAddr, len_bytes: u64) -> Result<(), MapError> {
        self.make(&Mapping::removal(addr, len_bytes)?)
    }

    /// As [`AddressSpace::protect`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn protect(&mut self, addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<(), MapError> {
        self.make(&Mapping::protection(addr, len_bytes, prot)?)
    }

    /// As [`AddressSpace::advise`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn advise(&mut self, addr: GuestAddr, len_bytes: u64, advice: Advice) -> Result<(), MapError> {
        self.make(&Mapping::advice(addr, len_bytes, advice)?)
    }

    /// Makes the next change the result of the guest's call: 0, or the address for
    /// [`MemoryOnReturn::map_anonymous`]. It saves a hand-off where the change can wait for the next switch.
    ///
    /// If it is made by the next switch ([`Made::OnReturn`]):
    ///
    /// * It is to be treated as made. Should it fail, the switch returns [`Event::Interrupted`](crate::Event::Interrupted)
    ///   before the guest goes on, and [`Context::executed`] says [`Executed::Failed`](crate::Executed::Failed): time to
    ///   undo what was noted. The guest may keep that failure to itself, and then misleads about its own memory only.
    /// * Others of the address space may not rely on it before the next event. A range that is unmapped must not be given
    ///   out again before; therefore [`MemoryOnReturn::unmap`] is made at once if other contexts are in the address space.
    /// * If an interrupt is pending, the switch makes it before it reports the interrupt.
    #[must_use]
    pub fn on_return(self) -> MemoryOnReturn<'a> {
        MemoryOnReturn { memory: self }
    }

    fn make(&mut self, mapping: &Mapping) -> Result<(), MapError> {
        let here = self.context.is_home(self.aspace)
            && self.context.home.as_ref().is_some_and(|home| home.stop != Stop::Empty);
        if here {
            mapping.make(&self.aspace.inner, |call| self.context.execute_host_call(call))
        } else {
            self.aspace.make(mapping)
        }
    }
}

impl MemoryOnReturn<'_> {
    /// As [`AddressSpace::map_anonymous`]; the guest's call returns the address.
    ///
    /// # Errors
    ///
    /// The same, if it was made at once.
    pub fn map_anonymous(self, addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<Made, MapError> {
        self.arrange(&Mapping::anonymous(addr, len_bytes, prot)?, addr.raw() as i64)
    }

    /// As [`AddressSpace::unmap`].
    ///
    /// # Errors
    ///
    /// The same, if it was made at once.
    pub fn unmap(self, addr: GuestAddr, len_bytes: u64) -> Result<Made, MapError> {
        self.arrange(&Mapping::removal(addr, len_bytes)?, 0)
    }

    /// As [`AddressSpace::protect`].
    ///
    /// # Errors
    ///
    /// The same, if it was made at once.
    pub fn protect(self, addr: GuestAddr, len_bytes: u64, prot: Protection) -> Result<Made, MapError> {
        self.arrange(&Mapping::protection(addr, len_bytes, prot)?, 0)
    }

    /// As [`AddressSpace::advise`].
    ///
    /// # Errors
    ///
    /// The same, if it was made at once.
    pub fn advise(self, addr: GuestAddr, len_bytes: u64, advice: Advice) -> Result<Made, MapError> {
        self.arrange(&Mapping::advice(addr, len_bytes, advice)?, 0)
    }

    fn arrange(mut self, mapping: &Mapping, result: i64) -> Result<Made, MapError> {
        let ContextMemory { context, aspace } = &mut self.memory;
        let alone = || aspace.inner.process.attached_count() <= 1;
        let can_wait =
            context.is_home(aspace) && context.can_execute_on_return() && (!mapping.frees() || alone());
        if can_wait && let Some(call) = mapping.note_for_later(&aspace.inner, context.key()) {
            context.execute_on_return(Executing::Change, StubCall { nr: call.nr, args: call.args });
            return Ok(Made::OnReturn);
        }
        self.memory.make(mapping)?;
        self.memory.context.set_return(result);
        Ok(Made::Now)
    }
}
