//! The supervisor's thread acts as the task that it runs.

use super::{ExitStatus, Task};
use crate::sentry::credentials::{Credentials, Ids};
use crate::sentry::errno::Errno;
use crate::sentry::host::{self, AssumeError};
use crate::sentry::kernel::Kernel;
use crate::sentry::socket::Socket;
use std::sync::Arc;

impl Kernel {
    /// The calling thread is the supervisor's again. What cannot be undone now is when the thread's next task starts.
    pub(super) fn act_as_supervisor(&self) {
        let own = self.supervisor.identity();
        let _ = host::assume_at_start(&own, &own);
    }
}

impl Task {
    /// Who the task is.
    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        self.handle.credentials()
    }

    /// The calling thread begins to run the task. If it cannot be the task the process ends: nothing of it may happen
    /// as somebody else.
    pub(super) fn act_as_guest(&mut self) -> bool {
        let supervisor = self.kernel().supervisor.identity();
        let done = host::assume_at_start(&self.credentials().identity(), &supervisor).is_ok();
        if !done {
            self.process.end(ExitStatus::Signaled(libc::SIGKILL));
        }
        done
    }

    /// Changes who the task is: both for the sentry and, as far as file calls go, for the host. `EPERM` if the host
    /// does not let the supervisor act as that.
    pub(crate) fn change_credentials(&mut self, new: Credentials) -> Result<(), Errno> {
        let old = self.credentials();
        if *old == new {
            return Ok(());
        }
        match host::assume(&new.identity()) {
            Ok(()) => {}
            Err(AssumeError::Refused) => return Err(Errno::EPERM),
            Err(AssumeError::Stranded) => {
                self.process.end(ExitStatus::Signaled(libc::SIGKILL));
                return Err(Errno::EPERM);
            }
        }
        self.record_credentials(&old, new);
        Ok(())
    }

    fn record_credentials(&mut self, old: &Credentials, new: Credentials) {
        let effective = |of: &Credentials| (of.user.effective, of.user.fs, of.group.effective, of.group.fs);
        let gains = new.caps.permitted & !old.caps.permitted != 0;
        if effective(old) != effective(&new) || gains {
            // `commit_creds`: who made the process may not be told things of somebody else.
            if let Some(node) = self.kernel().tree().node_mut(self.process.pid) {
                node.death_signal = 0;
            }
        }
        let new = Arc::new(new);
        self.handle.store_credentials(Arc::clone(&new));
        if self.tid() == self.process.pid {
            self.process.store_credentials(new);
        }
        self.publish_answers();
    }

    /// What the task will be when it has executed a program, and whether the program has to be careful.
    pub(crate) fn credentials_after_exec(&self) -> (Credentials, bool) {
        self.credentials().after_exec(self.kernel().supervisor.caps.permitted)
    }

    /// The same, without a way back: the process ends if it cannot be.
    pub(crate) fn take_credentials(&mut self, new: Credentials) {
        if self.change_credentials(new).is_err() {
            self.process.end(ExitStatus::Signaled(libc::SIGKILL));
        }
        // The task may have become the first of its process.
        self.process.store_credentials(self.credentials());
    }

    /// Does something as the supervisor that the task has a right to whoever it has become: opening once more what it
    /// holds open.
    pub(crate) fn as_supervisor<T>(&self, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let (acting, supervisor) = (self.credentials().identity(), self.kernel().supervisor.identity());
        if acting == supervisor {
            return call();
        }
        host::assume(&supervisor).map_err(|_| Errno::EPERM)?;
        let result = call();
        if host::assume(&acting).is_err() {
            self.process.end(ExitStatus::Signaled(libc::SIGKILL));
        }
        result
    }

    /// Makes a host call as access(2) wants it: by the real ids. The call is told whether to say `AT_EACCESS`.
    pub(crate) fn by_real_ids<T>(&self, call: impl FnOnce(bool) -> Result<T, Errno>) -> Result<T, Errno> {
        let own = self.credentials();
        let by_host = Arc::ptr_eq(&own, &self.kernel().supervisor) || *own == *self.kernel().supervisor;
        if by_host {
            return call(false);
        }
        let (acting, real) = (own.identity(), own.identity_for_access());
        if acting == real {
            return call(true);
        }
        host::assume(&real).map_err(|_| Errno::EACCES)?;
        let result = call(true);
        if host::assume(&acting).is_err() {
            self.process.end(ExitStatus::Signaled(libc::SIGKILL));
        }
        result
    }

    /// What is told of the task through a Unix socket, or through one that reaches the host's services; `None` for what
    /// the thread's own ids say. Others show users to the kernel only, by their file system ids.
    pub(crate) fn shown_through(&self, socket: &Socket) -> Option<host::Shown> {
        let tells = matches!(socket.domain, libc::AF_UNIX | libc::AF_NETLINK);
        let (own, supervisor) = (self.credentials(), &self.kernel().supervisor);
        if !tells || Arc::ptr_eq(&own, supervisor) {
            return None;
        }
        self.shown_with(own.user.real, own.group.real)
    }

    /// The same with other real ids, which the task has the right to show.
    pub(crate) fn shown_with(&self, real_user: u32, real_group: u32) -> Option<host::Shown> {
        let (own, supervisor) = (self.credentials(), &self.kernel().supervisor);
        let triple = |ids: Ids| [ids.real, ids.effective, ids.saved];
        host::Shown::new(
            [real_user, own.user.effective],
            [real_group, own.group.effective],
            triple(supervisor.user),
            triple(supervisor.group),
            own.identity(),
        )
    }

    /// After calls that were made as that.
    pub(crate) fn was_shown(&self, shown: Option<&host::Shown>) {
        if shown.is_some_and(host::Shown::is_stranded) {
            self.process.end(ExitStatus::Signaled(libc::SIGKILL));
        }
    }
}
