//! Which terminal controls which session, and which group is in its foreground (drivers/tty/tty_jobctrl.c).
//!
//! The host knows of one session and one group only, the supervisor's. The session in which the supervisor was
//! started has its terminal from the host ([`Link::Host`]): while the host has the supervisor's group in the
//! foreground, one of the guest's groups is. Terminals of sessions that the guest has made are held by a keeper.

use super::keeper::Keeper;
use super::{Kernel, Tree};
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::process::lock;
use crate::sentry::signals::SigInfo;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, MutexGuard};

/// The controlling terminal of a session.
pub(crate) struct Controlling {
    /// Its number, the same for both of its ends.
    pub(crate) device: u32,
    /// The foreground group, among the guest's.
    pub(crate) foreground: i32,
    pub(crate) link: Link,
}

/// How the terminal's signals get here.
pub(crate) enum Link {
    /// It controls the supervisor's own session.
    Host,
    /// It controls a keeper's session. The descriptor (`O_PATH`) is for opening it again.
    Kept {
        /// The keeper.
        keeper: Keeper,
        /// The terminal's file.
        path: Arc<OwnedFd>,
    },
}

/// All controlling terminals of a guest.
#[derive(Default)]
pub(crate) struct Terminals {
    by_session: BTreeMap<i32, Controlling>,
    /// The foreground groups of terminals that hung up, for the end of their session's leader.
    hung_up: BTreeMap<i32, i32>,
    /// Keepers to be closed when the tree is not locked.
    closing: Vec<Keeper>,
}

fn host_id(result: Result<usize, Errno>) -> Option<i32> {
    result.ok().and_then(|id| i32::try_from(id).ok())
}

impl Controlling {
    /// The foreground group as the guest is to see it; `file` is the terminal.
    pub(crate) fn foreground_now(&self, file: BorrowedFd<'_>) -> i32 {
        if matches!(self.link, Link::Kept { .. }) {
            return self.foreground;
        }
        match host::foreground_group(file) {
            // A shell outside has the terminal now.
            Ok(group) if Some(group) != host_id(host::getpgid(0)) => group,
            _ => self.foreground,
        }
    }
}

impl Tree {
    /// The terminal that the supervisor's session has on the host.
    pub(crate) fn inherit_terminal(&mut self, session: i32, group: i32) {
        if let Some(device) = host::controlling_device() {
            let controlling = Controlling { device, foreground: group, link: Link::Host };
            self.terminals.by_session.insert(session, controlling);
        }
    }

    /// The controlling terminal of a process.
    pub(crate) fn terminal_of(&self, pid: i32) -> Option<&Controlling> {
        let node = self.node(pid).filter(|node| !node.gave_up_terminal)?;
        self.terminals.by_session.get(&node.session)
    }

    pub(crate) fn terminal_of_session(&mut self, session: i32) -> Option<&mut Controlling> {
        self.terminals.by_session.get_mut(&session)
    }

    /// The session that a terminal controls.
    pub(crate) fn session_of_terminal(&self, device: u32) -> Option<i32> {
        self.terminals.by_session.iter().find(|(_, held)| held.device == device).map(|(session, _)| *session)
    }

    /// Whether a process may make a terminal its session's (`tiocsctty`); `false`: it is already.
    pub(crate) fn may_take_terminal(&self, pid: i32, device: u32) -> Result<bool, Errno> {
        let session = self.node(pid).map(|node| node.session);
        let holder = self.session_of_terminal(device);
        if session != Some(pid) {
            return Err(Errno::EPERM);
        }
        if holder == session {
            return Ok(false);
        }
        match holder.is_some() || self.terminals.by_session.contains_key(&pid) {
            true => Err(Errno::EPERM),
            false => Ok(true),
        }
    }

    /// Makes a terminal that of the session which `leader` leads.
    pub(crate) fn take_terminal(&mut self, leader: i32, device: u32, link: Link) {
        if let Some(node) = self.node_mut(leader) {
            node.gave_up_terminal = false;
            let foreground = node.group;
            self.terminals.by_session.insert(leader, Controlling { device, foreground, link });
        }
    }

    /// `TIOCNOTTY`: the whole session loses its terminal if its leader gives it up.
    pub(crate) fn give_up_terminal(&mut self, pid: i32) {
        if self.node(pid).is_some_and(|node| node.session == pid) {
            if let Some(foreground) = self.forget_terminal(pid) {
                let members = self.group_members(foreground);
                let uid = self.node(pid).map_or(0, |node| node.process.credentials().user.real);
                for signo in [libc::SIGHUP, libc::SIGCONT] {
                    let info = SigInfo::from_user(signo, libc::SI_USER, pid, uid);
                    let _ = self.send_to_all(&members, info);
                }
            }
        } else if let Some(node) = self.node_mut(pid) {
            node.gave_up_terminal = true;
        }
    }

    /// The leader of a session has ended (`disassociate_ctty`).
    pub(super) fn session_leader_ended(&mut self, session: i32) {
        let hung_up = self.terminals.hung_up.remove(&session);
        if let Some(foreground) = self.forget_terminal(session) {
            self.signal_group(foreground, libc::SIGHUP);
        } else if let Some(foreground) = hung_up {
            self.signal_group(foreground, libc::SIGHUP);
            self.signal_group(foreground, libc::SIGCONT);
        }
    }

    /// Returns the foreground group of the terminal that the session had.
    fn forget_terminal(&mut self, session: i32) -> Option<i32> {
        let controlling = self.terminals.by_session.remove(&session)?;
        if let Link::Kept { keeper, .. } = controlling.link {
            self.terminals.closing.push(keeper);
        }
        Some(controlling.foreground)
    }

    /// A terminal is gone: the leader of its session hears of it (`tty_signal_session_leader`).
    pub(super) fn hang_up(&mut self, device: u32) {
        let Some(session) = self.session_of_terminal(device) else { return };
        if let Some(controlling) = self.terminals.by_session.remove(&session) {
            self.terminals.hung_up.insert(session, controlling.foreground);
        }
        let leader = [session];
        let _ = self.send_to_all(&leader, SigInfo::from_kernel(libc::SIGHUP));
        let _ = self.send_to_all(&leader, SigInfo::from_kernel(libc::SIGCONT));
    }

    /// The foreground group of the terminal that controls the supervisor's own session, and its number.
    pub(super) fn host_foreground(&self) -> Option<(i32, u32)> {
        let held = self.terminals.by_session.values().find(|held| matches!(held.link, Link::Host))?;
        Some((held.foreground, held.device))
    }

    pub(super) fn has_host_terminal(&self, session: i32) -> bool {
        self.terminals.by_session.get(&session).is_some_and(|held| matches!(held.link, Link::Host))
    }

    fn signal_group(&mut self, group: i32, signo: i32) {
        let members = self.group_members(group);
        let _ = self.send_to_all(&members, SigInfo::from_kernel(signo));
    }

    pub(super) fn has_keepers_to_close(&self) -> bool {
        !self.terminals.closing.is_empty()
    }
}

impl Kernel {
    /// What a keeper has heard from its terminal.
    pub(super) fn terminal_sent(&self, device: u32, signo: i32) {
        let mut tree = self.tree();
        match signo {
            libc::SIGHUP => tree.hang_up(device),
            // Comes with a hang-up.
            libc::SIGCONT => {}
            _ => {
                let session = tree.session_of_terminal(device);
                let foreground = session.and_then(|session| tree.terminal_of_session(session));
                if let Some(group) = foreground.map(|held| held.foreground) {
                    tree.signal_group(group, signo);
                }
            }
        }
    }

    /// Has the keepers of terminals that were given up end, and keeps others from taking a terminal meanwhile. The
    /// tree must not be locked.
    pub(crate) fn close_keepers(&self) -> MutexGuard<'_, ()> {
        let gate = lock(&self.keeper_gate);
        let closing = std::mem::take(&mut self.tree().terminals.closing);
        for keeper in closing {
            keeper.close();
        }
        gate
    }
}
