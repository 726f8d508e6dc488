//! The options of `systrap run` that say what files the guest has.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use systrap::sentry::{Access, Mounts};

/// The guest's file system.
#[derive(Debug, Args)]
#[command(next_help_heading = "File system")]
pub struct MountArguments {
    /// Show the guest DIR as its root directory, which it cannot leave
    ///
    /// PROGRAM, PATH and the working directory (the current one if it is below DIR or a bind, else /) are then found in
    /// there. /proc is the guest's own and always there: its own processes, and of the host what describes the machine,
    /// read-only. If DIR has a directory dev, the host's null, zero, full, random, urandom, tty, ptmx and pts are in it,
    /// and the links fd, stdin, stdout and stderr. Nothing else is made up: say --bind. Directories that this process
    /// would pass on as descriptors are closed unless they are below DIR or a bind.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Show the guest a directory or file SRC at DST, read-only with :ro; may be repeated
    ///
    /// DST is a path of the guest; the directory that it is in has to exist. Without --root the guest sees the host's
    /// files otherwise, and its own /proc.
    #[arg(long, value_name = "SRC:DST[:ro]", value_parser = OsStringValueParser::new().try_map(parse_bind))]
    pub bind: Vec<BindArgument>,

    /// Let the guest change nothing in its file system: EROFS
    ///
    /// As with a read-only mount, devices, FIFOs and sockets can be written to. A --bind without :ro stays writable.
    #[arg(long)]
    pub read_only: bool,
}

/// A value of `--bind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindArgument {
    source: PathBuf,
    target: PathBuf,
    access: Access,
}

fn parse_bind(value: OsString) -> Result<BindArgument, String> {
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let parts: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b':').collect();
    let (source, target, access) = match parts[..] {
        [source, target] => (source, target, Access::ReadWrite),
        [source, target, b"ro"] => (source, target, Access::ReadOnly),
        [source, target, b"rw"] => (source, target, Access::ReadWrite),
        _ => return Err("write SRC:DST or SRC:DST:ro, without further colons".to_owned()),
    };
    if source.is_empty() || target.is_empty() {
        return Err("neither SRC nor DST may be empty".to_owned());
    }
    if !target.starts_with(b"/") {
        return Err("DST has to be an absolute path of the guest".to_owned());
    }
    Ok(BindArgument { source: path(source), target: path(target), access })
}

impl MountArguments {
    /// What the options ask for; `None` if the guest is to see the host as it is.
    pub fn mounts(&self) -> Option<Mounts> {
        let mut mounts = match &self.root {
            Some(root) => Mounts::new(root).devices(),
            None if self.read_only || !self.bind.is_empty() => Mounts::new("/"),
            None => return None,
        };
        if self.read_only {
            mounts = mounts.read_only();
        }
        for bind in &self.bind {
            mounts = mounts.bind(&bind.source, &bind.target, bind.access);
        }
        Some(mounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_taken_apart_at_colons() {
        let parsed = |text: &str| parse_bind(text.into());
        let bind = |access| BindArgument { source: "/a".into(), target: "/b".into(), access };
        assert_eq!(parsed("/a:/b"), Ok(bind(Access::ReadWrite)));
        assert_eq!(parsed("/a:/b:rw"), Ok(bind(Access::ReadWrite)));
        assert_eq!(parsed("/a:/b:ro"), Ok(bind(Access::ReadOnly)));
        for bad in ["/a", "/a:b", ":/b", "/a:", "/a:/b:rx", "/a:/b:ro:ro", ""] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
