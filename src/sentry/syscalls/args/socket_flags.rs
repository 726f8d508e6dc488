//! What calls on sockets are told by number.

use super::flags::{flag_args, show_bits, show_one};
use super::{Arg, CallView, pair};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::hook::ArgValue;

flag_args! {
    /// A family of protocols.
    Domain(i32) one [AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK];
    /// Flags of a new socket.
    SocketFlags(i32) bits [SOCK_CLOEXEC, SOCK_NONBLOCK];
    /// `MSG_*`.
    MessageFlags(i32) bits [
        MSG_OOB, MSG_PEEK, MSG_DONTROUTE, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT, MSG_EOR, MSG_WAITALL, MSG_CONFIRM,
        MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_MORE, MSG_WAITFORONE, MSG_FASTOPEN, MSG_CMSG_CLOEXEC,
    ];
    /// Which half of a connection ends.
    ShutdownHow(i32) one [SHUT_RD, SHUT_WR, SHUT_RDWR];
    /// The level that an option of a socket belongs to.
    SocketLevel(i32) one [
        SOL_SOCKET, SOL_IP, SOL_TCP, SOL_UDP, SOL_IPV6, SOL_RAW, SOL_PACKET, SOL_NETLINK,
    ];
}

/// `SOCK_*`: one of several types, then a set of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketKind(pub(crate) i32);

impl Arg for SocketKind {
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(raw as i32))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        const FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        const NAMES: &[(&str, u64)] = &[
            ("SOCK_STREAM", libc::SOCK_STREAM as u64),
            ("SOCK_DGRAM", libc::SOCK_DGRAM as u64),
            ("SOCK_RAW", libc::SOCK_RAW as u64),
            ("SOCK_RDM", libc::SOCK_RDM as u64),
            ("SOCK_SEQPACKET", libc::SOCK_SEQPACKET as u64),
        ];
        show_one((self.0 & !FLAGS) as u32 as u64, NAMES, out);
        if self.0 & FLAGS != 0 {
            out.push('|');
            SocketFlags(self.0 & FLAGS).show(view, out);
        }
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Flags(u64::from(self.0 as u32)))
    }
}

/// An option of a socket; the argument in front of it is the level that gives it its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketOption(pub(crate) i32);

macro_rules! names {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), libc::$name as u32 as u64)),*] };
}

impl Arg for SocketOption {
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(raw as i32))
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        let level = view.index.checked_sub(1).map(|level| pair(view.args, level)[0] as i32);
        let names: &[(&str, u64)] = match level {
            Some(libc::SOL_SOCKET) => names![
                SO_DEBUG,
                SO_REUSEADDR,
                SO_TYPE,
                SO_ERROR,
                SO_DONTROUTE,
                SO_BROADCAST,
                SO_SNDBUF,
                SO_RCVBUF,
                SO_KEEPALIVE,
                SO_OOBINLINE,
                SO_PRIORITY,
                SO_LINGER,
                SO_REUSEPORT,
                SO_PASSCRED,
                SO_PEERCRED,
                SO_RCVLOWAT,
                SO_SNDLOWAT,
                SO_RCVTIMEO,
                SO_SNDTIMEO,
                SO_BINDTODEVICE,
                SO_ATTACH_FILTER,
                SO_DETACH_FILTER,
                SO_TIMESTAMP,
                SO_ACCEPTCONN,
                SO_PEERSEC,
                SO_SNDBUFFORCE,
                SO_RCVBUFFORCE,
                SO_MARK,
                SO_PROTOCOL,
                SO_DOMAIN,
                SO_BUSY_POLL,
                SO_INCOMING_CPU,
            ],
            Some(libc::SOL_TCP) => names![
                TCP_NODELAY,
                TCP_MAXSEG,
                TCP_CORK,
                TCP_KEEPIDLE,
                TCP_KEEPINTVL,
                TCP_KEEPCNT,
                TCP_SYNCNT,
                TCP_LINGER2,
                TCP_DEFER_ACCEPT,
                TCP_WINDOW_CLAMP,
                TCP_INFO,
                TCP_QUICKACK,
                TCP_CONGESTION,
                TCP_USER_TIMEOUT,
                TCP_FASTOPEN,
            ],
            Some(libc::SOL_IP) => names![
                IP_TOS,
                IP_TTL,
                IP_HDRINCL,
                IP_OPTIONS,
                IP_PKTINFO,
                IP_MTU_DISCOVER,
                IP_RECVERR,
                IP_RECVTTL,
                IP_RECVTOS,
                IP_FREEBIND,
                IP_MULTICAST_IF,
                IP_MULTICAST_TTL,
                IP_MULTICAST_LOOP,
                IP_ADD_MEMBERSHIP,
                IP_DROP_MEMBERSHIP,
            ],
            Some(libc::SOL_IPV6) => names![
                IPV6_UNICAST_HOPS,
                IPV6_MULTICAST_IF,
                IPV6_MULTICAST_HOPS,
                IPV6_MULTICAST_LOOP,
                IPV6_MTU_DISCOVER,
                IPV6_RECVERR,
                IPV6_V6ONLY,
                IPV6_RECVPKTINFO,
                IPV6_TCLASS,
            ],
            _ => &[],
        };
        show_one(u64::from(self.0 as u32), names, out);
    }

    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Flags(u64::from(self.0 as u32)))
    }
}
