//! What a path of a task's call names: the mounts and the guest's `/proc` together.

use super::resolve::{Last, MOST_LINKS, Reached};
use super::table::{MountTable, Place};
use super::territory::Territory;
use crate::sentry::errno::Errno;
use crate::sentry::procfs::{Anchor, Named, Node, walk_proc};
use crate::sentry::task::{Directory, Task};
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// What a path names.
#[derive(Debug)]
pub(crate) enum Resolved {
    /// A file or directory, pinned.
    Object { file: Directory, territory: Territory },
    /// A name in a directory; see [`Reached::Name`].
    Name { directory: Directory, name: CString, covered: bool, territory: Territory },
    /// A node of the guest's `/proc`.
    Node(Node),
    /// The path is empty: the descriptor itself, for the calls that take that.
    Given { file: Directory, territory: Territory },
}

/// Where a path begins.
enum Start {
    Place(Place),
    Node(Node),
    /// A directory of the host's `/proc`, by its path.
    HostProc(Vec<u8>),
}

/// What of the host's `/proc` shows or changes more than a guest with a file system of its own is to have.
const MASKED: [&[u8]; 15] = [
    b"acpi",
    b"kallsyms",
    b"kcore",
    b"key-users",
    b"keys",
    b"kmsg",
    b"kpagecgroup",
    b"kpagecount",
    b"kpageflags",
    b"sched_debug",
    b"scsi",
    b"sysrq-trigger",
    b"timer_list",
    b"vmallocinfo",
    b"vmcore",
];

/// Whether the guest's `/proc` has no file of that name although the host's has.
pub(crate) fn is_masked(name: &[u8]) -> bool {
    MASKED.contains(&name)
}

impl Task {
    /// Finds what a path names in the guest's file system.
    pub(crate) fn resolve(
        &self,
        mounts: &Arc<MountTable>,
        dirfd: i32,
        path: &CStr,
        last: Last,
    ) -> Result<Resolved, Errno> {
        let path = path.to_bytes();
        let mut links = 0;
        if path.starts_with(b"/") {
            let reached = mounts.walk(mounts.root(), path, last, &mut links)?;
            return self.settle_reached(mounts, reached, last, links);
        }
        let (file, node, territory) = self.given(mounts, dirfd)?;
        if path.is_empty() {
            return Ok(match node {
                Some(node) if dirfd != libc::AT_FDCWD => Resolved::Node(node),
                _ => Resolved::Given { file, territory },
            });
        }
        match start(file, node, territory)? {
            Start::Place(place) => {
                let reached = mounts.walk(place, path, last, &mut links)?;
                self.settle_reached(mounts, reached, last, links)
            }
            Start::Node(node) => self.resolve_proc(mounts, node, path, last, links),
            Start::HostProc(base) => {
                let path = [&base[..], b"/", path].concat();
                let reached = mounts.walk(mounts.root(), &path, last, &mut links)?;
                self.settle_reached(mounts, reached, last, links)
            }
        }
    }

    /// What a descriptor argument refers to.
    fn given(
        &self,
        mounts: &Arc<MountTable>,
        dirfd: i32,
    ) -> Result<(Directory, Option<Node>, Territory), Errno> {
        if dirfd == libc::AT_FDCWD {
            let fs = self.fs();
            return Ok((Directory::Working(Arc::clone(&fs.cwd)), fs.proc_directory, fs.territory));
        }
        let file = self.file(dirfd)?;
        let node = file.proc().map(|proc| proc.node());
        let territory = file.territory(mounts);
        Ok((Directory::Open(file), node, territory))
    }

    fn settle_reached(
        &self,
        mounts: &Arc<MountTable>,
        reached: Reached,
        last: Last,
        links: usize,
    ) -> Result<Resolved, Errno> {
        Ok(match reached {
            Reached::Object { file, mount } => Resolved::Object { file, territory: Territory::Mount(mount) },
            Reached::Name { place, name, covered } => {
                let territory = Territory::Mount(place.mount);
                Resolved::Name { directory: place.directory, name, covered, territory }
            }
            Reached::Proc { rest } => return self.resolve_proc(mounts, Node::Root, &rest, last, links),
        })
    }

    /// Goes on in the guest's `/proc`, and from there wherever its links lead.
    fn resolve_proc(
        &self,
        mounts: &Arc<MountTable>,
        from: Node,
        path: &[u8],
        last: Last,
        mut links: usize,
    ) -> Result<Resolved, Errno> {
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::ELOOP);
        }
        let follow = matches!(last, Last::Follow | Last::Create);
        if !from.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        match walk_proc(self, from, path, follow)? {
            Named::Node(node) => Ok(Resolved::Node(node)),
            Named::Host(path) => self.resolve_host_proc(mounts, &path, last, links),
            Named::Outside(path) => {
                let reached = mounts.walk(mounts.root(), &path, last, &mut links)?;
                self.settle_reached(mounts, reached, last, links)
            }
            Named::Beyond(anchor, rest) => {
                let (file, territory) = self.anchored(mounts, anchor);
                if rest.is_empty() {
                    return Ok(Resolved::Object { file, territory });
                }
                // What is behind a directory is found as from a descriptor of it.
                match start(file, None, territory)? {
                    Start::Place(place) => {
                        let rest = [b".", &rest[..]].concat();
                        let reached = mounts.walk(place, &rest, last, &mut links)?;
                        self.settle_reached(mounts, reached, last, links)
                    }
                    Start::Node(_) | Start::HostProc(_) => Err(Errno::EACCES),
                }
            }
        }
    }

    fn anchored(&self, mounts: &Arc<MountTable>, anchor: Anchor) -> (Directory, Territory) {
        match anchor {
            Anchor::Directory(directory, territory) => (Directory::Working(directory), territory),
            Anchor::File(file) => {
                let territory = file.territory(mounts);
                (Directory::Open(file), territory)
            }
        }
    }

    /// A file of the host's `/proc` by its path there.
    fn resolve_host_proc(
        &self,
        mounts: &Arc<MountTable>,
        path: &[u8],
        last: Last,
        links: usize,
    ) -> Result<Resolved, Errno> {
        let path = path.strip_prefix(b"/proc/").ok_or(Errno::ENOENT)?;
        let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
        let (name, rest) = path.split_at(end);
        let follow = matches!(last, Last::Follow | Last::Create) || !rest.is_empty();
        match name {
            _ if is_masked(name) => return Err(Errno::ENOENT),
            // Links, which the host would follow for the supervisor.
            b"mounts" | b"net" if follow => {
                let path = [b"self/", path].concat();
                return self.resolve_proc(mounts, Node::Root, &path, last, links);
            }
            _ => {}
        }
        Ok(match mounts.walk_host_proc(path, last)? {
            Reached::Object { file, .. } => Resolved::Object { file, territory: Territory::Proc },
            Reached::Name { place, name, covered } => {
                Resolved::Name { directory: place.directory, name, covered, territory: Territory::Proc }
            }
            Reached::Proc { .. } => return Err(Errno::ENOENT),
        })
    }
}

fn start(file: Directory, node: Option<Node>, territory: Territory) -> Result<Start, Errno> {
    match (node, territory) {
        (Some(node), _) => Ok(Start::Node(node)),
        (None, Territory::Mount(mount)) => Ok(Start::Place(Place { mount, directory: file })),
        (None, Territory::Proc) => {
            let path = super::files::host_path(file.as_fd())?;
            if path.starts_with(b"/proc/") { Ok(Start::HostProc(path)) } else { Err(Errno::EACCES) }
        }
        (None, Territory::Host | Territory::Outside) => {
            let known = super::files::look_at(file.as_fd())?;
            Err(if known.is_directory() { Errno::EACCES } else { Errno::ENOTDIR })
        }
    }
}
