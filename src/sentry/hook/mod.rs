//! The embedder's place in the life of a guest's calls.
//!
//! A [`Hook`] says which calls it wants to see; those it sees before and after they are made, and decides what becomes
//! of them. The bits of all hooks of a guest are put together once: a call that no hook wants takes the way that it
//! takes without hooks, the answers of stub processes included.

mod argument;
mod call;
mod installed;
mod set;
mod slot;
mod value;

pub use argument::Argument;
pub use call::Call;
#[cfg(test)]
pub(crate) use call::fake;
pub(crate) use installed::{AnyHook, GuestHooks, HookedCall, TaskHooks};
pub use set::{CallSet, UnknownCall};
pub(crate) use slot::Slot;
pub use value::{ArgError, ArgValue, OpenHow, OutgoingMessage};

use super::errno::Errno;
use super::task::{ExitStatus, Task};
use crate::GuestAddr;
use std::path::Path;
use std::sync::Arc;

/// What a program that runs a guest wants to see of it, and to decide. Installed with
/// [`Guest::hook`](super::Guest::hook).
///
/// One hook serves all tasks of the guest. Its methods are called by the thread of the supervisor that runs the task,
/// so by many at a time; a task waits meanwhile, and nothing of the sentry is locked. What is kept of each task goes
/// into [`Hook::TaskState`], which needs no lock. A method that waits holds up its task, even if that is to be killed.
///
/// Several hooks are nested: the one installed first sees a call first, and its result last.
///
/// ```
/// use systrap::sentry::{Call, CallSet, Errno, Hook, Verdict};
///
/// /// Nobody creates directories.
/// struct NoDirectories;
///
/// impl Hook for NoDirectories {
///     type TaskState = ();
///
///     fn calls(&self) -> CallSet {
///         CallSet::numbered([libc::SYS_mkdir, libc::SYS_mkdirat])
///     }
///
///     fn before(&self, _: &mut (), _: &mut Call<'_>) -> Verdict {
///         Verdict::Deny(Errno::EPERM)
///     }
/// }
/// ```
///
/// # Panics
///
/// A method that panics ends the guest: its call is not made, all its processes are killed, and
/// [`Guest::run`](super::Guest::run) returns [`RunError::Hook`](super::RunError::Hook). (A supervisor that is compiled
/// with `panic = "abort"` ends itself.)
pub trait Hook: Send + Sync + 'static {
    /// What the hook keeps of each task; `()` for nothing. Dropped with the task.
    type TaskState: Default + Send + 'static;

    /// The calls that it wants to see, all by default. Asked once, before the guest starts.
    ///
    /// What the guest does without a call is not seen: clocks are read in the vdso unless
    /// [`Guest::hide_vdso`](super::Guest::hide_vdso) is set.
    fn calls(&self) -> CallSet {
        CallSet::ALL
    }

    /// A task starts. `parent` is the state of the task that made it; `None` for the guest's first.
    fn task_started(&self, task: TaskId, state: &mut Self::TaskState, parent: Option<&Self::TaskState>) {
        let _ = (task, state, parent);
    }

    /// A call is about to be made, with these arguments, which may be changed.
    ///
    /// A call that a signal interrupts and that is to be restarted is made again by the guest, and seen again.
    fn before(&self, state: &mut Self::TaskState, call: &mut Call<'_>) -> Verdict {
        let _ = (state, call);
        Verdict::Proceed
    }

    /// A call has ended, be it that it was made or that a hook decided it. It comes for each call that
    /// [`Hook::before`] came for.
    fn after(&self, state: &mut Self::TaskState, call: &mut Call<'_>) {
        let _ = (state, call);
    }

    /// A task runs a program from now on: the guest's first, or after `execve`. `executable` is its absolute path on
    /// the host; the interpreter's, for a script.
    fn program_started(&self, task: TaskId, state: &mut Self::TaskState, executable: &Path) {
        let _ = (task, state, executable);
    }

    /// A signal is about to take effect on a task: run a handler, be ignored, stop or kill it.
    fn signal(&self, task: TaskId, state: &mut Self::TaskState, signal: &DeliveredSignal) {
        let _ = (task, state, signal);
    }

    /// A task has ended, with this status if it is its process's last.
    fn task_ended(&self, task: TaskId, state: &mut Self::TaskState, status: ExitStatus) {
        let _ = (task, state, status);
    }
}

/// A hook that the embedder keeps a share of, to look at what it has gathered.
impl<H: Hook> Hook for Arc<H> {
    type TaskState = H::TaskState;

    fn calls(&self) -> CallSet {
        H::calls(self)
    }

    fn task_started(&self, task: TaskId, state: &mut Self::TaskState, parent: Option<&Self::TaskState>) {
        H::task_started(self, task, state, parent);
    }

    fn before(&self, state: &mut Self::TaskState, call: &mut Call<'_>) -> Verdict {
        H::before(self, state, call)
    }

    fn after(&self, state: &mut Self::TaskState, call: &mut Call<'_>) {
        H::after(self, state, call);
    }

    fn program_started(&self, task: TaskId, state: &mut Self::TaskState, executable: &Path) {
        H::program_started(self, task, state, executable);
    }

    fn signal(&self, task: TaskId, state: &mut Self::TaskState, signal: &DeliveredSignal) {
        H::signal(self, task, state, signal);
    }

    fn task_ended(&self, task: TaskId, state: &mut Self::TaskState, status: ExitStatus) {
        H::task_ended(self, task, state, status);
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It is made, unless a hook that comes later decides otherwise.
    Proceed,
    /// It fails with this error and is not made.
    Deny(Errno),
    /// It returns this value and is not made. What it returns in memory the hook has written itself
    /// ([`Call::write_memory`]).
    Answer(i64),
    /// It is not made, and the task's process is killed by SIGKILL.
    Kill,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallEnd {
    /// With a value for rax or an error. [`Errno::is_restart`] tells those that a signal handler turns into `EINTR` or
    /// a second try.
    Returned(Result<i64, Errno>),
    /// It does not return: the task ends, or goes back from a signal handler.
    NoReturn,
    /// The guest's own thread makes it on its way back (private futexes); its result is not seen here.
    InGuest,
}

/// A guest thread, as the guest numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct TaskId {
    /// The process.
    pub pid: i32,
    /// The thread; the process's first one has the process's number. A thread that executes a program takes on the
    /// process's number.
    pub tid: i32,
}

impl TaskId {
    pub(crate) fn of(task: &Task) -> Self {
        Self { pid: task.process.pid, tid: task.tid() }
    }
}

/// A signal that takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveredSignal {
    /// Its number.
    pub signo: i32,
    /// `si_code`: where it comes from, see sigaction(2).
    pub code: i32,
    /// The address of a fault.
    pub address: Option<GuestAddr>,
}
