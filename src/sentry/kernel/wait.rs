//! Waiting for children (kernel/exit.c `do_wait`), without the waiting: one look at the tree.

use super::tree::Usage;
use super::{Life, Node, Tree};
use crate::sentry::errno::Errno;
use crate::sentry::task::ExitStatus;

/// Which children a wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitFor {
    /// Any child.
    Any,
    /// The child of that id.
    Process(i32),
    /// Any child in that group.
    Group(i32),
}

/// What a wait asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WaitRequest {
    pub(crate) who: WaitFor,
    pub(crate) exited: bool,
    pub(crate) stopped: bool,
    pub(crate) continued: bool,
    /// `WNOWAIT`: leave it to be waited for again.
    pub(crate) keep: bool,
    /// `__WCLONE`: only children with another exit signal than SIGCHLD.
    pub(crate) clones_only: bool,
    /// `__WALL`: children of both kinds.
    pub(crate) all_kinds: bool,
}

/// A child whose state has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaitOutcome {
    pub(crate) pid: i32,
    /// The child's real user id.
    pub(crate) uid: u32,
    /// `CLD_EXITED` and so on.
    pub(crate) code: i32,
    /// The exit status or the signal.
    pub(crate) status: i32,
    pub(crate) usage: Usage,
}

impl WaitOutcome {
    /// As `wait4` returns it.
    pub(crate) fn wait_status(self) -> i32 {
        match self.code {
            libc::CLD_EXITED => (self.status & 0xff) << 8,
            libc::CLD_STOPPED => self.status << 8 | 0x7f,
            libc::CLD_CONTINUED => 0xffff,
            // CLD_KILLED; core dumps are not written.
            _ => self.status & 0x7f,
        }
    }
}

impl WaitRequest {
    fn concerns(&self, node: &Node) -> bool {
        let of_kind = self.all_kinds || (node.exit_signal != libc::SIGCHLD) == self.clones_only;
        of_kind
            && match self.who {
                WaitFor::Any => true,
                WaitFor::Process(pid) => node.process.pid == pid,
                WaitFor::Group(group) => node.group == group,
            }
    }
}

impl Tree {
    /// Looks for a child that the request is for: one that has something to tell (which is then told, and a zombie
    /// reaped), `None` if there is none yet, `ECHILD` if there never can be one.
    pub(crate) fn wait_once(
        &mut self,
        parent: i32,
        request: &WaitRequest,
    ) -> Result<Option<WaitOutcome>, Errno> {
        let children: Vec<i32> =
            self.node(parent).map(|node| node.children.iter().copied().collect()).unwrap_or_default();
        let mut any = false;
        for pid in children {
            let Some(node) = self.node_mut(pid).filter(|node| request.concerns(node)) else { continue };
            any = true;
            let uid = node.process.credentials().user.real;
            let found = |code, status, usage| Ok(Some(WaitOutcome { pid, uid, code, status, usage }));
            match &mut node.life {
                Life::Zombie { status, usage } if request.exited => {
                    let (status, usage) = (*status, *usage);
                    let total = usage.plus(node.children_usage);
                    if !request.keep {
                        if let Some(parent) = self.node_mut(parent) {
                            parent.children_usage = parent.children_usage.plus(total);
                        }
                        self.reap(pid);
                    }
                    return match status {
                        ExitStatus::Exited(status) => found(libc::CLD_EXITED, status, total),
                        ExitStatus::Signaled(signo) => found(libc::CLD_KILLED, signo, total),
                    };
                }
                Life::Stopped { signo, told } if request.stopped && !*told => {
                    *told = !request.keep;
                    let signo = *signo;
                    return found(libc::CLD_STOPPED, signo, Usage::default());
                }
                Life::Running { continued } if request.continued && *continued => {
                    *continued = request.keep;
                    return found(libc::CLD_CONTINUED, libc::SIGCONT, Usage::default());
                }
                _ => {}
            }
        }
        if any { Ok(None) } else { Err(Errno::ECHILD) }
    }
}
