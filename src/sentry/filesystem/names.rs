//! From a descriptor to the path by which the guest knows the file.

use super::files::{c_string, descend, host_path, look_at};
use super::resolve::MOST_LOOKS;
use super::table::{MountId, MountTable, Place, What};
use crate::sentry::errno::Errno;
use std::os::fd::{AsFd as _, BorrowedFd};

/// What the kernel writes behind the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";
/// And in front of one that cannot be reached.
const UNREACHABLE: &[u8] = b"(unreachable)";

/// What is left of a path below a directory, without slashes in front; `None` if it is not below it.
fn strip(path: &[u8], directory: &[u8]) -> Option<Vec<u8>> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    let rest = path.strip_prefix(directory)?;
    match rest.first() {
        None => Some(Vec::new()),
        Some(b'/') => Some(rest[1..].to_vec()),
        Some(_) => None,
    }
}

impl MountTable {
    /// Where an open file is below its mount's root; `None` if it is not.
    ///
    /// Two paths are compared, each true for a moment: the root's is read again, in case it has been renamed in between.
    /// Nothing is opened by them but from the root, downwards.
    pub(super) fn path_in(
        &self,
        mount: MountId,
        file: BorrowedFd<'_>,
        is_deleted: bool,
    ) -> Result<Option<Vec<u8>>, Errno> {
        let What::Directory { root, .. } = &self.mount(mount)?.what else { return Ok(None) };
        let mut before = host_path(root.as_fd())?;
        // Whoever renames the root all the time does not keep the supervisor busy for ever.
        for _ in 0..MOST_LOOKS {
            let mut path = host_path(file)?;
            let after = host_path(root.as_fd())?;
            if before == after {
                if is_deleted && let Some(named) = path.strip_suffix(DELETED) {
                    path.truncate(named.len());
                }
                return Ok(strip(&path, &after));
            }
            before = after;
        }
        Err(Errno::ENOENT)
    }

    /// The guest's path of a mount; `None` for the root.
    pub(super) fn path_of_mount(&self, mount: MountId) -> Result<Option<Vec<u8>>, Errno> {
        let Some(point) = &self.mount(mount)?.on else { return Ok(None) };
        let parent = self.path_of(point.parent.mount, point.parent.directory.as_fd())?;
        let parent = if parent == b"/" { Vec::new() } else { parent };
        Ok(Some([&parent[..], b"/", &point.name].concat()))
    }

    /// The guest's path of a file in a mount, with what the kernel adds to one that has no name any more or has been
    /// moved out.
    pub(crate) fn path_of(&self, mount: MountId, file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let base = self.path_of_mount(mount)?.unwrap_or_default();
        let whole = |rest: Option<Vec<u8>>| match rest {
            Some(rest) if rest.is_empty() && base.is_empty() => b"/".to_vec(),
            Some(rest) if rest.is_empty() => base.clone(),
            Some(rest) => [&base[..], b"/", &rest].concat(),
            None => [UNREACHABLE, b"/"].concat(),
        };
        match &self.mount(mount)?.what {
            // The suffix of a file without a name stays: it is at the end either way.
            What::Directory { .. } => Ok(whole(self.path_in(mount, file, false)?)),
            _ => Ok(base),
        }
    }

    /// The path of a file that is in no mount: pipes and the like have a name, of others the guest learns the last part.
    pub(crate) fn path_outside(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let path = host_path(file)?;
        if !path.starts_with(b"/")
            || path.starts_with(b"/memfd:")
            || path.ends_with(DELETED) && !path[1..].contains(&b'/')
        {
            return Ok(path);
        }
        let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Ok([UNREACHABLE, b"/", last].concat())
    }

    /// In which mount a file is that came from somewhere else: if there are several, a read-only one, for that may be how
    /// it was opened; then the innermost.
    ///
    /// That the host's path says so is not enough (another mount namespace may have the same): the file has to be found
    /// there.
    pub(crate) fn mount_of(&self, file: BorrowedFd<'_>) -> Option<MountId> {
        let known = look_at(file).ok()?;
        let mut best: Option<((bool, usize), MountId)> = None;
        for (id, mount) in self.all() {
            let length = match &mount.what {
                What::Directory { root, .. } => {
                    let Ok(Some(path)) = self.path_in(id, file, false) else { continue };
                    let found = match &path[..] {
                        b"" => look_at(root.as_fd()),
                        path => descend(root.as_fd(), path, libc::O_NOFOLLOW)
                            .and_then(|found| look_at(found.as_fd())),
                    };
                    if !found.is_ok_and(|found| found.identity == known.identity) {
                        continue;
                    }
                    host_path(root.as_fd()).map_or(0, |path| path.len())
                }
                What::File { file, .. } => match look_at(file.as_fd()) {
                    Ok(bound) if bound.identity == known.identity => usize::MAX,
                    _ => continue,
                },
                What::Link { .. } | What::Proc => continue,
            };
            let rank = (mount.read_only, length);
            if best.is_none_or(|(highest, _)| rank >= highest) {
                best = Some((rank, id));
            }
        }
        best.map(|(_, id)| id)
    }

    /// The place of a directory of the host by the guest's own path for it, if it has one.
    pub(crate) fn place_of(&self, directory: BorrowedFd<'_>) -> Option<Place> {
        let mount = self.mount_of(directory)?;
        let path = self.path_of(mount, directory).ok()?;
        match self.walk(self.root(), &path, super::Last::Follow, &mut 0).ok()? {
            super::Reached::Object { file, mount } if look_at(file.as_fd()).ok()?.is_directory() => {
                Some(Place { mount, directory: file })
            }
            _ => None,
        }
    }

    /// Whether a file is there and may be executed by this process.
    pub(super) fn is_executable(&self, path: &std::path::Path) -> Option<bool> {
        use std::os::unix::ffi::OsStrExt as _;
        let path = c_string(path.as_os_str().as_bytes()).ok()?;
        let reached = self.walk(self.root(), path.to_bytes(), super::Last::Follow, &mut 0).ok()?;
        let super::Reached::Object { file, .. } = reached else { return None };
        if look_at(file.as_fd()).ok()?.kind != libc::S_IFREG {
            return None;
        }
        let by_descriptor = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
        Some(crate::sentry::host::faccessat2(file.as_fd(), c"", libc::X_OK as u32, by_descriptor).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::strip;

    #[test]
    fn a_path_is_below_a_directory_by_whole_names() {
        let strip = |path: &str, directory: &str| strip(path.as_bytes(), directory.as_bytes());
        assert_eq!(strip("/a/b/c", "/a/b"), Some(b"c".to_vec()));
        assert_eq!(strip("/a/b", "/a/b"), Some(Vec::new()));
        assert_eq!(strip("/a/bc", "/a/b"), None);
        assert_eq!(strip("/x", "/"), Some(b"x".to_vec()));
        assert_eq!(strip("/", "/"), Some(Vec::new()));
        assert_eq!(strip("pipe:[1]", "/"), None);
    }
}
