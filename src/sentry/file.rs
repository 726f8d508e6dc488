//! An open file of a guest (Linux's `struct file`): what descriptors refer to.

use super::errno::Errno;
use super::host;
use super::syscalls::Epoll;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The type of a file, as far as reads, writes and waits treat types differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileType {
    /// A regular file or block device: transfers complete, nothing blocks for long.
    Regular,
    /// A directory.
    Directory,
    /// A device that is always ready (`/dev/null`, `/dev/zero`, `/dev/urandom`).
    ReadyDevice,
    /// A pipe, terminal, socket, eventfd and the like: may block, may be short.
    Stream,
}

/// A directory of the guest's descriptors, whose entries the sentry makes up; the host file behind it only answers
/// `fstat`.
#[derive(Debug)]
pub(crate) struct VirtualDirectory {
    /// Where the next read goes on: 0 and 1 are the dots, the descriptors follow with their numbers.
    position: Mutex<u64>,
    /// The path that stands for it, with which a relative path is completed.
    pub(crate) path: &'static str,
}

impl VirtualDirectory {
    pub(crate) fn new(path: &'static str) -> Self {
        Self { position: Mutex::new(0), path }
    }

    /// `lseek` to the start.
    pub(crate) fn rewind(&self) {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }

    /// Fills a buffer with `struct linux_dirent64` records; `EINVAL` if not even one fits.
    pub(crate) fn read_entries(&self, descriptors: &[i32], buf: &mut [u8]) -> Result<usize, Errno> {
        const NAME: usize = 19; // ino, off, reclen, type
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let dots = [(0, ".".to_owned(), libc::DT_DIR), (1, "..".to_owned(), libc::DT_DIR)];
        let numbers = descriptors.iter().map(|fd| (*fd as u64 + 2, fd.to_string(), libc::DT_LNK));
        let mut filled = 0;
        for (at, name, kind) in dots.into_iter().chain(numbers) {
            if at < *position {
                continue;
            }
            let len = (NAME + name.len() + 1).next_multiple_of(8);
            let Some(record) = buf.get_mut(filled..filled + len) else {
                return if filled == 0 { Err(Errno::EINVAL) } else { Ok(filled) };
            };
            *position = at + 1;
            record.fill(0);
            record[..8].copy_from_slice(&(*position).to_ne_bytes()); // any inode number but zero
            record[8..16].copy_from_slice(&(*position).to_ne_bytes());
            record[16..18].copy_from_slice(&(len as u16).to_ne_bytes());
            record[18] = kind;
            record[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
            filled += len;
        }
        Ok(filled)
    }
}

/// An open file. Duplicated descriptors share it, and it closes with the last of them.
#[derive(Debug)]
pub(crate) struct File {
    host: OwnedFd,
    file_type: OnceLock<FileType>,
    directory: Option<VirtualDirectory>,
    epoll: Option<Epoll>,
}

impl File {
    pub(crate) fn new(host: OwnedFd) -> Self {
        Self { host, file_type: OnceLock::new(), directory: None, epoll: None }
    }

    /// A directory of the sentry's own.
    pub(crate) fn virtual_directory(host: OwnedFd, directory: VirtualDirectory) -> Self {
        Self { host, file_type: OnceLock::from(FileType::Directory), directory: Some(directory), epoll: None }
    }

    /// An epoll instance.
    pub(crate) fn epoll(host: OwnedFd) -> Self {
        let epoll = Some(Epoll::default());
        Self { host, file_type: OnceLock::from(FileType::Stream), directory: None, epoll }
    }

    /// What an epoll instance watches; `None` for other files.
    pub(crate) fn as_epoll(&self) -> Option<&Epoll> {
        self.epoll.as_ref()
    }

    pub(crate) fn directory(&self) -> Option<&VirtualDirectory> {
        self.directory.as_ref()
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
                // Major 1 holds the memory devices; kmsg (11) is the one among them that blocks.
                libc::S_IFCHR if libc::major(stat.rdev()) == 1 && libc::minor(stat.rdev()) != 11 => {
                    FileType::ReadyDevice
                }
                _ => FileType::Stream,
            }
        })
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
