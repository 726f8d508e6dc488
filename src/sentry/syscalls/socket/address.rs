//! Socket addresses between the guest and the host.

use super::super::args::{InAddress, Path};
use super::super::locate::Located;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::filesystem::{MountTable, Territory};
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host::{self, AddressBuffer};
use crate::sentry::network::{self, Bound, Name, PrivateNames};
use crate::sentry::socket::Socket;
use crate::sentry::socket_address::{PATH_AT, SocketAddress};
use crate::sentry::task::Task;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

/// An address that a guest passed.
#[derive(Clone, Copy)]
pub(super) struct Address(SocketAddress);

impl Address {
    pub(super) fn read(task: &Task, given: &InAddress) -> Result<Self, Errno> {
        given.read(&task.call_memory()).map(Self)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn path(&self) -> Option<Path> {
        let path = self.0.unix_path()?.as_os_str().as_bytes();
        CString::new(path).ok().map(Path)
    }

    fn with_path(path: &[u8]) -> Result<Self, Errno> {
        SocketAddress::from_unix_path(OsStr::from_bytes(path)).map(Self).ok_or(Errno::EINVAL)
    }

    /// The address of somebody else as the host is to be given it.
    pub(super) fn resolve(self, task: &Task, socket: &Socket) -> Result<Resolved, Errno> {
        if let Some(names) = network::private(task.kernel()) {
            network::check_own(task.kernel(), socket)?;
            return self.resolve_within(task, names);
        }
        let Some(path) = self.path() else { return Ok(Resolved::new(self)) };
        let at = task.locate(libc::AT_FDCWD, &path, true)?;
        if at.territory() == Territory::Outside {
            return Err(Errno::EACCES);
        }
        let as_given = at.path().to_bytes().starts_with(b"/") && at.path() == path.as_c_str();
        if as_given && task.mounts().is_none() {
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
        if !is_unix || self.as_bytes().len() <= PATH_AT {
            // No name at all: to disconnect, or an error.
            return Ok(Resolved::new(self));
        }
        let name = match self.path() {
            None => Name::Abstract(self.as_bytes().get(PATH_AT + 1..).unwrap_or_default().to_vec()),
            Some(path) => {
                let at = task.locate(libc::AT_FDCWD, &path, true)?;
                if at.territory() == Territory::Outside {
                    return Err(Errno::EACCES);
                }
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
            let at = path.as_ref().map(|path| place_for(task, path)).transpose()?;
            let place = at.as_ref().map(|at| (at.dir(), at.path()));
            return names.bind(task, file, self.as_bytes(), place);
        }
        let fd = file.as_fd();
        let Some(path) = self.path() else { return host::bind(fd, self.as_bytes()).map(drop) };
        let at = place_for(task, &path)?;
        let address = match task.mounts() {
            Some(mounts) => Self::with_path(&mounts.sockets.bind(at.path().to_bytes(), path.0.as_bytes()))?,
            None if at.path() == path.as_c_str() => self,
            None => Self::with_path(at.path().to_bytes())?,
        };
        let (directory, umask) = (at.dir(), task.fs().umask);
        host::with_directory(directory, umask, || host::bind(fd, address.as_bytes()).map(drop))
    }
}

/// Where bind(2) makes the file of this name.
fn place_for<'a>(task: &Task, path: &'a Path) -> Result<Located<'a>, Errno> {
    let at = task.locate_name(libc::AT_FDCWD, path)?;
    // An address that is taken, the kernel says of whatever exists.
    at.check_new(task).map_err(|errno| if errno == Errno::EEXIST { Errno::EADDRINUSE } else { errno })?;
    Ok(at)
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
pub(super) fn resolve_destination(
    task: &Task,
    socket: &Socket,
    address: Option<SocketAddress>,
) -> Result<Option<Resolved>, Errno> {
    address.map(|address| Address(address).resolve(task, socket)).transpose()
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
    task: &mut Task,
    address: &AddressBuffer,
    addr: GuestAddr,
    len_addr: GuestAddr,
) -> Result<(), Errno> {
    let room: i32 = task.memory().read_object(len_addr)?;
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let shown = task.mounts().and_then(|mounts| shown_path(mounts, address.as_bytes()));
    let (bytes, full_len) = match &shown {
        Some(shown) => (&shown[..], shown.len() as u32),
        None => (address.as_bytes(), address.full_len()),
    };
    if task.observer.hooks.is_watching() {
        task.observer.returned_address = SocketAddress::from_bytes(bytes);
    }
    task.memory().write(addr, &bytes[..bytes.len().min(room)])?;
    task.memory().write_object(len_addr, &full_len)
}

/// The address of a Unix socket that was bound in the guest's own file system, as it was bound.
fn shown_path(mounts: &MountTable, address: &[u8]) -> Option<Vec<u8>> {
    let (family, text) = address.split_at_checked(PATH_AT)?;
    if family != (libc::AF_UNIX as u16).to_ne_bytes() {
        return None;
    }
    let text = text.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
    let path = mounts.sockets.path(text)?;
    Some([family, &path, b"\0"].concat())
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
