//! What arguments mean.

use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::socket_address::SocketAddress;
use crate::sentry::syscalls::args::MessageHeader;
use std::ffi::{CStr, CString};

/// What an argument of a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgValue<'a> {
    /// A number, a size, an identifier: sign-extended if the call takes it as signed (`value as i64`).
    Word(u64),
    /// A set of flags, or one of several choices; zero-extended.
    Flags(u64),
    /// A descriptor of the guest. In front of a path it is the directory that the path is relative to, maybe
    /// `AT_FDCWD`.
    Fd(i32),
    /// The path of a file, read from the guest once: the call uses these very bytes.
    Path(&'a CStr),
    /// Another string that was read from the guest once, such as the name of an extended attribute.
    Text(&'a CStr),
    /// The arguments or the environment of a program to execute, read from the guest once: the program gets these
    /// very strings.
    Strings(&'a [CString]),
    /// The address of a socket, read from the guest once: the call uses this very address. For a call that returns
    /// one (`accept`, `recvfrom`, …) it is there after the call, in full even if the guest had room for less.
    SocketAddress(&'a SocketAddress),
    /// What `sendmsg` or `sendmmsg` is to send, read from the guest once. Messages of `sendmmsg` behind one that
    /// cannot be read are not among them, and not sent.
    Messages(&'a [OutgoingMessage]),
    /// How `openat2` is to open a file, read from the guest once.
    OpenHow(OpenHow),
    /// An address in guest memory. What lies there can change until the call reads it, for other threads run.
    Address(GuestAddr),
    /// The argument points to memory that cannot be read, or is too long: the call fails with this unless the hook
    /// gives it another argument.
    Unreadable(Errno),
}

/// A message that a guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutgoingMessage {
    pub(crate) header: MessageHeader,
    pub(crate) address: Option<SocketAddress>,
}

impl OutgoingMessage {
    /// Where it is sent, if the guest says so: a socket that is connected needs no address.
    #[must_use]
    pub fn address(&self) -> Option<&SocketAddress> {
        self.address.as_ref()
    }
}

/// `struct open_how`, see openat2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenHow {
    /// `O_*`.
    pub flags: u64,
    /// The permissions of a file that is created.
    pub mode: u64,
    /// `RESOLVE_*`.
    pub resolve: u64,
}

/// An argument cannot be changed like that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgError {
    /// The call has fewer arguments.
    #[error("the call has no such argument")]
    NoSuchArgument,
    /// It is no path.
    #[error("the argument is not a path")]
    NotAPath,
    /// It is no address of a socket.
    #[error("the argument is not the address of a socket")]
    NotASocketAddress,
    /// It is no list of strings.
    #[error("the argument is not a list of strings")]
    NotStrings,
    /// The call has been made.
    #[error("the call has been made")]
    TooLate,
}
