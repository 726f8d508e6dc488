//! Whom a file of `/proc` speaks of: what is known of a process or thread at one moment.

use super::node::Owner;
use crate::sentry::errno::Errno;
use crate::sentry::fd_table::FdTable;
use crate::sentry::fs_context::FsContext;
use crate::sentry::host;
use crate::sentry::kernel::Life;
use crate::sentry::kernel::tree::Usage;
use crate::sentry::memory::Mm;
use crate::sentry::process::Process;
use crate::sentry::task::{Place, Task, TaskHandle};
use std::sync::{Arc, Mutex};

/// A process or thread, as it was when it was looked up.
pub(super) struct Subject {
    pub(super) owner: Owner,
    pub(super) process: Arc<Process>,
    /// The threads that have not ended.
    pub(super) threads: Vec<Arc<TaskHandle>>,
    /// The thread in question: the one asked for, else the first; none in a zombie.
    pub(super) thread: Option<Arc<TaskHandle>>,
    /// Its parent as the guest sees it, outside the guest too.
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) life: Life,
    pub(super) exit_signal: i32,
    pub(super) children_usage: Usage,
    /// The children that the thread in question has made.
    pub(super) children: Vec<i32>,
}

impl Task {
    /// Looks a process or thread up; `ESRCH` if it is gone.
    pub(super) fn subject(&self, owner: Owner) -> Result<Subject, Errno> {
        let tree = self.kernel().tree();
        let node = tree.node(owner.pid).ok_or(Errno::ESRCH)?;
        let process = Arc::clone(&node.process);
        let threads = process.threads().clone();
        let thread = match owner.tid {
            None => threads.first().cloned(),
            Some(tid) => {
                let found = threads.iter().find(|thread| thread.tid() == tid).cloned();
                if found.is_none() && tid != owner.pid {
                    return Err(Errno::ESRCH);
                }
                found
            }
        };
        let maker = thread.as_ref().map_or(owner.pid, |thread| thread.tid());
        let children = node
            .children
            .iter()
            .copied()
            .filter(|child| {
                // A process's own list is that of all its threads.
                owner.tid.is_none() || tree.node(*child).is_some_and(|child| child.creator == maker)
            })
            .collect();
        let parent = match node.parent {
            0 if owner.pid == self.kernel().first_pid => host::getppid().map_or(0, |pid| pid as i32),
            0 => 1,
            parent => parent,
        };
        Ok(Subject {
            owner,
            threads,
            thread,
            parent,
            group: node.group,
            session: node.session,
            life: node.life,
            exit_signal: node.exit_signal,
            children_usage: node.children_usage,
            children,
            process,
        })
    }
}

impl Subject {
    /// Whether it has memory, descriptors and a program: a zombie has none.
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.life, Life::Zombie { .. }) && self.thread.is_some()
    }

    pub(super) fn mm(&self) -> Option<Arc<Mm>> {
        self.thread.as_ref().filter(|_| self.is_alive())?.belongings().mm.upgrade()
    }

    pub(super) fn files(&self) -> Option<Arc<Mutex<FdTable>>> {
        self.thread.as_ref().filter(|_| self.is_alive())?.belongings().files.upgrade()
    }

    pub(super) fn fs(&self) -> Option<Arc<Mutex<FsContext>>> {
        self.thread.as_ref().filter(|_| self.is_alive())?.belongings().fs.upgrade()
    }

    /// The id that `/proc` shows: the thread's below `task`.
    pub(super) fn id(&self) -> i32 {
        self.owner.tid.unwrap_or(self.owner.pid)
    }

    /// The ids of the threads; a zombie still has its first.
    pub(super) fn tids(&self) -> Vec<i32> {
        let mut tids: Vec<i32> = self.threads.iter().map(|thread| thread.tid()).collect();
        if !tids.contains(&self.owner.pid) {
            tids.push(self.owner.pid);
        }
        tids.sort_unstable();
        tids
    }

    /// The name, without the zeroes at its end.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.thread.as_ref().map_or_else(|| self.process.name(), |thread| thread.name());
        name.iter().copied().take_while(|byte| *byte != 0).collect()
    }

    /// The letter of its state.
    pub(super) fn state(&self) -> char {
        let Some(thread) = self.thread.as_ref().filter(|_| self.is_alive()) else { return 'Z' };
        if self.process.is_stopped() {
            return 'T';
        }
        match thread.place() {
            Place::Running => 'R',
            Place::HostCall | Place::Parked => 'S',
        }
    }

    /// Processor time: of the process, or of the one thread.
    pub(super) fn usage(&self) -> Usage {
        if let Life::Zombie { usage, .. } = self.life {
            return usage;
        }
        match (self.owner.tid, &self.thread) {
            (Some(_), Some(thread)) => thread.cpu_usage(),
            _ => self.process.cpu_usage(),
        }
    }

    /// When it started, in nanoseconds since the host did.
    pub(super) fn started_ns(&self) -> u64 {
        match (self.owner.tid, &self.thread) {
            (Some(_), Some(thread)) => thread.started_ns,
            _ => self.process.started_ns,
        }
    }

    /// What the host has in a file of the thread of the supervisor that serves the thread.
    pub(super) fn served_by(&self, file: &str) -> String {
        let tid = self.thread.as_ref().map_or(0, |thread| thread.host_tid());
        std::fs::read_to_string(format!("/proc/self/task/{tid}/{file}"))
            .or_else(|_| std::fs::read_to_string(format!("/proc/self/{file}")))
            .unwrap_or_default()
    }
}
