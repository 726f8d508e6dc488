//! Who the calling thread is to the other end of a Unix socket.
//!
//! Files go by the ids that `identity` changes. What a socket tells of the process behind it (`SO_PEERCRED`,
//! `SCM_CREDENTIALS`) are its effective and its real ids, which are the supervisor's; so they are exchanged for the one
//! call that has the host look at them. The saved ids stay, which is what keeps the way back open.

use super::identity::{Identity, become_identity, keeping_process_attributes, raise_capabilities};
use super::{Argument as _, Errno, Words, raw};
use std::cell::Cell;

/// Real, effective and saved id.
pub(crate) type Triple = [u32; 3];

/// Who a call is made as.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Users and groups: real and effective.
    ids: [[u32; 2]; 2],
    /// The supervisor's.
    own: [Triple; 2],
    /// What the thread acts as for file calls, before, meanwhile and afterwards.
    acting: Identity,
    is_stranded: Cell<bool>,
}

fn set_ids(nr: libc::c_long, [real, effective, saved]: Triple) -> Result<(), Errno> {
    let mut words = Words::default();
    for id in [real, effective, saved] {
        id.push_to(&mut words);
    }
    // SAFETY: these calls take numbers only. They are the raw ones, which change the calling thread alone.
    unsafe { raw(nr, &words) }.map(drop)
}

impl Shown {
    /// `users` and `groups`: real and effective, and what the supervisor has. `None` if nothing needs to be exchanged, or
    /// if there were no way back: a supervisor that is not root would lose what it may do by having been root.
    pub(crate) fn new(
        users: [u32; 2],
        groups: [u32; 2],
        own_users: Triple,
        own_groups: Triple,
        acting: Identity,
    ) -> Option<Self> {
        let shows = |ids: [u32; 2], own: Triple| ids == [own[0], own[1]];
        let same = shows(users, own_users) && shows(groups, own_groups);
        let one_way = users.contains(&0) && own_users[1] != 0;
        let (ids, own) = ([users, groups], [own_users, own_groups]);
        (!same && !one_way).then_some(Self { ids, own, acting, is_stranded: Cell::new(false) })
    }

    /// Whether a thread did not get back to who it was: it must not work for the guest any more.
    pub(crate) fn is_stranded(&self) -> bool {
        self.is_stranded.get()
    }

    fn enter(&self) -> Result<(), Errno> {
        let [[real_user, user], [real_group, group]] = self.ids;
        let [own_user, own_group] = self.own.map(|[_, effective, _]| effective);
        raise_capabilities()?;
        set_ids(libc::SYS_setresgid, [real_group, group, own_group])?;
        set_ids(libc::SYS_setresuid, [real_user, user, own_user])?;
        become_identity(&self.acting)
    }

    fn leave(&self) -> Result<(), Errno> {
        let [user, group] = self.own;
        raise_capabilities()?;
        set_ids(libc::SYS_setresuid, user)?;
        set_ids(libc::SYS_setresgid, group)?;
        become_identity(&self.acting)
    }

    /// Makes a call as that; `EPERM` if the host does not let the thread be that.
    fn during<T>(&self, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let entered = keeping_process_attributes(|| self.enter());
        let result = entered.map_err(|_| Errno::EPERM).and_then(|()| call());
        if keeping_process_attributes(|| self.leave()).is_err() {
            self.is_stranded.set(true);
        }
        result
    }
}

/// Makes a call as somebody, or as the thread is.
pub(crate) fn shown_as<T>(
    shown: Option<&Shown>,
    call: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match shown {
        Some(shown) => shown.during(call),
        None => call(),
    }
}
