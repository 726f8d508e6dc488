//! A guest thread.

use super::errno::Errno;
use super::file::{File, FileType};
use super::host::{self, Attention};
use super::memory::Mm;
use super::observe::Observer;
use super::process::Process;
use super::signals::{SigInfo, TaskSignals};
use crate::{AddressSpace, Context};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

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
}

/// What happens to the guest's registers after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AfterCall {
    /// The result goes into rax.
    #[default]
    Return,
    /// The call was `rt_sigreturn`: the frame decides.
    ReturnFromHandler,
    /// The registers are new (`execve`).
    Replaced,
}

/// A guest thread: its execution state, and its share of what its process owns.
pub(crate) struct Task {
    pub(crate) context: Context,
    pub(crate) mm: Arc<Mm>,
    pub(crate) process: Arc<Process>,
    pub(crate) signals: TaskSignals,
    /// The thread id that the guest sees.
    pub(crate) tid: i32,
    /// `PR_SET_NAME`.
    pub(crate) name: [u8; 16],
    pub(crate) after_call: AfterCall,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) observer: Observer,
    /// Reused for copies that are too large for the stack.
    pub(crate) buffer: Vec<u8>,
}

/// A directory that a path is relative to.
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

impl Task {
    /// The guest's memory.
    pub(crate) fn memory(&self) -> &AddressSpace {
        self.mm.space()
    }

    /// The open file of a descriptor.
    pub(crate) fn file(&self, fd: i32) -> Result<Arc<File>, Errno> {
        self.process.files().get(fd)
    }

    /// Gives a new open file the lowest free number.
    pub(crate) fn install(&self, host: OwnedFd, cloexec: bool) -> Result<i64, Errno> {
        self.process.files().insert(Arc::new(File::new(host)), cloexec).map(i64::from)
    }

    /// What a `dirfd` argument stands for.
    pub(crate) fn directory(&self, dirfd: i32) -> Result<Directory, Errno> {
        if dirfd == libc::AT_FDCWD {
            Ok(Directory::Working(Arc::clone(&self.process.fs().cwd)))
        } else {
            self.file(dirfd).map(Directory::Open)
        }
    }

    /// Makes a host call that may wait: signals for the guest end it, and the stub does not spin meanwhile.
    ///
    /// Kicks that turn out not to matter (an ignored or blocked signal) start the call again.
    pub(crate) fn wait<T>(
        &mut self,
        mut call: impl FnMut(&mut Self, &Attention) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.context.prepare_sleep();
        let inbox = Arc::clone(&self.process.inbox);
        loop {
            match inbox.while_waiting(|attention| call(self, attention)) {
                Err(Errno::EINTR) => {
                    inbox.attention().take();
                    if self.deliverable().0 != 0 {
                        inbox.attention().raise();
                        return Err(Errno::ERESTARTSYS);
                    }
                }
                other => return other,
            }
        }
    }

    /// Whether reading or writing the file may wait right now; polls it only if it is of a kind that can.
    pub(crate) fn may_wait(file: &File, events: i16) -> bool {
        if file.file_type() != FileType::Stream {
            return false;
        }
        let mut poll =
            [libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()), events, revents: 0 }];
        !matches!(host::poll_now(&mut poll[..], 0), Ok(ready) if ready > 0)
    }

    /// Sends the task a signal from one of its own calls (SIGPIPE, `raise`).
    pub(crate) fn signal_self(&mut self, info: SigInfo) -> Result<(), Errno> {
        self.process.inbox.attention().raise();
        if self.signals.pending.push(info) { Ok(()) } else { Err(Errno::EAGAIN) }
    }
}
