//! What processes have used: getrusage(2), times(2) and the figures of wait4(2).
//!
//! User time is the stub process's processor time, system time what the supervisor's threads used to serve the calls.

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::kernel::tree::Usage;
use crate::sentry::task::Task;

impl Usage {
    /// `struct rusage`, the fields that are kept.
    pub(super) fn to_rusage(self) -> [u64; 18] {
        let micros = |ns: u64| [ns / 1_000_000_000, ns % 1_000_000_000 / 1000];
        let [user_sec, user_usec] = micros(self.user_ns);
        let [system_sec, system_usec] = micros(self.system_ns);
        let mut usage = [0; 18];
        let words = [user_sec, user_usec, system_sec, system_usec, self.max_rss_kib, 0, 0, 0];
        let words = words.into_iter().chain([self.minor_faults, self.major_faults]);
        for (to, from) in usage.iter_mut().zip(words) {
            *to = from;
        }
        usage
    }
}

impl Task {
    /// What the process has used so far.
    fn process_usage(&self) -> Usage {
        self.process.cpu_usage().plus(self.mm.memory_usage())
    }

    /// What the thread has used. The host does not tell whose page faults they were: each thread is given the same
    /// share.
    fn thread_usage(&self) -> Usage {
        let threads = self.process.threads().len().max(1) as u64;
        let all = self.mm.memory_usage();
        let own = Usage {
            minor_faults: all.minor_faults / threads,
            major_faults: all.major_faults / threads,
            ..all
        };
        self.handle.cpu_usage().plus(own)
    }

    fn children_usage(&self) -> Usage {
        self.with_node(|node| node.children_usage).unwrap_or_default()
    }
}

pub(super) fn getrusage(task: &mut Task, who: i32, usage: GuestAddr) -> SysResult {
    let used = match who {
        libc::RUSAGE_SELF => task.process_usage(),
        libc::RUSAGE_CHILDREN => task.children_usage(),
        libc::RUSAGE_THREAD => task.thread_usage(),
        _ => return Err(Errno::EINVAL),
    };
    task.memory().write_object(usage, &used.to_rusage()).map(|()| 0)
}

pub(super) fn times(task: &mut Task, buf: GuestAddr) -> SysResult {
    let mut host_times = [0; 32];
    let ticks = host::times(&mut host_times)?;
    if buf != GuestAddr::NULL {
        let tick_ns = 1_000_000_000 / host::ticks_per_second().max(1);
        let (own, children) = (task.process_usage(), task.children_usage());
        let times = [own.user_ns, own.system_ns, children.user_ns, children.system_ns];
        task.memory().write_object(buf, &times.map(|ns| ns / tick_ns))?;
    }
    Ok(ticks as i64)
}
