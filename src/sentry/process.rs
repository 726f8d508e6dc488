//! A guest process: what its threads share.

use super::fd_table::FdTable;
use super::fs_context::FsContext;
use super::limits::Limits;
use super::loader::Image;
use super::signals::{Actions, SignalInbox};
use crate::Systrap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The program that a process runs, for `/proc` and `prctl`.
#[derive(Debug, Clone)]
pub(crate) struct ProgramInfo {
    pub(crate) executable: PathBuf,
    pub(crate) image: Image,
}

/// A thread group. Each part has its own lock; none of them is held while another is taken, nor across a host call
/// that may block.
pub(crate) struct Process {
    pub(crate) platform: Systrap,
    /// The process id that the guest sees: for the one process of now, the supervisor's.
    pub(crate) pid: i32,
    /// Signals sent to the process.
    pub(crate) inbox: Arc<SignalInbox>,
    /// The extended-state features of the host (XCR0).
    pub(crate) xfeatures: u64,
    files: Mutex<FdTable>,
    fs: Mutex<FsContext>,
    actions: Mutex<Actions>,
    limits: Mutex<Limits>,
    program: Mutex<ProgramInfo>,
}

impl Process {
    pub(crate) fn new(
        platform: Systrap,
        files: FdTable,
        fs: FsContext,
        actions: Actions,
        limits: Limits,
        program: ProgramInfo,
    ) -> Self {
        Self {
            platform,
            pid: std::process::id() as i32,
            inbox: Arc::default(),
            xfeatures: super::host::enabled_xfeatures(),
            files: Mutex::new(files),
            fs: Mutex::new(fs),
            actions: Mutex::new(actions),
            limits: Mutex::new(limits),
            program: Mutex::new(program),
        }
    }

    pub(crate) fn files(&self) -> MutexGuard<'_, FdTable> {
        lock(&self.files)
    }

    pub(crate) fn fs(&self) -> MutexGuard<'_, FsContext> {
        lock(&self.fs)
    }

    pub(crate) fn actions(&self) -> MutexGuard<'_, Actions> {
        lock(&self.actions)
    }

    pub(crate) fn limits(&self) -> MutexGuard<'_, Limits> {
        lock(&self.limits)
    }

    pub(crate) fn program(&self) -> MutexGuard<'_, ProgramInfo> {
        lock(&self.program)
    }
}

/// A poisoned lock is taken all the same: the data is valid after every single assignment under it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
