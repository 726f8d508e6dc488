//! The resolver against the kernel's own: `openat2` with `RESOLVE_IN_ROOT`, on random trees of directories and links.

use super::files::{Identity, look_at, open_name};
use super::resolve::{Last, Reached};
use super::table::{MountTable, Place};
use super::{Access, MountError, Mounts};
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::task::Directory;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

/// A small generator of random numbers (xorshift64*), so that a case can be had again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    fn pick<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.below(names.len())]
    }

    /// A path of a few names; not all of them are anywhere.
    fn path(&mut self) -> String {
        const NAMES: [&str; 9] = ["a", "b", "c", "d", "link", "x", "..", "..", "."];
        let mut path = self.pick(&["", "", "/", "//"]).to_owned();
        for _ in 0..=self.below(6) {
            path += self.pick(&NAMES);
            path += self.pick(&["/", "/", "/", "//"]);
        }
        if self.below(4) != 0 {
            path.truncate(path.trim_end_matches('/').len().max(1));
        }
        path
    }
}

/// Fills a directory with directories, files and links, to whatever paths.
fn grow(random: &mut Random, directory: &Path, depth: usize) {
    for name in ["a", "b", "c", "d", "link"] {
        let path = directory.join(name);
        match random.below(6) {
            0 | 1 if depth > 0 => {
                std::fs::create_dir(&path).unwrap();
                grow(random, &path, depth - 1);
            }
            2 => std::fs::write(&path, name).unwrap(),
            3 | 4 => std::os::unix::fs::symlink(random.path(), &path).unwrap(),
            _ => {}
        }
    }
}

fn identity(file: BorrowedFd<'_>) -> Identity {
    look_at(file).unwrap().identity
}

/// What the kernel finds below a root; links of `/proc` are none of its business.
fn kernels(root: BorrowedFd<'_>, path: &str, flags: i32, mode: u32) -> Result<Identity, Errno> {
    const RESOLVE_NO_MAGICLINKS: u64 = 2;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let mut how = [0; 24];
    how[..8].copy_from_slice(&(flags as u64 | libc::O_CLOEXEC as u64).to_ne_bytes());
    how[8..16].copy_from_slice(&u64::from(mode).to_ne_bytes());
    how[16..].copy_from_slice(&(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).to_ne_bytes());
    let path = CString::new(path).unwrap();
    host::openat2(root, &path, &how, how.len()).map(|file| identity(file.as_fd()))
}

/// What the resolver finds; a name is looked up, without following it.
fn ours(table: &MountTable, start: Place, path: &str, last: Last) -> Result<Identity, Errno> {
    match table.walk(start, path.as_bytes(), last, &mut 0)? {
        Reached::Object { file, .. } => Ok(identity(file.as_fd())),
        Reached::Name { place, name, .. } => {
            open_name(place.directory.as_fd(), name.to_bytes()).map(|file| identity(file.as_fd()))
        }
        Reached::Proc { .. } => panic!("{path} is not in /proc"),
    }
}

struct Tree {
    directory: tempfile::TempDir,
    table: MountTable,
}

impl Tree {
    fn new(random: &mut Random) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("root")).unwrap();
        grow(random, &directory.path().join("root"), 3);
        // What would be found if anything led out.
        grow(random, directory.path(), 0);
        let table = MountTable::new(&Mounts::new(directory.path().join("root"))).unwrap();
        Self { directory, table }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join("root").join(below)
    }

    fn root(&self) -> Directory {
        self.table.root().directory
    }
}

#[test]
fn paths_from_the_root_lead_where_the_kernel_says() {
    let (mut found, mut missing, mut loops) = (0, 0, 0);
    for seed in 1..=60 {
        let mut random = Random(seed * 0x9e37_79b9);
        let tree = Tree::new(&mut random);
        for _ in 0..100 {
            let path = random.path();
            for (last, flags) in
                [(Last::Follow, libc::O_PATH), (Last::NoFollow, libc::O_PATH | libc::O_NOFOLLOW)]
            {
                let wanted = kernels(tree.root().as_fd(), &path, flags, 0);
                let got = ours(&tree.table, tree.table.root(), &path, last);
                assert_eq!(got, wanted, "seed {seed}, {path:?}, {last:?}, {:?}", tree.directory.path());
                match got {
                    Ok(_) => found += 1,
                    Err(Errno::ELOOP) => loops += 1,
                    Err(_) => missing += 1,
                }
            }
        }
    }
    assert!(found > 1000 && missing > 1000 && loops > 10, "{found} {missing} {loops}");
}

#[test]
fn paths_from_a_directory_lead_where_they_would_from_the_root() {
    for seed in 1..=40 {
        let mut random = Random(seed * 0x517c_c1b7);
        let tree = Tree::new(&mut random);
        for _ in 0..60 {
            // The kernel is given both in one path: its root and its start are the same directory.
            let (base, path) = (random.path(), random.path());
            let reached = tree.table.walk(tree.table.root(), base.as_bytes(), Last::Follow, &mut 0);
            let Ok(Reached::Object { file, mount }) = reached else { continue };
            if !look_at(file.as_fd()).unwrap().is_directory() {
                continue;
            }
            let whole = if path.starts_with('/') { path.clone() } else { format!("{base}/{path}") };
            let wanted = kernels(tree.root().as_fd(), &whole, libc::O_PATH, 0);
            let got = ours(&tree.table, Place { mount, directory: file }, &path, Last::Follow);
            assert_eq!(got, wanted, "seed {seed}, {base:?}, {path:?}");
        }
    }
}

#[test]
fn new_files_are_made_where_the_kernel_makes_them() {
    for seed in 1..=40 {
        let mut random = Random(seed * 0x2127_5995);
        let tree = Tree::new(&mut random);
        for _ in 0..40 {
            let path = random.path();
            let reached = tree.table.walk(tree.table.root(), path.as_bytes(), Last::Create, &mut 0);
            let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_NONBLOCK;
            let made = kernels(tree.root().as_fd(), &path, flags, 0o600);
            match (reached, made) {
                (Ok(Reached::Object { file, .. }), Ok(wanted)) => {
                    assert_eq!(identity(file.as_fd()), wanted, "seed {seed}, {path:?}");
                }
                (Ok(Reached::Name { place, name, .. }), Ok(wanted)) => {
                    let file = open_name(place.directory.as_fd(), name.to_bytes()).unwrap();
                    assert_eq!(identity(file.as_fd()), wanted, "seed {seed}, {path:?}");
                    // The next path finds the tree as this one did.
                    host::unlinkat(place.directory.as_fd(), &name, 0).unwrap();
                }
                // A directory cannot be opened so; it has been found.
                (Ok(Reached::Object { file, .. }), Err(Errno::EISDIR)) => {
                    assert!(look_at(file.as_fd()).unwrap().is_directory(), "seed {seed}, {path:?}");
                }
                // The kernel says of a path with a slash at its end that it names a directory, before it looks.
                (_, Err(Errno::EISDIR)) => assert!(path.ends_with('/'), "seed {seed}, {path:?}"),
                (Err(got), Err(wanted)) => assert_eq!(got, wanted, "seed {seed}, {path:?}"),
                (reached, made) => panic!("seed {seed}, {path:?}: {reached:?}, {made:?}"),
            }
        }
    }
}

#[test]
fn a_directory_and_its_path_are_found_by_each_other() {
    let tree = Tree::new(&mut Random(7));
    std::fs::create_dir_all(tree.path("deep/er")).unwrap();
    let opened = std::fs::File::open(tree.path("deep/er")).unwrap();
    let mount = tree.table.mount_of(opened.as_fd()).expect("it is below the root");
    assert_eq!(tree.table.path_of(mount, opened.as_fd()).unwrap(), b"/deep/er");
    let outside = std::fs::File::open(tree.directory.path()).unwrap();
    assert_eq!(tree.table.mount_of(outside.as_fd()), None);
    std::fs::rename(tree.path("deep/er"), tree.directory.path().join("away")).unwrap();
    assert_eq!(tree.table.path_of(mount, opened.as_fd()).unwrap(), b"(unreachable)/");
    let place = Place { mount, directory: Directory::from(std::os::fd::OwnedFd::from(opened)) };
    assert_eq!(ours(&tree.table, place, "..", Last::Follow), Err(Errno::ENOENT));
}

#[test]
fn a_mount_covers_a_name_and_goes_with_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = |below: &str| directory.path().join(below);
    for below in ["root/on/point", "other/inner"] {
        std::fs::create_dir_all(path(below)).unwrap();
    }
    std::fs::write(path("file"), "").unwrap();
    let mounts = Mounts::new(path("root")).bind(path("other"), "/on/point", Access::ReadOnly).bind(
        path("file"),
        "/on/new",
        Access::ReadWrite,
    );
    let table = MountTable::new(&mounts).unwrap();
    let find = |path: &str| ours(&table, table.root(), path, Last::Follow);
    let identity_of = |below: &str| identity(std::fs::File::open(path(below)).unwrap().as_fd());
    assert_eq!(find("/on/point/inner"), Ok(identity_of("other/inner")));
    assert_eq!(find("/on/point/inner/../../new"), Ok(identity_of("file")));
    assert_eq!(find("/on/point/.."), Ok(identity_of("root/on")));
    std::fs::rename(path("root/on"), path("root/moved")).unwrap();
    assert_eq!(find("/moved/point/inner"), Ok(identity_of("other/inner")));
    assert_eq!(find("/moved/new/x"), Err(Errno::ENOTDIR));
    let Ok(Reached::Name { covered: true, .. }) =
        table.walk(table.root(), b"/moved/point", Last::Name, &mut 0)
    else {
        panic!("the name is covered");
    };
}

#[test]
fn bad_mounts_are_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("there")).unwrap();
    let root = || Mounts::new(directory.path());
    let error = |mounts: Mounts| MountTable::new(&mounts).err();
    let none = directory.path().join("none");
    let errno = Errno::ENOENT;
    assert_eq!(error(Mounts::new(&none)), Some(MountError::Root { path: none.clone(), errno }));
    let bind = |target: &str| error(root().bind(directory.path(), target, Access::ReadWrite));
    assert_eq!(
        error(root().bind(&none, "/there", Access::ReadOnly)),
        Some(MountError::Source { path: none, errno })
    );
    assert_eq!(bind("/none/there"), Some(MountError::Target { path: "/none/there".into(), errno }));
    assert_eq!(bind("there"), Some(MountError::NotBelowRoot { path: "there".into() }));
    assert_eq!(bind("/"), Some(MountError::NotBelowRoot { path: "/".into() }));
    assert_eq!(bind("/there"), None);
    assert_eq!(error(Mounts::new("/proc")), Some(MountError::Proc { path: "/proc".into() }));
    let file = root().bind("/dev/null", "/there", Access::ReadWrite);
    assert_eq!(error(file), Some(MountError::Mismatch { path: "/there".into() }));
}
