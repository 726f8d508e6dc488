//! Sockets: the host's own, under the guest's descriptors.

mod address;
mod control;
mod message;
mod options;
mod peer;
mod transfer;

pub(super) use message::{recvmmsg, recvmsg, sendmmsg, sendmsg};
pub(super) use options::{getsockopt, setsockopt};
pub(super) use transfer::{read, recvfrom, sendto, write};

use super::SysResult;
use super::args::{
    Domain, Fd, InAddress, OutAddress, OutFdPair, OutLength, ShutdownHow, SocketFlags, SocketKind,
};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host::{self, AddressBuffer, Attention, OptionBuffer};
use crate::sentry::network;
use crate::sentry::socket::Socket;
use crate::sentry::task::Task;
use address::{Address, translate, write_address};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

const FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Families whose sockets carry bytes and plain structures. Others (RDS, XDP, KCM, …) name memory or descriptors of the
/// process in ways that the sentry would have to translate.
fn is_offered(domain: i32) -> bool {
    const OFFERED: [i32; 6] =
        [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK];
    OFFERED.contains(&domain)
}

/// A new socket as a file of the guest.
fn make_file(task: &Task, host: OwnedFd, domain: i32, kind: i32) -> Arc<File> {
    let file = Arc::new(File::socket(host, Socket::new(domain, kind)));
    if domain == libc::AF_UNIX {
        task.kernel().unix_sockets.add(&file);
    }
    file
}

pub(super) fn socket(
    task: &mut Task,
    Domain(domain): Domain,
    SocketKind(kind): SocketKind,
    protocol: i32,
) -> SysResult {
    if !is_offered(domain) {
        return Err(Errno::EAFNOSUPPORT);
    }
    network::check_family(task.kernel(), domain)?;
    let host = host::socket(domain, kind | libc::SOCK_CLOEXEC, protocol)?;
    let file = make_file(task, host, domain, kind);
    task.files().insert(file, kind & libc::SOCK_CLOEXEC != 0).map(i64::from)
}

pub(super) fn socketpair(
    task: &mut Task,
    Domain(domain): Domain,
    SocketKind(kind): SocketKind,
    protocol: i32,
    fds: OutFdPair,
) -> SysResult {
    if !is_offered(domain) {
        return Err(Errno::EAFNOSUPPORT);
    }
    network::check_family(task.kernel(), domain)?;
    let shown = task.shown_through(&Socket::new(domain, kind));
    let pair =
        host::shown_as(shown.as_ref(), || host::socketpair(domain, kind | libc::SOCK_CLOEXEC, protocol));
    task.was_shown(shown.as_ref());
    let (first, second) = pair?;
    // They know each other: nobody has to find them by their inodes.
    let make = |host| Arc::new(File::socket(host, Socket::new(domain, kind)));
    let (first, second) = (make(first), make(second));
    for (file, peer) in [(&first, &second), (&second, &first)] {
        let socket = file.as_socket()?;
        socket.set_owner(task.process.pid);
        socket.set_peer(peer);
    }
    let cloexec = kind & libc::SOCK_CLOEXEC != 0;
    let numbers = {
        let mut table = task.files();
        let first = table.insert(first, cloexec)?;
        match table.insert(second, cloexec) {
            Ok(second) => [first, second],
            Err(errno) => {
                let file = table.remove(first);
                drop(table);
                drop(file);
                return Err(errno);
            }
        }
    };
    let written = task.memory().write_object(fds.0, &numbers);
    if written.is_err() {
        for number in numbers {
            let file = task.files().remove(number);
            drop(file);
        }
    }
    written.map(|()| 0)
}

pub(super) fn bind(task: &mut Task, fd: Fd, addr: InAddress, _: i32) -> SysResult {
    let file = task.file(fd.0)?;
    file.as_socket()?;
    Address::read(task, &addr)?.bind(task, &file).map(|()| 0)
}

pub(super) fn listen(task: &mut Task, fd: Fd, backlog: i32) -> SysResult {
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    network::check_own(task.kernel(), socket)?;
    let shown = task.shown_through(socket);
    let listens = host::shown_as(shown.as_ref(), || host::listen(file.as_fd(), backlog));
    task.was_shown(shown.as_ref());
    listens?;
    socket.set_owner(task.process.pid);
    Ok(0)
}

/// Whether a time-out is set: a call that it limits is not started again after a signal (`sock_intr_errno`).
fn has_timeout(file: &File, option: i32) -> bool {
    let mut value = OptionBuffer::new(size_of::<libc::timeval>());
    host::getsockopt(file.as_fd(), libc::SOL_SOCKET, option, &mut value).is_ok()
        && value.as_bytes().iter().any(|byte| *byte != 0)
}

/// What a call on a socket ends with when a signal interrupts it.
fn after_signal(errno: Errno, file: &File, option: i32) -> Errno {
    if errno == Errno::ERESTARTSYS && has_timeout(file, option) { Errno::EINTR } else { errno }
}

pub(super) fn connect(task: &mut Task, fd: Fd, addr: InAddress, _: i32) -> SysResult {
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    let address = Address::read(task, &addr)?.resolve(task, socket)?;
    let kernel = Arc::clone(task.kernel());
    let _under_way = network::before_naming_another(&kernel, task, &file)?;
    if socket.is_unix() && socket.owner().is_none() {
        // Before the other end can ask.
        socket.set_owner(task.process.pid);
    }
    let shown = task.shown_through(socket);
    let connect = |attention: &Attention| {
        host::shown_as(shown.as_ref(), || host::wait_connect(attention, file.as_fd(), address.as_bytes()))
    };
    let connected = if file.is_nonblocking() {
        connect(&Attention::default())
    } else {
        task.wait(|_, attention| connect(attention))
    };
    task.was_shown(shown.as_ref());
    connected.map(|_| 0).map_err(|errno| after_signal(errno, &file, libc::SO_SNDTIMEO))
}

pub(super) fn accept(task: &mut Task, fd: Fd, addr: OutAddress, len: OutLength) -> SysResult {
    accept4(task, fd, addr, len, SocketFlags(0))
}

pub(super) fn accept4(
    task: &mut Task,
    fd: Fd,
    OutAddress(addr): OutAddress,
    OutLength(len_addr): OutLength,
    SocketFlags(flags): SocketFlags,
) -> SysResult {
    if flags & !FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    network::check_own(task.kernel(), socket)?;
    if !task.files().has_room() {
        // As the kernel: the connection stays in the queue.
        return Err(Errno::EMFILE);
    }
    let wants_address = addr != GuestAddr::NULL;
    let mut peer = AddressBuffer::new();
    let mut call = |attention: &Attention| {
        let address = wants_address.then_some(&mut peer);
        host::wait_accept4(attention, file.as_fd(), address, flags | libc::SOCK_CLOEXEC)
    };
    let host = if file.is_nonblocking() {
        call(&Attention::default())
    } else if is_readable(&file) {
        // Somebody else may take the connection first, so that this waits all the same.
        task.interruptible(|_, attention| call(attention))
    } else {
        task.wait(|_, attention| call(attention))
    };
    let host = host.map_err(|errno| after_signal(errno, &file, libc::SO_RCVTIMEO))?;
    let accepted = make_file(task, host, socket.domain, socket.kind);
    let accepted_socket = accepted.as_socket()?;
    accepted_socket.set_waits_for_more(socket.waits_for_more());
    if let Some(pid) = socket.owner() {
        accepted_socket.set_owner(pid);
    }
    if wants_address {
        translate(task, socket, &mut peer);
        write_address(task, &peer, addr, len_addr)?;
    }
    task.files().insert(accepted, flags & libc::SOCK_CLOEXEC != 0).map(i64::from)
}

fn is_readable(file: &File) -> bool {
    let mut poll = [libc::pollfd { fd: file.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    matches!(host::poll_now(&mut poll[..], 0), Ok(ready) if ready > 0)
}

pub(super) fn getsockname(task: &mut Task, fd: Fd, addr: OutAddress, len: OutLength) -> SysResult {
    address::name(task, fd.0, addr.0, len.0, host::getsockname)
}

pub(super) fn getpeername(task: &mut Task, fd: Fd, addr: OutAddress, len: OutLength) -> SysResult {
    address::name(task, fd.0, addr.0, len.0, host::getpeername)
}

pub(super) fn shutdown(task: &mut Task, fd: Fd, ShutdownHow(how): ShutdownHow) -> SysResult {
    let file = task.file(fd.0)?;
    file.as_socket()?;
    host::shutdown(file.as_fd(), how).map(|_| 0)
}
