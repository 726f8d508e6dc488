//! The request page: written by the supervisor, read by the leader, read-only in the stub process.
//!
//! The leader answers by `lseek(memfd, answer)`: only it can move that file offset, so the supervisor
//! reads a result that guest threads cannot forge.

use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::layout::PAGE_SIZE;

/// How many host calls fit in one request.
pub const MAX_OPS: usize = 31;

/// One host call for the leader to make.
#[repr(C)]
#[derive(Debug)]
pub struct Op {
    /// The call's number.
    pub nr: AtomicU64,
    /// Its arguments.
    pub args: [AtomicU64; 6],
}

/// The request page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Request {
    /// Incremented (skipping nothing) when a request is complete; a futex word on which the leader sleeps.
    pub seq: AtomicU32,
    /// How many of `ops` are to be made, 1 to [`MAX_OPS`].
    pub count: AtomicU32,
    /// How often the leader looks for the next request before it sleeps, in `pause`s.
    pub spin: AtomicU32,
    _pad: [u32; 13],
    /// The host calls; the leader stops at the first that fails.
    pub ops: [Op; MAX_OPS],
}

const _: () = assert!(size_of::<Request>() as u64 == PAGE_SIZE, "one page per address space");

/// Bits of the result in an answer.
pub const RESULT_BITS: u32 = 48;
/// Bits of the count of calls not made, above the result.
pub const LEFT_BITS: u32 = 5;
/// Bits of the sequence number, above the count; bit 63 stays 0 because a file offset is not negative.
pub const SEQ_BITS: u32 = 10;

const _: () = assert!(RESULT_BITS + LEFT_BITS + SEQ_BITS == 63);
const _: () = assert!(MAX_OPS < 1 << LEFT_BITS);

/// What the leader answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Low [`SEQ_BITS`] of the request's sequence number.
    pub seq: u32,
    /// How many calls of the request were not made successfully: 0 if all were.
    pub left: u32,
    /// The result of the last call that was made: a negative errno if it failed.
    pub result: i64,
}

impl Answer {
    /// Takes a file offset apart.
    #[must_use]
    pub const fn from_offset(offset: u64) -> Self {
        let shift = 64 - RESULT_BITS;
        Self {
            seq: (offset >> (RESULT_BITS + LEFT_BITS)) as u32 & ((1 << SEQ_BITS) - 1),
            left: (offset >> RESULT_BITS) as u32 & ((1 << LEFT_BITS) - 1),
            result: ((offset << shift) as i64) >> shift,
        }
    }
}
