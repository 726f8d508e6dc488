//! Bytes through sockets.
//!
//! Each transfer is first tried without waiting, in one host call. Only one that would wait, on a socket that is not
//! `O_NONBLOCK`, is made again in a way that signals for the guest interrupt.

use super::super::SysResult;
use super::super::args::{Fd, InAddress, InBytes, MessageFlags, OutAddress, OutBytes, OutLength};
use super::super::transfer::{CHUNK, Segments, take_buffer};
use super::address::{resolve_destination, translate, write_address};
use super::after_signal;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host::{self, AddressBuffer, MayWait, Received};
use crate::sentry::network;
use crate::sentry::signals::SigInfo;
use crate::sentry::socket::Socket;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock};

/// Makes a transfer; `call` is given what to add to the flags. `in_one_go`: what is there at once may be less than what a
/// wait brings.
fn exchange<T>(
    task: &mut Task,
    file: &File,
    flags: i32,
    in_one_go: bool,
    timeout: i32,
    mut call: impl FnMut(MayWait<'_>, i32) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let impatient = flags & libc::MSG_DONTWAIT != 0;
    if impatient || !in_one_go {
        match call(None, flags | libc::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) if !impatient => {}
            other => return other,
        }
    }
    if file.is_nonblocking() {
        return if in_one_go { call(None, flags | libc::MSG_DONTWAIT) } else { Err(Errno::EAGAIN) };
    }
    task.wait(|_, attention| call(Some(attention), flags)).map_err(|errno| after_signal(errno, file, timeout))
}

/// The largest message that a socket of this host carries, about: they are sent and received in one piece.
fn message_limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        const SANE: usize = 64 << 20;
        let most = std::fs::read_to_string("/proc/sys/net/core/wmem_max");
        let most: usize = most.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(CHUNK);
        // SO_SNDBUF is twice what was asked for.
        most.saturating_mul(2).clamp(CHUNK, SANE)
    })
}

/// Takes note of who uses a Unix socket, for the other end to be told.
pub(super) fn note_sender(task: &Task, socket: &Socket) {
    if socket.is_unix() {
        socket.set_sender(task.process.pid);
        task.kernel().unix_sockets.set_last_sender(task.process.pid);
    }
}

/// What is sent beside the data.
#[derive(Clone, Copy, Default)]
pub(super) struct Along<'a> {
    pub(super) name: Option<&'a [u8]>,
    pub(super) control: &'a [u8],
    /// The ids that the sender has named itself, beside those of the task.
    pub(super) named: Option<(u32, u32)>,
}

/// Sends what the segments hold; messages whole, streams as far as they go.
pub(super) fn send(
    task: &mut Task,
    file: &File,
    mut segments: Segments,
    along: Along<'_>,
    flags: i32,
) -> SysResult {
    let socket = file.as_socket()?;
    let total = segments.left();
    if !socket.is_stream() && total > message_limit() {
        return Err(Errno::EMSGSIZE);
    }
    note_sender(task, socket);
    let kernel = Arc::clone(task.kernel());
    let _under_way = match along.name {
        Some(_) => network::before_naming_another(&kernel, task, file)?,
        None => None,
    };
    let piece = if socket.is_stream() { CHUNK } else { total };
    let mut buffer = take_buffer(task, total.min(piece));
    let shown = match along.named {
        Some((user, group)) => task.shown_with(user, group),
        None => task.shown_through(socket),
    };
    let shown = shown.as_ref();
    let mut along = along;
    let mut sent = 0;
    let result = loop {
        let wanted = segments.left().min(piece);
        let copied = segments.copy_in(&task.call_memory(), &mut buffer[..wanted]);
        if copied < wanted && (copied == 0 || !socket.is_stream()) {
            break if sent > 0 { Ok(sent) } else { Err(Errno::EFAULT) };
        }
        match send_piece(task, file, &buffer[..copied], &mut along, shown, flags) {
            Ok(len) => sent += len,
            Err((_, len)) if sent + len > 0 => break Ok(sent + len),
            Err((errno, _)) => break Err(errno),
        }
        if copied < wanted || segments.left() == 0 {
            break Ok(sent);
        }
    };
    task.was_shown(shown);
    task.buffer = buffer;
    if result == Err(Errno::EPIPE) && socket.is_stream() && flags & libc::MSG_NOSIGNAL == 0 {
        let info =
            SigInfo::from_user(libc::SIGPIPE, libc::SI_USER, task.process.pid, task.credentials().user.real);
        let _ = task.signal_self(info);
    }
    result.map(|sent| sent as i64)
}

/// Sends all of a piece; what goes along goes with its first byte. The error says how far it got.
fn send_piece(
    task: &mut Task,
    file: &File,
    piece: &[u8],
    along: &mut Along<'_>,
    shown: Option<&host::Shown>,
    flags: i32,
) -> Result<usize, (Errno, usize)> {
    let flags = flags | libc::MSG_NOSIGNAL;
    let in_one_go = flags & libc::MSG_FASTOPEN != 0;
    let mut sent = 0;
    loop {
        let rest = piece.get(sent..).unwrap_or_default();
        let result = exchange(task, file, flags, in_one_go, libc::SO_SNDTIMEO, |may_wait, flags| {
            host::shown_as(shown, || match may_wait {
                _ if !along.control.is_empty() => {
                    host::sendmsg(may_wait, file.as_fd(), along.name, rest, along.control, flags)
                }
                None => host::sendto(file.as_fd(), rest, flags, along.name),
                Some(attention) => host::wait_sendto(attention, file.as_fd(), rest, flags, along.name),
            })
        });
        match result {
            Ok(len) => {
                sent += len;
                along.control = &[];
                if len == 0 || sent >= piece.len() {
                    return Ok(sent);
                }
            }
            Err(errno) => return Err((errno, sent)),
        }
    }
}

/// What a receiving call wants beside the data.
pub(super) struct Extras<'a> {
    pub(super) name: Option<&'a mut AddressBuffer>,
    pub(super) control: &'a mut [u8],
    /// Whether `msg_flags` are wanted.
    pub(super) message: bool,
}

/// Receives into the segments; the length in what is returned is the call's result.
pub(super) fn receive(
    task: &mut Task,
    file: &File,
    mut segments: Segments,
    mut extras: Extras<'_>,
    flags: i32,
) -> Result<Received, Errno> {
    let socket = file.as_socket()?;
    let piece = if socket.is_stream() { CHUNK } else { message_limit() };
    let all = flags & libc::MSG_WAITALL != 0 && socket.is_stream();
    let in_one_go = all || socket.is_stream() && socket.waits_for_more();
    let mut buffer = take_buffer(task, segments.left().min(piece));
    let mut total = 0;
    let result = loop {
        let part = &mut buffer[..segments.left().min(piece)];
        let wanted = part.len();
        let result = exchange(task, file, flags, in_one_go, libc::SO_RCVTIMEO, |may_wait, flags| {
            receive_piece(may_wait, file, part, &mut extras, flags)
        });
        let mut received = match result {
            Ok(received) => received,
            Err(_) if total > 0 => break Ok(plain(total)),
            Err(errno) => break Err(errno),
        };
        // TCP throws away what is received with MSG_TRUNC; nothing has come into the buffer.
        let discards = flags & libc::MSG_TRUNC != 0 && socket.is_stream() && !socket.is_unix();
        let arrived = if discards { 0 } else { received.len.min(wanted) };
        // What is short travels with the call's result.
        let given = segments.small(arrived).filter(|_| total == 0 && !all && arrived > 0 && !extras.message);
        let copied = match given {
            Some(addr) => task.give(addr, &buffer[..arrived]).map(|()| arrived).unwrap_or(0),
            None => segments.copy_out(task.memory(), &buffer[..arrived]),
        };
        if copied < arrived {
            if total + copied == 0 || !socket.is_stream() {
                break Err(Errno::EFAULT);
            }
            received.len = copied;
        }
        total += received.len;
        // A wait for all of more than one piece: what came along with a piece ends it.
        let more = all
            && received.len == wanted
            && copied == arrived
            && segments.left() > 0
            && flags & libc::MSG_PEEK == 0
            && received.control_len == 0;
        if !more {
            received.len = total;
            break Ok(received);
        }
    };
    task.buffer = buffer;
    result
}

fn plain(len: usize) -> Received {
    Received { len, control_len: 0, flags: 0, descriptors: Vec::new() }
}

fn receive_piece(
    may_wait: MayWait<'_>,
    file: &File,
    part: &mut [u8],
    extras: &mut Extras<'_>,
    flags: i32,
) -> Result<Received, Errno> {
    let name = extras.name.as_deref_mut();
    if extras.message {
        return host::recvmsg(may_wait, file.as_fd(), name, part, extras.control, flags);
    }
    match may_wait {
        None => host::recvfrom(file.as_fd(), part, flags, name),
        Some(attention) => host::wait_recvfrom(attention, file.as_fd(), part, flags, name),
    }
    .map(plain)
}

/// read(2) and its kin on a socket.
pub(in super::super) fn read(task: &mut Task, file: &File, segments: Segments) -> SysResult {
    if segments.left() == 0 {
        return Ok(0);
    }
    let extras = Extras { name: None, control: &mut [], message: false };
    receive(task, file, segments, extras, 0).map(|received| received.len as i64)
}

/// write(2) and its kin on a socket.
pub(in super::super) fn write(task: &mut Task, file: &File, segments: Segments) -> SysResult {
    send(task, file, segments, Along::default(), 0)
}

pub(in super::super) fn sendto(
    task: &mut Task,
    fd: Fd,
    buf: InBytes,
    len: usize,
    MessageFlags(flags): MessageFlags,
    addr: InAddress,
    _: i32,
) -> SysResult {
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    let destination = resolve_destination(task, socket, addr.read_optional(&task.call_memory())?)?;
    let along = Along { name: destination.as_ref().map(|address| address.as_bytes()), ..Along::default() };
    send(task, &file, Segments::single(buf.0, len), along, flags)
}

pub(in super::super) fn recvfrom(
    task: &mut Task,
    fd: Fd,
    buf: OutBytes,
    len: usize,
    MessageFlags(flags): MessageFlags,
    OutAddress(addr): OutAddress,
    OutLength(addr_len): OutLength,
) -> SysResult {
    let file = task.file(fd.0)?;
    let socket = file.as_socket()?;
    let mut name = AddressBuffer::new();
    let wants_name = addr != GuestAddr::NULL;
    let extras = Extras { name: wants_name.then_some(&mut name), control: &mut [], message: false };
    let received = receive(task, &file, Segments::single(buf.0, len), extras, flags)?;
    if wants_name {
        translate(task, socket, &mut name);
        write_address(task, &name, addr, addr_len)?;
    }
    Ok(received.len as i64)
}
