//! Who is at the other end of a Unix socket.
//!
//! The host says "the supervisor" for every process of the guest. The guest's own sockets are known by their inodes, and
//! the host's socket diagnosis (sock_diag(7)) says which of them a socket is connected to.

use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host;
use crate::sentry::host::AddressBuffer;
use crate::sentry::kernel::Kernel;
use crate::sentry::socket::{Socket, inode};
use std::os::fd::AsFd as _;
use std::sync::Arc;

/// The size of `struct ucred`.
pub(super) const UCRED: usize = 12;

/// The supervisor's process id, by which the host knows all of the guest's processes.
pub(super) fn supervisor() -> i32 {
    std::process::id() as i32
}

/// The inode of the socket that a Unix socket is connected to.
fn peer_inode(inode: u64) -> Result<Option<u64>, Errno> {
    const NETLINK_SOCK_DIAG: i32 = 4;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const UDIAG_SHOW_PEER: u32 = 4;
    const UNIX_DIAG_PEER: u16 = 2;
    const NO_COOKIE: u32 = u32::MAX;
    const LEN: u32 = 16 + 24;
    let inode = u32::try_from(inode).map_err(|_| Errno::EINVAL)?;
    let netlink = host::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, NETLINK_SOCK_DIAG)?;
    let mut request = Vec::with_capacity(LEN as usize);
    // struct nlmsghdr: length, type, flags, sequence number, port
    request.extend(LEN.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend([0; 8]);
    // struct unix_diag_req: family, protocol, padding, states, inode, what to show, cookie
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    for word in [u32::MAX, inode, UDIAG_SHOW_PEER, NO_COOKIE, NO_COOKIE] {
        request.extend(word.to_ne_bytes());
    }
    host::sendto(netlink.as_fd(), &request, 0, None)?;
    let mut answer = [0; 512];
    let len = host::recvfrom(netlink.as_fd(), &mut answer, libc::MSG_DONTWAIT, None)?;
    let answer = answer.get(..len).unwrap_or_default();
    let half = |bytes: &[u8], at: usize| bytes.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    if half(answer, 4) != Some(SOCK_DIAG_BY_FAMILY) {
        return Ok(None);
    }
    // struct unix_diag_msg has 16 bytes; attributes follow.
    let mut rest = answer.get(32..).unwrap_or_default();
    while let (Some(len), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        if let (UNIX_DIAG_PEER, Some(&[a, b, c, d])) = (kind, rest.get(4..8)) {
            return Ok(Some(u64::from(u32::from_ne_bytes([a, b, c, d]))));
        }
        rest = rest.get(usize::from(len).max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// The guest's socket at the other end of a connection; `None` if it is closed or not the guest's.
fn peer(kernel: &Kernel, file: &File, socket: &Socket) -> Option<Arc<File>> {
    if let Some(peer) = socket.peer() {
        return Some(peer);
    }
    let peer = kernel.unix_sockets.get(peer_inode(inode(file)).ok().flatten()?)?;
    if socket.kind != libc::SOCK_DGRAM {
        socket.set_peer(&peer);
    }
    Some(peer)
}

/// The listening socket that a connection was made to, while nobody has accepted it.
fn listener(kernel: &Kernel, file: &File) -> Option<Arc<File>> {
    let mut name = AddressBuffer::new();
    host::getpeername(file.as_fd(), &mut name).ok()?;
    kernel.unix_sockets.find(|other| {
        let mut own = AddressBuffer::new();
        !std::ptr::eq(other, file)
            && other.as_socket().is_ok_and(|socket| socket.owner().is_some())
            && host::getsockname(other.as_fd(), &mut own).is_ok()
            && own.as_bytes() == name.as_bytes()
    })
}

/// Replaces the process id in a `struct ucred` from the host, if it is the supervisor's.
pub(super) fn translate_pid(ucred: &mut [u8], pid: impl FnOnce() -> Option<i32>) {
    let Some(field) = ucred.first_chunk_mut::<4>() else { return };
    if i32::from_ne_bytes(*field) == supervisor()
        && let Some(pid) = pid()
    {
        *field = pid.to_ne_bytes();
    }
}

/// The process that made the connection at its other end (`SO_PEERCRED`).
pub(super) fn connected_process(kernel: &Kernel, file: &File, socket: &Socket) -> Option<i32> {
    let peer = peer(kernel, file, socket).or_else(|| listener(kernel, file))?;
    peer.as_socket().ok()?.owner()
}

/// The process that sent what has just been received (`SCM_CREDENTIALS`): the last one that used the other end.
pub(super) fn sending_process(kernel: &Kernel, file: &File, socket: &Socket) -> Option<i32> {
    let peer = peer(kernel, file, socket);
    peer.and_then(|peer| peer.as_socket().ok()?.sender()).or_else(|| kernel.unix_sockets.last_sender())
}
