//! Control messages (cmsg(3)): descriptors and process ids in them are the guest's on one side, the host's on the other.

use super::peer::{self, UCRED};
use crate::GuestAddr;
use crate::sentry::credentials::{Ids, cap};
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, FileType};
use crate::sentry::host::{CONTROL_HEADER, Received, control_messages};
use crate::sentry::network;
use crate::sentry::socket::Socket;
use crate::sentry::task::Task;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

/// More control data than this is refused with `ENOBUFS` or, on the way in, not asked for. The host's own limit
/// (`net.core.optmem_max`) is usually 128 KiB.
pub(super) const MOST: usize = 128 << 10;

/// Control messages for the host.
#[derive(Default)]
pub(super) struct Outbound {
    pub(super) bytes: Vec<u8>,
    /// User and group in the last `SCM_CREDENTIALS`.
    pub(super) named: Option<(u32, u32)>,
    /// Open for as long as the host has not got them.
    _files: Vec<Arc<File>>,
}

fn push(to: &mut Vec<u8>, level: i32, kind: i32, data: &[u8]) {
    to.resize(to.len().next_multiple_of(8), 0);
    to.extend(((CONTROL_HEADER + data.len()) as u64).to_ne_bytes());
    to.extend(level.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(data);
}

impl Outbound {
    /// Reads what a guest sends along.
    pub(super) fn read(task: &Task, socket: &Socket, addr: GuestAddr, len: u64) -> Result<Self, Errno> {
        let len = usize::try_from(len).ok().filter(|len| *len <= MOST).ok_or(Errno::ENOBUFS)?;
        if addr == GuestAddr::NULL || len == 0 {
            return Ok(Self::default());
        }
        let mut guest = vec![0; len];
        task.memory().read(addr, &mut guest)?;
        let mut bytes = Vec::with_capacity(len);
        let (mut files, mut named) = (Vec::new(), None);
        for message in control_messages(&guest) {
            match message? {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS, numbers) => {
                    network::check_own(task.kernel(), socket)?;
                    let mut translated = Vec::with_capacity(numbers.len());
                    for number in numbers.chunks_exact(4) {
                        let file =
                            task.file(i32::from_ne_bytes([number[0], number[1], number[2], number[3]]))?;
                        if file.file_type() == FileType::Socket {
                            // Whoever receives it could not tell whose it is.
                            network::check_own(task.kernel(), file.as_socket()?)?;
                        }
                        task.kernel().passed_files.sent(&file);
                        translated.extend(file.as_fd().as_raw_fd().to_ne_bytes());
                        files.push(file);
                    }
                    push(&mut bytes, libc::SOL_SOCKET, libc::SCM_RIGHTS, &translated);
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS, ucred) => {
                    let (ucred, ids) = credentials(task, ucred)?;
                    named = Some(ids);
                    push(&mut bytes, libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &ucred);
                }
                (level, kind, data) => push(&mut bytes, level, kind, data),
            }
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        Ok(Self { bytes, named, _files: files })
    }
}

/// What a guest says of itself, as far as it may (`scm_check_creds`); with user and group, as which the host has to see
/// the sender.
fn credentials(task: &Task, ucred: &[u8]) -> Result<([u8; UCRED], (u32, u32)), Errno> {
    let mut ucred: [u8; UCRED] = ucred.try_into().map_err(|_| Errno::EINVAL)?;
    let [pid, uid, gid]: [u32; 3] = zerocopy::transmute!(ucred);
    let pid = pid as i32;
    let own = task.credentials();
    if pid != task.process.pid {
        if !own.has(cap::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        task.kernel().tree().node(pid).ok_or(Errno::ESRCH)?;
    }
    let may = |ids: Ids, id: u32, capability| {
        [ids.real, ids.effective, ids.saved].contains(&id) || own.has(capability)
    };
    if !may(own.user, uid, cap::SETUID) || !may(own.group, gid, cap::SETGID) {
        return Err(Errno::EPERM);
    }
    ucred[..4].copy_from_slice(&peer::supervisor().to_ne_bytes());
    Ok((ucred, (uid, gid)))
}

/// What a guest receives.
pub(super) struct Inbound {
    pub(super) bytes: Vec<u8>,
    /// `MSG_CTRUNC`, or nothing.
    pub(super) flags: i32,
}

/// Translates what came from the host and gives the descriptors numbers of the guest.
pub(super) fn inbound(
    task: &Task,
    file: &File,
    socket: &Socket,
    received: &mut Received,
    control: &[u8],
    cloexec: bool,
) -> Inbound {
    let control = control.get(..received.control_len).unwrap_or_default();
    let (mut bytes, mut flags) = (Vec::with_capacity(control.len()), 0);
    let mut descriptors = std::mem::take(&mut received.descriptors).into_iter();
    for (level, kind, data) in control_messages(control).flatten() {
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                let mut numbers = Vec::with_capacity(data.len());
                for host in descriptors.by_ref().take(data.len() / 4) {
                    if network::is_foreign(task.kernel(), socket) {
                        flags |= libc::MSG_CTRUNC;
                        continue;
                    }
                    let file = task.kernel().passed_files.received(host);
                    if task.mounts().is_some_and(|mounts| file.is_directory_outside(mounts)) {
                        // A directory would be a way out. As where a security module says no: it is closed.
                        flags |= libc::MSG_CTRUNC;
                        continue;
                    }
                    if network::private(task.kernel()).is_some()
                        && file.file_type() == FileType::Socket
                        && let Ok(socket) = file.as_socket()
                    {
                        // Both ends are the guest's, and only its own sockets are passed.
                        socket.set_guests();
                    }
                    let installed = task.files().insert(Arc::clone(&file), cloexec);
                    match installed {
                        Ok(number) => numbers.extend(number.to_ne_bytes()),
                        // The rest is closed, as the kernel does when the table is full.
                        Err(_) => flags |= libc::MSG_CTRUNC,
                    }
                }
                if !numbers.is_empty() {
                    push(&mut bytes, level, kind, &numbers);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                let mut data = data.to_vec();
                peer::translate_pid(&mut data, || peer::sending_process(task.kernel(), file, socket));
                push(&mut bytes, level, kind, &data);
            }
            _ => push(&mut bytes, level, kind, data),
        }
    }
    // The kernel counts the padding of the last message as far as there is room for it.
    bytes.resize(bytes.len().next_multiple_of(8).min(received.control_len.max(bytes.len())), 0);
    Inbound { bytes, flags }
}
