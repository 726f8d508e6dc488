//! An open file of a guest (Linux's `struct file`): what descriptors refer to.

use super::epoll::Epoll;
use super::errno::Errno;
use super::filesystem::Location;
use super::host;
use super::kernel::Tree;
use super::pidfd::PidFile;
use super::procfs::ProcFile;
use super::signalfd::SignalFile;
use super::socket::Socket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The type of a file, as far as reads, writes and waits treat types differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    /// A regular file or block device: transfers complete, nothing blocks for long.
    Regular,
    /// A directory.
    Directory,
    /// A device that is always ready (`/dev/null`, `/dev/zero`, `/dev/urandom`).
    ReadyDevice,
    /// A pipe, terminal, eventfd and the like: may block, may be short.
    Stream,
    /// A socket.
    Socket,
}

impl FileType {
    /// Whether a transfer may wait for somebody.
    pub(crate) fn may_wait(self) -> bool {
        matches!(self, FileType::Stream | FileType::Socket)
    }
}

/// What is known of an open file that is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// The number of the terminal proper, of which a pseudo-terminal's master is the other end.
    pub(crate) device: u32,
    /// The file is a pseudo-terminal's master.
    pub(crate) is_master: bool,
}

/// What an open file is. Those that the sentry makes itself have a host file behind them all the same: an eventfd that is readable when they are for waits in the host.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The host's: reads, writes and waits are its business.
    Host,
    /// epoll(7); the host's instance is behind it.
    Epoll(Epoll),
    /// signalfd(2).
    Signals(SignalFile),
    /// pidfd_open(2).
    Pid(PidFile),
}

/// An open file. Duplicated descriptors share it, and it closes with the last of them.
#[derive(Debug)]
pub(crate) struct File {
    host: OwnedFd,
    file_type: OnceLock<FileType>,
    /// What the sentry adds to a file of the guest's `/proc`.
    proc: Option<Box<ProcFile>>,
    terminal: OnceLock<Terminal>,
    kind: Kind,
    socket: OnceLock<Socket>,
    /// The host cannot read or write it without waiting (`RWF_NOWAIT`): it has to be polled.
    needs_poll: AtomicBool,
    /// `F_SETOWN`: a process, or minus a group; 0 for none.
    owner: AtomicI32,
    /// A directory whose entries have all been read, those that only the guest has included.
    listed: AtomicBool,
    /// Where it is in the guest's own file system, if it has one.
    location: Location,
}

impl File {
    pub(crate) fn new(host: OwnedFd) -> Self {
        Self {
            host,
            file_type: OnceLock::new(),
            terminal: OnceLock::new(),
            proc: None,
            kind: Kind::Host,
            socket: OnceLock::new(),
            needs_poll: AtomicBool::new(false),
            owner: AtomicI32::new(0),
            listed: AtomicBool::new(false),
            location: Location::new(),
        }
    }

    /// Notes that all entries of a directory have been read, or that they are read again; whether they had been.
    pub(crate) fn set_listed(&self, listed: bool) -> bool {
        self.listed.swap(listed, Ordering::Relaxed)
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// A socket of which all is known.
    pub(crate) fn socket(host: OwnedFd, socket: Socket) -> Self {
        let (file_type, socket) = (OnceLock::from(FileType::Socket), OnceLock::from(socket));
        Self { file_type, socket, ..Self::new(host) }
    }

    /// What is known of a socket; `ENOTSOCK` for other files.
    pub(crate) fn as_socket(&self) -> Result<&Socket, Errno> {
        if self.file_type() != FileType::Socket {
            return Err(Errno::ENOTSOCK);
        }
        Ok(self.socket.get_or_init(|| Socket::of_host(self.host.as_fd())))
    }

    pub(crate) fn owner(&self) -> i32 {
        self.owner.load(Ordering::Relaxed)
    }

    pub(crate) fn set_owner(&self, owner: i32) {
        self.owner.store(owner, Ordering::Relaxed);
    }

    pub(crate) fn needs_poll(&self) -> bool {
        self.needs_poll.load(Ordering::Relaxed)
    }

    pub(crate) fn set_needs_poll(&self) {
        self.needs_poll.store(true, Ordering::Relaxed);
    }

    /// A file of the guest's `/proc`.
    pub(crate) fn of_proc(host: OwnedFd, proc: ProcFile) -> Self {
        Self { proc: Some(Box::new(proc)), ..Self::new(host) }
    }

    /// A file of the sentry's own with what is behind it in the host.
    pub(crate) fn made(host: OwnedFd, kind: Kind) -> Self {
        Self { file_type: OnceLock::from(FileType::Stream), kind, ..Self::new(host) }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether the file's bytes are the host's to move.
    pub(crate) fn is_of_host(&self) -> bool {
        matches!(self.kind, Kind::Host)
    }

    /// What of the events (`POLL*` or `EPOLL*` with its options) that a wait is for can be waited for in the host. An
    /// eventfd can always be written to, what it stands for cannot.
    pub(crate) fn host_events(&self, events: u32) -> u32 {
        const MEANINGLESS: u32 = (libc::EPOLLOUT | libc::EPOLLWRNORM | libc::EPOLLWRBAND) as u32;
        match self.kind {
            Kind::Host | Kind::Epoll(_) => events,
            Kind::Signals(_) | Kind::Pid(_) => events & !MEANINGLESS,
        }
    }

    /// `O_NONBLOCK`, which the host keeps.
    pub(crate) fn is_nonblocking(&self) -> bool {
        host::fcntl(self.as_fd(), libc::F_GETFL, 0).is_ok_and(|flags| flags as i32 & libc::O_NONBLOCK != 0)
    }

    /// An epoll instance.
    pub(crate) fn epoll(host: OwnedFd) -> Self {
        Self::made(host, Kind::Epoll(Epoll::default()))
    }

    /// What an epoll instance watches; `None` for other files.
    pub(crate) fn as_epoll(&self) -> Option<&Epoll> {
        match &self.kind {
            Kind::Epoll(epoll) => Some(epoll),
            _ => None,
        }
    }

    pub(crate) fn proc(&self) -> Option<&ProcFile> {
        self.proc.as_deref()
    }

    /// The kind of file, asked of the host once.
    pub(crate) fn file_type(&self) -> FileType {
        *self.file_type.get_or_init(|| {
            let mut stat = [0; 144];
            if host::fstat(self.as_fd(), &mut stat).is_err() {
                return FileType::Stream;
            }
            let stat = StatView(&stat);
            match stat.mode() & libc::S_IFMT {
                libc::S_IFREG | libc::S_IFBLK => FileType::Regular,
                libc::S_IFDIR => FileType::Directory,
                libc::S_IFSOCK => FileType::Socket,
                // Major 1 holds the memory devices; kmsg (11) is the one among them that blocks.
                libc::S_IFCHR if libc::major(stat.rdev()) == 1 && libc::minor(stat.rdev()) != 11 => {
                    FileType::ReadyDevice
                }
                libc::S_IFCHR => {
                    if let Some(device) = host::terminal_device(self.as_fd()) {
                        let is_master = stat.rdev() == libc::makedev(5, 2);
                        let _ = self.terminal.set(Terminal { device, is_master });
                    }
                    FileType::Stream
                }
                _ => FileType::Stream,
            }
        })
    }

    /// The terminal that the file is; found out together with its type, so that other files pay nothing for it.
    pub(crate) fn terminal(&self) -> Option<Terminal> {
        match self.file_type() {
            FileType::Stream => self.terminal.get().copied(),
            _ => None,
        }
    }

    /// What `fdinfo` shows besides, for a file that the sentry makes.
    pub(crate) fn info(&self, tree: &Tree) -> String {
        match &self.kind {
            Kind::Pid(file) => file.info(tree),
            Kind::Signals(file) => file.info(),
            Kind::Host | Kind::Epoll(_) => String::new(),
        }
    }

    /// The path of the host's own view of this descriptor.
    pub(crate) fn host_proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.host.as_raw_fd())
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }
}

/// The fields of a `struct stat` that the sentry itself looks at.
pub(crate) struct StatView<'a>(pub(crate) &'a [u8; 144]);

impl StatView<'_> {
    fn word(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[offset..offset + 8]);
        u64::from_ne_bytes(bytes)
    }

    pub(crate) fn device(&self) -> u64 {
        self.word(std::mem::offset_of!(libc::stat, st_dev))
    }

    pub(crate) fn inode(&self) -> u64 {
        self.word(std::mem::offset_of!(libc::stat, st_ino))
    }

    pub(crate) fn links(&self) -> u64 {
        self.word(std::mem::offset_of!(libc::stat, st_nlink))
    }

    pub(crate) fn rdev(&self) -> u64 {
        self.word(std::mem::offset_of!(libc::stat, st_rdev))
    }

    pub(crate) fn size(&self) -> u64 {
        self.word(std::mem::offset_of!(libc::stat, st_size))
    }

    pub(crate) fn mode(&self) -> u32 {
        self.word(std::mem::offset_of!(libc::stat, st_mode)) as u32
    }
}
