//! What an embedder says of the guest's file system.

use crate::sentry::errno::Errno;
use std::path::{Path, PathBuf};

/// Whether a guest may change what is in a directory that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Every change fails with `EROFS`, as on a read-only mount: device nodes, FIFOs and sockets can be written to.
    ReadOnly,
    /// What the host allows this process.
    ReadWrite,
}

/// One directory or file of the host's at a place of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) access: Access,
}

/// The file system that a guest sees: a root, and what is bound into it (mount(8), `--bind`).
///
/// The guest cannot leave it: whatever links, `..`, magic links, renames or passed descriptors it uses, a path ends below
/// the root or in one of the binds. No privilege and no namespace is needed, and nothing is mounted on the host. What a
/// guest does with processes, sockets and IPC is not a matter of its file system.
///
/// * `/proc` is the guest's own, whether or not the root has such a directory; of the host it shows the machine, to read
///   only, and no processes.
/// * A directory that is not below the root or a bind cannot be had as a descriptor either: one that this process would
///   hand to the guest, or that comes through a Unix socket, is closed.
/// * A file from outside that the guest is given (its standard output, for example) can be used as the descriptor allows,
///   and opened again by its link in `/proc` with no more rights than that.
/// * Device nodes in the root work as they do on the host; none can be made.
///
/// ```no_run
/// use systrap::sentry::{Access, Guest, Mounts};
///
/// let mounts = Mounts::new("/srv/debian").devices().read_only().bind("/tmp/work", "/work", Access::ReadWrite);
/// let outcome = Guest::new(c"/bin/sh").args([c"sh", c"-c", c"ls /work"]).mounts(mounts).run()?;
/// # Ok::<(), systrap::sentry::RunError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    pub(super) root: PathBuf,
    pub(super) access: Access,
    pub(super) devices: bool,
    pub(super) binds: Vec<Bind>,
}

impl Mounts {
    /// A file system whose root is this directory of the host; `/` for the host's own, into which can be bound.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), access: Access::ReadWrite, devices: false, binds: Vec::new() }
    }

    /// Makes the root read-only. What is bound into it is not.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }

    /// Puts the devices that programs rely on into the root's `/dev`, where there is such a directory: `null`, `zero`,
    /// `full`, `random`, `urandom`, `tty`, `ptmx` and `pts` of the host, and the links `fd`, `stdin`, `stdout` and
    /// `stderr`. A terminal in `pts` can be opened while somebody in the guest has it, or its other end, open; those of
    /// others cannot.
    #[must_use]
    pub fn devices(mut self) -> Self {
        self.devices = true;
        self
    }

    /// Shows a directory or file of the host at a path of the guest, over what is there. The directory that the path is in
    /// has to exist; what is bound later is found within, or covers, what was bound before.
    #[must_use]
    pub fn bind(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>, access: Access) -> Self {
        self.binds.push(Bind { source: source.into(), target: target.into(), access });
        self
    }

    /// Finds a program by its name as a shell does, in the directories of a `PATH` as the guest sees them. A name with a
    /// slash is a path already. `None` if there is no such program.
    ///
    /// # Errors
    ///
    /// A directory or file of these mounts cannot be used.
    pub fn find_program(&self, name: &Path, path: &std::ffi::OsStr) -> Result<Option<PathBuf>, MountError> {
        use std::os::unix::ffi::OsStrExt as _;
        if name.as_os_str().as_bytes().contains(&b'/') {
            return Ok(Some(name.to_owned()));
        }
        let table = super::MountTable::new(self)?;
        let mut refused = None;
        for directory in std::env::split_paths(path).filter(|path| path.is_absolute()) {
            let candidate = directory.join(name);
            match table.is_executable(&candidate) {
                Some(true) => return Ok(Some(candidate)),
                // A file that is there but not executable is reported if nothing better follows.
                Some(false) => refused = refused.or(Some(candidate)),
                None => {}
            }
        }
        Ok(refused)
    }
}

/// Why a guest's file system cannot be made.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MountError {
    /// The root cannot be opened.
    #[error("root {}: {}: name a directory that is there and that you may search", path.display(), errno.message())]
    Root {
        /// The directory.
        path: PathBuf,
        /// What the host said.
        errno: Errno,
    },
    /// What is to be bound cannot be opened.
    #[error("bind {}: {}: name a directory or file that is there", path.display(), errno.message())]
    Source {
        /// The directory or file.
        path: PathBuf,
        /// What the host said.
        errno: Errno,
    },
    /// A bind's place in the guest cannot be used.
    #[error("bind at {}: {}: make its parent directory in the root", path.display(), errno.message())]
    Target {
        /// The path in the guest.
        path: PathBuf,
        /// What looking for it said.
        errno: Errno,
    },
    /// The path is not absolute, or is the root itself.
    #[error("bind at {}: give an absolute path below /", path.display())]
    NotBelowRoot {
        /// The path in the guest.
        path: PathBuf,
    },
    /// A directory was to be bound over a file, or the other way round.
    #[error("bind at {}: a directory goes on a directory, a file on a file", path.display())]
    Mismatch {
        /// The path in the guest.
        path: PathBuf,
    },
    /// The host's `/proc` was to be bound, or to be the root.
    #[error("{}: a proc file system would show the supervisor: the guest has its own /proc", path.display())]
    Proc {
        /// The directory or file.
        path: PathBuf,
    },
    /// The host's kernel has no `openat2`, or a filter forbids it.
    #[error("openat2: {}: a guest with a root of its own needs Linux 5.6 or later", errno.message())]
    Unsupported {
        /// What the host said.
        errno: Errno,
    },
}
