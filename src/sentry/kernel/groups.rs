//! Process groups and sessions (kernel/sys.c).

use super::{Life, Node, Tree};
use crate::sentry::errno::Errno;
use crate::sentry::host;

impl Tree {
    /// setpgid(2), called by `caller`.
    pub(crate) fn set_group(&mut self, caller: i32, pid: i32, group: i32) -> Result<(), Errno> {
        if group < 0 {
            return Err(Errno::EINVAL);
        }
        let pid = if pid == 0 { caller } else { pid };
        let group = if group == 0 { pid } else { group };
        let own_session = self.node(caller).map(|node| node.session);
        let node = self.node(pid).ok_or(Errno::ESRCH)?;
        if node.parent == caller && pid != caller {
            if Some(node.session) != own_session {
                return Err(Errno::EPERM);
            }
            if node.has_executed {
                return Err(Errno::EACCES);
            }
        } else if pid != caller {
            return Err(Errno::ESRCH);
        }
        let session = node.session;
        if session == pid {
            return Err(Errno::EPERM);
        }
        // The supervisor's own group goes with the first process's, so that a shell outside that looks on sees the
        // group which it would see natively, and terminal signals meet nobody else.
        let is_first = pid == std::process::id() as i32;
        let of_guest = group != pid && self.nodes().any(|node| node.group == group);
        let moved =
            is_first && !of_guest && self.has_host_terminal(session) && host::setpgid(0, group).is_ok();
        let exists = group == pid
            || moved
            || self.nodes().any(|node| node.group == group && node.session == session)
            || self.is_outer_group(group, session);
        if !exists {
            return Err(Errno::EPERM);
        }
        if let Some(node) = self.node_mut(pid) {
            node.group = group;
        }
        Ok(())
    }

    /// The group in which the supervisor was started exists even when no guest process is in it.
    fn is_outer_group(&self, group: i32, session: i32) -> bool {
        let id = |result: Result<usize, Errno>| result.ok().and_then(|id| i32::try_from(id).ok());
        id(host::getpgid(0)) == Some(group) && id(host::getsid(0)) == Some(session)
    }

    /// setsid(2).
    pub(crate) fn new_session(&mut self, pid: i32) -> Result<i32, Errno> {
        if self.nodes().any(|node| node.group == pid) {
            return Err(Errno::EPERM);
        }
        let node = self.node_mut(pid).ok_or(Errno::ESRCH)?;
        node.session = pid;
        node.group = pid;
        node.gave_up_terminal = false;
        Ok(pid)
    }

    /// The processes of a group that have not ended.
    pub(crate) fn group_members(&self, group: i32) -> Vec<i32> {
        self.nodes()
            .filter(|node| node.group == group && !matches!(node.life, Life::Zombie { .. }))
            .map(|node| node.process.pid)
            .collect()
    }

    /// Whether nobody outside a group, in the same session, is the parent of one of its members: then nobody would
    /// continue them if they stopped (`is_current_pgrp_orphaned`).
    pub(crate) fn is_orphaned(&self, group: i32) -> bool {
        !self.nodes().any(|node| {
            node.group == group
                && !matches!(node.life, Life::Zombie { .. })
                && match self.node(node.parent) {
                    Some(parent) => parent.group != group && parent.session == node.session,
                    // The first process's parent is the shell, or whoever started the supervisor.
                    None => node.process.pid == node.process.kernel.first_pid && self.is_watched(node),
                }
        })
    }

    /// Whether somebody outside would continue the first process.
    fn is_watched(&self, first: &Node) -> bool {
        let id = |result: Result<usize, Errno>| result.ok().and_then(|id| i32::try_from(id).ok());
        if id(host::getsid(0)) != Some(first.session) {
            return false;
        }
        match id(host::getpgid(0)) == Some(first.group) {
            true => !host::own_group_is_orphaned(),
            false => {
                host::getppid().is_ok_and(|parent| id(host::getsid(parent as i32)) == Some(first.session))
            }
        }
    }
}
