//! Sets of flags and enumerations, with the names that traces show.

use super::{Arg, CallView};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::hook::ArgValue;
use std::fmt::Write as _;

/// Appends the names of the set bits, then what has no name.
pub(super) fn show_bits(value: u64, names: &[(&str, u64)], zero: &str, out: &mut String) {
    let mut rest = value;
    let mut separator = "";
    for (name, bits) in names {
        if *bits != 0 && rest & bits == *bits {
            let _ = write!(out, "{separator}{name}");
            separator = "|";
            rest &= !bits;
        }
    }
    if rest != 0 {
        let _ = write!(out, "{separator}{rest:#x}");
    } else if separator.is_empty() {
        out.push_str(zero);
    }
}

pub(super) fn show_one(value: u64, names: &[(&str, u64)], out: &mut String) {
    match names.iter().find(|(_, number)| *number == value) {
        Some((name, _)) => out.push_str(name),
        None => {
            let _ = write!(out, "{value:#x}");
        }
    }
}

macro_rules! flag_args {
    ($($(#[$meta:meta])* $name:ident($ty:ty) $mode:ident [$($flag:ident),* $(,)?] $(zero $zero:literal)?;)*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $ty);

        impl Arg for $name {
            #[inline]
            fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
                Ok(Self(raw as $ty))
            }

            fn show(&self, _: &CallView<'_>, out: &mut String) {
                const NAMES: &[(&str, u64)] = &[$((stringify!($flag), libc::$flag as u32 as u64)),*];
                flag_args!(@$mode self.0 as u32 as u64, NAMES, out $(, $zero)?);
            }

            fn value(&self) -> Option<ArgValue<'_>> {
                let whole = self.0 as u64;
                Some(ArgValue::Flags(if size_of::<$ty>() == 8 { whole } else { u64::from(whole as u32) }))
            }
        }
    )*};
    (@bits $value:expr, $names:ident, $out:ident) => { show_bits($value, $names, "0", $out) };
    (@bits $value:expr, $names:ident, $out:ident, $zero:literal) => { show_bits($value, $names, $zero, $out) };
    (@one $value:expr, $names:ident, $out:ident) => { show_one($value, $names, $out) };
}
pub(super) use flag_args;

flag_args! {
    /// `AT_*` flags.
    AtFlags(i32) bits [AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_NO_AUTOMOUNT, AT_EMPTY_PATH];
    /// `F_OK` or a set of access rights.
    AccessMode(u32) bits [R_OK, W_OK, X_OK] zero "F_OK";
    /// `PROT_*`.
    Protections(u64) bits [PROT_READ, PROT_WRITE, PROT_EXEC] zero "PROT_NONE";
    /// `MAP_*`.
    MapFlags(i32) bits [
        MAP_SHARED_VALIDATE, MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT, MAP_GROWSDOWN,
        MAP_DENYWRITE, MAP_EXECUTABLE, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE, MAP_NONBLOCK, MAP_STACK,
        MAP_HUGETLB, MAP_SYNC, MAP_FIXED_NOREPLACE,
    ];
    /// `MREMAP_*`.
    RemapFlags(i32) bits [MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP];
    /// `MS_*`.
    SyncFlags(i32) bits [MS_ASYNC, MS_INVALIDATE, MS_SYNC];
    /// `MADV_*`.
    MemoryAdvice(i32) one [
        MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE, MADV_REMOVE,
        MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP,
        MADV_WIPEONFORK, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
    ];
    /// `SEEK_*`.
    Whence(i32) one [SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE];
    /// A clock.
    ClockId(i32) one [
        CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW,
        CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI,
    ];
    /// A resource with a limit.
    Resource(u32) one [
        RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_RSS, RLIMIT_NPROC, RLIMIT_NOFILE,
        RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_LOCKS, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_RTPRIO,
    ];
    /// What `rt_sigprocmask` does with the set.
    MaskHow(i32) one [SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK];
    /// A command of `fcntl`.
    FcntlCommand(i32) one [
        F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_SETOWN, F_GETOWN,
        F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS,
    ];
    /// A request of `ioctl`.
    IoctlRequest(u32) one [
        TCGETS, TCSETS, TCSETSW, TCSETSF, TCSBRK, TCXONC, TCFLSH, TIOCSCTTY, TIOCGPGRP, TIOCSPGRP, TIOCOUTQ,
        TIOCGWINSZ, TIOCSWINSZ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TIOCNOTTY, TIOCGSID, TIOCGPTN, TIOCSPTLCK,
    ];
    /// An operation of `arch_prctl`.
    ArchPrctl(u32) one [];
    /// `GRND_*`.
    RandomFlags(u32) bits [GRND_NONBLOCK, GRND_RANDOM];
    /// Options of `waitid` and `wait4`.
    WaitOptions(i32) bits [WNOHANG, WUNTRACED, WCONTINUED];
    /// Flags of `renameat2`.
    RenameFlags(u32) bits [RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT];
    /// An operation of `epoll_ctl`.
    EpollOperation(i32) one [EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD];
    /// An operation of `flock`.
    FlockOperation(i32) bits [LOCK_SH, LOCK_EX, LOCK_UN, LOCK_NB];
    /// Flags of `memfd_create`.
    MemfdFlags(u64) bits [MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_HUGETLB];
}

/// `O_*`: two bits of access mode, then a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenFlags(pub(crate) i32);

impl Arg for OpenFlags {
    #[inline]
    fn decode(raw: u64, _: &dyn GuestMemory) -> Result<Self, Errno> {
        Ok(Self(raw as i32))
    }

    fn show(&self, _: &CallView<'_>, out: &mut String) {
        const NAMES: &[(&str, i32)] = &[
            ("O_CREAT", libc::O_CREAT),
            ("O_EXCL", libc::O_EXCL),
            ("O_NOCTTY", libc::O_NOCTTY),
            ("O_TRUNC", libc::O_TRUNC),
            ("O_APPEND", libc::O_APPEND),
            ("O_NONBLOCK", libc::O_NONBLOCK),
            ("O_SYNC", libc::O_SYNC),
            ("O_DSYNC", libc::O_DSYNC),
            ("O_ASYNC", libc::O_ASYNC),
            ("O_DIRECT", libc::O_DIRECT),
            ("O_LARGEFILE", 0o100_000),
            ("O_TMPFILE", libc::O_TMPFILE),
            ("O_DIRECTORY", libc::O_DIRECTORY),
            ("O_NOFOLLOW", libc::O_NOFOLLOW),
            ("O_NOATIME", libc::O_NOATIME),
            ("O_CLOEXEC", libc::O_CLOEXEC),
            ("O_PATH", libc::O_PATH),
        ];
        out.push_str(match self.0 & libc::O_ACCMODE {
            libc::O_RDONLY => "O_RDONLY",
            libc::O_WRONLY => "O_WRONLY",
            libc::O_RDWR => "O_RDWR",
            _ => "O_ACCMODE",
        });
        let mut rest = self.0 & !libc::O_ACCMODE;
        for (name, bits) in NAMES {
            if rest & bits == *bits {
                let _ = write!(out, "|{name}");
                rest &= !bits;
            }
        }
        if rest != 0 {
            let _ = write!(out, "|{rest:#x}");
        }
    }
    fn value(&self) -> Option<ArgValue<'_>> {
        Some(ArgValue::Flags(self.0 as u32 as u64))
    }
}
