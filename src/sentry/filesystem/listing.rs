//! What the guest's `/proc` says of its mounts: `mounts`, `mountinfo`, `mountstats`.

use super::files::{host_path, look_at};
use super::table::{MountId, MountTable, What};
use std::fmt::Write as _;

/// The files of `/proc` that list mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountList {
    Mounts,
    MountInfo,
    MountStats,
}

impl MountList {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "mounts" => Some(MountList::Mounts),
            "mountinfo" => Some(MountList::MountInfo),
            "mountstats" => Some(MountList::MountStats),
            _ => None,
        }
    }
}

/// One line of any of them.
struct Line {
    number: usize,
    parent: usize,
    device: u64,
    path: Vec<u8>,
    kind: String,
    read_only: bool,
}

impl MountTable {
    /// The text of a list of mounts, as the guest is to see them.
    pub(crate) fn list(&self, list: MountList) -> Vec<u8> {
        // The kernel numbers mounts upwards from some number; ours need only differ.
        const FIRST: usize = 20;
        let host = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut text = String::new();
        for (id, mount) in self.all() {
            let (device, kind) = match &mount.what {
                What::Directory { root: file, .. } | What::File { file, .. } => {
                    let device = look_at(file.as_fd()).map_or(0, |known| known.identity.device);
                    (
                        device,
                        host_path(file.as_fd())
                            .map_or_else(|_| "none".to_owned(), |path| kind_at(&host, &path)),
                    )
                }
                What::Proc => (0, "proc".to_owned()),
                What::Link { .. } => continue,
            };
            let path = self.path_of_mount(id).ok().flatten().unwrap_or_else(|| b"/".to_vec());
            let parent = mount.on.as_ref().map_or(MountId(0), |on| on.parent.mount);
            let (number, parent) = (FIRST + id.0, if id.0 == 0 { 1 } else { FIRST + parent.0 });
            let line = Line { number, parent, device, path, kind, read_only: mount.read_only };
            line.write(list, &mut text);
        }
        text.into_bytes()
    }
}

impl Line {
    fn write(&self, list: MountList, text: &mut String) {
        let Line { number, parent, device, kind, .. } = self;
        let path = escaped(&self.path);
        let access = if self.read_only { "ro" } else { "rw" };
        let (major, minor) = (libc::major(*device), libc::minor(*device));
        let _ = match list {
            MountList::Mounts => writeln!(text, "none {path} {kind} {access},relatime 0 0"),
            MountList::MountInfo => writeln!(
                text,
                "{number} {parent} {major}:{minor} / {path} {access},relatime - {kind} none {access}"
            ),
            MountList::MountStats => writeln!(text, "device none mounted on {path} with fstype {kind}"),
        };
    }
}

/// As the kernel writes paths into these lists (`mangle_path`).
fn escaped(path: &[u8]) -> String {
    let mut text = String::new();
    for part in path.utf8_chunks() {
        for letter in part.valid().chars() {
            let _ = match letter {
                ' ' | '\t' | '\n' | '\\' | '#' => write!(text, "\\{:03o}", letter as u32),
                other => write!(text, "{other}"),
            };
        }
        for byte in part.invalid() {
            let _ = write!(text, "\\{byte:03o}");
        }
    }
    text
}

/// The type of the file system that the host has at a path: that of the innermost mount.
fn kind_at(mountinfo: &str, path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let is_below = |mount: &str| {
        mount == "/" || path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut best = (0, "none");
    for line in mountinfo.lines() {
        let Some((mount, kind)) = mount_and_kind(line) else { continue };
        if is_below(mount) && mount.len() >= best.0 {
            best = (mount.len(), kind);
        }
    }
    best.1.to_owned()
}

fn mount_and_kind(line: &str) -> Option<(&str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    Some((before.split(' ').nth(4)?, after.split(' ').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_says_the_type() {
        let host = "21 1 0:1 / / rw - overlay o rw\n22 21 0:2 / /a rw shared:1 - tmpfs t rw\n";
        assert_eq!(kind_at(host, b"/a/b"), "tmpfs");
        assert_eq!(kind_at(host, b"/ab"), "overlay");
        assert_eq!(kind_at("", b"/ab"), "none");
    }

    #[test]
    fn lines_are_as_the_kernel_writes_them() {
        let line = |read_only| Line {
            number: 22,
            parent: 20,
            device: 0,
            path: b"/a b".to_vec(),
            kind: "tmpfs".into(),
            read_only,
        };
        let mut text = String::new();
        line(true).write(MountList::Mounts, &mut text);
        line(false).write(MountList::MountInfo, &mut text);
        line(false).write(MountList::MountStats, &mut text);
        assert_eq!(
            text,
            "none /a\\040b tmpfs ro,relatime 0 0\n\
             22 20 0:0 / /a\\040b rw,relatime - tmpfs none rw\n\
             device none mounted on /a\\040b with fstype tmpfs\n"
        );
    }
}
