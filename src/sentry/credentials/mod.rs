//! Who a task is (Linux's `struct cred`): users, groups, capabilities, and the rules by which they change.
//!
//! This module decides what the guest may become; [`host::assume`](super::host::assume) has the supervisor's thread
//! act as it. Set-user-id bits and file capabilities of programs have no effect, as after
//! `prctl(PR_SET_NO_NEW_PRIVS)`: a stub process could not have them.

mod capabilities;
mod permissions;
#[cfg(test)]
mod tests;
mod users;

pub(crate) use capabilities::{CapabilitySets, Securebits, cap};
pub(crate) use users::MOST_GROUPS;

use super::host;
use super::loader::Owner;
use capabilities::MOST_CAPABILITIES;
use std::sync::Arc;

/// The ids of one kind: users or groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
    /// What file calls go by.
    pub(crate) fs: u32,
}

impl Ids {
    fn has(self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }
}

/// The credentials of a task. They are replaced as a whole, so that others see the old ones or the new ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: Ids,
    pub(crate) group: Ids,
    /// Supplementary groups in ascending order.
    pub(crate) groups: Arc<[u32]>,
    pub(crate) caps: CapabilitySets,
    pub(crate) securebits: Securebits,
    /// The guest gave up gaining privileges. (It could not gain any from a program file anyway.)
    pub(crate) no_new_privs: bool,
}

impl Credentials {
    /// The supervisor's own, which a guest starts with.
    pub(crate) fn of_supervisor() -> Self {
        let (mut real, mut effective, mut saved) = ([0], [0], [0]);
        let _ = host::getresuid(&mut real, &mut effective, &mut saved);
        let user = Ids { real: real[0], effective: effective[0], saved: saved[0], fs: host::fs_uid() };
        let _ = host::getresgid(&mut real, &mut effective, &mut saved);
        let group = Ids { real: real[0], effective: effective[0], saved: saved[0], fs: host::fs_gid() };
        let mut groups = host::supplementary_groups();
        groups.sort_unstable();
        let [effective, permitted, inheritable] = host::capabilities();
        let bounding = (0..MOST_CAPABILITIES)
            .take_while(|cap| host::bounding_capability(*cap).is_some())
            .filter(|cap| host::bounding_capability(*cap) == Some(true))
            .fold(0, |set, cap| set | 1 << cap);
        let ambient = (0..MOST_CAPABILITIES)
            .filter(|cap| host::ambient_capability(*cap))
            .fold(0, |set, cap| set | 1 << cap);
        Self {
            user,
            group,
            groups: groups.into(),
            caps: CapabilitySets { effective, permitted, inheritable, bounding, ambient },
            securebits: Securebits(host::securebits()),
            no_new_privs: false,
        }
    }

    /// What a program starts with that is executed (security/commoncap.c `cap_bprm_creds_from_file`), and whether the C
    /// library has to be careful (`AT_SECURE`). `ceiling` is what the supervisor itself may hold.
    pub(crate) fn after_exec(&self, ceiling: u64) -> (Self, bool) {
        let mut new = self.clone();
        new.user.saved = self.user.effective;
        new.user.fs = self.user.effective;
        new.group.saved = self.group.effective;
        new.group.fs = self.group.effective;
        let root_counts = !self.securebits.has(Securebits::NO_ROOT);
        let by_root = root_counts && (self.user.effective == 0 || self.user.real == 0);
        let all_effective = root_counts && self.user.effective == 0;
        let mut permitted = if by_root { self.caps.bounding | self.caps.inheritable } else { 0 };
        permitted &= ceiling;
        if self.no_new_privs {
            permitted &= self.caps.permitted;
        }
        permitted |= self.caps.ambient;
        new.caps.permitted = permitted;
        new.caps.effective = if all_effective { permitted } else { self.caps.ambient };
        new.securebits = self.securebits.without(Securebits::KEEP_CAPS);
        let other_ids = new.user.effective != self.user.real || new.group.effective != self.group.real;
        let grew = permitted & !self.caps.ambient != 0;
        let secure = other_ids || self.user.real != 0 && (all_effective || grew);
        (new, secure)
    }
}

impl Credentials {
    /// What the host judges file calls by.
    pub(crate) fn identity(&self) -> host::Identity {
        host::Identity {
            fs_uid: self.user.fs,
            fs_gid: self.group.fs,
            groups: Arc::clone(&self.groups),
            effective_capabilities: self.caps.effective,
        }
    }

    /// The same for access(2), which goes by the real ids (fs/open.c `access_override_creds`).
    pub(crate) fn identity_for_access(&self) -> host::Identity {
        let effective_capabilities = match self.user.real {
            _ if self.securebits.has(Securebits::NO_SETUID_FIXUP) => self.caps.effective,
            0 => self.caps.permitted,
            _ => 0,
        };
        let (fs_uid, fs_gid) = (self.user.real, self.group.real);
        host::Identity { fs_uid, fs_gid, effective_capabilities, ..self.identity() }
    }

    /// As a program's auxiliary vector shows it.
    pub(crate) fn owner(&self, secure: bool) -> Owner {
        Owner {
            uid: self.user.real,
            euid: self.user.effective,
            gid: self.group.real,
            egid: self.group.effective,
            secure,
        }
    }
}
