//! The process tree: ids, parents and children, groups and sessions, and who has ended.

use super::terminals::Terminals;
use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::process::Process;
use crate::sentry::task::{ExitStatus, TaskHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// All processes and threads of a guest, under one lock (Linux's `tasklist_lock`).
pub(crate) struct Tree {
    threads: BTreeMap<i32, Arc<TaskHandle>>,
    processes: BTreeMap<i32, Node>,
    pub(super) terminals: Terminals,
    last_id: i32,
    /// The highest id (`/proc/sys/kernel/pid_max`).
    most: i32,
    /// Tasks that have not ended, whatever their process's state.
    pub(super) running: usize,
}

/// One process in the tree.
pub(crate) struct Node {
    pub(crate) process: Arc<Process>,
    /// Its parent; 0 if that is outside the guest.
    pub(crate) parent: i32,
    /// The thread that made it, for `PR_SET_PDEATHSIG`.
    pub(crate) creator: i32,
    pub(crate) children: BTreeSet<i32>,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// It has no part in its session's terminal any more (`TIOCNOTTY`).
    pub(crate) gave_up_terminal: bool,
    /// What the parent is sent when it ends; 0 for nothing.
    pub(crate) exit_signal: i32,
    pub(crate) life: Life,
    /// It is to stop; it has when all its threads have.
    pub(super) stopping: Option<Stopping>,
    /// It has executed a program since it was made: `setpgid` by the parent fails then.
    pub(crate) has_executed: bool,
    /// `PR_SET_CHILD_SUBREAPER`.
    pub(crate) is_subreaper: bool,
    /// `PR_SET_PDEATHSIG`; 0 for none.
    pub(crate) death_signal: i32,
    /// How its first thread ended, if others went on.
    pub(super) leader_status: Option<ExitStatus>,
    /// What its children that were waited for have used, with theirs.
    pub(crate) children_usage: Usage,
}

/// The life of a process as its parent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It runs; `true`: it was continued and the parent has not been told by a wait.
    Running { continued: bool },
    /// A signal stopped it; `true`: a wait has told the parent.
    Stopped { signo: i32, told: bool },
    /// It has ended and waits to be waited for.
    Zombie { status: ExitStatus, usage: Usage },
}

/// A stop that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopping {
    pub(super) signo: i32,
    /// Who sent the signal; 0 for nobody in the guest.
    pub(super) sender: i32,
}

/// Processor time, in nanoseconds, and the largest memory, in KiB (getrusage(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    pub(crate) max_rss_kib: u64,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
}

impl Usage {
    pub(crate) fn plus(self, other: Usage) -> Usage {
        Usage {
            user_ns: self.user_ns.saturating_add(other.user_ns),
            system_ns: self.system_ns.saturating_add(other.system_ns),
            max_rss_kib: self.max_rss_kib.max(other.max_rss_kib),
            minor_faults: self.minor_faults.saturating_add(other.minor_faults),
            major_faults: self.major_faults.saturating_add(other.major_faults),
        }
    }
}

/// What a new process starts with.
pub(crate) struct Child {
    pub(crate) process: Arc<Process>,
    pub(crate) parent: i32,
    pub(crate) creator: i32,
    pub(crate) exit_signal: i32,
}

impl Tree {
    pub(super) fn new(first_pid: i32) -> Self {
        let most = std::fs::read_to_string("/proc/sys/kernel/pid_max")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(1 << 15);
        Self {
            threads: BTreeMap::new(),
            processes: BTreeMap::new(),
            terminals: Terminals::default(),
            last_id: first_pid,
            most,
            running: 0,
        }
    }

    /// An id that neither the guest nor the host uses: files named after process ids do not collide.
    pub(crate) fn new_id(&mut self) -> Result<i32, Errno> {
        const FIRST: i32 = 300;
        for _ in 0..self.most {
            self.last_id = if self.last_id >= self.most - 1 { FIRST } else { self.last_id + 1 };
            let id = self.last_id;
            let taken = self.threads.contains_key(&id)
                || self.processes.contains_key(&id)
                || self.processes.values().any(|node| node.group == id || node.session == id)
                || host::kill(id, 0) != Err(Errno::ESRCH);
            if !taken {
                return Ok(id);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Adds the guest's first process, whose parent, group and session are the host's.
    pub(crate) fn add_first(&mut self, process: Arc<Process>, group: i32, session: i32) {
        let child = Child { process, parent: 0, creator: 0, exit_signal: 0 };
        self.insert(child, group, session);
    }

    /// Adds a process: it is in its parent's group and session.
    pub(crate) fn add(&mut self, child: Child) {
        let (group, session) = self
            .processes
            .get(&child.parent)
            .map_or((child.process.pid, child.process.pid), |node| (node.group, node.session));
        let pid = child.process.pid;
        let parent = child.parent;
        if let Some(parent) = self.processes.get_mut(&child.parent) {
            parent.children.insert(pid);
        }
        self.insert(child, group, session);
        let gave_up = self.node(parent).is_some_and(|node| node.gave_up_terminal);
        if let Some(node) = self.node_mut(pid) {
            node.gave_up_terminal = gave_up;
        }
    }

    fn insert(&mut self, child: Child, group: i32, session: i32) {
        let Child { process, parent, creator, exit_signal } = child;
        let node = Node {
            parent,
            creator,
            children: BTreeSet::new(),
            group,
            session,
            gave_up_terminal: false,
            exit_signal,
            life: Life::Running { continued: false },
            stopping: None,
            has_executed: false,
            is_subreaper: false,
            death_signal: 0,
            leader_status: None,
            children_usage: Usage::default(),
            process,
        };
        self.processes.insert(node.process.pid, node);
    }

    /// Adds a thread to its process.
    pub(crate) fn add_thread(&mut self, thread: &Arc<TaskHandle>) {
        self.running += 1;
        self.threads.insert(thread.tid(), Arc::clone(thread));
        thread.process.threads().push(Arc::clone(thread));
    }

    /// The thread goes on under the id of its process, whose first thread is gone.
    pub(crate) fn rename_to_leader(&mut self, thread: &Arc<TaskHandle>) {
        self.threads.remove(&thread.tid());
        thread.become_leader();
        self.threads.insert(thread.tid(), Arc::clone(thread));
    }

    /// The id of a thread that ends stands for nobody any more.
    pub(crate) fn forget_id(&mut self, thread: &Arc<TaskHandle>) {
        if self.threads.get(&thread.tid()).is_some_and(|found| Arc::ptr_eq(found, thread)) {
            self.threads.remove(&thread.tid());
        }
    }

    /// Takes a thread out; `true` if it was the last of its process.
    pub(super) fn remove_thread(&mut self, thread: &Arc<TaskHandle>) -> bool {
        self.running = self.running.saturating_sub(1);
        self.forget_id(thread);
        let mut threads = thread.process.threads();
        threads.retain(|other| !Arc::ptr_eq(other, thread));
        threads.is_empty()
    }

    /// Whether there are so many tasks: threads that have not ended, and processes that nobody has waited for.
    pub(crate) fn is_full(&self, most: Option<usize>) -> bool {
        let zombies = || self.nodes().filter(|node| matches!(node.life, Life::Zombie { .. })).count();
        most.is_some_and(|most| self.running >= most || self.running + zombies() >= most)
    }

    /// All threads that have not ended.
    pub(crate) fn threads(&self) -> impl Iterator<Item = &Arc<TaskHandle>> {
        self.threads.values()
    }

    /// A thread that has not ended.
    pub(crate) fn thread(&self, tid: i32) -> Option<&Arc<TaskHandle>> {
        self.threads.get(&tid)
    }

    pub(crate) fn node(&self, pid: i32) -> Option<&Node> {
        self.processes.get(&pid)
    }

    pub(crate) fn node_mut(&mut self, pid: i32) -> Option<&mut Node> {
        self.processes.get_mut(&pid)
    }

    /// All processes, zombies included, in the order of their ids.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.processes.values()
    }

    /// Whether a process executes the file of that device and inode.
    pub(crate) fn is_executed(&self, identity: (u64, u64)) -> bool {
        self.nodes().any(|node| {
            !matches!(node.life, Life::Zombie { .. }) && node.process.program().identity == identity
        })
    }

    /// The process of an id that may be a thread's.
    pub(crate) fn process_of(&self, id: i32) -> Option<&Arc<Process>> {
        match self.processes.get(&id) {
            Some(node) => Some(&node.process),
            None => self.threads.get(&id).map(|thread| &thread.process),
        }
    }

    /// Forgets a zombie.
    pub(crate) fn reap(&mut self, pid: i32) {
        if let Some(node) = self.processes.remove(&pid)
            && let Some(parent) = self.processes.get_mut(&node.parent)
        {
            parent.children.remove(&pid);
        }
    }
}
