//! Lets a program touch files below one directory only, and read what programs need of the system.
//!
//! ```sh
//! cargo run --release --example file_policy -- /tmp /bin/sh -c 'echo a > /tmp/a; echo b > /var/tmp/b'
//! ```
//!
//! The policy sees each path as the call will use it, resolves it, judges it, and puts what it has judged in the path's
//! place. It trusts that no symbolic link below the directory leads out of it, and makes sure that the program adds none.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use systrap::sentry::{ArgValue, Call, CallSet, Errno, Guest, Hook, Verdict};

/// What may be read, and run, outside of the directory.
const SYSTEM: [&str; 5] = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache"];

/// Calls that do not change what their path names. Those that open are looked at in more detail.
const READING: [&str; 14] = [
    "access",
    "chdir",
    "execve",
    "execveat",
    "faccessat",
    "faccessat2",
    "lstat",
    "newfstatat",
    "readlink",
    "readlinkat",
    "stat",
    "statfs",
    "statx",
    "getxattr",
];

struct Below {
    directory: PathBuf,
    reading: CallSet,
}

impl Below {
    /// The path with everything resolved but a last symbolic link, whose target has to be permitted as well.
    fn resolve(&self, path: &Path, reads: bool) -> Option<PathBuf> {
        let resolved = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => parent.canonicalize().ok()?.join(name),
            _ => path.canonicalize().ok()?,
        };
        let permitted = |path: &Path| {
            path.starts_with(&self.directory) || reads && SYSTEM.iter().any(|system| path.starts_with(system))
        };
        // A link that leads nowhere could be followed by a call that creates files.
        let is_link = resolved.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        let target = if is_link { resolved.canonicalize().ok()? } else { resolved.clone() };
        (permitted(&resolved) && permitted(&target)).then_some(resolved)
    }

    fn only_reads(&self, call: &Call<'_>) -> bool {
        let flags = match call.number() {
            libc::SYS_open => call.arg(1),
            libc::SYS_openat | libc::SYS_openat2 => call.arg(2),
            number => return self.reading.contains(number),
        };
        let flags = match flags.map(|flags| flags.value()) {
            Some(ArgValue::Flags(flags)) => flags,
            Some(ArgValue::OpenHow(how)) => how.flags,
            _ => return false,
        };
        let changing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;
        flags & changing as u64 == 0
    }
}

impl Hook for Below {
    type TaskState = ();

    // Whatever takes a path, so that none is forgotten.
    fn calls(&self) -> CallSet {
        CallSet::taking_paths()
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        match call.number() {
            libc::SYS_symlink | libc::SYS_symlinkat => return Verdict::Deny(Errno::EPERM),
            _ => {}
        }
        let reads = self.only_reads(call);
        let paths: Vec<usize> = (0..6)
            .filter(|index| matches!(call.arg(*index).map(|arg| arg.value()), Some(ArgValue::Path(_))))
            .collect();
        for index in paths {
            // An empty path means the descriptor in front of it, which was opened under this policy.
            if call.arg(index).is_some_and(|path| path.value() == ArgValue::Path(c"")) {
                continue;
            }
            let judged = call.absolute_path(index).and_then(|path| self.resolve(&path, reads));
            let judged = judged.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok());
            let Some(path) = judged else { return Verdict::Deny(Errno::EACCES) };
            if call.set_path(index, path).is_err() {
                return Verdict::Kill;
            }
        }
        Verdict::Proceed
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const USAGE: &str = "usage: file_policy DIRECTORY PROGRAM [ARGUMENT]...";
    let mut args = std::env::args().skip(1);
    let directory = PathBuf::from(args.next().ok_or(USAGE)?).canonicalize()?;
    let program: Vec<CString> = args.map(CString::new).collect::<Result<_, _>>()?;
    let path = program.first().ok_or(USAGE)?.clone();

    let policy = Below { directory, reading: CallSet::named(READING)? };
    let outcome = Guest::new(path).args(program).hook(policy).run()?;
    outcome.status.end_this_process()
}
