//! Programs at terminals.
#![allow(unsafe_code, dead_code, reason = "each test binary uses its part")]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SigHandler, Signal, signal};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Starts a command as the leader of a session with a terminal of its own, of so many rows and columns, as after a login;
/// gives the terminal's master.
pub fn start(mut command: Command, (rows, columns): (u16, u16)) -> (File, Child) {
    // No other child may inherit the master, or closing it would not hang up.
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let pty = openpty(Some(&winsize(rows, columns)), None).expect("a pseudo-terminal");
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("close-on-exec");
    }
    let slave = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    command.stdin(slave()).stdout(slave()).stderr(slave());
    // SAFETY: signal, setsid and ioctl are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            // The tests themselves may run in the background of a shell that ignores these.
            for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
                signal(ignored, SigHandler::SigDfl)?;
            }
            nix::unistd::setsid()?;
            match nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    (File::from(pty.master), child)
}

/// Gives a terminal another size.
pub fn resize(master: &File, rows: u16, columns: u16) {
    // SAFETY: the descriptor is the master's, the structure outlives the call.
    let resized =
        unsafe { nix::libc::ioctl(master.as_raw_fd(), nix::libc::TIOCSWINSZ, &winsize(rows, columns)) };
    assert_eq!(resized, 0, "{}", std::io::Error::last_os_error());
}
