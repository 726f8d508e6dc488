//! Looking a program up in PATH, as a shell does.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The path of a program: the name itself if it contains a slash, else the first executable file of that name in
/// `path`, the guest's PATH. `None` if there is none.
pub fn program(name: &OsStr, path: Option<OsString>) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(name));
    }
    if name.is_empty() {
        return None;
    }
    let path = path.unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let mut refused = None;
    for directory in std::env::split_paths(&path) {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { &directory };
        let candidate = directory.join(name);
        match candidate.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                return Some(candidate);
            }
            // A file that is there but not executable is reported if nothing better follows.
            Ok(metadata) if metadata.is_file() => refused = refused.or(Some(candidate)),
            _ => {}
        }
    }
    refused
}
