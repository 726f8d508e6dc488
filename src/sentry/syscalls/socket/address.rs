//! Socket addresses between the guest and the host.

use super::super::args::Path;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::guest_memory::{GuestMemory as _, GuestMemoryExt as _};
use crate::sentry::host::{self, ADDRESS_MAX, AddressBuffer};
use crate::sentry::network::{self, Bound, Name, PrivateNames};
use crate::sentry::socket::Socket;
use crate::sentry::task::Task;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

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
    pub(super) fn resolve(self, task: &Task, socket: &Socket) -> Result<Resolved, Errno> {
        if let Some(names) = network::private(task.kernel()) {
            network::check_own(task.kernel(), socket)?;
            return self.resolve_within(task, names);
        }
        let Some(path) = self.path() else { return Ok(Resolved::new(self)) };
        let at = task.locate(libc::AT_FDCWD, &path, true)?;
        if at.path().to_bytes().starts_with(b"/") && at.path() == path.as_c_str() {
            return Ok(Resolved::new(self));
        }
        // The supervisor's working directory is not the guest's, and a longer path would not fit.
        let socket = host::openat(at.dir(), at.path(), libc::O_PATH | libc::O_CLOEXEC, 0)?;
        let address = Self::with_path(format!("/proc/self/fd/{}", socket.as_raw_fd()).as_bytes())?;
        Ok(Resolved { _socket: Some(socket), ..Resolved::new(address) })
    }

    /// The same among sockets of the guest only.
    fn resolve_within(self, task: &Task, names: &PrivateNames) -> Result<Resolved, Errno> {
        let is_unix = self.as_bytes().starts_with(&(libc::AF_UNIX as u16).to_ne_bytes());
        if !is_unix || self.len <= PATH_AT {
            // No name at all: to disconnect, or an error.
            return Ok(Resolved::new(self));
        }
        let name = match self.path() {
            None => Name::Abstract(self.as_bytes().get(PATH_AT + 1..).unwrap_or_default().to_vec()),
            Some(path) => {
                let at = task.locate(libc::AT_FDCWD, &path, true)?;
                let file = host::openat(at.dir(), at.path(), libc::O_PATH | libc::O_CLOEXEC, 0)?;
                let by_descriptor = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
                host::faccessat2(file.as_fd(), c"", libc::W_OK as u32, by_descriptor)?;
                let mut stat = [0; 144];
                host::fstat(file.as_fd(), &mut stat)?;
                let stat = StatView(&stat);
                Name::File(stat.device(), stat.inode())
            }
        };
        let bound = names.find(&name)?;
        let address = Self::with_path(bound.host_path().as_bytes())?;
        Ok(Resolved { _bound: Some(bound), ..Resolved::new(address) })
    }

    /// bind(2). With a path it makes a file, below the guest's working directory and by its mask.
    pub(super) fn bind(self, task: &Task, file: &File) -> Result<(), Errno> {
        if let Some(names) = network::private(task.kernel()) {
            network::check_own(task.kernel(), file.as_socket()?)?;
            let path = self.path();
            let at = path.as_ref().map(|path| task.locate(libc::AT_FDCWD, path, false)).transpose()?;
            let place = at.as_ref().map(|at| (at.dir(), at.path()));
            return names.bind(task, file, self.as_bytes(), place);
        }
        let fd = file.as_fd();
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
    _bound: Option<Arc<Bound>>,
}

impl Resolved {
    fn new(address: Address) -> Self {
        Self { address, _socket: None, _bound: None }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.address.as_bytes()
    }
}

/// An optional address to send to.
pub(super) fn read_destination(
    task: &Task,
    socket: &Socket,
    addr: GuestAddr,
    len: i32,
) -> Result<Option<Resolved>, Errno> {
    if addr == GuestAddr::NULL {
        return Ok(None);
    }
    Address::read(task, addr, len)?.resolve(task, socket).map(Some)
}

/// Turns an address from the host into the guest's, where sockets are bound elsewhere than the guest said.
pub(super) fn translate(task: &Task, socket: &Socket, address: &mut AddressBuffer) {
    if let Some(names) = network::private(task.kernel())
        && socket.is_guests()
    {
        names.show(address);
    }
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
    let socket = file.as_socket()?;
    let mut address = AddressBuffer::new();
    ask(file.as_fd(), &mut address)?;
    translate(task, socket, &mut address);
    write_address(task, &address, addr, len_addr).map(|()| 0)
}
