//! Small copies by the stub thread of the guest: at once, while it waits, or with the result of its call.

use std::sync::atomic::{AtomicU64, Ordering};

use systrap_stub::wire::{self, StubEvent};

use super::execute::{Executing, StubCall};
use super::{Context, Executed, HandOff, Stop};
use crate::copy::reachable;
use crate::{AddressSpace, CopyError, GuestAddr};

/// The most bytes of one small copy.
const MOST: usize = 256;

impl Context {
    /// The most bytes that [`Context::set_return_with`], [`Context::read_small`] and [`Context::write_small`] let the stub
    /// thread copy.
    pub const SMALL_COPY: usize = MOST;

    /// As [`Context::set_return`], and writes `bytes` to guest memory at `addr` before the guest goes on, in the same
    /// hand-off. Says whether that is possible: for at most [`Context::SMALL_COPY`] bytes at guest addresses, in a call whose
    /// state was not changed since. If it is not, nothing was done.
    ///
    /// The copy stops where the guest itself could not write. Then the switch returns
    /// [`Event::Interrupted`](crate::Event::Interrupted) and [`Context::executed`] says [`Executed::CopyFailed`]. A result set
    /// by [`Context::set_return`] afterwards replaces `value`; the bytes are written all the same.
    #[must_use = "without it neither bytes nor result are given"]
    pub fn set_return_with(&mut self, value: i64, addr: GuestAddr, bytes: &[u8]) -> bool {
        let small = bytes.len() <= MOST && reachable(addr, bytes.len()) == bytes.len();
        if !small || !self.can_execute_on_return() {
            return false;
        }
        let Some(home) = &self.home else { return false };
        fill(&home.thread.sysmsg().payload, bytes);
        let call = StubCall { nr: bytes.len() as i64, args: [value as u64, addr.raw(), 0, 0, 0, 0] };
        self.set_return(value);
        self.execute_on_return(Executing::Copy, call)
    }

    /// As [`AddressSpace::read`], by the stub thread if the context waits in `aspace`, `buf` is small and the stub thread
    /// spins on a CPU of its own. What it copies is
    /// the guest's claim, like everything in guest memory.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::read`].
    pub fn read_small(
        &mut self,
        aspace: &AddressSpace,
        addr: GuestAddr,
        buf: &mut [u8],
    ) -> Result<(), CopyError> {
        let Some(copied) = self.copy_now(wire::COPY_FROM_GUEST, aspace, addr, buf.len()) else {
            return aspace.read(addr, buf);
        };
        if let (Some(home), Some(copied)) = (&self.home, buf.get_mut(..copied)) {
            for (chunk, word) in copied.chunks_mut(8).zip(&home.thread.sysmsg().payload) {
                let raw = word.load(Ordering::Relaxed).to_le_bytes();
                chunk.iter_mut().zip(raw).for_each(|(byte, raw)| *byte = raw);
            }
        }
        if copied == buf.len() { Ok(()) } else { Err(CopyError { copied }) }
    }

    /// As [`AddressSpace::write`], by the stub thread if the context waits in `aspace` and `bytes` are few.
    ///
    /// # Errors
    ///
    /// As [`AddressSpace::write`].
    pub fn write_small(
        &mut self,
        aspace: &AddressSpace,
        addr: GuestAddr,
        bytes: &[u8],
    ) -> Result<(), CopyError> {
        if self.executing == Executing::Copy || !self.is_home(aspace) || bytes.len() > MOST {
            return aspace.write(addr, bytes);
        }
        if let Some(home) = &self.home {
            fill(&home.thread.sysmsg().payload, bytes);
        }
        match self.copy_now(wire::COPY_TO_GUEST, aspace, addr, bytes.len()) {
            None => aspace.write(addr, bytes),
            Some(copied) if copied == bytes.len() => Ok(()),
            Some(copied) => Err(CopyError { copied }),
        }
    }

    /// How many bytes the stub thread claims to have copied; `None` if it is not for it to do.
    fn copy_now(&self, reply: u32, aspace: &AddressSpace, addr: GuestAddr, len: usize) -> Option<usize> {
        let home = self.home.as_ref()?;
        // The payload is full of what is to be written with the result.
        let free = self.executing != Executing::Copy;
        // Where the two share a CPU a hand-off costs ten times what the host's copy does.
        if !free
            || !home.thread.spinning().is_near()
            || !self.is_home(aspace)
            || len > MOST
            || reachable(addr, len) != len
        {
            return None;
        }
        let hand_off = HandOff::detached(&self.platform, &home.thread);
        match hand_off.exchange_call(reply, 0, [addr.raw(), len as u64, 0, 0, 0, 0]).ok()? {
            StubEvent::Done if home.stop != Stop::Patched => {}
            StubEvent::Patched if home.stop == Stop::Patched => {}
            _ => {
                let _ = hand_off.corrupted("an event that answers nothing");
                return None;
            }
        }
        let left = home.thread.sysmsg().line.args[0].load(Ordering::Relaxed);
        // A claim: at most what was asked for.
        Some(len.saturating_sub(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// Writes what was to be written with the result. Says whether the supervisor has to be told.
    pub(super) fn copy_at_once(&mut self, call: StubCall) -> bool {
        let Some(home) = &self.home else { return false };
        let [_, addr, ..] = call.args;
        let mut bytes = [0; MOST];
        let len = usize::try_from(call.nr).unwrap_or(MOST).min(MOST);
        for (chunk, word) in bytes.chunks_mut(8).zip(&home.thread.sysmsg().payload) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let written = home.space.write_memory(GuestAddr::new(addr), bytes.get(..len).unwrap_or(&[]));
        if let Err(CopyError { copied }) = written {
            self.copy_failed(copied);
        }
        written.is_err()
    }

    pub(super) fn copy_failed(&mut self, copied: usize) {
        self.set_return(-i64::from(libc::EFAULT));
        self.executed = Some(Executed::CopyFailed { copied });
    }
}

fn fill(payload: &[AtomicU64], bytes: &[u8]) {
    for (chunk, word) in bytes.chunks(8).zip(payload) {
        let mut raw = [0_u8; 8];
        raw.iter_mut().zip(chunk).for_each(|(raw, byte)| *raw = *byte);
        word.store(u64::from_le_bytes(raw), Ordering::Relaxed);
    }
}
