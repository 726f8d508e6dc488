//! What `stat` and `statx` show of nodes: the stand-in's attributes under an inode number of the node's own.

use super::node::{Entry, Node};
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::mem::offset_of;
use std::sync::OnceLock;

/// `stx_ino` in a `struct statx`, and `stx_nlink`.
const STATX_INODE: usize = offset_of!(libc::statx, stx_ino);
const STATX_LINKS: usize = offset_of!(libc::statx, stx_nlink);

impl Task {
    /// `fstat` of an open node.
    pub(crate) fn stat_node(&self, node: Node, stat: &mut [u8; 144]) -> Result<(), Errno> {
        let (path, _held) = self.stand_in(node)?;
        host::newfstatat(super::anywhere()?, &path, stat, libc::AT_SYMLINK_NOFOLLOW)?;
        self.adjust_stat(node, stat);
        Ok(())
    }

    /// Turns the attributes of the stand-in into the node's.
    pub(crate) fn adjust_stat(&self, node: Node, stat: &mut [u8; 144]) {
        if let Some(inode) = own_inode(node) {
            put(stat, offset_of!(libc::stat, st_ino), &inode.to_ne_bytes());
        }
        if let Some(links) = self.links(node) {
            put(stat, offset_of!(libc::stat, st_nlink), &links.to_ne_bytes());
        }
    }

    /// The same for a `struct statx`.
    pub(crate) fn adjust_statx(&self, node: Node, statx: &mut [u8; 256]) {
        if let Some(inode) = own_inode(node) {
            put(statx, STATX_INODE, &inode.to_ne_bytes());
        }
        if let Some(links) = self.links(node) {
            put(statx, STATX_LINKS, &(links as u32).to_ne_bytes());
        }
    }

    /// The number of links of a directory that has one more for each thread.
    fn links(&self, node: Node) -> Option<u64> {
        match node {
            Node::Owned(owner, Entry::Tasks) => {
                self.subject(owner).ok().map(|subject| 2 + subject.threads.len().max(1) as u64)
            }
            _ => None,
        }
    }
}

/// `/proc` and the links `self` and `thread-self` are the host's own.
fn own_inode(node: Node) -> Option<u64> {
    match node {
        Node::Root | Node::SelfLink | Node::ThreadSelfLink | Node::MemoryInfo => None,
        Node::Owned(..) => Some(node.inode()),
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

/// Whether a device number is that of the host's `/proc`.
pub(crate) fn is_proc_device(device: u64) -> bool {
    static DEVICE: OnceLock<u64> = OnceLock::new();
    let own = *DEVICE.get_or_init(|| {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata("/proc").map_or(u64::MAX, |proc| proc.dev())
    });
    device == own
}
