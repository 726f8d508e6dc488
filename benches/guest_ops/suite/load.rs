//! How much of the machine others use meanwhile: a guest and its supervisor want a CPU each.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// `/proc/stat` counts in USER_HZ, which is 100 on x86-64 whatever the kernel's own clock does.
const TICK: Duration = Duration::from_millis(10);

/// What was used up to some moment.
#[derive(Debug)]
pub struct Load {
    at: Instant,
    everybody: Duration,
    own: Duration,
}

impl Load {
    /// Up to now. None where the host does not say.
    pub fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<u32> = text.lines().next()?.split_whitespace().skip(1).flat_map(str::parse).collect();
        // user, nice, system; irq, softirq and what the hypervisor gave to others (proc_stat(5)). Not idle, not iowait.
        let ticks: u32 = [0, 1, 2, 5, 6, 7].into_iter().filter_map(|field| fields.get(field)).sum();
        let own = cpu(UsageWho::RUSAGE_SELF)? + cpu(UsageWho::RUSAGE_CHILDREN)?;
        Some(Self { at: Instant::now(), everybody: TICK * ticks, own })
    }

    /// How many CPUs all others used on average since then.
    pub fn others_since(&self) -> Option<f64> {
        let now = Self::now()?;
        let everybody = now.everybody.saturating_sub(self.everybody);
        let others = everybody.saturating_sub(now.own.saturating_sub(self.own));
        Some(others.as_secs_f64() / (now.at - self.at).as_secs_f64())
    }
}

/// User and system time.
pub fn cpu(who: UsageWho) -> Option<Duration> {
    let usage = getrusage(who).ok()?;
    let time = usage.user_time() + usage.system_time();
    u64::try_from(time.num_nanoseconds()).ok().map(Duration::from_nanos)
}
