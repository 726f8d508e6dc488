//! What one process may do to another, by the credentials of both.

use super::Credentials;
use super::capabilities::cap;

impl Credentials {
    /// Whether all ids may be exchanged.
    pub(crate) fn may_become_others(&self) -> bool {
        self.has(cap::SETUID) && self.has(cap::SETGID)
    }

    /// Whether a signal may be sent (kernel/signal.c `kill_ok_by_cred`).
    pub(crate) fn may_signal(&self, target: &Credentials) -> bool {
        let own = [self.user.effective, self.user.real];
        own.iter().any(|id| *id == target.user.saved || *id == target.user.real) || self.has(cap::KILL)
    }

    /// Whether resource limits may be looked at and set (kernel/sys.c `check_prlimit_permission`).
    pub(crate) fn may_limit(&self, target: &Credentials) -> bool {
        let same =
            |own: u32, ids: super::Ids| [ids.real, ids.effective, ids.saved].iter().all(|id| *id == own);
        same(self.user.real, target.user) && same(self.group.real, target.group)
            || self.has(cap::SYS_RESOURCE)
    }

    /// Whether scheduling may be changed (`set_one_prio_perm`, `check_same_owner`).
    pub(crate) fn may_schedule(&self, target: &Credentials) -> bool {
        [target.user.real, target.user.effective].contains(&self.user.effective) || self.has(cap::SYS_NICE)
    }
}
