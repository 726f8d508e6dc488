//! A host process that has a guest's terminal as its controlling terminal.
//!
//! A terminal sends its signals (Ctrl-C, a new size, a hang-up) to the foreground group of the session that it
//! controls, and the host lets a session have one terminal only. The supervisor's own session has its own, if any.
//! So each guest session with a terminal that the guest has made is kept by a small process in a session of its
//! own, which tells the supervisor what the terminal sent.
//!
//! # Safety
//!
//! The process shares memory and descriptors with the supervisor (`CLONE_VM | CLONE_FILES`), so that it costs a
//! stack and no copy of anything, and holds no descriptor open. It runs [`keep`] only: raw system calls that touch
//! neither `errno` nor any other thread-local variable (its fs base is that of the thread that made it), no
//! allocation, no lock, no panic. What it is given lives until it has been reaped. All its signals are blocked, so
//! that it runs no handler. It dies with the thread that made it.

use super::{Argument, Errno, Words, raw};
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

/// What the process needs, as plain values.
#[repr(C)]
struct Plan {
    supervisor: i32,
    terminal: i32,
    channel: i32,
}

#[repr(C, align(16))]
struct Stack([u8; 32 << 10]);

/// Such a process. It ends, and gives the terminal up, when this is dropped, by the thread that made it.
pub(crate) struct SessionKeeper {
    pidfd: OwnedFd,
    ours: UnixStream,
    // In use by the process until it is reaped.
    _theirs: UnixStream,
    _plan: Box<Plan>,
    _stack: Box<Stack>,
}

/// The first message: 0, or the error number (below 256) of what could not be done.
const READY: u8 = 0;

impl SessionKeeper {
    /// Makes the process and gives it the terminal. Blocks all signals of the calling thread, whose death would end
    /// the process.
    ///
    /// # Errors
    ///
    /// `EPERM` if the terminal controls another session, else what keeps the process from being made.
    pub(crate) fn start(terminal: BorrowedFd<'_>) -> Result<Self, Errno> {
        block_all_signals();
        let (ours, theirs) = UnixStream::pair()?;
        let plan = Box::new(Plan {
            supervisor: std::process::id() as i32,
            terminal: terminal.as_raw_fd(),
            channel: theirs.as_raw_fd(),
        });
        let mut stack = Box::new(Stack([0; 32 << 10]));
        let top = stack.0.as_mut_ptr_range().end;
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_PIDFD;
        let mut pidfd: i32 = -1;
        // SAFETY: see the module's chapter: the function keeps to its rules, plan and stack outlive the process.
        let pid = unsafe {
            libc::clone(keep, top.cast(), flags, (&raw const *plan).cast_mut().cast(), &raw mut pidfd)
        };
        if pid < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the kernel made this descriptor for the call.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let mut keeper = Self { pidfd, ours, _theirs: theirs, _plan: plan, _stack: stack };
        match keeper.next() {
            Some(READY) => Ok(keeper),
            Some(errno) => Err(Errno::from_raw(errno.into())),
            None => Err(Errno::EIO),
        }
    }

    fn next(&mut self) -> Option<u8> {
        let mut byte = [0];
        loop {
            match self.ours.read(&mut byte) {
                Ok(1) => return Some(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
    }

    /// Waits for the next signal that the terminal sends; `None` when the process is to be ended.
    pub(crate) fn next_signal(&mut self) -> Option<i32> {
        self.next().map(i32::from)
    }

    /// What ends the wait in [`SessionKeeper::next_signal`] when it is shut down.
    pub(crate) fn hang_up_handle(&self) -> Result<UnixStream, Errno> {
        self.ours.try_clone().map_err(Errno::from)
    }
}

impl Drop for SessionKeeper {
    fn drop(&mut self) {
        let _ = crate::sys::pidfd_kill(self.pidfd.as_fd());
        crate::sys::reap_pidfd(self.pidfd.as_fd());
    }
}

fn block_all_signals() {
    // SAFETY: sigfillset initialises the set.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
    }
}

/// A system call of the process: numbers, and addresses of its own stack or of constants.
fn call<const N: usize>(nr: libc::c_long, args: [usize; N]) -> Result<usize, Errno> {
    let mut words = Words::default();
    for word in args {
        word.push_to(&mut words);
    }
    // SAFETY: said at each call.
    unsafe { raw(nr, &words) }
}

/// Tells the supervisor; `false` when there is nobody to tell.
fn tell(plan: &Plan, byte: u8) -> bool {
    let bytes = [byte];
    // One byte of this stack.
    call(libc::SYS_write, [plan.channel as usize, bytes.as_ptr().expose_provenance(), 1]) == Ok(1)
}

/// The process: makes a session, takes the terminal, and passes on what the terminal sends.
extern "C" fn keep(plan: *mut libc::c_void) -> libc::c_int {
    const SI_KERNEL: u32 = 0x80;
    // SAFETY: the plan outlives this process.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let name = c"systrap-session".as_ptr().expose_provenance();
    let _ = call(libc::SYS_prctl, [libc::PR_SET_NAME as usize, name]); // a constant string
    let _ = call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize]);
    if call::<0>(libc::SYS_getppid, []) != Ok(plan.supervisor as usize) {
        return 1; // it is gone already
    }
    let taken = call::<0>(libc::SYS_setsid, [])
        .and_then(|_| call(libc::SYS_ioctl, [plan.terminal as usize, libc::TIOCSCTTY as usize, 0]));
    let outcome = taken.map_or_else(|errno| errno.raw() as u8, |_| READY);
    if !tell(plan, outcome) || outcome != READY {
        return 1;
    }
    let all = u64::MAX;
    let set = (&raw const all).expose_provenance();
    let mut info = [0_u32; 32];
    loop {
        // A set and a siginfo_t of this stack; no time-out.
        let args = [set, (&raw mut info).expose_provenance(), 0, size_of::<u64>()];
        let Ok(signo) = call(libc::SYS_rt_sigtimedwait, args) else { continue };
        let [_, _, code, ..] = info;
        // What others send to this process is not the terminal's.
        if code == SI_KERNEL && !tell(plan, signo as u8) {
            return 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::openpty;
    use std::io::Write as _;

    #[test]
    fn a_keeper_hears_its_terminal_and_gives_it_up() {
        let pty = openpty(None, None).unwrap();
        let mut master = std::fs::File::from(pty.master);
        let (send, receive) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let (slave, send) = (pty.slave.try_clone().unwrap(), send.clone());
            let thread = std::thread::spawn(move || {
                let mut keeper = SessionKeeper::start(slave.as_fd()).unwrap();
                assert_eq!(SessionKeeper::start(slave.as_fd()).map(drop), Err(Errno::EPERM));
                send.send(0).unwrap();
                for _ in 0..2 {
                    send.send(keeper.next_signal().unwrap()).unwrap();
                }
            });
            assert_eq!(receive.recv(), Ok(0));
            for (byte, signo) in [(b"\x03", libc::SIGINT), (b"\x1c", libc::SIGQUIT)] {
                master.write_all(byte).unwrap();
                assert_eq!(receive.recv(), Ok(signo));
            }
            thread.join().unwrap();
        }
    }
}
