//! What path calls depend on: working directory and file mode mask (Linux's `struct fs_struct`).

use super::filesystem::Territory;
use super::procfs::Node;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The working directory is a host descriptor: every path call is made relative to it, so that the supervisor's own
/// working directory plays no part.
#[derive(Debug, Clone)]
pub(crate) struct FsContext {
    pub(crate) cwd: Arc<OwnedFd>,
    /// The node of the guest's `/proc` that the working directory is, if it is one.
    pub(crate) proc_directory: Option<Node>,
    /// Where the working directory is in the guest's own file system, if it has one.
    pub(crate) territory: Territory,
    pub(crate) umask: u32,
}
