//! The mount table of a guest.

use super::files::{Identity, Known, look_at, open_name};
use super::sockets::SocketNames;
use crate::sentry::errno::Errno;
use crate::sentry::task::Directory;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

/// One of the guest's mounts, by its number in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MountId(pub(super) usize);

/// A directory of the guest: where the host has it, and the mount by which the guest got there.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) mount: MountId,
    pub(crate) directory: Directory,
}

/// What is mounted.
#[derive(Debug)]
pub(super) enum What {
    Directory {
        root: Directory,
        identity: Identity,
    },
    /// A single file. For calls that do not follow links it is named by its directory and name on the host.
    File {
        file: Directory,
        directory: Directory,
        name: CString,
    },
    /// A link that is not in the root, such as `/dev/fd`; the host's of the same name stands in for itself.
    Link {
        directory: Directory,
        name: CString,
        target: &'static [u8],
    },
    /// The guest's `/proc`.
    Proc,
}

/// Where a mount is: a name in a directory. The directory is known by what it is, so that the mount moves with it, as
/// in the kernel; it is held, so that its inode number stays its own.
#[derive(Debug)]
pub(super) struct Point {
    pub(super) parent: Place,
    pub(super) identity: Identity,
    pub(super) name: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Mount {
    pub(super) what: What,
    pub(super) read_only: bool,
    /// None for the root.
    pub(super) on: Option<Point>,
}

/// All mounts of a guest, the root first. They never change.
#[derive(Debug)]
pub(crate) struct MountTable {
    pub(super) mounts: Vec<Mount>,
    pub(super) root: Place,
    /// The host's `/dev/pts`, where the guest was lent it.
    pub(super) terminals: Option<MountId>,
    /// The host's `/proc`, for what of it the guest sees.
    pub(super) host_proc: OwnedFd,
    /// What the guest has bound Unix sockets to.
    pub(crate) sockets: SocketNames,
}

impl MountTable {
    pub(super) fn mount(&self, id: MountId) -> Result<&Mount, Errno> {
        self.mounts.get(id.0).ok_or(Errno::ENOENT)
    }

    /// The guest's root directory.
    pub(crate) fn root(&self) -> Place {
        self.root.clone()
    }

    pub(crate) fn is_read_only(&self, id: MountId) -> bool {
        self.mounts.get(id.0).is_none_or(|mount| mount.read_only)
    }

    /// All mounts with their numbers.
    pub(super) fn all(&self) -> impl DoubleEndedIterator<Item = (MountId, &Mount)> {
        self.mounts.iter().enumerate().map(|(number, mount)| (MountId(number), mount))
    }

    /// Whether something may be mounted on a name in some directory of a mount.
    pub(super) fn may_be_mounted_on(&self, within: MountId, name: &[u8]) -> bool {
        let is_on = |point: &Point| point.parent.mount == within && point.name == name;
        self.mounts.iter().any(|mount| mount.on.as_ref().is_some_and(is_on))
    }

    /// The names in a directory on which something is mounted and which the host does not have there.
    pub(crate) fn names_in(&self, within: MountId, directory: BorrowedFd<'_>) -> Vec<(Vec<u8>, u8)> {
        let mut names: Vec<(Vec<u8>, u8)> = Vec::new();
        let mut here: Option<Identity> = None;
        for mount in &self.mounts {
            let Some(point) = mount.on.as_ref().filter(|on| on.parent.mount == within) else { continue };
            let identity = match here {
                Some(identity) => identity,
                None => match look_at(directory) {
                    Ok(known) => *here.insert(known.identity),
                    Err(_) => return names,
                },
            };
            let is_new = identity == point.identity
                && names.iter().all(|(name, _)| *name != point.name)
                && open_name(directory, &point.name).is_err();
            if is_new {
                let kind = match &mount.what {
                    What::Directory { .. } | What::Proc => libc::DT_DIR,
                    What::Link { .. } => libc::DT_LNK,
                    What::File { .. } => libc::DT_UNKNOWN,
                };
                names.push((point.name.clone(), kind));
            }
        }
        names
    }

    /// What is mounted on a name in a directory. The directory is asked for only if the name is one of those in question.
    pub(super) fn mounted_on(&self, at: &Place, name: &[u8]) -> Result<Option<MountId>, Errno> {
        let mut here: Option<Known> = None;
        // What was mounted last covers what was there before.
        for (id, mount) in self.all().rev() {
            let Some(point) = mount.on.as_ref() else { continue };
            if point.parent.mount != at.mount || point.name != name {
                continue;
            }
            let known = match here {
                Some(known) => known,
                None => *here.insert(look_at(at.directory.as_fd())?),
            };
            if known.identity == point.identity {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}
