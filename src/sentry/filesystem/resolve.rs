//! From a path to what it names in the guest's file system (fs/namei.c `link_path_walk`).

use super::files::{self, c_string, descend, is_on_proc, link_text, look_above, look_at, open_name};
use super::table::{MountId, MountTable, Place, What};
use crate::sentry::errno::Errno;
use crate::sentry::task::Directory;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// The most links that one path follows (`MAXSYMLINKS`).
pub(super) const MOST_LINKS: usize = 40;

/// How often the directory above another is looked for while others rename. Each time is a chance of its own.
pub(super) const MOST_LOOKS: usize = 1000;

/// What a call wants with the last name of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// The file itself; a link is followed.
    Follow,
    /// The same, but there need not be one.
    Create,
    /// What the name stands for, a link included.
    NoFollow,
    /// The name: to be made, removed or renamed.
    Name,
}

/// What a path names.
#[derive(Debug)]
pub(crate) enum Reached {
    /// A file or directory, pinned.
    Object { file: Directory, mount: MountId },
    /// A name in a directory. It holds no slash but maybe one at its end, and is no path to anywhere else for calls that
    /// follow no link.
    Name { place: Place, name: CString, covered: bool },
    /// What is left of the path goes on in the guest's `/proc`.
    Proc { rest: Vec<u8> },
}

/// A path in two: the directory, and the last name; `None` if the last is no name or ends with a slash.
fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (head, name) = path.split_at(start);
    if matches!(name, b"" | b"." | b"..") { None } else { Some((head, name)) }
}

fn trim_slashes(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    &path[start..]
}

impl MountTable {
    /// Follows a path from a directory, or from the guest's root if it is absolute. `links` counts what it has followed.
    pub(crate) fn walk(
        &self,
        start: Place,
        path: &[u8],
        last: Last,
        links: &mut usize,
    ) -> Result<Reached, Errno> {
        let mut at = if path.starts_with(b"/") { self.root() } else { start };
        let mut rest = path.to_vec();
        let mut try_run = true;
        loop {
            let path = trim_slashes(&rest);
            if path.is_empty() {
                return self.object(at.directory, at.mount);
            }
            if std::mem::take(&mut try_run)
                && let Some(reached) = self.run(&at, path, last)?
            {
                return Ok(reached);
            }
            let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
            let (name, after) = path.split_at(end);
            let is_last = trim_slashes(after).is_empty();
            let has_slash = !after.is_empty();
            let named = |at: &Place, covered| self.name(at, &path[..end + usize::from(has_slash)], covered);
            if is_last && last == Last::Name && matches!(name, b"." | b"..") {
                // No call makes, removes or renames these; each has an errno of its own for them.
                return named(&at, false);
            }
            match name {
                b"." => {}
                b".." => at = self.above(&at)?,
                _ => match self.step(&at, name, is_last, has_slash, last)? {
                    Step::Directory(place) => at = place,
                    Step::End(reached) => return Ok(reached),
                    Step::Name { covered } => return named(&at, covered),
                    Step::Proc => return Ok(Reached::Proc { rest: after.to_vec() }),
                    Step::Link(target) => {
                        *links += 1;
                        if *links > MOST_LINKS {
                            return Err(Errno::ELOOP);
                        }
                        if target.starts_with(b"/") {
                            at = self.root();
                        }
                        rest = [&target[..], after].concat();
                        try_run = true;
                        continue;
                    }
                },
            }
            rest = after.to_vec();
        }
    }

    fn object(&self, file: Directory, mount: MountId) -> Result<Reached, Errno> {
        self.refuse_proc(file.as_fd(), mount)?;
        Ok(Reached::Object { file, mount })
    }

    fn name(&self, at: &Place, name: &[u8], covered: bool) -> Result<Reached, Errno> {
        self.refuse_proc(at.directory.as_fd(), at.mount)?;
        Ok(Reached::Name { place: at.clone(), name: c_string(name)?, covered })
    }

    /// The host's `/proc` may lie below a mount. Its files show the supervisor, and some are ways to change it: the guest
    /// has its own.
    fn refuse_proc(&self, file: BorrowedFd<'_>, mount: MountId) -> Result<(), Errno> {
        let device = match &self.mount(mount)?.what {
            What::Directory { identity, .. } => Some(identity.device),
            _ => None,
        };
        let elsewhere = Some(look_at(file)?.identity.device) != device;
        if elsewhere && is_on_proc(file)? { Err(Errno::EACCES) } else { Ok(()) }
    }

    /// Goes a whole path in one host call, if it can be: no `..`, no link, no mount on the way. `None` if it has to be
    /// taken name by name.
    fn run(&self, at: &Place, path: &[u8], last: Last) -> Result<Option<Reached>, Errno> {
        let special = |name: &[u8]| name == b".." || self.may_be_mounted_on(at.mount, name);
        if path.split(|byte| *byte == b'/').any(special) {
            return Ok(None);
        }
        let directory = at.directory.as_fd();
        if last == Last::Follow {
            return match plain(descend(directory, path, 0))? {
                Some(file) => self.object(file.into(), at.mount).map(Some),
                None => Ok(None),
            };
        }
        let Some((head, name)) = split_last(path) else { return Ok(None) };
        let place = match head {
            b"" => at.clone(),
            head => match plain(descend(directory, head, libc::O_DIRECTORY))? {
                Some(directory) => Place { mount: at.mount, directory: directory.into() },
                None => return Ok(None),
            },
        };
        if last != Last::Create {
            return self.name(&place, name, false).map(Some);
        }
        match plain(descend(place.directory.as_fd(), name, 0)) {
            Ok(Some(file)) => self.object(file.into(), at.mount).map(Some),
            Ok(None) => Ok(None),
            Err(Errno::ENOENT) => self.name(&place, name, false).map(Some),
            Err(errno) => Err(errno),
        }
    }

    /// Takes one name that is neither `.` nor `..`.
    fn step(
        &self,
        at: &Place,
        name: &[u8],
        is_last: bool,
        has_slash: bool,
        last: Last,
    ) -> Result<Step, Errno> {
        let mounted = self.mounted_on(at, name)?;
        if is_last && last == Last::Name {
            return Ok(Step::Name { covered: mounted.is_some() });
        }
        let ends = is_last && !has_slash;
        if let Some(id) = mounted {
            return match &self.mount(id)?.what {
                What::Directory { root, .. } => {
                    Ok(Step::Directory(Place { mount: id, directory: root.clone() }))
                }
                What::Proc => Ok(Step::Proc),
                What::File { directory, name, .. } | What::Link { directory, name, .. }
                    if ends && last == Last::NoFollow =>
                {
                    let place = Place { mount: id, directory: directory.clone() };
                    Ok(Step::End(Reached::Name { place, name: name.clone(), covered: true }))
                }
                What::File { file, .. } if ends => {
                    Ok(Step::End(Reached::Object { file: file.clone(), mount: id }))
                }
                What::File { .. } => Err(Errno::ENOTDIR),
                What::Link { target, .. } => Ok(Step::Link(target.to_vec())),
            };
        }
        if ends && last == Last::NoFollow {
            return Ok(Step::Name { covered: false });
        }
        let file = match open_name(at.directory.as_fd(), name) {
            // With a slash at the end it would have to be a directory, which open does not make.
            Err(Errno::ENOENT) if is_last && last == Last::Create && has_slash => return Err(Errno::EISDIR),
            Err(Errno::ENOENT) if is_last && last == Last::Create => {
                return Ok(Step::Name { covered: false });
            }
            other => other?,
        };
        let known = look_at(file.as_fd())?;
        match known.kind {
            libc::S_IFDIR => Ok(Step::Directory(Place { mount: at.mount, directory: file.into() })),
            libc::S_IFLNK => {
                // What such a link says is not where it leads.
                self.refuse_proc(file.as_fd(), at.mount)?;
                match link_text(file.as_fd())? {
                    target if target.is_empty() => Err(Errno::ENOENT),
                    target => Ok(Step::Link(target)),
                }
            }
            _ if ends => self.object(file.into(), at.mount).map(Step::End),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The directory above another (`..`): at a mount's root the one that it is mounted in, and never one that is not
    /// below the mount's root, wherever the directory has been moved (fs/namei.c `path_connected`).
    ///
    /// The host is not asked to open `..`, whose answer would be right only for a moment. It says where the directory is,
    /// and what is opened is opened from the mount's root, downwards; then it is compared.
    pub(super) fn above(&self, at: &Place) -> Result<Place, Errno> {
        let mount = self.mount(at.mount)?;
        let What::Directory { root, identity } = &mount.what else { return Err(Errno::ENOTDIR) };
        let known = look_at(at.directory.as_fd())?;
        if known.identity == *identity {
            return Ok(match &mount.on {
                None => self.root(),
                Some(point) => point.parent.clone(),
            });
        }
        for _ in 0..MOST_LOOKS {
            let mut path =
                self.path_in(at.mount, at.directory.as_fd(), known.links == 0)?.ok_or(Errno::ENOENT)?;
            let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            path.truncate(end);
            let opened = match &path[..] {
                b"" => root.clone(),
                path => match descend(root.as_fd(), path, libc::O_DIRECTORY) {
                    Ok(opened) => opened.into(),
                    // Renamed meanwhile.
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                    Err(errno) => return Err(errno),
                },
            };
            if look_at(opened.as_fd())?.identity == look_above(at.directory.as_fd())? {
                self.refuse_proc(opened.as_fd(), at.mount)?;
                return Ok(Place { mount: at.mount, directory: opened });
            }
        }
        Err(Errno::ENOENT)
    }

    /// What the guest sees of the host's `/proc`: what is there by itself, and no link.
    pub(super) fn walk_host_proc(&self, path: &[u8], last: Last) -> Result<Reached, Errno> {
        let path = trim_slashes(path);
        let directory = self.host_proc.as_fd();
        let mount = self.root.mount;
        match split_last(path) {
            Some((head, name)) if matches!(last, Last::NoFollow | Last::Name) => {
                let directory = if head.is_empty() {
                    descend(directory, b".", 0)
                } else {
                    descend(directory, head, libc::O_DIRECTORY)
                }?;
                let place = Place { mount, directory: directory.into() };
                Ok(Reached::Name { place, name: c_string(name)?, covered: false })
            }
            _ => match files::descend(directory, path, 0) {
                Ok(file) => Ok(Reached::Object { file: file.into(), mount }),
                Err(Errno::ELOOP) => Err(Errno::EACCES),
                Err(errno) => Err(errno),
            },
        }
    }
}

enum Step {
    Directory(Place),
    Link(Vec<u8>),
    Name { covered: bool },
    Proc,
    End(Reached),
}

/// A run of names: `None` for one that has to be taken name by name after all.
fn plain(opened: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Errno> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(Errno::ELOOP | Errno::EXDEV | Errno::EAGAIN | Errno::ENAMETOOLONG) => Ok(None),
        Err(errno) => Err(errno),
    }
}
