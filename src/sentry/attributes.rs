//! Settings of tasks and processes that are only recorded: the guest reads back what it has set, and its limits and
//! permissions apply, but what they mean to the host's scheduler stays the supervisor's affair.

use super::host;

/// Settings of one task; a new task starts with its maker's.
#[derive(Debug, Clone)]
pub(crate) struct TaskAttributes {
    /// -20 to 19.
    pub(crate) nice: i32,
    pub(crate) policy: i32,
    /// 1 to 99 for the real-time policies, else 0.
    pub(crate) priority: i32,
    pub(crate) reset_on_fork: bool,
    /// As `ioprio_set` takes it; 0 if it was never set.
    pub(crate) io_priority: i32,
    /// The CPUs that the task may use, if it was said.
    pub(crate) affinity: Option<Vec<u8>>,
    pub(crate) timer_slack_ns: u64,
    pub(crate) default_slack_ns: u64,
    pub(crate) personality: u32,
    /// `set_mempolicy`: mode and nodes.
    pub(crate) memory_policy: (i32, u64),
}

impl TaskAttributes {
    /// The supervisor's own.
    pub(crate) fn of_supervisor() -> Self {
        const DEFAULT_SLACK_NS: u64 = 50_000;
        let nice = host::getpriority(libc::PRIO_PROCESS as i32, 0).map_or(0, |shown| 20 - shown as i32);
        Self {
            nice,
            policy: libc::SCHED_OTHER,
            priority: 0,
            reset_on_fork: false,
            io_priority: 0,
            affinity: None,
            timer_slack_ns: DEFAULT_SLACK_NS,
            default_slack_ns: DEFAULT_SLACK_NS,
            personality: 0,
            memory_policy: (0, 0),
        }
    }

    /// What a task starts with that this one makes.
    pub(crate) fn for_child(&self) -> Self {
        let mut child = Self { default_slack_ns: self.timer_slack_ns, ..self.clone() };
        if child.reset_on_fork {
            child.reset_on_fork = false;
            if child.policy != libc::SCHED_OTHER && child.policy != libc::SCHED_BATCH {
                child.policy = libc::SCHED_OTHER;
            }
            child.priority = 0;
            child.nice = child.nice.max(0);
        }
        child
    }
}

/// Settings of one process; `fork` copies them.
#[derive(Debug, Clone)]
pub(crate) struct ProcessAttributes {
    pub(crate) dumpable: bool,
    pub(crate) no_huge_pages: bool,
    /// `PR_MCE_KILL`.
    pub(crate) machine_check_policy: i32,
    /// The commands of membarrier(2) that were registered for.
    pub(crate) barriers: u32,
}

impl Default for ProcessAttributes {
    fn default() -> Self {
        const PR_MCE_KILL_DEFAULT: i32 = 2;
        Self { dumpable: true, no_huge_pages: false, machine_check_policy: PR_MCE_KILL_DEFAULT, barriers: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_on_fork_is_for_children() {
        let mut parent = TaskAttributes::of_supervisor();
        parent.nice = -5;
        parent.policy = libc::SCHED_RR;
        parent.priority = 7;
        assert_eq!(parent.for_child().priority, 7);
        parent.reset_on_fork = true;
        let child = parent.for_child();
        assert_eq!((child.nice, child.policy, child.priority), (0, libc::SCHED_OTHER, 0));
    }
}
