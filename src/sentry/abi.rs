//! Structures of the kernel's x86-64 interface that the sentry reads and writes itself.
//!
//! Those that only pass through (`stat`, `statfs`, `utsname`, …) stay byte arrays and are not listed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `PATH_MAX`: the longest path with its terminating zero.
pub(crate) const PATH_MAX: usize = 4096;
/// `IOV_MAX`: the most segments of one vectored call.
pub(crate) const IOV_MAX: usize = 1024;
/// The most bytes that one read or write transfers (`MAX_RW_COUNT`).
pub(crate) const MAX_RW_COUNT: usize = 0x7fff_f000;
/// The last signal number.
pub(crate) const NSIG: i32 = 64;

/// `SA_NOCLDSTOP`: no SIGCHLD when a child stops or goes on.
pub(crate) const SA_NOCLDSTOP: u64 = libc::SA_NOCLDSTOP as u64;
/// `SA_NOCLDWAIT`: children that end are not waited for.
pub(crate) const SA_NOCLDWAIT: u64 = libc::SA_NOCLDWAIT as u64;

/// `struct timespec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Timespec {
    pub(crate) sec: i64,
    pub(crate) nsec: i64,
}

impl Timespec {
    /// The length of time, or `None` for one that the kernel refuses with `EINVAL`.
    pub(crate) fn to_duration(self) -> Option<std::time::Duration> {
        let nsec = u32::try_from(self.nsec).ok().filter(|nsec| *nsec < 1_000_000_000)?;
        Some(std::time::Duration::new(u64::try_from(self.sec).ok()?, nsec))
    }

    pub(crate) fn from_duration(length: std::time::Duration) -> Self {
        Self {
            sec: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
            nsec: i64::from(length.subsec_nanos()),
        }
    }

    pub(crate) fn to_array(self) -> [u8; 16] {
        zerocopy::transmute!(self)
    }

    pub(crate) fn from_array(bytes: [u8; 16]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// `struct timeval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Timeval {
    pub(crate) sec: i64,
    pub(crate) usec: i64,
}

impl Timeval {
    /// The same time in nanoseconds; `None` when the microseconds are out of range.
    pub(crate) fn to_timespec(self) -> Option<Timespec> {
        (0..1_000_000).contains(&self.usec).then(|| Timespec { sec: self.sec, nsec: self.usec * 1000 })
    }
}

/// `struct iovec`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Iovec {
    pub(crate) base: u64,
    pub(crate) len: u64,
}

/// `struct pollfd`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Pollfd {
    pub(crate) fd: i32,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

/// `struct rlimit64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Rlimit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The kernel's `struct sigaction` (not the C library's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct KernelSigaction {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

/// `stack_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct StackT {
    pub(crate) sp: u64,
    pub(crate) flags: i32,
    pub(crate) padding: i32,
    pub(crate) size: u64,
}

/// `struct flock`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Flock {
    pub(crate) kind: i16,
    pub(crate) whence: i16,
    pub(crate) padding: i32,
    pub(crate) start: i64,
    pub(crate) len: i64,
    pub(crate) pid: i32,
    pub(crate) padding2: i32,
}

const _: () = {
    assert!(size_of::<KernelSigaction>() == 32, "rt_sigaction copies 32 bytes");
    assert!(size_of::<StackT>() == size_of::<libc::stack_t>(), "sigaltstack");
    assert!(size_of::<Flock>() == size_of::<libc::flock>(), "fcntl");
    assert!(size_of::<Pollfd>() == size_of::<libc::pollfd>(), "poll");
};
