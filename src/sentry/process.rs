//! A guest process: what its threads share.

use super::abi::Rlimit;
use super::attributes::ProcessAttributes;
use super::credentials::Credentials;
use super::errno::Errno;
use super::file::{File, StatView};
use super::host;
use super::kernel::Kernel;
use super::limits::{CurrentLimits, Limits};
use super::loader::{Image, Program};
use super::pidfd::PidFiles;
use super::signals::{Actions, Pending};
use super::task::{ExitStatus, TaskHandle};
use super::timers::{ProcessClock, ProcessTimers};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The program that a process runs, for `/proc` and `prctl`.
#[derive(Debug, Clone)]
pub(crate) struct ProgramInfo {
    pub(crate) executable: PathBuf,
    /// The executable itself: `/proc/PID/exe` leads to it even when its path does not any more.
    pub(crate) file: Arc<File>,
    /// Its device and inode: a file that is executed cannot be opened for writing.
    pub(crate) identity: (u64, u64),
    pub(crate) image: Image,
}

impl ProgramInfo {
    pub(crate) fn new(program: &Program, image: Image) -> Self {
        let file = program.executable_file();
        let mut stat = [0; 144];
        let known = host::fstat(file.as_fd(), &mut stat).is_ok();
        let stat = StatView(&stat);
        let identity = if known { (stat.device(), stat.inode()) } else { (0, 0) };
        Self { executable: program.executable().to_owned(), file, identity, image }
    }
}

/// A thread group. Each part has its own lock, see ARCHITECTURE.md for their order; none is held across a host call
/// that may block.
pub(crate) struct Process {
    pub(crate) kernel: Arc<Kernel>,
    /// The process id that the guest sees.
    pub(crate) pid: i32,
    /// Signals sent to the process as a whole.
    pending: Mutex<Pending>,
    /// Shared with another process only by `clone(CLONE_SIGHAND)` without `CLONE_THREAD`.
    actions: Arc<Mutex<Actions>>,
    limits: Mutex<Limits>,
    current_limits: CurrentLimits,
    program: Mutex<ProgramInfo>,
    threads: Mutex<Vec<Arc<TaskHandle>>>,
    /// How the process ends, once that is decided.
    ending: Mutex<Option<ExitStatus>>,
    /// A stop signal took effect and no SIGCONT has come since.
    stopped: AtomicBool,
    /// The name of its first thread, which outlives it in a zombie.
    name: Mutex<[u8; 16]>,
    /// When it was made, in nanoseconds since the host started.
    pub(crate) started_ns: u64,
    oom_score_adj: AtomicI32,
    /// How far an unprivileged process may lower it.
    oom_score_adj_min: AtomicI32,
    /// The processor time that it has used, and the stub process that runs its code.
    pub(crate) clock: Mutex<ProcessClock>,
    timers: Mutex<ProcessTimers>,
    /// The open pidfds that stand for it.
    pub(crate) pid_files: Mutex<PidFiles>,
    attributes: Mutex<ProcessAttributes>,
    /// Who its first thread is, or was: what others may do to the process, and what its parent is told.
    credentials: Mutex<Arc<Credentials>>,
}

impl Process {
    pub(crate) fn new(
        kernel: Arc<Kernel>,
        pid: i32,
        actions: Arc<Mutex<Actions>>,
        limits: Limits,
        program: ProgramInfo,
        credentials: Arc<Credentials>,
    ) -> Self {
        Self {
            kernel,
            pid,
            pending: Mutex::default(),
            actions,
            current_limits: CurrentLimits::new(&limits),
            limits: Mutex::new(limits),
            program: Mutex::new(program),
            threads: Mutex::default(),
            ending: Mutex::new(None),
            stopped: AtomicBool::new(false),
            name: Mutex::default(),
            started_ns: host::boot_time_ns(),
            oom_score_adj: AtomicI32::new(0),
            oom_score_adj_min: AtomicI32::new(0),
            clock: Mutex::default(),
            timers: Mutex::default(),
            pid_files: Mutex::default(),
            attributes: Mutex::default(),
            credentials: Mutex::new(credentials),
        }
    }

    /// The signals sent to the process.
    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    pub(crate) fn actions(&self) -> MutexGuard<'_, Actions> {
        lock(&self.actions)
    }

    /// The table of actions itself, for a clone that shares it.
    pub(crate) fn shared_actions(&self) -> &Arc<Mutex<Actions>> {
        &self.actions
    }

    pub(crate) fn limits(&self) -> MutexGuard<'_, Limits> {
        lock(&self.limits)
    }

    /// Soft limits without the lock.
    pub(crate) fn current_limits(&self) -> &CurrentLimits {
        &self.current_limits
    }

    /// Changes a limit; returns the old one.
    pub(crate) fn change_limit(
        &self,
        which: u32,
        new: Option<Rlimit>,
        privileged: bool,
    ) -> Result<Rlimit, Errno> {
        let mut limits = self.limits();
        let old = limits.get(which)?;
        if let Some(new) = new {
            limits.set(which, new, privileged)?;
            self.current_limits.update(&limits);
        }
        Ok(old)
    }

    pub(crate) fn program(&self) -> MutexGuard<'_, ProgramInfo> {
        lock(&self.program)
    }

    /// The threads that have not ended.
    pub(crate) fn threads(&self) -> MutexGuard<'_, Vec<Arc<TaskHandle>>> {
        lock(&self.threads)
    }

    /// Decides how the process ends and tells its threads; the first decision stands.
    pub(crate) fn end(&self, status: ExitStatus) {
        {
            let mut ending = lock(&self.ending);
            if ending.is_some() {
                return;
            }
            *ending = Some(status);
        }
        let threads = self.threads().clone();
        for thread in threads {
            thread.doom();
        }
    }

    /// How the process ends, if that is decided.
    pub(crate) fn ending(&self) -> Option<ExitStatus> {
        *lock(&self.ending)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Stops the process or lets it go on; every thread looks. The tree's lock is held by the caller.
    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::SeqCst);
        let threads = self.threads().clone();
        for thread in threads {
            thread.wake();
        }
    }

    /// Its timers.
    pub(crate) fn timers(&self) -> MutexGuard<'_, ProcessTimers> {
        lock(&self.timers)
    }

    /// What is only recorded of the process.
    pub(crate) fn attributes(&self) -> MutexGuard<'_, ProcessAttributes> {
        lock(&self.attributes)
    }

    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&lock(&self.credentials))
    }

    /// Only for its first thread.
    pub(crate) fn store_credentials(&self, credentials: Arc<Credentials>) {
        *lock(&self.credentials) = credentials;
    }

    pub(crate) fn name(&self) -> [u8; 16] {
        *lock(&self.name)
    }

    pub(crate) fn remember_name(&self, name: [u8; 16]) {
        *lock(&self.name) = name;
    }

    /// `/proc/PID/oom_score_adj`.
    pub(crate) fn oom_score_adj(&self) -> i32 {
        self.oom_score_adj.load(Ordering::Relaxed)
    }

    pub(crate) fn set_oom_score_adj(&self, value: i32) {
        self.oom_score_adj.store(value, Ordering::Relaxed);
    }

    pub(crate) fn oom_score_adj_min(&self) -> i32 {
        self.oom_score_adj_min.load(Ordering::Relaxed)
    }

    pub(crate) fn set_oom_score_adj_min(&self, value: i32) {
        self.oom_score_adj_min.store(value, Ordering::Relaxed);
    }

    /// A child starts with its parent's adjustment.
    pub(crate) fn copy_oom_score_adj(&self, parent: &Process) {
        self.set_oom_score_adj(parent.oom_score_adj());
        self.set_oom_score_adj_min(parent.oom_score_adj_min());
    }

    /// The first process starts with the supervisor's.
    pub(crate) fn inherit_oom_score_adj(&self) {
        let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let value = text.trim().parse().unwrap_or(0);
        self.set_oom_score_adj(value);
        self.set_oom_score_adj_min(value.min(0));
    }

    /// Wakes the threads that wait for what has changed about the process's children.
    pub(crate) fn ring(&self) {
        for thread in &*self.threads() {
            thread.ring();
        }
    }
}

/// A poisoned lock is taken all the same: the data is valid after every single assignment under it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
