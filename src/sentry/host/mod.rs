//! The host system calls that the sentry makes.
//!
//! A guest's structures have the host kernel's layout (both are x86-64 Linux), so most results pass through as
//! bytes. [`calls`] is the complete list of the calls; nothing else in the sentry enters the host kernel, except
//! the standard library where it is used as in any program.
//!
//! # Safety
//!
//! This is one of the modules that may use `unsafe`. The argument types make a call safe: a descriptor is
//! borrowed, a path is a `CStr`, memory is a slice (which passes its address and its length) or a reference to an
//! array (address only) of at least the size that the kernel reads or writes for that call; plain numbers are
//! never addresses. The list pairs each call with those types, and that pairing is what has to be reviewed.
#![allow(unsafe_code)]

mod calls;
mod deadline;
mod forbidden;
mod identity;
mod interruptible;
mod keeper;
mod nowait;
mod process;
mod shown;
mod sockets;
mod terminal;
mod words;

pub(crate) use calls::*;
pub(crate) use deadline::Deadline;
pub(crate) use forbidden::report_forbidden_calls;
pub(crate) use identity::*;
pub(crate) use interruptible::{Attention, install_kick_handler, kick, kick_signal};
pub(crate) use keeper::SessionKeeper;
pub(crate) use nowait::{read_now, write_now};
pub(crate) use process::*;
pub(crate) use shown::{Shown, shown_as};
pub(crate) use sockets::*;
pub(crate) use terminal::*;
pub(crate) use words::{wait_word, wake_word};

use super::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The argument words of a host call, filled from left to right.
#[derive(Default)]
pub(crate) struct Words {
    words: [usize; 6],
    filled: usize,
}

impl Words {
    fn push(&mut self, word: usize) {
        // The list of calls is fixed, and none has more than six words; a seventh would be dropped, not written.
        if let Some(slot) = self.words.get_mut(self.filled) {
            *slot = word;
        }
        self.filled += 1;
    }
}

/// A value that can be handed to the host kernel.
pub(crate) trait Argument {
    fn push_to(self, words: &mut Words);
}

macro_rules! number_arguments {
    ($($ty:ty => $wide:ty),*) => {$(
        impl Argument for $ty {
            #[inline]
            fn push_to(self, words: &mut Words) {
                words.push(self as $wide as usize);
            }
        }
    )*};
}
number_arguments!(i32 => isize, i64 => isize, u32 => usize, u64 => usize, usize => usize);

impl Argument for BorrowedFd<'_> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_raw_fd() as usize);
    }
}

impl Argument for &CStr {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_ptr().expose_provenance());
    }
}

impl Argument for Option<&CStr> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.map_or(0, |path| path.as_ptr().expose_provenance()));
    }
}

impl Argument for &[u8] {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_ptr().expose_provenance());
        words.push(self.len());
    }
}

impl Argument for &mut [u8] {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_mut_ptr().expose_provenance());
        words.push(self.len());
    }
}

impl<T: zerocopy::IntoBytes + zerocopy::FromBytes, const N: usize> Argument for &mut [T; N] {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_mut_ptr().expose_provenance());
    }
}

impl<const N: usize> Argument for &[u8; N] {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_ptr().expose_provenance());
    }
}

impl<const N: usize> Argument for Option<&[u8; N]> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.map_or(0, |bytes| bytes.as_ptr().expose_provenance()));
    }
}

impl<const N: usize> Argument for Option<&mut [u8; N]> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.map_or(0, |bytes| bytes.as_mut_ptr().expose_provenance()));
    }
}

/// Room for `struct epoll_event`s: the kernel is told how many fit.
pub(crate) struct Events<'a>(pub(crate) &'a mut [u8]);

/// `struct epoll_event` is packed: 12 bytes.
pub(crate) const EPOLL_EVENT: usize = 12;

impl Argument for Events<'_> {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.0.as_mut_ptr().expose_provenance());
        words.push(self.0.len() / EPOLL_EVENT);
    }
}

impl Argument for &mut [libc::pollfd] {
    #[inline]
    fn push_to(self, words: &mut Words) {
        words.push(self.as_mut_ptr().expose_provenance());
        words.push(self.len());
    }
}

/// Turns the kernel's return word into a result.
#[inline]
fn check(result: isize) -> Result<usize, Errno> {
    match result {
        -4095..0 => Err(Errno::from_raw(-result as i32)),
        _ => Ok(result as usize),
    }
}

/// Makes the call.
///
/// # Safety
///
/// The words have to fit the call: see the module's chapter.
#[inline]
unsafe fn raw(nr: libc::c_long, words: &Words) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = words.words;
    let result: isize;
    // SAFETY: the x86-64 system call convention: rcx and r11 are clobbered, memory may be. What the call does to
    // memory is what the words allow it, which the caller answers for.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") nr as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    check(result)
}

/// Takes ownership of a descriptor that a host call has just returned.
fn owned(fd: usize) -> OwnedFd {
    // SAFETY: the kernel returned it to this call a moment ago, so that nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
