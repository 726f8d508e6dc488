//! The guest's `/proc`: its processes beside the host's, and its truth instead of the supervisor's.
//!
//! [`Task::find`] is the one place that decides what a path names: the host's file of that path, a node of the
//! sentry's own (`node`), or a file behind a link of `/proc`. `walk` goes through paths, `subject` looks processes
//! up, `text` writes what their files say, `open_file` and `directory` are the open files, `attributes` what `stat`
//! shows. For permissions, types and modes the supervisor's own file of the same name stands in.
//!
//! What the host has of the machine (`/proc/cpuinfo`, `/proc/sys`, …) and its other processes pass through.

mod attributes;
mod directory;
mod entrance;
mod guard;
mod node;
mod open_file;
mod subject;
mod text;
mod walk;

pub(crate) use attributes::is_proc_device;
pub(crate) use directory::{RecordFormat, fill_more};
pub(crate) use node::Node;
use node::{Entry, Link, Owner};
pub(crate) use open_file::ProcFile;

use super::errno::Errno;
use super::file::File;
use super::filesystem::{MountTable, Territory};
use super::host;
use super::task::Task;
use entrance::{Entered, climb, enter, may_be_proc, may_climb};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
pub(crate) use walk::Named;
pub(crate) use walk::walk as walk_proc;
use walk::{Identity, Target, World};

/// A host descriptor that a path goes through; held until the host has used the path.
#[derive(Debug, Clone)]
pub(crate) enum Anchor {
    File(Arc<File>),
    Directory(Arc<OwnedFd>, Territory),
}

impl Anchor {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Anchor::File(file) => file.as_fd(),
            Anchor::Directory(directory, _) => directory.as_fd(),
        }
    }

    fn host_path(&self) -> String {
        format!("/proc/self/fd/{}", self.as_fd().as_raw_fd())
    }

    /// The text of a link to it.
    fn link_text(&self, mounts: Option<&Arc<MountTable>>) -> Result<Vec<u8>, Errno> {
        match (self, mounts) {
            (Anchor::File(file), Some(mounts)) if file.proc().is_none() => {
                file.territory(mounts);
                return file.shown_path();
            }
            (Anchor::Directory(directory, Territory::Mount(mount)), Some(mounts)) => {
                return mounts.path_of(*mount, directory.as_fd());
            }
            _ => {}
        }
        match self {
            Anchor::File(file) if file.proc().is_some() => {
                Ok(file.proc().map(|proc| proc.node().path().into_bytes()).unwrap_or_default())
            }
            _ => host_link(&CString::new(self.host_path()).map_err(|_| Errno::ENOENT)?),
        }
    }
}

/// The text of a link of the host's.
fn host_link(path: &CStr) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; super::abi::PATH_MAX];
    let root = anywhere()?;
    let len = host::readlinkat(root.as_fd(), path, &mut bytes[..])?;
    bytes.truncate(len);
    Ok(bytes)
}

/// A directory for host calls with absolute paths: none is looked at.
fn anywhere() -> Result<BorrowedFd<'static>, Errno> {
    static ROOT: std::sync::OnceLock<Option<OwnedFd>> = std::sync::OnceLock::new();
    ROOT.get_or_init(|| std::fs::File::open("/").ok().map(Into::into))
        .as_ref()
        .map(AsFd::as_fd)
        .ok_or(Errno::EBADF)
}

/// What a path names.
#[derive(Debug)]
pub(crate) enum Found {
    /// What the host finds under the path as it is.
    Host,
    /// What the host finds under this absolute path.
    Instead(CString),
    /// What is left of the path behind a descriptor of the host's.
    Behind(Anchor, CString),
    /// A node of the guest's `/proc`.
    Node(Node),
}

/// How often a path may leave `/proc` and come back (`/proc/self/root/proc/self/root/…`).
const MOST_RETURNS: usize = 40;

impl Task {
    /// Decides what a path names. Paths that have nothing to do with `/proc` cost a comparison.
    pub(crate) fn find(&self, dirfd: i32, path: &CStr, follow: bool) -> Result<Found, Errno> {
        let path = path.to_bytes();
        match path.first() {
            Some(b'/') if !may_be_proc(path) => Ok(Found::Host),
            Some(b'/') => self.find_absolute(path, follow),
            _ => self.find_relative(dirfd, path, follow),
        }
    }

    fn find_relative(&self, dirfd: i32, path: &[u8], follow: bool) -> Result<Found, Errno> {
        let base = if dirfd == libc::AT_FDCWD {
            self.fs().proc_directory
        } else {
            self.files().get(dirfd).ok().and_then(|file| file.proc().map(ProcFile::node))
        };
        match base {
            // Of the calls that take no path as the descriptor itself, the host knows which are wrong.
            Some(_) if path.is_empty() && dirfd == libc::AT_FDCWD => Ok(Found::Host),
            Some(node) if path.is_empty() => Ok(Found::Node(node)),
            Some(node) if !node.is_directory() => Err(Errno::ENOTDIR),
            Some(node) => self.settle(walk::walk(self, node, path, follow)?, follow, MOST_RETURNS),
            None if !may_climb(path) => Ok(Found::Host),
            None => {
                // It may climb into /proc, or start in the root.
                let directory = self.directory(dirfd)?;
                let here = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
                let here = host_link(&CString::new(here).map_err(|_| Errno::ENOENT)?)?;
                match climb(&here, path) {
                    Some(absolute) if may_be_proc(&absolute) => self.find_absolute(&absolute, follow),
                    _ => Ok(Found::Host),
                }
            }
        }
    }

    fn find_absolute(&self, path: &[u8], follow: bool) -> Result<Found, Errno> {
        self.find_from_root(path, follow, MOST_RETURNS)
    }

    fn find_from_root(&self, path: &[u8], follow: bool, returns: usize) -> Result<Found, Errno> {
        match enter(path, follow) {
            Entered::Proc(rest) => self.settle(walk::walk(self, Node::Root, &rest, follow)?, follow, returns),
            Entered::Elsewhere => Ok(Found::Host),
        }
    }

    fn settle(&self, named: Named<Anchor>, follow: bool, returns: usize) -> Result<Found, Errno> {
        let path = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::ENOENT);
        Ok(match named {
            Named::Node(node) => Found::Node(node),
            Named::Host(bytes) => Found::Instead(path(bytes)?),
            Named::Beyond(anchor, rest) => Found::Behind(anchor, path(rest)?),
            Named::Outside(bytes) => {
                let left = returns.checked_sub(1).ok_or(Errno::ELOOP)?;
                match self.find_from_root(&bytes, follow, left)? {
                    Found::Host => Found::Instead(path(bytes)?),
                    found => found,
                }
            }
        })
    }

    /// Looks again at what turned out to lie in the host's `/proc` although the path did not say so (a symbolic
    /// link led there).
    pub(crate) fn reveal(&self, directory: BorrowedFd<'_>, path: &CStr) -> Result<Found, Errno> {
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let reached = host::openat(directory, path, flags, 0)?;
        self.reveal_opened(reached.as_fd())
    }

    /// The same for what is open already: who swaps links gets nothing else by a second look at the path.
    pub(crate) fn reveal_opened(&self, reached: BorrowedFd<'_>) -> Result<Found, Errno> {
        let name =
            CString::new(format!("/proc/self/fd/{}", reached.as_raw_fd())).map_err(|_| Errno::ENOENT)?;
        let name = host_link(&name)?;
        let own = format!("/proc/{}", std::process::id());
        // The host followed `self` for the supervisor.
        let rest = match name.strip_prefix(own.as_bytes()) {
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
            _ if name == b"/proc" => return Ok(Found::Node(Node::Root)),
            _ => return self.find_absolute(&name, true),
        };
        let (who, rest) = match rest.strip_prefix(b"/task/") {
            Some(task) => {
                let end = task.iter().position(|byte| *byte == b'/').unwrap_or(task.len());
                ("/proc/thread-self", &task[end..])
            }
            None => ("/proc/self", rest),
        };
        self.find_absolute(&[who.as_bytes(), rest].concat(), true)
    }

    /// Whether the host has an id for a process or thread of the supervisor or of a stub process: what the guest's
    /// processes are made of, but none of them.
    pub(crate) fn is_of_supervisor(&self, id: i32) -> bool {
        let kernel = self.kernel();
        let is_thread_of = |pid: i32| std::path::Path::new(&format!("/proc/{pid}/task/{id}")).exists();
        let mut processes = kernel.platform.stub_pids();
        processes.extend(kernel.tree().nodes().map(|node| node.process.stub_pid()).filter(|pid| *pid > 0));
        processes.push(std::process::id() as i32);
        processes.contains(&id) || processes.into_iter().any(is_thread_of)
    }

    /// The text of a node that is a link; `EINVAL` for any other.
    pub(crate) fn link_text(&self, node: Node) -> Result<Vec<u8>, Errno> {
        match node {
            Node::SelfLink => Ok(self.process.pid.to_string().into_bytes()),
            Node::ThreadSelfLink => Ok(format!("{}/task/{}", self.process.pid, self.tid()).into_bytes()),
            Node::Owned(_, Entry::Link(Link::Root)) => Ok(b"/".to_vec()),
            Node::Owned(owner, entry) if node.is_link() => match self.follow(owner, entry)? {
                Target::Node(node) => Ok(node.path().into_bytes()),
                Target::Anchor(anchor) => anchor.link_text(self.mounts()),
            },
            _ => Err(Errno::EINVAL),
        }
    }

    /// The guest's open file behind a node of a descriptor.
    fn file_of(&self, node: Node) -> Option<Arc<File>> {
        match node {
            Node::Owned(owner, Entry::Descriptor(fd) | Entry::DescriptorInfo(fd)) => {
                let files = self.subject(owner).ok()?.files()?;
                super::process::lock(&files).get(fd).ok()
            }
            _ => None,
        }
    }

    /// The host path that stands in for a node, and what must stay open until it has been used.
    pub(crate) fn stand_in(&self, node: Node) -> Result<(CString, Option<Anchor>), Errno> {
        let file = self.file_of(node);
        if let (Node::Owned(_, Entry::Descriptor(_) | Entry::DescriptorInfo(_)), None) = (node, &file) {
            return Err(Errno::ENOENT);
        }
        let number = file.as_ref().map(|file| file.as_fd().as_raw_fd());
        let path = CString::new(node.stand_in(number)).map_err(|_| Errno::ENOENT)?;
        Ok((path, file.map(Anchor::File)))
    }
}

impl Found {
    /// The host path for the calls that take one, and what must stay open until it has been used; `None` for the
    /// path as it is.
    pub(crate) fn host_path(&self, task: &Task) -> Result<Option<(CString, Option<Anchor>)>, Errno> {
        match self {
            Found::Host => Ok(None),
            Found::Instead(path) => Ok(Some((path.clone(), None))),
            Found::Behind(anchor, rest) => {
                let path = [anchor.host_path().as_bytes(), rest.to_bytes()].concat();
                let path = CString::new(path).map_err(|_| Errno::ENOENT)?;
                Ok(Some((path, Some(anchor.clone()))))
            }
            Found::Node(node) => task.stand_in(*node).map(Some),
        }
    }

    pub(crate) fn node(&self) -> Option<Node> {
        match self {
            Found::Node(node) => Some(*node),
            _ => None,
        }
    }
}

impl World for Task {
    type Anchor = Anchor;

    fn caller(&self) -> Owner {
        Owner::thread(self.process.pid, self.tid())
    }

    fn identity(&self, id: i32) -> Identity {
        {
            let tree = self.kernel().tree();
            if tree.node(id).is_some() {
                return Identity::Guest(Owner::process(id));
            }
            if let Some(process) = tree.process_of(id) {
                return Identity::Guest(Owner::thread(process.pid, id));
            }
        }
        // A guest with a file system of its own sees no process but its own: their roots and files are outside.
        if self.mounts().is_some() {
            return Identity::Hidden;
        }
        if self.is_of_supervisor(id) { Identity::Hidden } else { Identity::Host }
    }

    fn has_thread(&self, pid: i32, tid: i32) -> bool {
        let tree = self.kernel().tree();
        // A process whose first thread has ended, or which is a zombie, still shows that one.
        (tid == pid && tree.node(pid).is_some())
            || tree.thread(tid).is_some_and(|thread| thread.process.pid == pid)
    }

    fn has_descriptor(&self, owner: Owner, fd: i32) -> bool {
        self.file_of(Node::Owned(owner, Entry::Descriptor(fd))).is_some()
    }

    fn has_network(&self) -> bool {
        super::network::private(self.kernel()).is_none()
    }

    fn has_all_memory(&self) -> bool {
        self.kernel().bounds.memory_bytes.is_none()
    }

    fn follow(&self, owner: Owner, entry: Entry) -> Result<Target<Anchor>, Errno> {
        let subject = self.subject(owner).map_err(|_| Errno::ENOENT)?;
        match entry {
            Entry::Link(Link::Executable) if subject.is_alive() => {
                let file = Arc::clone(&subject.process.program().file);
                Ok(Target::Anchor(Anchor::File(file)))
            }
            Entry::Link(Link::WorkingDirectory) => {
                let fs = subject.fs().ok_or(Errno::ENOENT)?;
                let fs = super::process::lock(&fs);
                Ok(match fs.proc_directory {
                    Some(node) => Target::Node(node),
                    None => Target::Anchor(Anchor::Directory(Arc::clone(&fs.cwd), fs.territory)),
                })
            }
            Entry::Descriptor(_) => {
                let file = self.file_of(Node::Owned(owner, entry)).ok_or(Errno::ENOENT)?;
                Ok(match file.proc().map(ProcFile::node) {
                    // An open link (O_PATH | O_NOFOLLOW) is itself, not what it leads to.
                    Some(node) if !node.is_link() => Target::Node(node),
                    _ => Target::Anchor(Anchor::File(file)),
                })
            }
            _ => Err(Errno::ENOENT),
        }
    }
}
