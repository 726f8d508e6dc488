//! The rules of the set-id calls (kernel/sys.c, kernel/groups.c).

use super::capabilities::cap;
use super::{Credentials, Ids};
use crate::sentry::errno::Errno;

/// "Leave it as it is", and no valid id.
const UNCHANGED: u32 = u32::MAX;
/// `NGROUPS_MAX`.
pub(crate) const MOST_GROUPS: usize = 65536;

fn wanted(id: u32) -> Option<u32> {
    (id != UNCHANGED).then_some(id)
}

impl Ids {
    /// setuid(2) and setgid(2).
    fn set(mut self, id: u32, privileged: bool) -> Result<Self, Errno> {
        let id = wanted(id).ok_or(Errno::EINVAL)?;
        if privileged {
            self.real = id;
            self.saved = id;
        } else if id != self.real && id != self.saved {
            return Err(Errno::EPERM);
        }
        self.effective = id;
        self.fs = id;
        Ok(self)
    }

    /// setreuid(2) and setregid(2).
    fn set_two(self, real: u32, effective: u32, privileged: bool) -> Result<Self, Errno> {
        let mut new = self;
        if let Some(real) = wanted(real) {
            if !privileged && real != self.real && real != self.effective {
                return Err(Errno::EPERM);
            }
            new.real = real;
        }
        if let Some(effective) = wanted(effective) {
            if !privileged && !self.has(effective) {
                return Err(Errno::EPERM);
            }
            new.effective = effective;
        }
        if wanted(real).is_some() || wanted(effective).is_some_and(|effective| effective != self.real) {
            new.saved = new.effective;
        }
        new.fs = new.effective;
        Ok(new)
    }

    /// setresuid(2) and setresgid(2).
    fn set_three(self, [real, effective, saved]: [u32; 3], privileged: bool) -> Result<Self, Errno> {
        let foreign = [real, effective, saved].into_iter().filter_map(wanted).any(|id| !self.has(id));
        if foreign && !privileged {
            return Err(Errno::EPERM);
        }
        let changes = [(real, self.real), (effective, self.effective), (saved, self.saved)]
            .into_iter()
            .any(|(new, old)| wanted(new).is_some_and(|new| new != old));
        // Nothing to do but for a file system id that went its own way with the effective one named.
        let resets_fs = wanted(effective).is_some_and(|effective| effective != self.fs);
        if !changes && !resets_fs {
            return Ok(self);
        }
        let effective = wanted(effective).unwrap_or(self.effective);
        Ok(Self {
            real: wanted(real).unwrap_or(self.real),
            effective,
            saved: wanted(saved).unwrap_or(self.saved),
            fs: effective,
        })
    }
}

impl Credentials {
    fn change_user(&self, user: Ids) -> Self {
        let mut new = Self { user, ..self.clone() };
        new.follow_user_ids(self);
        new
    }

    pub(crate) fn set_uid(&self, id: u32) -> Result<Self, Errno> {
        self.user.set(id, self.has(cap::SETUID)).map(|user| self.change_user(user))
    }

    pub(crate) fn set_uids(&self, real: u32, effective: u32) -> Result<Self, Errno> {
        self.user.set_two(real, effective, self.has(cap::SETUID)).map(|user| self.change_user(user))
    }

    pub(crate) fn set_all_uids(&self, ids: [u32; 3]) -> Result<Self, Errno> {
        self.user.set_three(ids, self.has(cap::SETUID)).map(|user| self.change_user(user))
    }

    /// setfsuid(2), which has no error: `None` if the id stays as it is.
    pub(crate) fn set_fs_uid(&self, id: u32) -> Option<Self> {
        let allowed = self.user.has(id) || self.user.fs == id || self.has(cap::SETUID);
        if id == UNCHANGED || id == self.user.fs || !allowed {
            return None;
        }
        let mut new = self.clone();
        new.user.fs = id;
        new.follow_fs_user_id(self.user.fs);
        Some(new)
    }

    fn change_group(&self, group: Ids) -> Self {
        Self { group, ..self.clone() }
    }

    pub(crate) fn set_gid(&self, id: u32) -> Result<Self, Errno> {
        self.group.set(id, self.has(cap::SETGID)).map(|group| self.change_group(group))
    }

    pub(crate) fn set_gids(&self, real: u32, effective: u32) -> Result<Self, Errno> {
        self.group.set_two(real, effective, self.has(cap::SETGID)).map(|group| self.change_group(group))
    }

    pub(crate) fn set_all_gids(&self, ids: [u32; 3]) -> Result<Self, Errno> {
        self.group.set_three(ids, self.has(cap::SETGID)).map(|group| self.change_group(group))
    }

    /// setfsgid(2): `None` if the id stays as it is.
    pub(crate) fn set_fs_gid(&self, id: u32) -> Option<Self> {
        let allowed = self.group.has(id) || self.group.fs == id || self.has(cap::SETGID);
        if id == UNCHANGED || id == self.group.fs || !allowed {
            return None;
        }
        let mut new = self.clone();
        new.group.fs = id;
        Some(new)
    }

    /// setgroups(2).
    pub(crate) fn set_groups(&self, mut groups: Vec<u32>) -> Self {
        groups.sort_unstable();
        Self { groups: groups.into(), ..self.clone() }
    }
}
