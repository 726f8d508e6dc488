//! The host's terminals, as the supervisor sees them, and stopping the supervisor for the shell outside to see.

use super::{Argument, Errno, Words, getpgid, getppid, getsid, gettid, ioctl_bytes, openat, raw};
use std::os::fd::{AsFd as _, BorrowedFd};

const INT: usize = size_of::<i32>();
const TIOCGDEV: u32 = 0x8004_5432;
const TIOCGPGRP: u32 = libc::TIOCGPGRP as u32;
const TIOCSPGRP: u32 = libc::TIOCSPGRP as u32;

fn get_int(fd: BorrowedFd<'_>, request: u32) -> Result<i32, Errno> {
    let mut bytes = [0; 256];
    ioctl_bytes(fd, request, &mut bytes)?;
    let mut int = [0; INT];
    int.copy_from_slice(&bytes[..INT]);
    Ok(i32::from_ne_bytes(int))
}

/// The device number of a terminal, whichever of its two ends (or `/dev/tty`) the descriptor is; `None` for what is
/// no terminal.
pub(crate) fn terminal_device(fd: BorrowedFd<'_>) -> Option<u32> {
    get_int(fd, TIOCGDEV).ok().map(|device| device as u32)
}

/// The supervisor's controlling terminal.
pub(crate) fn controlling_device() -> Option<u32> {
    let root = std::fs::File::open("/").ok()?;
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    let terminal = openat(root.as_fd(), c"/dev/tty", flags, 0).ok()?;
    terminal_device(terminal.as_fd())
}

/// tcgetpgrp(3).
pub(crate) fn foreground_group(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    get_int(fd, TIOCGPGRP)
}

/// tcsetpgrp(3), whether or not the supervisor is in the background: the guest's rules have been applied before.
pub(crate) fn set_foreground_group(fd: BorrowedFd<'_>, group: i32) -> Result<(), Errno> {
    let mut bytes = [0; 256];
    bytes[..INT].copy_from_slice(&group.to_ne_bytes());
    with_mask(libc::SIG_BLOCK, libc::SIGTTOU, || ioctl_bytes(fd, TIOCSPGRP, &mut bytes)).map(drop)
}

/// Runs something with a signal blocked or not blocked in the calling thread.
fn with_mask<T>(how: i32, signo: i32, run: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are valid for the calls; all-zero sets are valid.
    unsafe {
        let (mut set, mut old): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signo);
        libc::pthread_sigmask(how, &set, &mut old);
        let result = run();
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        result
    }
}

/// Stops this process by a stop signal, as if its default action had been taken; returns when it goes on, or at
/// once if the host finds that nobody would continue it.
pub(crate) fn stop_this_process(signo: i32) {
    // SAFETY: with a null new action sigaction only writes the old one, for which zeroes are valid.
    let handled = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signo, std::ptr::null(), &mut old) != 0 || old.sa_sigaction != libc::SIG_DFL
    };
    // The one that is never handled.
    let signo = if handled { libc::SIGSTOP } else { signo };
    let mut words = Words::default();
    (std::process::id() as i32).push_to(&mut words);
    gettid().push_to(&mut words);
    signo.push_to(&mut words);
    // Sent to this very thread, so that the call does not return before the stop.
    // SAFETY: tgkill takes numbers only.
    let _ = with_mask(libc::SIG_UNBLOCK, signo, || unsafe { raw(libc::SYS_tgkill, &words) });
}

/// Whether nobody outside the supervisor's process group would continue it if it stopped
/// (`is_current_pgrp_orphaned`), as far as its own ancestors are concerned.
pub(crate) fn own_group_is_orphaned() -> bool {
    let number = |result: Result<usize, Errno>| result.ok().and_then(|id| i32::try_from(id).ok());
    let (Some(group), Some(session)) = (number(getpgid(0)), number(getsid(0))) else { return true };
    let mut parent = number(getppid());
    while let Some(pid) = parent.filter(|pid| *pid > 0) {
        if number(getsid(pid)) != Some(session) {
            return true;
        }
        if number(getpgid(pid)) != Some(group) {
            return false;
        }
        parent = parent_of(pid);
    }
    true
}

/// The parent of any process, from its `stat` file; the second field, in parentheses, may contain anything.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_no_terminals_and_parents_are_found() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(terminal_device(reader.as_fd()), None);
        assert_eq!(parent_of(std::process::id() as i32), getppid().ok().map(|pid| pid as i32));
    }
}
