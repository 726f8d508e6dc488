//! The names of Unix sockets in a guest without network.
//!
//! The host socket of a guest that binds a name is bound in a directory of the supervisor's that exists for a moment:
//! before the call returns the file is opened (`O_PATH`), unlinked, and its directory removed. From then on nobody can
//! find it but through that descriptor, the *anchor*, which the table keeps under the name that the guest chose. A name
//! in the file system gets a socket file of its own there, as bind(2) makes one, to which the host has bound nothing.

use super::PassCredentials;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, StatView};
use crate::sentry::host::{self, AddressBuffer};
use crate::sentry::process::lock;
use crate::sentry::task::Task;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Arc, Mutex};

/// A name as guests know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// What follows the zero byte, zeroes included.
    Abstract(Vec<u8>),
    /// The socket file's device and inode.
    File(u64, u64),
}

/// A bound host socket.
#[derive(Debug)]
pub(crate) struct Bound {
    anchor: OwnedFd,
    /// The address as getsockname(2) and its like show it.
    shown: Vec<u8>,
}

impl Bound {
    /// The path by which the host finds it.
    pub(crate) fn host_path(&self) -> String {
        format!("/proc/self/fd/{}", self.anchor.as_raw_fd())
    }

    /// Whether the host socket is still there.
    fn is_alive(&self) -> bool {
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let Ok(probe) = host::socket(libc::AF_UNIX, flags, 0) else { return true };
        let address = unix_address(self.host_path().as_bytes());
        // Nothing is sent; a socket of another type says so.
        host::connect_now(probe.as_fd(), &address) != Err(Errno::ECONNREFUSED)
    }
}

/// Sockets by name. The lock is a leaf.
#[derive(Debug, Default)]
pub(crate) struct PrivateNames {
    table: Mutex<Table>,
    /// Held by a call that binds, so that no two take the same name.
    binding: Mutex<()>,
    pub(crate) pass_credentials: PassCredentials,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Name, Arc<Bound>>,
    /// By the last part of the host's path.
    by_token: HashMap<u64, Arc<Bound>>,
    last_token: u64,
    /// Names whose socket is gone are cleared out when there are this many.
    clear_at: usize,
}

/// A `struct sockaddr_un` of a path.
pub(crate) fn unix_address(path: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path, b"\0"].concat()
}

/// The address of a socket without a name.
const UNNAMED: [u8; 2] = (libc::AF_UNIX as u16).to_ne_bytes();
/// The longest `struct sockaddr_un`.
const LONGEST: usize = size_of::<libc::sockaddr_un>();

fn is_bound(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut name = AddressBuffer::new();
    host::getsockname(socket, &mut name)?;
    Ok(name.as_bytes().len() > UNNAMED.len())
}

fn token_name(token: u64) -> String {
    format!("socket-{token:016x}")
}

fn token_of(address: &[u8]) -> Option<u64> {
    let path = address.get(UNNAMED.len()..)?;
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    let last = path.rsplit(|byte| *byte == b'/').next()?;
    let digits = std::str::from_utf8(last.strip_prefix(b"socket-")?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

impl PrivateNames {
    /// The socket bound to a name; `ECONNREFUSED` if there is none, as for a file that nobody has bound.
    pub(crate) fn find(&self, name: &Name) -> Result<Arc<Bound>, Errno> {
        lock(&self.table).by_name.get(name).cloned().ok_or(Errno::ECONNREFUSED)
    }

    /// Turns the host's address of one of the guest's sockets into the guest's.
    pub(crate) fn show(&self, address: &mut AddressBuffer) {
        let Some(token) = token_of(address.as_bytes()) else {
            // Nothing else has a name that could be shown.
            if address.as_bytes().len() > UNNAMED.len() {
                address.set(&UNNAMED);
            }
            return;
        };
        let bound = lock(&self.table).by_token.get(&token).cloned();
        address.set(bound.as_ref().map_or(&UNNAMED, |bound| &bound.shown));
    }

    /// bind(2) on a socket of the guest's own.
    ///
    /// `place` is where a name in the file system is to be.
    pub(crate) fn bind(
        &self,
        task: &Task,
        file: &File,
        address: &[u8],
        place: Option<(BorrowedFd<'_>, &CStr)>,
    ) -> Result<(), Errno> {
        if address.len() > LONGEST || !address.starts_with(&UNNAMED) {
            return Err(Errno::EINVAL);
        }
        let _binding = lock(&self.binding);
        let bound = is_bound(file.as_fd())?;
        if address.len() == UNNAMED.len() {
            // As the kernel: what has a name keeps it.
            return if bound { Ok(()) } else { self.choose_name(task, file) };
        }
        if bound {
            return Err(Errno::EINVAL);
        }
        match place {
            Some(place) => self.bind_file(task, file, place, address),
            None => {
                let name = Name::Abstract(address[UNNAMED.len() + 1..].to_vec());
                if self.is_taken(&name) {
                    return Err(Errno::EADDRINUSE);
                }
                self.bind_to(task, file, name, address.to_vec())
            }
        }
    }

    /// Gives a socket without a name one that is free (`unix_autobind`).
    pub(crate) fn bind_to_any(&self, task: &Task, file: &File) -> Result<(), Errno> {
        let _binding = lock(&self.binding);
        if is_bound(file.as_fd())? { Ok(()) } else { self.choose_name(task, file) }
    }

    fn choose_name(&self, task: &Task, file: &File) -> Result<(), Errno> {
        const NAMES: u32 = 1 << 20;
        let mut seed = [0; 4];
        host::getrandom(&mut seed[..], libc::GRND_NONBLOCK)?;
        let first = u32::from_ne_bytes(seed);
        for number in (0..NAMES).map(|offset| first.wrapping_add(offset) % NAMES) {
            let text = format!("{number:05x}").into_bytes();
            let address = [&UNNAMED[..], b"\0", &text].concat();
            let name = Name::Abstract(text);
            if !self.is_taken(&name) {
                return self.bind_to(task, file, name, address);
            }
        }
        Err(Errno::ENOSPC)
    }

    fn is_taken(&self, name: &Name) -> bool {
        self.find(name).is_ok_and(|bound| bound.is_alive())
    }

    /// Makes the file that the name is, and binds the socket elsewhere.
    fn bind_file(
        &self,
        task: &Task,
        file: &File,
        (directory, path): (BorrowedFd<'_>, &CStr),
        address: &[u8],
    ) -> Result<(), Errno> {
        let mode = libc::S_IFSOCK | 0o777 & !task.fs().umask;
        host::mknodat(directory, path, mode, 0).map_err(|errno| match errno {
            Errno::EEXIST => Errno::EADDRINUSE,
            other => other,
        })?;
        let mut stat = [0; 144];
        let done = host::newfstatat(directory, path, &mut stat, libc::AT_SYMLINK_NOFOLLOW).and_then(|_| {
            let stat = StatView(&stat);
            let name = Name::File(stat.device(), stat.inode());
            let given = address.get(UNNAMED.len()..).unwrap_or_default();
            let end = given.iter().position(|byte| *byte == 0).unwrap_or(given.len());
            self.bind_to(task, file, name, unix_address(&given[..end]))
        });
        if done.is_err() {
            let _ = host::unlinkat(directory, path, 0);
        }
        done
    }

    fn bind_to(&self, task: &Task, file: &File, name: Name, shown: Vec<u8>) -> Result<(), Errno> {
        let token = {
            let mut table = lock(&self.table);
            table.last_token += 1;
            table.last_token
        };
        let anchor = task.as_supervisor(|| bind_out_of_sight(file.as_fd(), token))?;
        let bound = Arc::new(Bound { anchor, shown });
        self.clear_out();
        let mut table = lock(&self.table);
        table.by_name.insert(name, Arc::clone(&bound));
        table.by_token.insert(token, bound);
        Ok(())
    }

    /// Forgets sockets that are gone, now and then.
    fn clear_out(&self) {
        const FEW: usize = 64;
        let bound: Vec<(u64, Arc<Bound>)> = {
            let mut table = lock(&self.table);
            if table.by_token.len() < table.clear_at.max(FEW) {
                return;
            }
            table.clear_at = usize::MAX; // one at a time
            table.by_token.iter().map(|(token, bound)| (*token, Arc::clone(bound))).collect()
        };
        let dead: Vec<u64> =
            bound.iter().filter(|(_, bound)| !bound.is_alive()).map(|(token, _)| *token).collect();
        drop(bound);
        let mut table = lock(&self.table);
        let gone: Vec<_> = dead.iter().filter_map(|token| table.by_token.remove(token)).collect();
        table.by_name.retain(|_, bound| !gone.iter().any(|gone| Arc::ptr_eq(gone, bound)));
        table.clear_at = table.by_token.len().saturating_mul(2);
        drop(table);
        drop(gone);
    }
}

/// Binds a socket where nobody can find it, and returns what leads to it.
fn bind_out_of_sight(socket: BorrowedFd<'_>, token: u64) -> Result<OwnedFd, Errno> {
    let text = |text: String| CString::new(text).map_err(|_| Errno::EINVAL);
    let look = libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let base = CString::new(std::env::temp_dir().as_os_str().as_bytes()).map_err(|_| Errno::ENOENT)?;
    let root = std::fs::File::open("/")?;
    let base = host::openat(root.as_fd(), &base, look & !libc::O_NOFOLLOW | libc::O_DIRECTORY, 0)?;
    let mut random = [0; 8];
    host::getrandom(&mut random[..], 0)?;
    let directory_name = text(format!(".systrap-{:016x}", u64::from_ne_bytes(random)))?;
    host::mkdirat(base.as_fd(), &directory_name, 0o700)?;
    let bound =
        host::openat(base.as_fd(), &directory_name, look | libc::O_DIRECTORY, 0).and_then(|directory| {
            let name = text(token_name(token))?;
            let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), token_name(token));
            host::bind(socket, &unix_address(path.as_bytes()))?;
            let anchor = host::openat(directory.as_fd(), &name, look, 0);
            host::unlinkat(directory.as_fd(), &name, 0)?;
            anchor
        });
    let _ = host::unlinkat(base.as_fd(), &directory_name, libc::AT_REMOVEDIR);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_bound_out_of_sight_is_found_through_its_anchor_until_it_is_closed() {
        let make = || host::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).unwrap();
        let socket = make();
        let bound = Bound { anchor: bind_out_of_sight(socket.as_fd(), 7).unwrap(), shown: Vec::new() };
        let mut name = AddressBuffer::new();
        host::getsockname(socket.as_fd(), &mut name).unwrap();
        assert_eq!(token_of(name.as_bytes()), Some(7));
        let path = std::str::from_utf8(&name.as_bytes()[2..]).unwrap().trim_end_matches('\0');
        assert!(!std::path::Path::new(path).exists(), "{path}");
        assert!(bound.is_alive());
        let other = make();
        host::connect_now(other.as_fd(), &unix_address(bound.host_path().as_bytes())).unwrap();
        drop(socket);
        assert!(!bound.is_alive());
    }

    #[test]
    fn other_addresses_have_no_token() {
        for path in ["", "/tmp/x", "/tmp/socket-xyz", "\0socket-0000000000000001x"] {
            assert_eq!(token_of(&unix_address(path.as_bytes())), None, "{path}");
        }
        assert_eq!(token_of(&[]), None);
    }
}
