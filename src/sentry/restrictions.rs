//! What a guest may have, and for how long: the embedder's choices, and what they come to when the guest starts.

use super::credentials::{CapabilitySets, Credentials, Ids};
use super::errno::Errno;
use super::filesystem::{MountTable, Territory};
use super::host::{self, AssumeError};
use super::kernel::Kernel;
use super::limits::Limits;
use super::network::{Network, PrivateNames};
use super::run::{Guest, RunError};
use super::self_confinement::SupervisorFilter;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a guest whose time is up may take to end.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// All choices of one guest.
#[derive(Debug)]
pub(crate) struct Restrictions {
    pub(super) working_directory: Option<CString>,
    timeout: Option<Duration>,
    kill_after: Duration,
    pub(super) memory_bytes: Option<u64>,
    most_tasks: Option<usize>,
    user: Option<(u32, u32)>,
    network: Network,
    pub(super) filter: Option<SupervisorFilter>,
}

impl Default for Restrictions {
    fn default() -> Self {
        Self {
            working_directory: None,
            timeout: None,
            kill_after: KILL_AFTER,
            memory_bytes: None,
            most_tasks: None,
            user: None,
            network: Network::Host,
            filter: None,
        }
    }
}

impl Guest {
    /// Starts the program in this directory instead of the supervisor's own; a relative path of the program is looked
    /// up there.
    #[must_use]
    pub fn working_directory(mut self, directory: impl Into<CString>) -> Self {
        self.restrictions.working_directory = Some(directory.into());
        self
    }

    /// Ends the guest when it has run for so long, as timeout(1) does: every process is sent SIGTERM (and SIGCONT),
    /// and is killed if it is still there after [`kill_after`](Self::kill_after). [`Outcome::timed_out`] says that it was so.
    ///
    /// [`Outcome::timed_out`]: super::Outcome::timed_out
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.restrictions.timeout = Some(limit);
        self
    }

    /// How long a guest whose time is up may take to end before it is killed; five seconds, unless set.
    #[must_use]
    pub fn kill_after(mut self, grace: Duration) -> Self {
        self.restrictions.kill_after = grace;
        self
    }

    /// Limits the memory that each process of the guest may have mapped, in bytes. It is the process's `RLIMIT_AS`, which
    /// no privilege raises: calls that would map more fail with `ENOMEM`. A guest that has taken over its stub process
    /// meets a limit of the host's, which leaves room for the stub's own needs. sysinfo(2) and `/proc/meminfo` show it.
    ///
    /// With [`process_limit`](Self::process_limit) this bounds what all processes have mapped together. Files in memory (memfd_create(2),
    /// `/dev/shm`), pipes and sockets are no process's and do not count but where they are mapped.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.restrictions.memory_bytes = Some(bytes);
        self
    }

    /// Limits the number of tasks (processes, zombies among them, and threads) that the guest has at a time: `clone`,
    /// `fork` and their like fail with `EAGAIN` beyond it. It shows as `RLIMIT_NPROC`, and counts for root as well.
    #[must_use]
    pub fn process_limit(mut self, tasks: usize) -> Self {
        self.restrictions.most_tasks = Some(tasks);
        self
    }

    /// Runs the guest as this user and group, without supplementary groups; without capabilities unless the user is 0.
    /// File calls are made with these ids. Only a privileged supervisor can be anybody but itself
    /// ([`RunError::User`]).
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.restrictions.user = Some((uid, gid));
        self
    }

    /// What the guest can reach over sockets.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.restrictions.network = network;
        self
    }

    /// Confines **this process** by a seccomp filter from the moment the guest starts, so that a defect of the
    /// supervisor is worth less to a hostile guest. The filter binds all threads of the process, for good, and what the
    /// embedder does beside running guests as well: see [`SupervisorFilter`].
    #[must_use]
    pub fn supervisor_filter(mut self, filter: SupervisorFilter) -> Self {
        self.restrictions.filter = Some(filter);
        self
    }
}

impl Restrictions {
    /// The resource limits that the guest starts with.
    pub(super) fn limit(&self, limits: &mut Limits) {
        if let Some(bytes) = self.memory_bytes {
            limits.confine(libc::RLIMIT_AS, bytes);
        }
        if let Some(tasks) = self.most_tasks {
            limits.confine(libc::RLIMIT_NPROC, tasks as u64);
        }
    }

    /// What the guest's kernel has to know.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { memory_bytes: self.memory_bytes, most_tasks: self.most_tasks }
    }

    /// Whether the supervisor may signal processes that are not its own.
    pub(super) fn signals_leave(&self) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.admits(libc::SYS_kill))
    }

    /// The names of sockets of a guest that has no network.
    pub(super) fn private_names(&self) -> Option<PrivateNames> {
        (self.network == Network::None).then(PrivateNames::default)
    }

    pub(super) fn has_network(&self) -> bool {
        self.network == Network::Host
    }

    /// Who the guest is to be; tried at once, so that what cannot be is an error of the embedder's.
    pub(super) fn credentials(&self, supervisor: &Credentials) -> Result<Credentials, RunError> {
        let Some((uid, gid)) = self.user else { return Ok(supervisor.clone()) };
        if (uid, gid) == (supervisor.user.real, supervisor.group.real) && !supervisor.may_become_others() {
            // Without privileges, groups cannot be given up.
            return Ok(supervisor.clone());
        }
        let same = |id| Ids { real: id, effective: id, saved: id, fs: id };
        let mut new =
            Credentials { user: same(uid), group: same(gid), groups: Arc::new([]), ..supervisor.clone() };
        if uid != 0 {
            new.caps = CapabilitySets { bounding: new.caps.bounding, ..CapabilitySets::default() };
        }
        match host::assume(&new.identity()) {
            Ok(()) => host::assume(&supervisor.identity()).map(|()| new).map_err(|_| Errno::EPERM),
            Err(AssumeError::Refused | AssumeError::Stranded) => Err(Errno::EPERM),
        }
        .map_err(|errno| RunError::User { uid, gid, errno })
    }

    /// The directory that the guest starts in.
    pub(super) fn open_working_directory(&self) -> Result<OwnedFd, RunError> {
        let Some(path) = &self.working_directory else {
            let what = "working directory";
            return super::exec::working_directory().map_err(|errno| RunError::Setup { what, errno });
        };
        super::exec::open_directory(path)
            .map_err(|errno| RunError::WorkingDirectory { path: path.to_string_lossy().into_owned(), errno })
    }

    /// The same in a file system of the guest's own: the directory that was asked for is a path of the guest's.
    pub(super) fn open_working_directory_in(
        &self,
        mounts: &Arc<MountTable>,
    ) -> Result<(Arc<OwnedFd>, Territory), RunError> {
        let Some(path) = &self.working_directory else {
            let own = super::exec::working_directory().and_then(|own| mounts.first_directory(own.as_fd()));
            return own.map_err(|errno| RunError::Setup { what: "working directory", errno });
        };
        mounts
            .open_directory(path)
            .map_err(|errno| RunError::WorkingDirectory { path: path.to_string_lossy().into_owned(), errno })
    }

    /// Starts the clock.
    pub(super) fn start_timeout(&self, kernel: &Arc<Kernel>) -> Result<Option<JoinHandle<bool>>, RunError> {
        let Some(limit) = self.timeout else { return Ok(None) };
        let setup = |errno| RunError::Setup { what: "timer", errno };
        // A guest that stops takes the supervisor along, for the shell outside to see. Its time goes on.
        let deadline = host::Deadline::new(limit).map_err(setup)?;
        let (kernel, grace) = (Arc::clone(kernel), self.kill_after);
        let thread = std::thread::Builder::new().name("systrap-timeout".to_owned());
        let started = thread.spawn(move || {
            let timed_out = !kernel.is_gone_within(limit);
            if timed_out {
                kernel.terminate_all();
                if !kernel.is_gone_within(grace) {
                    kernel.kill_all();
                }
            }
            drop(deadline);
            timed_out
        });
        let what = "time-out thread";
        started.map(Some).map_err(|error| RunError::Setup { what, errno: error.into() })
    }
}

/// Bounds of a guest as a whole.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// What each process may have mapped.
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) most_tasks: Option<usize>,
}

impl Bounds {
    /// The host's limit for a stub process, behind the one that the sentry keeps: the stack is mapped as a whole and
    /// counts as it grows, and trampolines are not the guest's.
    pub(crate) fn stub_bytes(&self, stack_len: u64) -> Option<u64> {
        const TRAMPOLINES: u64 = 64 << 20;
        self.memory_bytes.map(|bytes| bytes.saturating_add(stack_len).saturating_add(TRAMPOLINES))
    }
}
