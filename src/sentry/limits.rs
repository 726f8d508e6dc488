//! Resource limits of a guest process. They start as the supervisor's own.

use super::abi::Rlimit;
use super::errno::Errno;
use super::host;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use zerocopy::{FromZeros as _, IntoBytes as _};

/// `RLIM_NLIMITS`.
const COUNT: usize = 16;

/// One pair of limits for each resource.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pairs: [Rlimit; COUNT],
    /// What nobody may raise a limit above, by whatever right.
    ceilings: [u64; COUNT],
}

impl Limits {
    /// The supervisor's limits.
    pub(crate) fn inherited() -> Self {
        let mut limits = [Rlimit { soft: u64::MAX, hard: u64::MAX }; COUNT];
        for (limit, which) in limits.iter_mut().zip(0..) {
            let mut bytes = [0; 16];
            if host::prlimit64(0, which, None, Some(&mut bytes)).is_ok() {
                *limit = zerocopy::transmute!(bytes);
            }
        }
        Self { pairs: limits, ceilings: [u64::MAX; COUNT] }
    }

    /// Sets a limit that no privilege raises.
    pub(crate) fn confine(&mut self, which: u32, most: u64) {
        if let (Some(pair), Some(ceiling)) =
            (self.pairs.get_mut(which as usize), self.ceilings.get_mut(which as usize))
        {
            *ceiling = most;
            pair.hard = pair.hard.min(most);
            pair.soft = pair.soft.min(pair.hard);
        }
    }

    pub(crate) fn get(&self, which: u32) -> Result<Rlimit, Errno> {
        self.pairs.get(which as usize).copied().ok_or(Errno::EINVAL)
    }

    /// Sets a limit (kernel/sys.c `do_prlimit`); `privileged`: the caller has CAP_SYS_RESOURCE.
    pub(crate) fn set(&mut self, which: u32, new: Rlimit, privileged: bool) -> Result<(), Errno> {
        /// `/proc/sys/fs/nr_open`, its default.
        const MOST_DESCRIPTORS: u64 = 1 << 20;
        let limit = self.pairs.get_mut(which as usize).ok_or(Errno::EINVAL)?;
        let ceiling = self.ceilings.get(which as usize).copied().unwrap_or(u64::MAX);
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        let too_many = which == libc::RLIMIT_NOFILE && new.hard > MOST_DESCRIPTORS && new.hard > limit.hard;
        if too_many || new.hard > ceiling || new.hard > limit.hard && !privileged {
            return Err(Errno::EPERM);
        }
        *limit = new;
        Ok(())
    }

    /// A soft limit; no limit for a resource that does not exist.
    pub(crate) fn soft(&self, which: u32) -> u64 {
        self.pairs.get(which as usize).map_or(libc::RLIM_INFINITY, |limit| limit.soft)
    }

    /// `RLIMIT_NOFILE`'s soft limit, with a ceiling that keeps descriptor tables of sane size.
    pub(crate) fn descriptors(&self) -> usize {
        const CEILING: u64 = 1 << 20;
        self.soft(libc::RLIMIT_NOFILE).min(CEILING) as usize
    }

    /// `RLIMIT_CPU`'s soft limit was reached: the next warning comes after another second.
    pub(crate) fn raise_cpu(&mut self) {
        if let Some(limit) = self.pairs.get_mut(libc::RLIMIT_CPU as usize) {
            limit.soft = limit.soft.max(1).saturating_add(1);
        }
    }

    /// `RLIMIT_STACK`'s soft limit.
    pub(crate) fn stack(&self) -> u64 {
        self.soft(libc::RLIMIT_STACK)
    }
}

/// Soft limits that every call of some kind looks at, where it needs no lock for them.
#[derive(Debug, Default)]
pub(crate) struct CurrentLimits {
    descriptors: AtomicUsize,
    file_size: AtomicU64,
}

impl CurrentLimits {
    pub(crate) fn new(limits: &Limits) -> Self {
        let current = Self::default();
        current.update(limits);
        current
    }

    pub(crate) fn update(&self, limits: &Limits) {
        self.descriptors.store(limits.descriptors(), Ordering::Relaxed);
        self.file_size.store(limits.soft(libc::RLIMIT_FSIZE), Ordering::Relaxed);
    }

    /// `RLIMIT_NOFILE`.
    pub(crate) fn descriptors(&self) -> usize {
        self.descriptors.load(Ordering::Relaxed)
    }

    /// `RLIMIT_FSIZE`, in bytes.
    pub(crate) fn file_size(&self) -> u64 {
        self.file_size.load(Ordering::Relaxed)
    }
}

/// Host descriptors from this number on are the supervisor's own: without any it could not even make a process for a
/// guest that has used up its share. The host gives out the lowest number that is free.
pub(crate) fn first_reserved_descriptor() -> i32 {
    const RESERVE: u64 = 256;
    static FIRST: std::sync::OnceLock<i32> = std::sync::OnceLock::new();
    *FIRST.get_or_init(|| {
        let mut bytes = [0; 16];
        let limit: Rlimit = match host::prlimit64(0, libc::RLIMIT_NOFILE, None, Some(&mut bytes)) {
            Ok(_) => zerocopy::transmute!(bytes),
            Err(_) => return i32::MAX,
        };
        i32::try_from(limit.soft - RESERVE.min(limit.soft / 8)).unwrap_or(i32::MAX)
    })
}

/// Raises the supervisor's own soft limits where a guest may raise its own: guest descriptors come on top of the
/// supervisor's, and the size of files is limited by the sentry.
pub(crate) fn raise_host_limits() {
    for which in [libc::RLIMIT_NOFILE, libc::RLIMIT_FSIZE] {
        let mut limit = Rlimit::new_zeroed();
        let mut bytes = [0; 16];
        if host::prlimit64(0, which, None, Some(&mut bytes)).is_ok() {
            limit.as_mut_bytes().copy_from_slice(&bytes);
            limit.soft = limit.hard;
            let bytes: [u8; 16] = zerocopy::transmute!(limit);
            // Without it the guest meets the limit earlier, nothing worse.
            let _ = host::prlimit64(0, which, Some(&bytes), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_go_down_only_without_privilege() {
        let mut limits = Limits::inherited();
        let hard = limits.get(libc::RLIMIT_NOFILE).unwrap().hard;
        limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 10, hard: 20 }, false).unwrap();
        assert_eq!(limits.descriptors(), 10);
        assert_eq!(limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 10, hard }, false), Err(Errno::EPERM));
        assert_eq!(limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 11, hard: 10 }, true), Err(Errno::EINVAL));
        limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 10, hard: 21 }, true).unwrap();
        let absurd = Rlimit { soft: 10, hard: u64::MAX };
        assert_eq!(limits.set(libc::RLIMIT_NOFILE, absurd, true), Err(Errno::EPERM));
        assert_eq!(limits.get(16), Err(Errno::EINVAL));
    }

    #[test]
    fn no_privilege_raises_a_limit_above_its_ceiling() {
        let mut limits = Limits::inherited();
        limits.confine(libc::RLIMIT_NPROC, 7);
        assert_eq!(limits.soft(libc::RLIMIT_NPROC), 7);
        let pair = |hard| Rlimit { soft: 3, hard };
        assert_eq!(limits.set(libc::RLIMIT_NPROC, pair(8), true), Err(Errno::EPERM));
        limits.set(libc::RLIMIT_NPROC, pair(3), true).unwrap();
        limits.set(libc::RLIMIT_NPROC, pair(7), true).unwrap();
        assert_eq!(limits.set(libc::RLIMIT_NPROC, pair(u64::MAX), true), Err(Errno::EPERM));
    }

    #[test]
    fn what_is_looked_at_often_follows_the_limits() {
        let mut limits = Limits::inherited();
        let current = CurrentLimits::new(&limits);
        limits.set(libc::RLIMIT_FSIZE, Rlimit { soft: 4096, hard: 8192 }, false).unwrap();
        current.update(&limits);
        assert_eq!((current.file_size(), current.descriptors()), (4096, limits.descriptors()));
    }
}
