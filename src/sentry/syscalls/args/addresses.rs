//! Addresses of sockets, and the messages that are sent to them.
//!
//! What a call reads is read by whoever looks first, a hook or the handler, and never again.

use super::{Arg, CallView, Replacement, buffers, show_pointer, show_string};
use crate::GuestAddr;
use crate::sentry::abi::IOV_MAX;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::hook::{ArgValue, OutgoingMessage};
use crate::sentry::socket_address::SocketAddress;
use std::cell::OnceCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Reads an address as the kernel's `move_addr_to_kernel` does.
fn read_address(memory: &dyn GuestMemory, addr: GuestAddr, len: i32) -> Result<SocketAddress, Errno> {
    let mut bytes = [0; SocketAddress::MAX_LEN];
    let bytes = usize::try_from(len).ok().and_then(|len| bytes.get_mut(..len)).ok_or(Errno::EINVAL)?;
    memory.read(addr, bytes)?;
    SocketAddress::from_bytes(bytes).ok_or(Errno::EINVAL)
}

fn show_address(address: &SocketAddress, out: &mut String) {
    let family = address.family().map(i32::from);
    let _ = match (address.ip(), family) {
        (Some(SocketAddr::V4(v4)), _) => {
            let (port, ip) = (v4.port(), v4.ip());
            write!(out, "{{sa_family=AF_INET, sin_port=htons({port}), sin_addr=inet_addr(\"{ip}\")}}")
        }
        (Some(SocketAddr::V6(v6)), _) => {
            let (port, ip, scope) = (v6.port(), v6.ip(), v6.scope_id());
            let _ = write!(out, "{{sa_family=AF_INET6, sin6_port=htons({port}), sin6_addr=\"{ip}\"");
            let _ = if scope == 0 { Ok(()) } else { write!(out, ", sin6_scope_id={scope}") };
            write!(out, "}}")
        }
        (None, Some(libc::AF_UNIX)) => {
            out.push_str("{sa_family=AF_UNIX");
            if let Some(path) = address.unix_path() {
                out.push_str(", sun_path=");
                show_string(path.as_os_str().as_bytes(), 0, out);
            } else if let Some(name) = address.abstract_name() {
                out.push_str(", sun_path=@");
                show_string(name, 0, out);
            }
            write!(out, "}}")
        }
        (None, Some(libc::AF_UNSPEC)) => write!(out, "{{sa_family=AF_UNSPEC}}"),
        (None, Some(family)) => write!(out, "{{sa_family={family}, ...}}"),
        (None, None) => write!(out, "{{}}"),
    };
}

/// An address that the call reads; the next argument is its length.
#[derive(Debug, Clone)]
pub(crate) struct InAddress {
    addr: GuestAddr,
    len: i32,
    read: OnceCell<Result<SocketAddress, Errno>>,
}

impl InAddress {
    /// The address, which must be there.
    pub(crate) fn read(&self, memory: &dyn GuestMemory) -> Result<SocketAddress, Errno> {
        *self.look(memory)
    }

    /// The address, unless the guest passed a null pointer.
    pub(crate) fn read_optional(&self, memory: &dyn GuestMemory) -> Result<Option<SocketAddress>, Errno> {
        let is_absent = self.addr == GuestAddr::NULL && self.read.get().is_none_or(Result::is_err);
        if is_absent { Ok(None) } else { self.read(memory).map(Some) }
    }

    fn look(&self, memory: &dyn GuestMemory) -> &Result<SocketAddress, Errno> {
        self.read.get_or_init(|| read_address(memory, self.addr, self.len))
    }
}

impl Arg for InAddress {
    const USES_NEXT: bool = true;
    const IS_SOCKET_ADDRESS: bool = true;

    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self { addr: GuestAddr::new(raw), len: 0, read: OnceCell::new() })
    }

    fn decode_at(args: &[u64; 6], index: usize, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        let [addr, len] = super::pair(args, index);
        Ok(Self { len: len as i32, ..Self::decode(addr, memory)? })
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        match self.read_optional(view.memory) {
            Ok(Some(address)) => show_address(&address, out),
            _ => show_pointer(self.addr, out),
        }
    }

    fn value_in<'a>(&'a self, view: &CallView<'a>) -> Option<ArgValue<'a>> {
        if self.addr == GuestAddr::NULL && self.read.get().is_none() {
            return Some(ArgValue::Address(GuestAddr::NULL));
        }
        Some(match self.look(view.memory) {
            Ok(address) => ArgValue::SocketAddress(address),
            Err(errno) => ArgValue::Unreadable(*errno),
        })
    }

    fn settle(&self, memory: &dyn GuestMemory) {
        let _ = self.read_optional(memory);
    }

    fn replaced(by: Replacement) -> Option<Self> {
        let Replacement::SocketAddress(address) = by else { return None };
        Some(Self { addr: GuestAddr::NULL, len: 0, read: OnceCell::from(Ok(address)) })
    }
}

/// Where the call writes an address; the next argument points to its length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutAddress(pub(crate) GuestAddr);

impl Arg for OutAddress {
    const OUTPUT: bool = true;

    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(GuestAddr::new(raw)))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        match (view.returned(), view.returned_address) {
            (Some(_), Some(address)) => show_address(address, out),
            _ => show_pointer(self.0, out),
        }
    }

    fn value_in<'a>(&'a self, view: &CallView<'a>) -> Option<ArgValue<'a>> {
        Some(view.returned_address.map_or(ArgValue::Address(self.0), ArgValue::SocketAddress))
    }
}

/// `struct msghdr` as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MessageHeader {
    pub(crate) name: u64,
    pub(crate) name_len: i32,
    padding: u32,
    pub(crate) segments: u64,
    pub(crate) segment_count: u64,
    pub(crate) control: u64,
    pub(crate) control_len: u64,
    pub(crate) flags: i32,
    padding2: u32,
}

/// `struct mmsghdr`: a header and the length of what was transferred.
pub(crate) const MESSAGE_ENTRY: u64 = 64;

const _: () = {
    assert!(size_of::<MessageHeader>() == size_of::<libc::msghdr>(), "sendmsg and recvmsg copy it whole");
    assert!(MESSAGE_ENTRY == size_of::<libc::mmsghdr>() as u64, "sendmmsg steps by it");
};

impl MessageHeader {
    /// Reads and checks a header as the kernel's `copy_msghdr_from_user` does.
    pub(crate) fn read(memory: &dyn GuestMemory, addr: GuestAddr) -> Result<Self, Errno> {
        let mut header: Self = memory.read_object(addr)?;
        if header.name == 0 {
            header.name_len = 0;
        }
        if header.name_len < 0 {
            return Err(Errno::EINVAL);
        }
        header.name_len = header.name_len.min(SocketAddress::MAX_LEN as i32);
        if header.segment_count > IOV_MAX as u64 {
            return Err(Errno::EMSGSIZE);
        }
        Ok(header)
    }
}

fn read_message(memory: &dyn GuestMemory, addr: GuestAddr) -> Result<OutgoingMessage, Errno> {
    let header = MessageHeader::read(memory, addr)?;
    let address = match header.name_len {
        0 => None,
        len => Some(read_address(memory, GuestAddr::new(header.name), len)?),
    };
    Ok(OutgoingMessage { header, address })
}

/// What sendmsg is to send; with `MANY`, what sendmmsg is to send, as many as the next argument says.
#[derive(Debug, Clone)]
pub(crate) struct InMessages<const MANY: bool> {
    addr: GuestAddr,
    pub(crate) count: u32,
    /// All up to the first that cannot be read.
    read: OnceCell<(Vec<OutgoingMessage>, Option<Errno>)>,
}

impl<const MANY: bool> InMessages<MANY> {
    /// Where the message of that number is.
    pub(crate) fn entry(&self, index: u32) -> Result<GuestAddr, Errno> {
        self.addr.checked_add(u64::from(index) * MESSAGE_ENTRY).ok_or(Errno::EFAULT)
    }

    /// The message of that number.
    pub(crate) fn read(&self, memory: &dyn GuestMemory, index: u32) -> Result<OutgoingMessage, Errno> {
        let Some((messages, error)) = self.read.get() else {
            return read_message(memory, self.entry(index)?);
        };
        messages.get(index as usize).copied().ok_or(error.unwrap_or(Errno::EFAULT))
    }

    /// All of them, for a hook.
    fn look(&self, memory: &dyn GuestMemory) -> &(Vec<OutgoingMessage>, Option<Errno>) {
        self.read.get_or_init(|| {
            let mut messages = Vec::new();
            for index in 0..self.count {
                match self.entry(index).and_then(|addr| read_message(memory, addr)) {
                    Ok(message) => messages.push(message),
                    Err(errno) => return (messages, Some(errno)),
                }
            }
            (messages, None)
        })
    }
}

impl<const MANY: bool> Arg for InMessages<MANY> {
    const USES_NEXT: bool = MANY;
    const IS_SOCKET_ADDRESS: bool = true;

    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self { addr: GuestAddr::new(raw), count: 1, read: OnceCell::new() })
    }

    fn decode_at(args: &[u64; 6], index: usize, memory: &dyn GuestMemory) -> Result<Self, Errno> {
        let [addr, next] = super::pair(args, index);
        let one = Self::decode(addr, memory)?;
        Ok(if MANY { Self { count: (next as u32).min(IOV_MAX as u32), ..one } } else { one })
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        let (messages, error) = self.look(view.memory);
        if messages.is_empty() && (error.is_some() || MANY) {
            return show_pointer(self.addr, out);
        }
        for (index, message) in messages.iter().enumerate() {
            out.push_str(match (index, MANY) {
                (0, true) => "[{msg_hdr=",
                (0, false) => "",
                (_, _) => "}, {msg_hdr=",
            });
            show_message(message, view.memory, out);
        }
        out.push_str(match (MANY, error) {
            (true, None) => "}]",
            (true, Some(_)) => "}, ...]",
            (false, _) => "",
        });
    }

    fn value_in<'a>(&'a self, view: &CallView<'a>) -> Option<ArgValue<'a>> {
        Some(match self.look(view.memory) {
            (messages, Some(errno)) if messages.is_empty() => ArgValue::Unreadable(*errno),
            (messages, _) => ArgValue::Messages(messages),
        })
    }

    fn settle(&self, memory: &dyn GuestMemory) {
        let _ = self.look(memory);
    }
}

fn show_message(message: &OutgoingMessage, memory: &dyn GuestMemory, out: &mut String) {
    let header = &message.header;
    out.push_str("{msg_name=");
    match &message.address {
        Some(address) => show_address(address, out),
        None => show_pointer(GuestAddr::new(header.name), out),
    }
    let _ = write!(out, ", msg_namelen={}, msg_iov=", header.name_len);
    buffers::show_segments(memory, GuestAddr::new(header.segments), header.segment_count, u64::MAX, out);
    let (count, control) = (header.segment_count, header.control_len);
    let _ = write!(out, ", msg_iovlen={count}, msg_controllen={control}}}");
}
