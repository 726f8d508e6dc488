//! Buffers: what a call reads is shown before it, what it writes afterwards.

use super::{Arg, CallView, show_pointer, show_string};
use crate::GuestAddr;
use crate::sentry::abi::Iovec;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::hook::ArgValue;
use std::fmt::Write as _;

/// How much of a buffer a trace shows, as strace.
const SHOWN: usize = 32;
/// How many segments of a vectored call a trace shows.
const SHOWN_SEGMENTS: usize = 16;

fn show_bytes(memory: &dyn GuestMemory, addr: GuestAddr, len: u64, out: &mut String) {
    let total = usize::try_from(len).unwrap_or(usize::MAX);
    let mut bytes = [0; SHOWN];
    let shown = &mut bytes[..total.min(SHOWN)];
    match memory.read(addr, shown) {
        Ok(()) => show_string(shown, total, out),
        Err(_) => show_pointer(addr, out),
    }
}

/// A buffer that the call reads; the next argument is its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InBytes(pub(crate) GuestAddr);

impl Arg for InBytes {
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(GuestAddr::new(raw)))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        show_bytes(view.memory, self.0, view.next_arg(), out);
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Address(self.0))
    }
}

/// A buffer that the call fills; its result is how far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutBytes(pub(crate) GuestAddr);

impl Arg for OutBytes {
    const OUTPUT: bool = true;

    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(GuestAddr::new(raw)))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        match view.returned() {
            // Some calls return the length that there is rather than the length that they copied.
            Some(len) => show_bytes(view.memory, self.0, len.min(view.next_arg()), out),
            None => show_pointer(self.0, out),
        }
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Address(self.0))
    }
}

pub(super) fn show_segments(
    memory: &dyn GuestMemory,
    addr: GuestAddr,
    count: u64,
    filled: u64,
    out: &mut String,
) {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let Ok(segments) = memory.read_iovecs(addr, count.min(SHOWN_SEGMENTS)) else {
        return show_pointer(addr, out);
    };
    out.push('[');
    let mut left = filled;
    for (index, Iovec { base, len }) in segments.iter().copied().enumerate() {
        out.push_str(if index == 0 { "{iov_base=" } else { ", {iov_base=" });
        show_bytes(memory, GuestAddr::new(base), len.min(left), out);
        left -= len.min(left);
        let _ = write!(out, ", iov_len={len}}}");
    }
    out.push_str(if count > SHOWN_SEGMENTS { ", ...]" } else { "]" });
}

/// The segments of a vectored write; the next argument is their number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InIovecs(pub(crate) GuestAddr);

impl Arg for InIovecs {
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(GuestAddr::new(raw)))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        show_segments(view.memory, self.0, view.next_arg(), u64::MAX, out);
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Address(self.0))
    }
}

/// The segments of a vectored read; the next argument is their number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutIovecs(pub(crate) GuestAddr);

impl Arg for OutIovecs {
    const OUTPUT: bool = true;

    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(GuestAddr::new(raw)))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        show_segments(view.memory, self.0, view.next_arg(), view.returned().unwrap_or(0), out);
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Address(self.0))
    }
}
