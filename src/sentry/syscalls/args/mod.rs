//! The types of system call arguments: decoded once, used by the handler and shown by `--trace`.

mod addresses;
mod buffers;
mod flags;
mod socket_flags;
mod strings;
mod structs;

pub(crate) use addresses::{InAddress, InMessages, MESSAGE_ENTRY, MessageHeader, OutAddress};
pub(crate) use buffers::{InBytes, InIovecs, OutBytes, OutIovecs};
pub(crate) use flags::*;
pub(crate) use socket_flags::*;
pub(crate) use strings::{Arguments, Environment};
pub(crate) use structs::{InOpenHow, InTimespec, OutFdPair, OutLength, OutStat, OutTimespec};

use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::hook::ArgValue;
use crate::sentry::signals::signal_name;
use crate::sentry::socket_address::SocketAddress;
use std::ffi::{CStr, CString};
use std::fmt::Write as _;

/// What is known of a call when one of its arguments is shown.
pub(crate) struct CallView<'a> {
    pub(crate) args: &'a [u64; 6],
    /// The position of the argument.
    pub(crate) index: usize,
    pub(crate) memory: &'a dyn GuestMemory,
    /// Absent before the call.
    pub(crate) result: Option<Result<i64, Errno>>,
    /// The address of a socket that the call has returned.
    pub(crate) returned_address: Option<&'a SocketAddress>,
}

impl CallView<'_> {
    /// The argument after this one: a buffer's length.
    fn next_arg(&self) -> u64 {
        self.args.get(self.index + 1).copied().unwrap_or(0)
    }

    /// The bytes that a successful call returned.
    fn returned(&self) -> Option<u64> {
        self.result.and_then(Result::ok).and_then(|result| u64::try_from(result).ok())
    }
}

/// What a hook puts in the place of an argument that is not just a word.
pub(crate) enum Replacement {
    Path(CString),
    SocketAddress(SocketAddress),
    Strings(Vec<CString>),
}

/// The argument at a position and the one behind it.
fn pair(args: &[u64; 6], index: usize) -> [u64; 2] {
    [index, index + 1].map(|index| args.get(index).copied().unwrap_or_default())
}

/// A system call argument.
pub(crate) trait Arg: Sized + Clone {
    /// Whether it shows what the call has written, and so is shown after the call.
    const OUTPUT: bool = false;

    /// Decodes the register, reading guest memory once if the argument is a pointer to input.
    fn decode(raw: u64, memory: &dyn GuestMemory) -> Result<Self, Errno>;

    /// Whether the argument behind it says how long it is.
    const USES_NEXT: bool = false;

    /// Decodes the argument at a position.
    #[inline]
    fn decode_at(args: &[u64; 6], index: usize, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        Self::decode(args.get(index).copied().unwrap_or_default(), memory)
    }

    /// Appends the text that strace would show.
    fn show(&self, view: &CallView<'_>, out: &mut String);

    /// Whether it is the path of a file.
    const IS_PATH: bool = false;

    /// Whether it is, or leads to, the address of a socket that the call uses.
    const IS_SOCKET_ADDRESS: bool = false;

    /// What a hook sees; `None` for what is in the register.
    fn value(&self) -> Option<ArgValue<'_>> {
        None
    }

    /// The same, for an argument that lies in memory and is read when somebody looks.
    fn value_in<'a>(&'a self, _view: &CallView<'a>) -> Option<ArgValue<'a>> {
        self.value()
    }

    /// Reads what lies in memory, unless somebody has looked at it.
    fn settle(&self, _memory: &dyn GuestMemory) {}

    /// What a hook puts in its place, if that can be one.
    fn replaced(_by: Replacement) -> Option<Self> {
        None
    }
}

macro_rules! number_args {
    ($($ty:ty),*) => {$(
        impl Arg for $ty {
            #[inline]
            fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
                Ok(raw as $ty)
            }

            fn show(&self, _: &CallView<'_>, out: &mut String) {
                let _ = write!(out, "{self}");
            }

            fn value(&self) -> Option<ArgValue<'_>> {
                Some(ArgValue::Word(*self as i64 as u64))
            }
        }
    )*};
}
number_args!(i32, u32, i64, u64, usize);

impl Arg for GuestAddr {
    #[inline]
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(GuestAddr::new(raw))
    }

    fn show(&self, _: &CallView<'_>, out: &mut String) {
        show_pointer(*self, out);
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Address(*self))
    }
}

fn show_pointer(addr: GuestAddr, out: &mut String) {
    let _ = if addr == GuestAddr::NULL { write!(out, "NULL") } else { write!(out, "{addr:#x}") };
}

macro_rules! wrapped_args {
    ($($(#[$meta:meta])* $name:ident($ty:ty) as $seen:expr, |$value:ident, $out:ident| $show:expr;)*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $ty);

        impl Arg for $name {
            #[inline]
            fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
                Ok(Self(raw as $ty))
            }

            fn show(&self, _: &CallView<'_>, $out: &mut String) {
                let $value = self.0;
                let _ = $show;
            }

            fn value(&self) -> Option<ArgValue<'_>> {
                Some($seen(self.0.into()))
            }
        }
    )*};
}

wrapped_args! {
    /// A descriptor.
    Fd(i32) as ArgValue::Fd, |fd, out| write!(out, "{fd}");
    /// A descriptor of a directory, or `AT_FDCWD`.
    DirFd(i32) as ArgValue::Fd, |fd, out| if fd == libc::AT_FDCWD { write!(out, "AT_FDCWD") } else { write!(out, "{fd}") };
    /// File mode bits.
    Mode(u32) as ArgValue::Flags, |mode, out| if mode == 0 { write!(out, "000") } else { write!(out, "{mode:#05o}").map(|()| fix_octal(out)) };
    /// A signal number.
    Signo(i32) as signed, |signo, out| write!(out, "{}", signal_name(signo));
    /// A number shown in hexadecimal.
    Hex(u64) as ArgValue::Word, |number, out| write!(out, "{number:#x}");
}

fn signed(number: i64) -> ArgValue<'static> {
    ArgValue::Word(number as u64)
}

/// Rust writes octal numbers as `0o644`, C as `0644`.
fn fix_octal(out: &mut String) {
    if let Some(at) = out.rfind("0o") {
        out.replace_range(at..at + 2, "0");
    }
}

/// A path, read from the guest once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path(pub(crate) CString);

impl Path {
    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl Arg for Path {
    fn decode(raw: u64, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        memory.read_path(GuestAddr::new(raw)).map(Path)
    }

    fn show(&self, _: &CallView<'_>, out: &mut String) {
        show_string(self.0.as_bytes(), self.0.as_bytes().len(), out);
    }

    const IS_PATH: bool = true;

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Path(&self.0))
    }

    fn replaced(by: Replacement) -> Option<Self> {
        if let Replacement::Path(path) = by { Some(Self(path)) } else { None }
    }
}

/// Another string, read from the guest once: a name, the target of a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) CString);

impl Text {
    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl Arg for Text {
    fn decode(raw: u64, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        memory.read_path(GuestAddr::new(raw)).map(Text)
    }

    fn show(&self, _: &CallView<'_>, out: &mut String) {
        show_string(self.0.as_bytes(), self.0.as_bytes().len(), out);
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Text(&self.0))
    }
}

/// A path that may be a null pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionalPath(pub(crate) Option<CString>);

impl Arg for OptionalPath {
    fn decode(raw: u64, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        if raw == 0 {
            Ok(Self(None))
        } else {
            memory.read_path(GuestAddr::new(raw)).map(|path| Self(Some(path)))
        }
    }

    fn show(&self, _: &CallView<'_>, out: &mut String) {
        match &self.0 {
            Some(path) => show_string(path.as_bytes(), path.as_bytes().len(), out),
            None => out.push_str("NULL"),
        }
    }

    const IS_PATH: bool = true;

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(self.0.as_deref().map_or(ArgValue::Address(GuestAddr::NULL), ArgValue::Path))
    }

    fn replaced(by: Replacement) -> Option<Self> {
        if let Replacement::Path(path) = by { Some(Self(Some(path))) } else { None }
    }
}

/// Shows bytes as a C string in quotes; an ellipsis if there are more than those given.
pub(super) fn show_string(bytes: &[u8], total: usize, out: &mut String) {
    out.push('"');
    for (index, byte) in bytes.iter().enumerate() {
        let _ = match byte {
            b'\n' => write!(out, "\\n"),
            b'\t' => write!(out, "\\t"),
            b'\r' => write!(out, "\\r"),
            0x0b => write!(out, "\\v"),
            0x0c => write!(out, "\\f"),
            b'"' => write!(out, "\\\""),
            b'\\' => write!(out, "\\\\"),
            0x20..0x7f => write!(out, "{}", *byte as char),
            // A digit that follows would be taken for part of a shorter escape.
            _ if bytes.get(index + 1).is_some_and(u8::is_ascii_digit) => write!(out, "\\{byte:03o}"),
            _ => write!(out, "\\{byte:o}"),
        };
    }
    out.push('"');
    if bytes.len() < total {
        out.push_str("...");
    }
}

#[cfg(test)]
mod tests;
