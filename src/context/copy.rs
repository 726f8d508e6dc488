//! Small copies by the stub thread of the guest, with the result of its call.
//!
//! There is none for reading: a hand-off for the copy alone costs more than process_vm_readv(2) does.

use std::sync::atomic::{AtomicU64, Ordering};

use super::execute::{Executing, StubCall};
use super::{Context, Executed};
use crate::copy::reachable;
use crate::{CopyError, GuestAddr};

/// The most bytes of one small copy.
const MOST: usize = 256;

impl Context {
    /// The most bytes that [`Context::set_return_with`] takes.
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
