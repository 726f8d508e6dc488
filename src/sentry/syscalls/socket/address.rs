//! Socket addresses between the guest and the host.

use super::super::args::Path;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::{GuestMemory as _, GuestMemoryExt as _};
use crate::sentry::host::{self, ADDRESS_MAX, AddressBuffer};
use crate::sentry::task::Task;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

/// Where the path of a `struct sockaddr_un` starts.
const PATH_AT: usize = std::mem::offset_of!(libc::sockaddr_un, sun_path);

/// An address that a guest passed.
#[derive(Clone, Copy)]
pub(super) struct Address {
    bytes: [u8; ADDRESS_MAX],
    len: usize,
}

impl Address {
    /// Reads an address as the kernel's `move_addr_to_kernel` does.
    pub(super) fn read(task: &Task, addr: GuestAddr, len: i32) -> Result<Self, Errno> {
        let len = usize::try_from(len).ok().filter(|len| *len <= ADDRESS_MAX).ok_or(Errno::EINVAL)?;
        let mut bytes = [0; ADDRESS_MAX];
        task.call_memory().read(addr, &mut bytes[..len])?;
        Ok(Self { bytes, len })
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The path of a Unix address that has one: it ends with a zero or with the address.
    fn path(&self) -> Option<Path> {
        let bytes = self.as_bytes();
        let path = bytes.get(PATH_AT..)?;
        let is_unix = bytes.starts_with(&(libc::AF_UNIX as u16).to_ne_bytes());
        if !is_unix || path.first().is_none_or(|byte| *byte == 0) {
            return None;
        }
        let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
        CString::new(&path[..end]).ok().map(Path)
    }

    fn with_path(path: &[u8]) -> Result<Self, Errno> {
        let len = PATH_AT + path.len();
        // A path may fill the field without a zero at its end.
        if len > size_of::<libc::sockaddr_un>() {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; ADDRESS_MAX];
        bytes[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
        bytes[PATH_AT..len].copy_from_slice(path);
        Ok(Self { bytes, len })
    }

    /// The address of somebody else as the host is to be given it.
    pub(super) fn resolve(self, task: &Task) -> Result<Resolved, Errno> {
        let Some(path) = self.path() else { return Ok(Resolved { address: self, _socket: None }) };
        let at = task.locate(libc::AT_FDCWD, &path, true)?;
        if at.path().to_bytes().starts_with(b"/") && at.path() == path.as_c_str() {
            return Ok(Resolved { address: self, _socket: None });
        }
        // The supervisor's working directory is not the guest's, and a longer path would not fit.
        let socket = host::openat(at.dir(), at.path(), libc::O_PATH | libc::O_CLOEXEC, 0)?;
        let address = Self::with_path(format!("/proc/self/fd/{}", socket.as_raw_fd()).as_bytes())?;
        Ok(Resolved { address, _socket: Some(socket) })
    }

    /// bind(2). With a path it makes a file, below the guest's working directory and by its mask.
    pub(super) fn bind(self, task: &Task, fd: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
        let Some(path) = self.path() else { return host::bind(fd, self.as_bytes()).map(drop) };
        let at = task.locate(libc::AT_FDCWD, &path, false)?;
        let address =
            if at.path() == path.as_c_str() { self } else { Self::with_path(at.path().to_bytes())? };
        let (directory, umask) = (at.dir(), task.fs().umask);
        host::with_directory(directory, umask, || host::bind(fd, address.as_bytes()).map(drop))
    }
}

/// An address for the host, with what keeps it valid.
pub(super) struct Resolved {
    address: Address,
    _socket: Option<OwnedFd>,
}

impl Resolved {
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.address.as_bytes()
    }
}

/// An optional address to send to.
pub(super) fn read_destination(task: &Task, addr: GuestAddr, len: i32) -> Result<Option<Resolved>, Errno> {
    if addr == GuestAddr::NULL {
        return Ok(None);
    }
    Address::read(task, addr, len)?.resolve(task).map(Some)
}

/// Writes an address and its full length as the kernel's `move_addr_to_user` does: what does not fit is cut off.
pub(super) fn write_address(
    task: &Task,
    address: &AddressBuffer,
    addr: GuestAddr,
    len_addr: GuestAddr,
) -> Result<(), Errno> {
    let room: i32 = task.memory().read_object(len_addr)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let bytes = address.as_bytes();
    task.memory().write(addr, &bytes[..bytes.len().min(room)])?;
    task.memory().write_object(len_addr, &address.full_len())
}

/// getsockname(2) and getpeername(2).
pub(super) fn name(
    task: &mut Task,
    fd: i32,
    addr: GuestAddr,
    len_addr: GuestAddr,
    ask: impl FnOnce(std::os::fd::BorrowedFd<'_>, &mut AddressBuffer) -> Result<usize, Errno>,
) -> Result<i64, Errno> {
    let file = task.file(fd)?;
    file.as_socket()?;
    let mut address = AddressBuffer::new();
    ask(file.as_fd(), &mut address)?;
    write_address(task, &address, addr, len_addr).map(|()| 0)
}
