//! The host calls of the resolver: each takes a directory and names below it.

use crate::sentry::errno::Errno;
use crate::sentry::file::StatView;
use crate::sentry::host;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

const RESOLVE_NO_MAGICLINKS: u64 = 2;
const RESOLVE_NO_SYMLINKS: u64 = 4;
const RESOLVE_BENEATH: u64 = 8;
/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// What a descriptor refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) identity: Identity,
    /// The `S_IFMT` bits.
    pub(super) kind: u32,
    pub(super) links: u64,
}

impl Known {
    pub(super) fn is_directory(self) -> bool {
        self.kind == libc::S_IFDIR
    }
}

pub(super) fn c_string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::ENOENT)
}

fn known(stat: &[u8; 144]) -> Known {
    let stat = StatView(stat);
    Known {
        identity: Identity { device: stat.device(), inode: stat.inode() },
        kind: stat.mode() & libc::S_IFMT,
        links: stat.links(),
    }
}

pub(super) fn look_at(file: BorrowedFd<'_>) -> Result<Known, Errno> {
    let mut stat = [0; 144];
    host::newfstatat(file, c"", &mut stat, libc::AT_EMPTY_PATH)?;
    Ok(known(&stat))
}

/// The directory that a directory is in at the moment.
pub(super) fn look_above(directory: BorrowedFd<'_>) -> Result<Identity, Errno> {
    let mut stat = [0; 144];
    host::newfstatat(directory, c"..", &mut stat, libc::AT_SYMLINK_NOFOLLOW)?;
    Ok(known(&stat).identity)
}

/// Opens one name as what it is, a link included.
pub(super) fn open_name(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    host::openat(directory, &c_string(name)?, flags, 0)
}

/// Opens what is below a directory, without any link on the way: `ELOOP` if there is one.
pub(super) fn descend(directory: BorrowedFd<'_>, path: &[u8], flags: i32) -> Result<OwnedFd, Errno> {
    open_beneath(directory, &c_string(path)?, flags | libc::O_PATH | libc::O_CLOEXEC, 0)
}

/// `openat2` as the resolver uses it: what is below, and no links.
pub(super) fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &std::ffi::CStr,
    flags: i32,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    let how = open_how(flags, mode);
    host::openat2(directory, path, &how, how.len())
}

/// The `struct open_how` for that.
pub(crate) fn open_how(flags: i32, mode: u32) -> [u8; 24] {
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    let mut how = [0; 24];
    how[..8].copy_from_slice(&u64::from(flags as u32).to_ne_bytes());
    how[8..16].copy_from_slice(&u64::from(mode).to_ne_bytes());
    how[16..].copy_from_slice(&resolve.to_ne_bytes());
    how
}

/// Whether a file belongs to a proc file system.
pub(super) fn is_on_proc(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut statfs = [0; 120];
    host::fstatfs(file, &mut statfs)?;
    let mut kind = [0; 8];
    kind.copy_from_slice(&statfs[..8]);
    Ok(u64::from_ne_bytes(kind) == PROC)
}

/// The text of an open link.
pub(super) fn link_text(link: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut text = vec![0; crate::sentry::abi::PATH_MAX];
    let len = host::readlinkat(link, c"", &mut text[..])?;
    text.truncate(len);
    Ok(text)
}

/// The host's path of an open file, as it is at this moment. It is looked at, compared with that of a mount's root,
/// and never opened.
pub(super) fn host_path(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let link = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::ENOENT)?;
    let mut text = vec![0; crate::sentry::abi::PATH_MAX];
    let len = host::readlinkat(file, &link, &mut text[..])?;
    text.truncate(len);
    Ok(text)
}

/// Opens an absolute path of the host's, for the embedder who named it.
pub(super) fn open_host(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    use std::os::unix::ffi::OsStrExt as _;
    let root = std::fs::File::open("/")?;
    let path = c_string(path.as_os_str().as_bytes())?;
    host::openat(root.as_fd(), &path, libc::O_PATH | libc::O_CLOEXEC, 0)
}
