//! Socket addresses as calls take and return them.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Where the name of a `struct sockaddr_un` starts.
pub(crate) const PATH_AT: usize = std::mem::offset_of!(libc::sockaddr_un, sun_path);
/// The length of a `struct sockaddr_in`.
const INET_LEN: usize = size_of::<libc::sockaddr_in>();
/// The shortest `struct sockaddr_in6` that the kernel takes: without a scope.
const INET6_LEN: usize = std::mem::offset_of!(libc::sockaddr_in6, sin6_scope_id);

/// The address of a socket: a `struct sockaddr` of any family, in the host's byte order where the kernel has it so.
///
/// [`Display`](fmt::Display) shows an IP address with its port, the path of a Unix socket, an abstract name after an
/// `@`, or the number of another family.
///
/// ```
/// use std::net::{Ipv4Addr, SocketAddr};
/// use systrap::sentry::SocketAddress;
///
/// let web = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
/// let address = SocketAddress::from(web);
/// assert_eq!(address.ip(), Some(web));
/// assert_eq!(address.to_string(), "127.0.0.1:80");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketAddress {
    /// Zero behind `len`.
    bytes: [u8; Self::MAX_LEN],
    len: usize,
}

impl SocketAddress {
    /// The longest address in bytes (`struct sockaddr_storage`).
    pub const MAX_LEN: usize = size_of::<libc::sockaddr_storage>();

    /// The address of these bytes, which may make sense or not; `None` if there are more than [`Self::MAX_LEN`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut address = Self { bytes: [0; Self::MAX_LEN], len: bytes.len() };
        address.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(address)
    }

    /// The address of a Unix socket with this path; `None` if it is longer than 108 bytes.
    #[must_use]
    pub fn from_unix_path(path: impl AsRef<Path>) -> Option<Self> {
        let path = path.as_ref().as_os_str().as_bytes();
        // A path may fill the field without a zero at its end.
        if PATH_AT + path.len() > size_of::<libc::sockaddr_un>() {
            return None;
        }
        Self::from_bytes(&[&(libc::AF_UNIX as u16).to_ne_bytes(), path].concat())
    }

    /// The bytes, as the call takes them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The family (`AF_*`); `None` if the address is too short to have one.
    #[must_use]
    pub fn family(&self) -> Option<u16> {
        self.as_bytes().first_chunk().map(|family| u16::from_ne_bytes(*family))
    }

    fn is(&self, family: i32) -> bool {
        self.family() == Some(family as u16)
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    /// The address and port of an IPv4 or IPv6 address; `None` for other families.
    ///
    /// A datagram socket of IPv4 takes `AF_UNSPEC`, which is `None` here, for `AF_INET`: a policy permits what it knows
    /// and denies the rest.
    #[must_use]
    pub fn ip(&self) -> Option<SocketAddr> {
        let port = u16::from_be_bytes(self.part(2));
        if self.is(libc::AF_INET) && self.len >= INET_LEN {
            let ip = Ipv4Addr::from(self.part::<4>(4));
            Some(SocketAddrV4::new(ip, port).into())
        } else if self.is(libc::AF_INET6) && self.len >= INET6_LEN {
            let (flow, scope) = (u32::from_be_bytes(self.part(4)), u32::from_ne_bytes(self.part(INET6_LEN)));
            Some(SocketAddrV6::new(Ipv6Addr::from(self.part::<16>(8)), port, flow, scope).into())
        } else {
            None
        }
    }

    fn unix_name(&self) -> Option<&[u8]> {
        if self.is(libc::AF_UNIX) { self.as_bytes().get(PATH_AT..) } else { None }
    }

    /// The path of a Unix socket that has one.
    #[must_use]
    pub fn unix_path(&self) -> Option<&Path> {
        // It ends with a zero or with the address.
        let path = self.unix_name()?.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())?;
        Some(Path::new(OsStr::from_bytes(path)))
    }

    /// The abstract name of a Unix socket that has one, without the zero in front.
    #[must_use]
    pub fn abstract_name(&self) -> Option<&[u8]> {
        self.unix_name()?.strip_prefix(b"\0")
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        let (family, len) = match address {
            SocketAddr::V4(_) => (libc::AF_INET, INET_LEN),
            SocketAddr::V6(_) => (libc::AF_INET6, size_of::<libc::sockaddr_in6>()),
        };
        let mut bytes = (family as u16).to_ne_bytes().to_vec();
        bytes.extend(address.port().to_be_bytes());
        match address {
            SocketAddr::V4(address) => bytes.extend(address.ip().octets()),
            SocketAddr::V6(address) => {
                bytes.extend(address.flowinfo().to_be_bytes());
                bytes.extend(address.ip().octets());
                bytes.extend(address.scope_id().to_ne_bytes());
            }
        }
        let mut padded = [0; Self::MAX_LEN];
        for (to, from) in padded.iter_mut().zip(bytes) {
            *to = from;
        }
        Self { bytes: padded, len }
    }
}

impl From<(IpAddr, u16)> for SocketAddress {
    fn from(address: (IpAddr, u16)) -> Self {
        SocketAddr::from(address).into()
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.ip() {
            write!(f, "{address}")
        } else if let Some(path) = self.unix_path() {
            write!(f, "{}", path.display())
        } else if let Some(name) = self.abstract_name() {
            write!(f, "@{}", name.escape_ascii())
        } else {
            match self.family() {
                Some(family) => write!(f, "(family {family}, {} bytes)", self.len),
                None => f.write_str("(empty)"),
            }
        }
    }
}

impl fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internet_addresses_come_back_as_they_were() {
        let six = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 443, 7, 3);
        for address in [SocketAddr::from((Ipv4Addr::new(10, 1, 2, 3), 80)), SocketAddr::from(six)] {
            let bytes = SocketAddress::from(address);
            assert_eq!(bytes.ip(), Some(address));
            assert_eq!(SocketAddress::from_bytes(bytes.as_bytes()), Some(bytes));
        }
        let whole = SocketAddress::from(SocketAddr::from(six));
        // Without a scope it is still an address; with a byte less it is none.
        let short = SocketAddress::from_bytes(&whole.as_bytes()[..24]).unwrap();
        assert_eq!(short.ip(), Some(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 443, 7, 0).into()));
        assert_eq!(SocketAddress::from_bytes(&whole.as_bytes()[..23]).unwrap().ip(), None);
        let unspecified = SocketAddress::from_bytes(&[0; 16]).unwrap();
        assert_eq!((unspecified.ip(), unspecified.family()), (None, Some(0)));
    }

    #[test]
    fn unix_addresses_are_paths_names_or_nothing() {
        let socket = SocketAddress::from_unix_path("/run/x").unwrap();
        assert_eq!((socket.unix_path(), socket.abstract_name()), (Some(Path::new("/run/x")), None));
        assert!(SocketAddress::from_unix_path("x".repeat(108)).unwrap().unix_path().is_some());
        assert_eq!(SocketAddress::from_unix_path("x".repeat(109)), None);
        let named = SocketAddress::from_bytes(b"\x01\0\0bus\xff").unwrap();
        assert_eq!((named.unix_path(), named.abstract_name()), (None, Some(&b"bus\xff"[..])));
        assert_eq!(named.to_string(), "@bus\\xff");
        for (bytes, shown) in
            [(&b"\x01\0"[..], "(family 1, 2 bytes)"), (b"\x01", "(empty)"), (b"", "(empty)")]
        {
            let address = SocketAddress::from_bytes(bytes).unwrap();
            assert_eq!((address.unix_path(), address.abstract_name()), (None, None));
            assert_eq!(address.to_string(), shown);
        }
        assert_eq!(SocketAddress::from_bytes(&[0; 129]), None);
    }
}
