//! Making the mount table from what the embedder says.

use super::files::{c_string, descend, is_on_proc, look_at, open_host};
use super::mounts::{Access, Bind, MountError, Mounts};
use super::resolve::{Last, Reached};
use super::sockets::SocketNames;
use super::table::{Mount, MountId, MountTable, Place, Point, What};
use crate::sentry::errno::Errno;
use crate::sentry::task::Directory;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What [`Mounts::devices`] puts into `/dev`.
const DEVICES: [&str; 8] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", TERMINALS];
const TERMINALS: &str = "pts";
const LINKS: [(&str, &[u8]); 4] = [
    ("fd", b"/proc/self/fd"),
    ("stdin", b"/proc/self/fd/0"),
    ("stdout", b"/proc/self/fd/1"),
    ("stderr", b"/proc/self/fd/2"),
];

impl MountTable {
    pub(crate) fn new(mounts: &Mounts) -> Result<Self, MountError> {
        let fail = |errno| MountError::Root { path: mounts.root.clone(), errno };
        let root: Directory = open_absolute(&mounts.root).map_err(fail)?.into();
        let known = look_at(root.as_fd()).map_err(fail)?;
        if !known.is_directory() {
            return Err(fail(Errno::ENOTDIR));
        }
        if is_on_proc(root.as_fd()).map_err(fail)? {
            return Err(MountError::Proc { path: mounts.root.clone() });
        }
        descend(root.as_fd(), b".", libc::O_DIRECTORY).map_err(|errno| match errno {
            Errno::EACCES => fail(errno),
            errno => MountError::Unsupported { errno },
        })?;
        let host_proc = open_absolute(Path::new("/proc")).map_err(fail)?;
        let place = Place { mount: MountId(0), directory: root.clone() };
        let what = What::Directory { root, identity: known.identity };
        let first = Mount { what, read_only: mounts.access == Access::ReadOnly, on: None };
        let mut table = Self {
            mounts: vec![first],
            root: place,
            terminals: None,
            host_proc,
            sockets: SocketNames::default(),
        };
        table.put(What::Proc, false, table.root(), b"proc").map_err(fail)?;
        if mounts.devices {
            table.put_devices().map_err(fail)?;
        }
        for bind in &mounts.binds {
            table.bind(bind)?;
        }
        Ok(table)
    }

    fn put(&mut self, what: What, read_only: bool, parent: Place, name: &[u8]) -> Result<(), Errno> {
        let identity = look_at(parent.directory.as_fd())?.identity;
        let on = Some(Point { parent, identity, name: name.to_vec() });
        self.mounts.push(Mount { what, read_only, on });
        Ok(())
    }

    /// A root without `/dev` gets no devices. Their own attributes are not the guest's to change.
    fn put_devices(&mut self) -> Result<(), Errno> {
        let Ok(Reached::Object { file, mount }) = self.walk(self.root(), b"/dev", Last::Follow, &mut 0)
        else {
            return Ok(());
        };
        if !look_at(file.as_fd())?.is_directory() {
            return Ok(());
        }
        let place = Place { mount, directory: file };
        for name in DEVICES {
            // A host without one has none to give.
            if let Ok(what) = source(&Path::new("/dev").join(name)) {
                self.put(what, true, place.clone(), name.as_bytes())?;
                if name == TERMINALS {
                    self.terminals = self.mounts.len().checked_sub(1).map(MountId);
                }
            }
        }
        let directory: Directory = open_absolute(Path::new("/dev"))?.into();
        for (name, target) in LINKS {
            let what = What::Link { directory: directory.clone(), name: c_string(name.as_bytes())?, target };
            self.put(what, true, place.clone(), name.as_bytes())?;
        }
        Ok(())
    }

    fn bind(&mut self, bind: &Bind) -> Result<(), MountError> {
        let path = || bind.target.clone();
        if !bind.target.is_absolute() || bind.target.file_name().is_none() {
            return Err(MountError::NotBelowRoot { path: path() });
        }
        let fail = |errno| MountError::Target { path: path(), errno };
        let failed_source = |errno| MountError::Source { path: bind.source.clone(), errno };
        let what = source(&bind.source).map_err(failed_source)?;
        let file = match &what {
            What::Directory { root, .. } => root,
            What::File { file, .. } => file,
            What::Link { .. } | What::Proc => return Err(failed_source(Errno::EINVAL)),
        };
        if is_on_proc(file.as_fd()).map_err(failed_source)? {
            return Err(MountError::Proc { path: bind.source.clone() });
        }
        let target = bind.target.as_os_str().as_bytes();
        let (place, name) = match self.walk(self.root(), target, Last::Create, &mut 0).map_err(fail)? {
            Reached::Name { place, name, .. } => (place, name.into_bytes()),
            Reached::Proc { .. } => return Err(fail(Errno::EPERM)),
            Reached::Object { file, mount } => {
                let is_directory = look_at(file.as_fd()).map_err(fail)?.is_directory();
                if is_directory != matches!(what, What::Directory { .. }) {
                    return Err(MountError::Mismatch { path: path() });
                }
                // Where it really is, all links followed.
                let real = self.path_of(mount, file.as_fd()).map_err(fail)?;
                match self.walk(self.root(), &real, Last::Name, &mut 0).map_err(fail)? {
                    Reached::Name { place, name, .. } => (place, name.into_bytes()),
                    _ => return Err(MountError::NotBelowRoot { path: path() }),
                }
            }
        };
        self.put(what, bind.access == Access::ReadOnly, place, &name).map_err(fail)
    }
}

fn open_absolute(path: &Path) -> Result<OwnedFd, Errno> {
    open_host(&std::path::absolute(path)?)
}

/// Opens what is to be mounted.
fn source(path: &Path) -> Result<What, Errno> {
    let file: Directory = open_absolute(path)?.into();
    let known = look_at(file.as_fd())?;
    if known.is_directory() {
        return Ok(What::Directory { root: file, identity: known.identity });
    }
    let real = std::fs::canonicalize(path)?;
    let (directory, name) = real.parent().zip(real.file_name()).ok_or(Errno::ENOENT)?;
    Ok(What::File { file, directory: open_absolute(directory)?.into(), name: c_string(name.as_bytes())? })
}
