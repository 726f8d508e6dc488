//! Resource limits of a guest process. They start as the supervisor's own.

use super::abi::Rlimit;
use super::errno::Errno;
use super::host;
use zerocopy::{FromZeros as _, IntoBytes as _};

/// `RLIM_NLIMITS`.
const COUNT: usize = 16;

/// One pair of limits for each resource.
#[derive(Debug, Clone)]
pub(crate) struct Limits([Rlimit; COUNT]);

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
        Self(limits)
    }

    pub(crate) fn get(&self, which: u32) -> Result<Rlimit, Errno> {
        self.0.get(which as usize).copied().ok_or(Errno::EINVAL)
    }

    /// Sets a limit by the rules for an unprivileged process: the hard limit can only go down.
    pub(crate) fn set(&mut self, which: u32, new: Rlimit) -> Result<(), Errno> {
        let limit = self.0.get_mut(which as usize).ok_or(Errno::EINVAL)?;
        if new.soft > new.hard {
            return Err(Errno::EINVAL);
        }
        if new.hard > limit.hard {
            return Err(Errno::EPERM);
        }
        *limit = new;
        Ok(())
    }

    /// `RLIMIT_NOFILE`'s soft limit, with a ceiling that keeps descriptor tables of sane size.
    pub(crate) fn descriptors(&self) -> usize {
        const CEILING: u64 = 1 << 20;
        self.0[libc::RLIMIT_NOFILE as usize].soft.min(CEILING) as usize
    }

    /// Whether `RLIMIT_FSIZE` is set: only then does a write that fails with `EFBIG` raise SIGXFSZ.
    pub(crate) fn limits_file_size(&self) -> bool {
        self.0[libc::RLIMIT_FSIZE as usize].soft != libc::RLIM_INFINITY
    }

    /// `RLIMIT_CPU`'s soft limit was reached: the next warning comes after another second.
    pub(crate) fn raise_cpu(&mut self) {
        if let Some(limit) = self.0.get_mut(libc::RLIMIT_CPU as usize) {
            limit.soft = limit.soft.max(1).saturating_add(1);
        }
    }

    /// `RLIMIT_STACK`'s soft limit.
    pub(crate) fn stack(&self) -> u64 {
        self.0[libc::RLIMIT_STACK as usize].soft
    }
}

/// Raises the supervisor's own descriptor limit as far as it may: guest descriptors come on top of its own.
pub(crate) fn raise_host_descriptor_limit() {
    let mut limit = Rlimit::new_zeroed();
    let mut bytes = [0; 16];
    if host::prlimit64(0, libc::RLIMIT_NOFILE, None, Some(&mut bytes)).is_ok() {
        limit.as_mut_bytes().copy_from_slice(&bytes);
        limit.soft = limit.hard;
        let bytes: [u8; 16] = zerocopy::transmute!(limit);
        // Without it the guest meets EMFILE earlier, nothing worse.
        let _ = host::prlimit64(0, libc::RLIMIT_NOFILE, Some(&bytes), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_go_down_only() {
        let mut limits = Limits::inherited();
        let hard = limits.get(libc::RLIMIT_NOFILE).unwrap().hard;
        limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 10, hard: 20 }).unwrap();
        assert_eq!(limits.descriptors(), 10);
        assert_eq!(limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 10, hard }), Err(Errno::EPERM));
        assert_eq!(limits.set(libc::RLIMIT_NOFILE, Rlimit { soft: 11, hard: 10 }), Err(Errno::EINVAL));
        assert_eq!(limits.get(16), Err(Errno::EINVAL));
    }
}
