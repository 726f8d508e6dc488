//! The end of threads and processes, and what becomes of those they leave (kernel/exit.c).

use super::tree::Usage;
use super::{Kernel, Life, Target, Tree};
use crate::sentry::abi::SA_NOCLDWAIT;
use crate::sentry::process::Process;
use crate::sentry::signals::{Disposition, SigInfo};
use crate::sentry::task::{ExitStatus, TaskHandle};
use std::sync::Arc;

impl Kernel {
    /// A task has ended: `status` is its process's if it was the last one and nothing else was decided.
    ///
    /// Everything that the task held (memory, descriptors) has been let go of before, so that whoever waits for the
    /// process finds pipes closed and memory free.
    pub(crate) fn thread_ended(&self, thread: &Arc<TaskHandle>, status: ExitStatus, usage: Usage) {
        let mut tree = self.tree();
        let process = Arc::clone(&thread.process);
        tree.tell_children_of_thread(thread.tid(), process.pid);
        if thread.tid() == process.pid
            && let Some(node) = tree.node_mut(process.pid)
        {
            node.leader_status = Some(status);
        }
        let last = tree.remove_thread(thread);
        if last {
            self.ipc.process_ended(process.pid);
            let by_leader = tree.node(process.pid).and_then(|node| node.leader_status);
            let status = process.ending().or(by_leader).unwrap_or(status);
            tree.process_ended(self, &process, status, usage);
        } else {
            // A thread that executes a program waits for the others to go.
            process.ring();
        }
        let all_gone = tree.running == 0;
        let keepers = tree.has_keepers_to_close();
        // What is left of a process that is to stop may have stopped by now.
        let stop = match last {
            true => tree.stop_to_show(self.first_pid, None),
            false => tree.stopped_when_all_have(self.first_pid, &process),
        };
        drop(tree);
        if keepers {
            drop(self.close_keepers());
        }
        if let Some(signo) = stop {
            self.stop_outside(signo);
        }
        if all_gone {
            self.report_all_gone();
        }
    }
}

/// Whether a parent in that group and session keeps a child's group from being an orphan.
fn watches((group, session): (i32, i32), of_child: (i32, i32)) -> bool {
    group != of_child.0 && session == of_child.1
}

impl Tree {
    fn tell_children_of_thread(&mut self, tid: i32, pid: i32) {
        let children: Vec<(Arc<Process>, i32)> = self
            .nodes()
            .filter(|node| node.parent == pid && node.creator == tid && node.death_signal != 0)
            .map(|node| (Arc::clone(&node.process), node.death_signal))
            .collect();
        let Some(dying) = self.node(pid).map(|node| node.process.credentials()) else { return };
        for (child, signo) in children {
            if !dying.may_signal(&child.credentials()) {
                continue;
            }
            let info = SigInfo::from_user(signo, libc::SI_USER, pid, dying.user.real);
            let _ = self.send(Target::Process(&child), info);
        }
    }

    fn process_ended(&mut self, kernel: &Kernel, process: &Arc<Process>, status: ExitStatus, usage: Usage) {
        let pid = process.pid;
        if pid == kernel.first_pid {
            kernel.report_status(status);
        }
        let Some(node) = self.node(pid) else { return };
        let (group, session, parent) = (node.group, node.session, node.parent);
        // Before anybody hears of the end in another way.
        if session == pid {
            self.session_leader_ended(session);
        }
        self.reparent_children(pid);
        if let Some(node) = self.node_mut(pid) {
            node.life = Life::Zombie { status, usage };
        }
        process.close_timers();
        process.close_clock(usage);
        crate::sentry::pidfd::ended(process);
        let watched = self.node(parent).map(|parent| (parent.group, parent.session));
        if watched.is_none_or(|watched| watches(watched, (group, session))) {
            self.hang_up_orphans(group);
        }
        let reaped_by_nobody = self.node(parent).is_none() || !self.notify_parent(pid);
        if reaped_by_nobody {
            self.reap(pid);
        }
    }

    /// Children of a process that has ended go to the nearest subreaper above, or leave the guest's tree.
    fn reparent_children(&mut self, pid: i32) {
        let children: Vec<i32> =
            self.node(pid).map(|node| node.children.iter().copied().collect()).unwrap_or_default();
        let mut heir = self.node(pid).map_or(0, |node| node.parent);
        while let Some(node) = self.node(heir) {
            let ends = matches!(node.life, Life::Zombie { .. });
            if node.is_subreaper && !ends {
                break;
            }
            heir = node.parent;
        }
        let own = self.node(pid).map_or((0, 0), |node| (node.group, node.session));
        for child in children {
            let Some(node) = self.node_mut(child) else { continue };
            node.parent = heir;
            node.creator = heir;
            let zombie = matches!(node.life, Life::Zombie { .. });
            let (group, session) = (node.group, node.session);
            match self.node_mut(heir) {
                Some(heir) => {
                    heir.children.insert(child);
                    if zombie && !self.notify_parent(child) {
                        self.reap(child);
                    }
                }
                // Whoever is process 1 outside would wait for it.
                None if zombie => self.reap(child),
                None => {}
            }
            if watches(own, (group, session)) {
                self.hang_up_orphans(group);
            }
        }
    }

    /// A group that has become an orphan and has stopped members is told so (`kill_orphaned_pgrp`).
    fn hang_up_orphans(&mut self, group: i32) {
        let members = self.group_members(group);
        let stopped = members
            .iter()
            .any(|pid| self.node(*pid).is_some_and(|node| matches!(node.life, Life::Stopped { .. })));
        if stopped && self.is_orphaned(group) {
            let _ = self.send_to_all(&members, SigInfo::from_kernel(libc::SIGHUP));
            let _ = self.send_to_all(&members, SigInfo::from_kernel(libc::SIGCONT));
        }
    }

    /// Tells the parent of a zombie; `false` if the parent does not care for it, so that it is gone at once.
    fn notify_parent(&mut self, pid: i32) -> bool {
        let Some(node) = self.node(pid) else { return false };
        let (Life::Zombie { status, usage }, signo) = (node.life, node.exit_signal) else { return true };
        let uid = node.process.credentials().user.real;
        let Some(parent) = self.node(node.parent).map(|parent| Arc::clone(&parent.process)) else {
            return false;
        };
        let mut waits = true;
        let mut wants_signal = signo != 0;
        if signo == libc::SIGCHLD {
            let actions = parent.actions();
            let ignores = actions.disposition(signo) == Disposition::Ignore;
            let flags = actions.get(signo).map_or(0, |action| action.flags);
            waits = !ignores && flags & SA_NOCLDWAIT == 0;
            wants_signal = !ignores;
        }
        if wants_signal {
            let (code, value) = match status {
                ExitStatus::Exited(status) => (libc::CLD_EXITED, status),
                ExitStatus::Signaled(signo) => (libc::CLD_KILLED, signo),
            };
            let info = SigInfo::from_child(signo, code, (pid, uid), value, usage);
            let _ = self.send(Target::Process(&parent), info);
        }
        parent.ring();
        waits
    }
}
