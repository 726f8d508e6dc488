//! What the sentry keeps of a guest's socket, beside the host's socket itself.

use super::errno::Errno;
use super::file::{File, StatView};
use super::host::{self, OptionBuffer};
use super::process::lock;
use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// Facts about a socket that do not change, and who uses it.
///
/// To the host every process of a guest is the supervisor. What a Unix socket tells about the process at its other end
/// is therefore recorded here.
#[derive(Debug)]
pub(crate) struct Socket {
    /// `SO_DOMAIN`.
    pub(crate) domain: i32,
    /// `SO_TYPE`.
    pub(crate) kind: i32,
    /// The process that called `connect`, `listen` or `socketpair` last; 0 for none.
    owner: AtomicI32,
    /// The process that sent something last; 0 for none.
    sender: AtomicI32,
    /// The other end of a pair.
    peer: OnceLock<Weak<File>>,
    /// It was made in the guest, not handed to it.
    is_guests: AtomicBool,
    /// `SO_RCVLOWAT` was set: a read that does not wait would give less than one that does.
    waits_for_more: AtomicBool,
}

fn number_option(fd: BorrowedFd<'_>, name: i32) -> Result<i32, Errno> {
    let mut value = OptionBuffer::new(4);
    host::getsockopt(fd, libc::SOL_SOCKET, name, &mut value)?;
    value.as_bytes().try_into().map(i32::from_ne_bytes).map_err(|_| Errno::EINVAL)
}

impl Socket {
    /// A new socket of the guest's; flags in its type do not matter.
    pub(crate) fn new(domain: i32, kind: i32) -> Self {
        Self {
            domain,
            kind: kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK),
            owner: AtomicI32::new(0),
            sender: AtomicI32::new(0),
            peer: OnceLock::new(),
            is_guests: AtomicBool::new(true),
            waits_for_more: AtomicBool::new(false),
        }
    }

    /// What the host says of a socket that came from elsewhere.
    pub(crate) fn of_host(fd: BorrowedFd<'_>) -> Self {
        let ask = |name| number_option(fd, name).unwrap_or(0);
        let socket = Self::new(ask(libc::SO_DOMAIN), ask(libc::SO_TYPE));
        socket.set_waits_for_more(ask(libc::SO_RCVLOWAT) > 1);
        socket.is_guests.store(false, Ordering::Relaxed);
        socket
    }

    /// Whether it was made in the guest.
    pub(crate) fn is_guests(&self) -> bool {
        self.is_guests.load(Ordering::Relaxed)
    }

    /// It came from a process of the guest, which had it made.
    pub(crate) fn set_guests(&self) {
        self.is_guests.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.domain == libc::AF_UNIX
    }

    /// Whether it carries bytes rather than messages.
    pub(crate) fn is_stream(&self) -> bool {
        self.kind == libc::SOCK_STREAM
    }

    pub(crate) fn set_owner(&self, pid: i32) {
        self.owner.store(pid, Ordering::Relaxed);
    }

    /// The process that made the connection, for the other end to ask after; `None` if no guest did.
    pub(crate) fn owner(&self) -> Option<i32> {
        Some(self.owner.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    pub(crate) fn set_sender(&self, pid: i32) {
        self.sender.store(pid, Ordering::Relaxed);
    }

    /// The process that last sent something through it, or else the one that made the connection.
    pub(crate) fn sender(&self) -> Option<i32> {
        Some(self.sender.load(Ordering::Relaxed)).filter(|pid| *pid != 0).or_else(|| self.owner())
    }

    /// Says that the other end is this file's; holds for good.
    pub(crate) fn set_peer(&self, peer: &Arc<File>) {
        let _ = self.peer.set(Arc::downgrade(peer));
    }

    pub(crate) fn peer(&self) -> Option<Arc<File>> {
        self.peer.get()?.upgrade()
    }

    pub(crate) fn waits_for_more(&self) -> bool {
        self.waits_for_more.load(Ordering::Relaxed)
    }

    pub(crate) fn set_waits_for_more(&self, waits: bool) {
        self.waits_for_more.store(waits, Ordering::Relaxed);
    }
}

/// The guest's Unix sockets, by which the one at the other end of a connection is found.
#[derive(Debug, Default)]
pub(crate) struct UnixSockets {
    sockets: Mutex<Known>,
    /// The process that sent the last message through a socket that is nobody's peer.
    last_sender: AtomicI32,
}

#[derive(Debug, Default)]
struct Known {
    by_inode: HashMap<u64, Weak<File>>,
    /// Entries whose socket is closed are cleared out when there are this many.
    clear_at: usize,
}

/// The inode number of an open file; 0 if the host does not say.
pub(crate) fn inode(file: &File) -> u64 {
    let mut stat = [0; 144];
    match host::fstat(file.as_fd(), &mut stat) {
        Ok(_) => StatView(&stat).inode(),
        Err(_) => 0,
    }
}

impl UnixSockets {
    /// Takes note of a Unix socket.
    pub(crate) fn add(&self, file: &Arc<File>) {
        const FEW: usize = 64;
        let inode = inode(file);
        let mut known = lock(&self.sockets);
        if known.by_inode.len() >= known.clear_at {
            known.by_inode.retain(|_, file| file.strong_count() > 0);
            known.clear_at = known.by_inode.len().saturating_mul(2).max(FEW);
        }
        known.by_inode.insert(inode, Arc::downgrade(file));
    }

    pub(crate) fn get(&self, inode: u64) -> Option<Arc<File>> {
        lock(&self.sockets).by_inode.get(&inode)?.upgrade()
    }

    /// The socket that satisfies the condition; the lock is not held while it is tested.
    pub(crate) fn find(&self, condition: impl Fn(&File) -> bool) -> Option<Arc<File>> {
        let files: Vec<_> = lock(&self.sockets).by_inode.values().filter_map(Weak::upgrade).collect();
        files.into_iter().find(|file| condition(file))
    }

    pub(crate) fn set_last_sender(&self, pid: i32) {
        self.last_sender.store(pid, Ordering::Relaxed);
    }

    pub(crate) fn last_sender(&self) -> Option<i32> {
        Some(self.last_sender.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}
