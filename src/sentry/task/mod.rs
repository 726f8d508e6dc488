//! A guest thread.

mod act;
mod clone;
mod exit;
mod give;
mod handle;

mod restart;
mod run;
mod waiting;

use clone::VforkGate;
pub(crate) use clone::{CLONE_NEWTIME, CloneRequest, NAMESPACES};
pub(crate) use handle::{Belongings, Place, TaskHandle};
pub(crate) use restart::Restart;
pub(crate) use waiting::Parked;

use super::errno::Errno;
use super::fd_table::FdTable;
use super::file::File;
use super::filesystem::MountTable;
use super::fs_context::FsContext;
use super::guest_memory::CallMemory;
use super::kernel::{Kernel, Target};
use super::memory::{Mm, Undo};
use super::observe::Observer;
use super::process::{Process, lock};
use super::signals::{SigInfo, TaskSignals};
use crate::{AddressSpace, Context};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called `exit` with this status (0 to 255).
    Exited(i32),
    /// A signal killed it.
    Signaled(i32),
}

impl ExitStatus {
    /// The status that a shell would show: the exit status, or 128 and the signal's number.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            ExitStatus::Exited(status) => status & 0xff,
            ExitStatus::Signaled(signo) => 128 + signo,
        }
    }

    /// Ends this process in the same way, so that a shell that started it sees what it would have seen of the guest:
    /// one that runs a loop stops at Ctrl-C only if its child has died of it.
    pub fn end_this_process(self) -> ! {
        if let ExitStatus::Signaled(signo) = self {
            crate::sentry::host::die_of(signo);
        }
        std::process::exit(self.code())
    }
}

/// What happens to the guest's registers after a call.
#[derive(Debug, Default)]
pub(crate) enum AfterCall {
    /// The result goes into rax.
    #[default]
    Return,
    /// The call was `rt_sigreturn`: the frame decides.
    ReturnFromHandler,
    /// The registers are new (`execve`).
    Replaced,
    /// The stub thread makes the call for its guest and goes on with its result; if it is interrupted it is to be
    /// restarted like this.
    Executed {
        /// The call's number.
        nr: u32,
        /// One of the kernel's restart codes.
        restart: Errno,
    },
    /// The stub thread changes the guest's mappings, which is recorded already: how to take it back.
    Changed(Undo),
}

/// A guest thread: its execution state, and its share of what its process owns. Only the thread of the supervisor
/// that runs it has it; what others may touch is in its [`TaskHandle`].
pub(crate) struct Task {
    pub(crate) context: Context,
    pub(crate) mm: Arc<Mm>,
    pub(crate) process: Arc<Process>,
    pub(crate) handle: Arc<TaskHandle>,
    pub(crate) signals: TaskSignals,
    files: Arc<Mutex<FdTable>>,
    fs: Arc<Mutex<FsContext>>,
    pub(crate) after_call: AfterCall,
    /// The task ends; the status counts if it is the last of its process.
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) observer: Observer,
    /// Reused for copies that are too large for the stack.
    pub(crate) buffer: Vec<u8>,
    /// `set_tid_address`: zeroed, and its waiters woken, when the thread ends; 0 for none.
    pub(crate) clear_child_tid: u64,
    /// `set_robust_list`; 0 for none.
    pub(crate) robust_list: u64,
    /// The parent of a `vfork` waits behind it until this task executes a program or ends.
    vfork_gate: Option<VforkGate>,
    /// How the call that a signal interrupted goes on, if no handler runs.
    pub(crate) restart: Option<Restart>,
}

/// What a task is made of, apart from what it always starts with.
pub(crate) struct TaskParts {
    pub(crate) context: Context,
    pub(crate) mm: Arc<Mm>,
    pub(crate) handle: Arc<TaskHandle>,
    pub(crate) files: Arc<Mutex<FdTable>>,
    pub(crate) fs: Arc<Mutex<FsContext>>,
    pub(crate) signals: TaskSignals,
    pub(crate) observer: Observer,
}

/// A directory that a path is relative to.
#[derive(Debug, Clone)]
pub(crate) enum Directory {
    /// The working directory.
    Working(Arc<OwnedFd>),
    /// An open file of the guest.
    Open(Arc<File>),
}

impl Directory {
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Directory::Working(fd) => fd.as_fd(),
            Directory::Open(file) => file.as_fd(),
        }
    }
}

impl From<OwnedFd> for Directory {
    fn from(host: OwnedFd) -> Self {
        Directory::Working(Arc::new(host))
    }
}

impl Task {
    pub(crate) fn new(parts: TaskParts) -> Self {
        let TaskParts { context, mm, handle, files, fs, signals, observer } = parts;
        let process = Arc::clone(&handle.process);
        let task = Self {
            context,
            mm,
            process,
            handle,
            signals,
            files,
            fs,
            after_call: AfterCall::Return,
            exit: None,
            observer,
            buffer: Vec::new(),
            clear_child_tid: 0,
            robust_list: 0,
            vfork_gate: None,
            restart: None,
        };
        task.share_belongings();
        task
    }

    /// Shows `/proc` what the task has.
    pub(crate) fn share_belongings(&self) {
        self.handle.set_belongings(Belongings {
            mm: Arc::downgrade(&self.mm),
            files: Arc::downgrade(&self.files),
            fs: Arc::downgrade(&self.fs),
        });
    }

    pub(crate) fn kernel(&self) -> &Arc<Kernel> {
        &self.process.kernel
    }

    /// The guest's own file system; `None` if it sees the host's as it is.
    pub(crate) fn mounts(&self) -> Option<&Arc<MountTable>> {
        self.kernel().mounts.as_ref()
    }

    /// The thread id that the guest sees.
    pub(crate) fn tid(&self) -> i32 {
        self.handle.tid()
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &AddressSpace {
        self.mm.space()
    }

    /// The same as the call under way names it: what that brought along needs no copy. Each look is a look at what other
    /// threads of the guest may change, as a copy is.
    pub(crate) fn call_memory(&self) -> CallMemory<'_> {
        CallMemory { space: self.mm.space(), context: &self.context }
    }

    /// The descriptor table.
    pub(crate) fn files(&self) -> MutexGuard<'_, FdTable> {
        let mut files = lock(&self.files);
        // Processes that share a table have limits of their own.
        files.set_limit(self.process.current_limits().descriptors());
        files
    }

    /// `unshare(CLONE_FILES)`: goes on with a copy of the descriptor table.
    pub(crate) fn unshare_files(&mut self) {
        if Arc::strong_count(&self.files) > 1 {
            let copy = self.files().clone();
            self.files = Arc::new(Mutex::new(copy));
            self.share_belongings();
        }
    }

    /// `unshare(CLONE_FS)`.
    pub(crate) fn unshare_fs(&mut self) {
        if Arc::strong_count(&self.fs) > 1 {
            let copy = self.fs().clone();
            self.fs = Arc::new(Mutex::new(copy));
            self.share_belongings();
        }
    }

    /// Working directory and file mode mask.
    pub(crate) fn fs(&self) -> MutexGuard<'_, FsContext> {
        lock(&self.fs)
    }

    /// The open file of a descriptor.
    pub(crate) fn file(&self, fd: i32) -> Result<Arc<File>, Errno> {
        self.files().get(fd)
    }

    /// Gives a new open file the lowest free number.
    pub(crate) fn install(&self, host: OwnedFd, cloexec: bool) -> Result<i64, Errno> {
        self.install_file(Arc::new(File::new(host)), cloexec)
    }

    /// Gives an open file the lowest free number.
    pub(crate) fn install_file(&self, file: Arc<File>, cloexec: bool) -> Result<i64, Errno> {
        self.files().insert(file, cloexec).map(i64::from)
    }

    /// What a `dirfd` argument stands for.
    pub(crate) fn directory(&self, dirfd: i32) -> Result<Directory, Errno> {
        if dirfd == libc::AT_FDCWD {
            Ok(Directory::Working(Arc::clone(&self.fs().cwd)))
        } else {
            self.file(dirfd).map(Directory::Open)
        }
    }

    /// Sends the task a signal from one of its own calls (SIGPIPE, `raise`).
    pub(crate) fn signal_self(&mut self, info: SigInfo) -> Result<(), Errno> {
        self.kernel().tree().send(Target::Thread(&self.handle), info)
    }
}
