//! The guest and the shell outside: signals that come in, stops that are to be seen.

use super::{Kernel, Life, Tree};
use crate::sentry::host::{self, HostSignals};
use crate::sentry::process::lock;
use crate::sentry::signals::SigInfo;
use std::time::Duration;

impl Tree {
    fn is_alive(&self, pid: i32) -> bool {
        self.node(pid).is_some_and(|node| !matches!(node.life, Life::Zombie { .. }))
    }

    /// Who gets a signal that somebody sent to the supervisor: the first process or, when that has ended, all
    /// others.
    fn addressed(&self, first: i32) -> Vec<i32> {
        match self.is_alive(first) {
            true => vec![first],
            false => self.nodes().map(|node| node.process.pid).collect(),
        }
    }

    /// The members of the group that the supervisor's group on the host stands for.
    fn outer_group(&self) -> Vec<i32> {
        let group = host::getpgid(0).ok().and_then(|group| i32::try_from(group).ok());
        group.map_or(Vec::new(), |group| self.group_members(group))
    }

    /// Who gets a signal that the terminal, or the host kernel on its behalf, sent to the supervisor's group.
    fn in_foreground(&self, first: i32) -> Vec<i32> {
        match self.host_foreground() {
            Some((group, _)) => self.group_members(group),
            None => self.addressed(first),
        }
    }

    /// The stop of the first process that whoever started the supervisor should see now. `sender`: who stopped it,
    /// if it has just been stopped. Somebody in the guest who can continue it keeps it inside.
    pub(crate) fn stop_to_show(&self, first: i32, sender: Option<i32>) -> Option<i32> {
        let Life::Stopped { signo, .. } = self.node(first)?.life else { return None };
        let from_outside = sender.is_some_and(|sender| sender == first || !self.is_alive(sender));
        let somebody_runs = || self.nodes().any(|node| matches!(node.life, Life::Running { .. }));
        (from_outside || !somebody_runs()).then_some(signo)
    }

    /// Whether a member of the first process's group has still to act on a stop signal.
    fn others_are_to_stop(&self, first: i32) -> bool {
        let group = self.node(first).map(|node| node.group);
        self.nodes().any(|node| {
            Some(node.group) == group
                && matches!(node.life, Life::Running { .. })
                && (node.stopping.is_some() || node.process.pending().set().0 & super::send::STOPS.0 != 0)
        })
    }
}

impl Kernel {
    /// A signal that the host sent to the supervisor.
    fn pass_on(&self, info: SigInfo) {
        let mut tree = self.tree();
        let first = self.first_pid;
        let pids = match (info.signo(), info.is_from_kernel()) {
            (libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP | libc::SIGWINCH, true) => {
                tree.in_foreground(first)
            }
            // The supervisor leads its session: the terminal hung up.
            (libc::SIGHUP, true) if host::getsid(0) == Ok(first as usize) => {
                if let Some((_, device)) = tree.host_foreground() {
                    return tree.hang_up(device);
                }
                tree.addressed(first)
            }
            (libc::SIGHUP, true) => match tree.in_foreground(first) {
                nobody if nobody.is_empty() => tree.outer_group(),
                members => members,
            },
            // A shell continues a whole job.
            (libc::SIGCONT, _) => {
                let mut pids = tree.outer_group();
                pids.extend(tree.addressed(first));
                pids.sort_unstable();
                pids.dedup();
                pids
            }
            _ => tree.addressed(first),
        };
        let _ = tree.send_to_all(&pids, info);
    }

    /// Passes on one signal that the host has sent to the supervisor, if there is one.
    pub(crate) fn take_in(&self, signals: &HostSignals) {
        let _whole = lock(&self.taking_in);
        if let Ok(info) = signals.take() {
            self.pass_on(SigInfo(info));
        }
    }

    /// Stops the supervisor, so that whoever started it sees the first process stop. Returns when it goes on.
    pub(crate) fn stop_outside(&self, signo: i32) {
        // What the same signal stops should not run on while nobody serves it.
        for _ in 0..100 {
            if !self.tree().others_are_to_stop(self.first_pid) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.tree().stop_to_show(self.first_pid, Some(self.first_pid)).is_none() {
            return; // continued already
        }
        host::stop_this_process(signo);
        let _whole = lock(&self.taking_in);
        if host::is_pending(libc::SIGCONT) {
            // The first process goes on together with the signal: before, a call of it that must not be interrupted
            // natively would be.
            return;
        }
        // It has been passed on, or the host found that nobody would continue the supervisor.
        let mut tree = self.tree();
        if let Some(first) = tree.node(self.first_pid).map(|node| std::sync::Arc::clone(&node.process)) {
            tree.resume(&first, true);
        }
    }
}
