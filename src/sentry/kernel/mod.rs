//! What all processes of one guest share: the process tree, the threads that run tasks, what is recorded.

mod exit;
mod groups;
mod keeper;
mod outside;
mod send;
mod stop;
mod terminals;
pub(crate) mod tree;
mod wait;
mod workers;

pub(crate) use keeper::Keeper;
pub(crate) use send::{STOPS, Target};
pub(crate) use terminals::Link;
pub(crate) use tree::{Child, Life, Node, Tree};
pub(crate) use wait::{WaitFor, WaitOutcome, WaitRequest};

use super::credentials::Credentials;
use super::filesystem::MountTable;
use super::futex::FutexTable;
use super::hook::GuestHooks;
use super::network::PrivateNames;
use super::observe::Counts;
use super::passed_files::PassedFiles;
use super::process::lock;
use super::record_locks::RecordLocks;
use super::restrictions::{Bounds, Restrictions};
use super::signalfd::SignalFiles;
use super::signals::SigInfo;
use super::socket::UnixSockets;
use super::syscalls::Ipc;
use super::task::ExitStatus;
use super::timers::Timers;
use crate::{SwitchError, Systrap, Vdso};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use workers::Workers;

/// One guest: all that was started by one [`Guest`](super::Guest).
pub(crate) struct Kernel {
    pub(crate) platform: Systrap,
    /// The extended-state features of the host (XCR0).
    pub(crate) xfeatures: u64,
    /// The process that [`Guest`](super::Guest) started.
    pub(crate) first_pid: i32,
    /// Who the supervisor is: what the first task starts with.
    pub(crate) supervisor: Arc<Credentials>,
    tree: Mutex<Tree>,
    pub(crate) workers: Workers,
    pub(crate) futexes: FutexTable,
    pub(crate) ipc: Ipc,
    pub(crate) unix_sockets: UnixSockets,
    /// The names of Unix sockets of a guest that has no network.
    pub(crate) private_names: Option<PrivateNames>,
    pub(crate) bounds: Bounds,
    /// Signals to processes outside the guest are sent.
    pub(crate) signals_leave: bool,
    pub(crate) passed_files: PassedFiles,
    pub(crate) timers: Timers,
    pub(crate) signal_files: SignalFiles,
    /// Held while a terminal becomes a session's or is being given up.
    keeper_gate: Mutex<()>,
    /// Held from taking a signal that the host sent to the supervisor until the guest has it.
    taking_in: Mutex<()>,
    pub(crate) record_locks: Arc<RecordLocks>,
    pub(crate) counts: Mutex<Counts>,
    pub(crate) hooks: GuestHooks,
    /// The guest's own file system; `None` if it sees the host's as it is.
    pub(crate) mounts: Option<Arc<MountTable>>,
    /// What programs are told of the vdso; `None` if it is hidden from them.
    pub(crate) vdso: Option<Vdso>,
    end: Mutex<End>,
    ended: Condvar,
}

/// What is known of the guest's end.
#[derive(Default)]
struct End {
    /// How the first process ended.
    status: Option<ExitStatus>,
    /// Why the first process could not go on.
    failure: Option<SwitchError>,
    /// The last task is gone.
    all_gone: bool,
}

impl Kernel {
    pub(crate) fn new(
        platform: Systrap,
        first_pid: i32,
        hooks: GuestHooks,
        vdso: Option<Vdso>,
        restrictions: &Restrictions,
        mounts: Option<Arc<MountTable>>,
    ) -> Self {
        Self {
            platform,
            xfeatures: super::host::enabled_xfeatures(),
            first_pid,
            supervisor: Arc::new(Credentials::of_supervisor()),
            tree: Mutex::new(Tree::new(first_pid)),
            workers: Workers::default(),
            futexes: FutexTable::default(),
            ipc: Ipc::default(),
            unix_sockets: UnixSockets::default(),
            private_names: restrictions.private_names(),
            bounds: restrictions.bounds(),
            signals_leave: restrictions.signals_leave(),
            passed_files: PassedFiles::default(),
            timers: Timers::default(),
            signal_files: SignalFiles::default(),
            keeper_gate: Mutex::default(),
            taking_in: Mutex::default(),
            record_locks: Arc::default(),
            counts: Mutex::default(),
            hooks,
            mounts,
            vdso,
            end: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// The process tree. Whoever needs another lock of a process as well takes this one first.
    pub(crate) fn tree(&self) -> MutexGuard<'_, Tree> {
        lock(&self.tree)
    }

    /// Records that a process cannot be continued because of a failure of the platform. That of the first one is
    /// what [`Guest::run`](super::Guest::run) returns.
    pub(crate) fn report_failure(&self, pid: i32, error: SwitchError) {
        if pid == self.first_pid {
            lock(&self.end).failure.get_or_insert(error);
        }
    }

    /// Kills every process of the guest. No lock may be held.
    pub(crate) fn kill_all(&self) {
        // Under the tree's lock: a process that is being made is either in it, or its maker sees its own end.
        for node in self.tree().nodes() {
            node.process.end(ExitStatus::Signaled(libc::SIGKILL));
        }
    }

    /// Asks every process of the guest to end, stopped ones too.
    pub(crate) fn terminate_all(&self) {
        let mut tree = self.tree();
        let pids: Vec<i32> = tree.nodes().map(|node| node.process.pid).collect();
        for signo in [libc::SIGTERM, libc::SIGCONT] {
            let _ = tree.send_to_all(&pids, SigInfo::from_kernel(signo));
        }
    }

    /// Waits until no process is left, but not longer than that; whether there is none.
    pub(crate) fn is_gone_within(&self, limit: Duration) -> bool {
        let end = lock(&self.end);
        let waited = self.ended.wait_timeout_while(end, limit, |end| !end.all_gone);
        waited.unwrap_or_else(PoisonError::into_inner).0.all_gone
    }

    fn report_status(&self, status: ExitStatus) {
        lock(&self.end).status = Some(status);
    }

    fn report_all_gone(&self) {
        lock(&self.end).all_gone = true;
        self.ended.notify_all();
    }

    /// Waits until no process is left, and returns how the first one ended.
    pub(crate) fn wait_until_gone(&self) -> Result<ExitStatus, SwitchError> {
        let mut end = lock(&self.end);
        while !end.all_gone {
            end = self.ended.wait(end).unwrap_or_else(PoisonError::into_inner);
        }
        match end.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(end.status.unwrap_or(ExitStatus::Signaled(libc::SIGKILL))),
        }
    }
}
