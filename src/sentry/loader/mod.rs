//! From a path to a program that is ready to run: `execve`'s work.
//!
//! [`Program::open`] does everything that can fail on bad input and changes nothing; [`Program::load`] then maps the
//! program into a fresh address space. A running guest that executes another program keeps its old memory until the
//! first step has succeeded.

mod elf;
mod image;
mod script;
mod stack;

pub(crate) use image::Image;
pub(crate) use stack::Owner;

use super::errno::Errno;
use super::file::{File, StatView};
use super::host;
use elf::ElfFile;
use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// The file, or a directory on the way to it, cannot be opened or may not be executed.
    #[error("{path}: {}", errno.message())]
    Open {
        /// The path as given.
        path: String,
        /// What the host said.
        errno: Errno,
    },
    /// The file is a directory.
    #[error("{path}: Is a directory")]
    Directory {
        /// The path as given.
        path: String,
    },
    /// The file is neither an ELF program for x86-64 nor a script, or it is damaged.
    #[error("{path}: cannot execute: {reason}")]
    BadFormat {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The program interpreter that an ELF file or a script names cannot be opened.
    #[error("{path}: interpreter {interpreter} not usable: {}", errno.message())]
    Interpreter {
        /// The program.
        path: String,
        /// The interpreter that it names.
        interpreter: String,
        /// What the host said of the interpreter.
        errno: Errno,
    },
    /// Arguments and environment are larger than the stack allows.
    #[error("argument list too long")]
    ArgumentsTooLong,
    /// The program could not be mapped.
    #[error("{path}: cannot be mapped: {}", errno.message())]
    Map {
        /// The path as given.
        path: String,
        /// The platform's error.
        errno: Errno,
    },
}

impl LoadError {
    /// What `execve` returns for this error.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            LoadError::Open { errno, .. }
            | LoadError::Interpreter { errno, .. }
            | LoadError::Map { errno, .. } => *errno,
            LoadError::Directory { .. } => Errno::EACCES,
            LoadError::BadFormat { .. } => Errno::ENOEXEC,
            LoadError::ArgumentsTooLong => Errno::E2BIG,
        }
    }
}

/// A program that has been opened and checked, with the arguments it will get.
pub(crate) struct Program {
    main: ElfFile,
    interpreter: Option<ElfFile>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    /// The path that was executed (`AT_EXECFN`).
    execfn: CString,
    /// The absolute path of the executable (`/proc/self/exe`): of the interpreter, for a script.
    executable: std::path::PathBuf,
    owner: Owner,
}

/// Whether somebody has the file open for writing. Nobody can then have a read lease on it (fcntl(2)); where the host
/// gives no leases, to another than the owner for example, the answer is no.
fn is_being_written(file: &File) -> bool {
    const F_SETSIG: i32 = 10;
    const F_SETLEASE: i32 = 1024;
    // Whoever opens the file for writing meanwhile has the holder of the lease told so: by a signal that does no harm.
    let _ = host::fcntl(file.as_fd(), F_SETSIG, host::kick_signal() as u64);
    let lease = |kind: libc::c_int| host::fcntl(file.as_fd(), F_SETLEASE, kind as u64);
    match lease(libc::F_RDLCK) {
        Ok(_) => {
            let _ = lease(libc::F_UNLCK);
            false
        }
        Err(errno) => errno == Errno::EAGAIN,
    }
}

/// Opens a path with flags of `open`.
pub(crate) type Opener<'a> = dyn Fn(&CStr, i32) -> Result<File, Errno> + 'a;

/// How many interpreters may run interpreters, as in the kernel's `exec_binprm`.
const SCRIPT_NESTING: usize = 5;

impl Program {
    /// Opens and checks the program at `path` (relative to `dir`) and whatever interpreters it needs.
    pub(crate) fn open(
        dir: BorrowedFd<'_>,
        path: &CStr,
        argv: Vec<CString>,
        envp: Vec<CString>,
    ) -> Result<Self, LoadError> {
        Self::open_with(&|path, flags| host::openat(dir, path, flags, 0).map(File::new), path, argv, envp)
    }

    /// The same where something else finds files, the program first.
    pub(crate) fn open_with(
        open: &Opener<'_>,
        path: &CStr,
        argv: Vec<CString>,
        envp: Vec<CString>,
    ) -> Result<Self, LoadError> {
        let execfn = path.to_owned();
        let shown = |path: &CStr| path.to_string_lossy().into_owned();
        let mut path = path.to_owned();
        let mut argv = argv;
        let mut named_by: Option<CString> = None;
        for _ in 0..=SCRIPT_NESTING {
            let file = open_executable(open, &path).map_err(|error| match &named_by {
                // A script's interpreter that is missing is the script's trouble.
                Some(script) => LoadError::Interpreter {
                    path: shown(script),
                    interpreter: shown(&path),
                    errno: error.errno(),
                },
                None => error,
            })?;
            if is_being_written(&file) {
                return Err(LoadError::Open { path: shown(&path), errno: Errno::ETXTBSY });
            }
            let mut head = [0; script::HEAD_LEN];
            let len = host::pread64(file.as_fd(), &mut head[..], 0)
                .map_err(|errno| LoadError::Open { path: shown(&path), errno })?;
            if let Some(line) = script::parse(&head[..len]) {
                let line = line.map_err(|reason| LoadError::BadFormat { path: shown(&path), reason })?;
                let rest = argv.into_iter().skip(1);
                argv = [Some(line.interpreter.clone()), line.argument, Some(path.clone())]
                    .into_iter()
                    .flatten()
                    .chain(rest)
                    .collect();
                named_by = Some(std::mem::replace(&mut path, line.interpreter));
                continue;
            }
            let main = ElfFile::parse(Arc::new(file), &shown(&path))?;
            let interpreter = match &main.interpreter {
                None => None,
                Some(name) => {
                    let wrap = |error: LoadError| LoadError::Interpreter {
                        path: shown(&path),
                        interpreter: shown(name),
                        errno: if error.errno() == Errno::ENOEXEC { Errno::ELIBBAD } else { error.errno() },
                    };
                    let file = open_executable(open, name).map_err(wrap)?;
                    Some(ElfFile::parse(Arc::new(file), &shown(name)).map_err(wrap)?)
                }
            };
            let executable = OsString::from_vec(main.file.shown_path().unwrap_or_default()).into();
            stack::check_size(&argv, &envp)?;
            return Ok(Self { main, interpreter, argv, envp, execfn, executable, owner: Owner::default() });
        }
        Err(LoadError::Open { path: shown(&execfn), errno: Errno::ELOOP })
    }

    /// The name of the program without directories, as `prctl(PR_GET_NAME)` shows it.
    pub(crate) fn command_name(&self) -> &[u8] {
        self.execfn.to_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }

    /// The open executable (of the interpreter, for a script).
    pub(crate) fn executable_file(&self) -> Arc<File> {
        Arc::clone(&self.main.file)
    }

    /// Says whom the program will run as.
    pub(crate) fn set_owner(&mut self, owner: Owner) {
        self.owner = owner;
    }

    /// The absolute path of the executable.
    pub(crate) fn executable(&self) -> &std::path::Path {
        &self.executable
    }
}

/// Opens a file for execution: a regular file that the caller may execute.
fn open_executable(open: &Opener<'_>, path: &CStr) -> Result<File, LoadError> {
    let fail = |errno| LoadError::Open { path: path.to_string_lossy().into_owned(), errno };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = open(path, flags).map_err(fail)?;
    let mut stat = [0; 144];
    host::fstat(file.as_fd(), &mut stat).map_err(fail)?;
    match StatView(&stat).mode() & libc::S_IFMT {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(LoadError::Directory { path: path.to_string_lossy().into_owned() }),
        _ => return Err(fail(Errno::EACCES)),
    }
    let by_descriptor = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    host::faccessat2(file.as_fd(), c"", libc::X_OK as u32, by_descriptor).map_err(fail)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
