//! Host calls that nix has no wrapper for.
//!
//! # Safety
//!
//! Every function here is safe to call: each makes one system call whose arguments are values, or pointers to
//! memory that the function itself borrows for the duration of the call.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

fn check(result: libc::c_long) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// FUTEX_WAKE of all sleepers on a shared word (futex(2)).
pub(crate) fn futex_wake_shared(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}

/// FUTEX_WAKE of all sleepers on a word of this process.
pub(crate) fn futex_wake_private(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, i32::MAX);
    }
}

/// FUTEX_WAKE of one sleeper on a word of this process.
pub(crate) fn futex_wake_one_private(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
    }
}

/// FUTEX_WAIT on a word of this process; returns at the latest after `timeout`, for whatever reason.
pub(crate) fn futex_wait_private(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = timespec(timeout);
    let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word and the timeout live for the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, expected, &raw const timeout);
    }
}

/// FUTEX_WAIT on a shared word; returns at the latest after `timeout`, for whatever reason.
pub(crate) fn futex_wait_shared(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = timespec(timeout);
    // SAFETY: the word and the timeout live for the call.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout);
    }
}

/// `struct futex_waitv` of futex_waitv(2), Linux 5.16.
#[repr(C)]
struct FutexWaitv {
    val: u64,
    uaddr: u64,
    flags: u32,
    reserved: u32,
}

const FUTEX_32: u32 = 2;
const FUTEX_PRIVATE: u32 = 128;

/// Sleeps until the shared word or the private word is woken or differs from its expected value, or until
/// `timeout` has passed. Says nothing about which it was: the caller looks at both.
///
/// # Errors
///
/// Only what makes sleeping impossible (`ENOSYS` on an old kernel).
pub(crate) fn futex_wait_two(
    shared: (&AtomicU32, u32),
    private: (&AtomicU32, u32),
    timeout: Duration,
) -> io::Result<()> {
    let waiters = [
        FutexWaitv {
            val: shared.1.into(),
            uaddr: shared.0.as_ptr().addr() as u64,
            flags: FUTEX_32,
            reserved: 0,
        },
        FutexWaitv {
            val: private.1.into(),
            uaddr: private.0.as_ptr().addr() as u64,
            flags: FUTEX_32 | FUTEX_PRIVATE,
            reserved: 0,
        },
    ];
    let mut deadline = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the timespec that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut deadline) };
    let timeout = timespec(timeout);
    deadline.tv_sec += timeout.tv_sec;
    deadline.tv_nsec += timeout.tv_nsec;
    if deadline.tv_nsec >= 1_000_000_000 {
        deadline.tv_nsec -= 1_000_000_000;
        deadline.tv_sec += 1;
    }
    // SAFETY: the array, both words and the deadline live for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            waiters.as_ptr(),
            waiters.len(),
            0,
            &raw const deadline,
            libc::CLOCK_MONOTONIC,
        )
    };
    match check(result) {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ETIMEDOUT | libc::EINTR) => Ok(()),
            _ => Err(error),
        },
    }
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes values only.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// pidfd_send_signal(2) of SIGKILL.
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, null, 0) })?;
    Ok(())
}

/// What waitid(2) said of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildState {
    Running,
    Exited(i32),
    Killed(i32),
}

/// Waits until a child has ended, and reaps it.
pub(crate) fn reap_pidfd(pidfd: BorrowedFd<'_>) {
    let id = u32::try_from(pidfd.as_raw_fd()).unwrap_or(u32::MAX);
    loop {
        // SAFETY: an all-zero siginfo_t is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes the siginfo that it is given.
        let result = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::__WALL) };
        if result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

/// waitid(P_PIDFD, WEXITED | WNOHANG | __WALL), leaving the child waitable unless `reap`.
///
/// # Errors
///
/// `ECHILD` if the process is not a child of this one, or was reaped already.
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>, reap: bool) -> io::Result<ChildState> {
    // SAFETY: an all-zero siginfo_t is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let keep = if reap { 0 } else { libc::WNOWAIT };
    let options = libc::WEXITED | libc::WNOHANG | libc::__WALL | keep;
    let id = u32::try_from(pidfd.as_raw_fd()).unwrap_or(u32::MAX);
    // SAFETY: writes the siginfo that it is given.
    if unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the SIGCHLD part of the structure, or left it zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match (pid, info.si_code) {
        (0, _) => ChildState::Running,
        (_, libc::CLD_EXITED) => ChildState::Exited(status),
        _ => ChildState::Killed(status),
    })
}

/// Kills and reaps a child that has no pidfd yet. It must be one that nobody else waits for.
pub(crate) fn kill_and_reap_child(pid: i32) {
    // SAFETY: takes values; no status is asked for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        while libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
        {}
    }
}

/// Kills and reaps the children of this process that are in the process group `group` and do not exit with
/// SIGCHLD. While there is one, the number is not given to another group.
pub(crate) fn kill_and_reap_group(group: i32) {
    let Ok(id) = u32::try_from(group) else { return };
    let wait = |options| {
        // SAFETY: an all-zero siginfo_t is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: writes the siginfo that it is given.
        unsafe { libc::waitid(libc::P_PGID, id, &raw mut info, libc::WEXITED | libc::__WCLONE | options) }
    };
    while wait(libc::WNOHANG | libc::WNOWAIT) == 0 {
        // SAFETY: takes values only.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        wait(0);
    }
}

/// Whether futex_waitv(2) exists and is permitted: without waiters it is EINVAL.
pub(crate) fn probe_futex_waitv() -> io::Result<()> {
    // SAFETY: no waiters, no pointers.
    let result = unsafe { libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, libc::CLOCK_MONOTONIC) };
    match check(result) {
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(()),
    }
}

/// tgkill(2).
pub(crate) fn tgkill(pid: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes values only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) })?;
    Ok(())
}

/// lseek(fd, 0, SEEK_CUR): the current file offset.
pub(crate) fn file_offset(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: takes values only.
    let offset = check(unsafe { libc::syscall(libc::SYS_lseek, fd.as_raw_fd(), 0, libc::SEEK_CUR) })?;
    Ok(u64::try_from(offset).unwrap_or(0))
}

/// membarrier(2), `MEMBARRIER_CMD_GLOBAL`.
pub(crate) fn membarrier_global() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes values only.
    check(unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) })?;
    Ok(())
}

/// `AT_HWCAP2` of this process.
pub(crate) fn hwcap2() -> u64 {
    // SAFETY: getauxval only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) }
}

/// prlimit(2): sets the soft RLIMIT_AS of a child, `None` to its hard limit.
pub(crate) fn limit_address_space(pid: i32, bytes: Option<u64>) -> io::Result<()> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let (resource, null) = (libc::RLIMIT_AS, std::ptr::null_mut::<libc::rlimit64>());
    // SAFETY: reads nothing, writes the limit that it is given.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, null, &raw mut limit) })?;
    limit.rlim_cur = bytes.unwrap_or(limit.rlim_max).min(limit.rlim_max);
    // SAFETY: reads the limit that it is given, writes nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, null) })?;
    Ok(())
}
