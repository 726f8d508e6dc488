//! Stops, and what ends them (kernel/signal.c `do_signal_stop`, `prepare_signal`).
//!
//! A stop begins with one thread that takes a stop signal; the process has stopped, and its parent hears of it, when
//! the last of its threads has come to wait for the end of the stop, or has ended.

use super::tree::{Stopping, Usage};
use super::{Kernel, Life, Tree};
use crate::sentry::abi::SA_NOCLDSTOP;
use crate::sentry::process::Process;
use crate::sentry::signals::{Disposition, SigInfo};
use crate::sentry::task::TaskHandle;
use std::sync::Arc;

impl Tree {
    /// A stop signal takes effect: all threads of the process are to come to a stop. `sender`: who sent it, 0 for
    /// nobody in the guest.
    pub(crate) fn stop(&mut self, process: &Process, signo: i32, sender: i32) {
        let Some(node) = self.node_mut(process.pid) else { return };
        if matches!(node.life, Life::Running { .. }) && node.stopping.is_none() {
            node.stopping = Some(Stopping { signo, sender });
            process.set_stopped(true);
        }
    }

    /// The process has stopped if it was to and its last thread has come to it. Returns what whoever started the
    /// supervisor should see then, see [`Tree::stop_to_show`].
    pub(super) fn stopped_when_all_have(&mut self, first: i32, process: &Process) -> Option<i32> {
        if process.ending().is_some() || !process.threads().iter().all(|thread| thread.is_at_stop()) {
            return None;
        }
        let node = self.node_mut(process.pid)?;
        let Stopping { signo, sender } = node.stopping.take()?;
        node.life = Life::Stopped { signo, told: false };
        self.notify_of_stop(process, libc::CLD_STOPPED, signo);
        let is_first = process.pid == first;
        self.stop_to_show(first, is_first.then_some(sender))
    }

    /// A stopped process goes on, by SIGCONT (of which the parent hears) or to be killed.
    pub(crate) fn resume(&mut self, process: &Process, continued: bool) {
        let Some(node) = self.node_mut(process.pid) else { return };
        let told = match (node.life, node.stopping.take()) {
            (Life::Stopped { .. }, _) => (libc::CLD_CONTINUED, libc::SIGCONT),
            // The stop was not complete: as the kernel, its own news come late.
            (Life::Running { .. }, Some(stopping)) => (libc::CLD_STOPPED, stopping.signo),
            _ => return,
        };
        node.life = Life::Running { continued };
        process.set_stopped(false);
        if continued {
            self.notify_of_stop(process, told.0, told.1);
        }
    }

    fn notify_of_stop(&mut self, process: &Process, code: i32, status: i32) {
        let parent = self.node(process.pid).and_then(|node| self.node(node.parent));
        let Some(parent) = parent.map(|parent| Arc::clone(&parent.process)) else { return };
        let (ignored, flags) = {
            let actions = parent.actions();
            let ignored = actions.disposition(libc::SIGCHLD) == Disposition::Ignore;
            (ignored, actions.get(libc::SIGCHLD).map_or(0, |action| action.flags))
        };
        if !ignored && flags & SA_NOCLDSTOP == 0 {
            let child = (process.pid, process.credentials().user.real);
            let info = SigInfo::from_child(libc::SIGCHLD, code, child, status, Usage::default());
            let _ = self.send(super::Target::Process(&parent), info);
        }
        parent.ring();
    }
}

impl Kernel {
    /// Whether a thread has to wait because its process is stopped or is to stop; it counts as stopped from here on.
    ///
    /// A thread that goes on finds the signal that continued it: both happened under the tree's lock.
    pub(crate) fn holds_at_stop(&self, thread: &TaskHandle) -> bool {
        let mut tree = self.tree();
        let stays = thread.process.is_stopped();
        thread.set_at_stop(stays);
        if !stays {
            return false;
        }
        let to_show = tree.stopped_when_all_have(self.first_pid, &thread.process);
        drop(tree);
        if let Some(signo) = to_show {
            self.stop_outside(signo);
        }
        true
    }
}
