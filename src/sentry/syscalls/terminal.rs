//! Job control: what a terminal allows to whom (drivers/tty/tty_jobctrl.c).

use super::SysResult;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, Terminal};
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::kernel::{Keeper, Link, Tree};
use crate::sentry::signals::{Disposition, SigInfo};
use crate::sentry::task::Task;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

const TIOCGPGRP: u32 = libc::TIOCGPGRP as u32;
const TIOCSPGRP: u32 = libc::TIOCSPGRP as u32;
const TIOCGSID: u32 = libc::TIOCGSID as u32;
const TIOCSCTTY: u32 = libc::TIOCSCTTY as u32;
const TIOCNOTTY: u32 = libc::TIOCNOTTY as u32;
const TIOCSTI: u32 = libc::TIOCSTI as u32;
const TIOCGPTPEER: u32 = libc::TIOCGPTPEER as u32;
const TCGETS: u32 = libc::TCGETS as u32;

/// Requests that only the foreground may make (`tty_check_change`).
const CHANGES: [u32; 16] = [
    libc::TCSETS as u32,
    libc::TCSETSW as u32,
    libc::TCSETSF as u32,
    libc::TCSETA as u32,
    libc::TCSETAW as u32,
    libc::TCSETAF as u32,
    super::ioctl::TCSETS2,
    super::ioctl::TCSETSW2,
    super::ioctl::TCSETSF2,
    libc::TCSBRK as u32,
    libc::TCSBRKP as u32,
    libc::TIOCSBRK as u32,
    libc::TIOCCBRK as u32,
    libc::TCXONC as u32,
    libc::TCFLSH as u32,
    libc::TIOCSETD as u32,
];

/// The requests that are about sessions and groups, of which the host knows nothing; `None` for others, which the
/// host serves after the rules for processes in the background have been applied.
pub(super) fn ioctl(
    task: &mut Task,
    file: &Arc<File>,
    terminal: Terminal,
    request: u32,
    arg: u64,
) -> Option<SysResult> {
    let addr = GuestAddr::new(arg);
    let result = match request {
        TIOCGPGRP => get_foreground(task, file, terminal, addr),
        TIOCSPGRP => set_foreground(task, file, terminal, addr),
        TIOCGSID => get_session(task, terminal, addr),
        TIOCSCTTY => take(task, file, terminal).map(|()| 0),
        TIOCNOTTY => give_up(task, terminal),
        TIOCGPTPEER => open_peer(task, file, arg),
        // As where `dev.tty.legacy_tiocsti` is off.
        TIOCSTI => Err(Errno::EIO),
        _ if CHANGES.contains(&request) => match task.check_foreground(file, terminal, libc::SIGTTOU) {
            Ok(()) => return None,
            Err(errno) => Err(errno),
        },
        _ => return None,
    };
    // As `hung_up_tty_ioctl`.
    let hung_up = || request != TIOCSPGRP && host::terminal_device(file.as_fd()).is_none();
    Some(match result {
        Err(Errno::ENOTTY) if hung_up() => Err(Errno::EIO),
        other => other,
    })
}

fn controls(tree: &Tree, task: &Task, terminal: Terminal) -> bool {
    tree.terminal_of(task.process.pid).is_some_and(|held| held.device == terminal.device)
}

fn get_foreground(task: &mut Task, file: &File, terminal: Terminal, addr: GuestAddr) -> SysResult {
    let group = {
        let mut tree = task.kernel().tree();
        if !terminal.is_master && !controls(&tree, task, terminal) {
            return Err(Errno::ENOTTY);
        }
        let session = tree.session_of_terminal(terminal.device);
        let held = session.and_then(|session| tree.terminal_of_session(session));
        // 0: it controls no session, or one that the guest cannot know.
        held.map_or(0, |held| held.foreground_now(file.as_fd()))
    };
    task.memory().write_object(addr, &group)?;
    Ok(0)
}

fn get_session(task: &mut Task, terminal: Terminal, addr: GuestAddr) -> SysResult {
    let session = {
        let tree = task.kernel().tree();
        if !terminal.is_master && !controls(&tree, task, terminal) {
            return Err(Errno::ENOTTY);
        }
        tree.session_of_terminal(terminal.device).ok_or(Errno::ENOTTY)?
    };
    task.memory().write_object(addr, &session)?;
    Ok(0)
}

fn set_foreground(task: &mut Task, file: &File, terminal: Terminal, addr: GuestAddr) -> SysResult {
    match task.check_foreground(file, terminal, libc::SIGTTOU) {
        Err(Errno::EIO) => return Err(Errno::ENOTTY),
        other => other?,
    }
    let group: i32 = task.memory().read_object(addr)?;
    if group < 0 {
        return Err(Errno::EINVAL);
    }
    let mut tree = task.kernel().tree();
    if !controls(&tree, task, terminal) {
        return Err(Errno::ENOTTY);
    }
    let session = tree.node(task.process.pid).map_or(0, |node| node.session);
    let of_group = tree.nodes().find(|node| node.group == group).or_else(|| tree.node(group));
    let found = of_group.map(|node| node.session);
    let Some(held) = tree.terminal_of_session(session) else { return Err(Errno::ENOTTY) };
    match (found, &held.link) {
        (Some(found), _) if found != session => return Err(Errno::EPERM),
        (Some(_), Link::Kept { .. }) => {}
        (Some(_), Link::Host) => {
            // On the host the supervisor's group stands for all groups of the guest.
            let own = host::getpgid(0)? as i32;
            if host::foreground_group(file.as_fd()) != Ok(own) {
                host::set_foreground_group(file.as_fd(), own)?;
            }
        }
        // A process outside the guest, or nobody.
        (None, Link::Kept { .. }) => {
            return Err(if host::kill(group, 0) == Err(Errno::ESRCH) { Errno::ESRCH } else { Errno::EPERM });
        }
        // A group outside the guest, such as that of the shell outside.
        (None, Link::Host) => host::set_foreground_group(file.as_fd(), group)?,
    }
    held.foreground = group;
    Ok(0)
}

/// Makes the terminal that of the caller's session.
fn take(task: &mut Task, file: &Arc<File>, terminal: Terminal) -> Result<(), Errno> {
    let kernel = Arc::clone(task.kernel());
    let pid = task.process.pid;
    let _gate = kernel.close_keepers();
    if !kernel.tree().may_take_terminal(pid, terminal.device)? {
        return Ok(());
    }
    let leads_on_host = pid == kernel.first_pid && host::getsid(0) == Ok(pid as usize);
    let link = if leads_on_host {
        host::ioctl_number(file.as_fd(), TIOCSCTTY, 0)?;
        Link::Host
    } else {
        let path = Arc::new(name_of(task, file, terminal)?);
        Link::Kept { keeper: Keeper::start(&kernel, Arc::clone(file), terminal.device)?, path }
    };
    let mut tree = kernel.tree();
    // The gate is closed: nobody else has taken it meanwhile.
    if tree.may_take_terminal(pid, terminal.device)? {
        tree.take_terminal(pid, terminal.device, link);
    }
    Ok(())
}

/// A descriptor by which the terminal can be opened again, which does not keep it open.
fn name_of(task: &Task, file: &File, terminal: Terminal) -> Result<OwnedFd, Errno> {
    if terminal.is_master {
        let peer = peer_of(file, libc::O_RDWR)?;
        return reopen(task, peer.as_fd(), libc::O_PATH);
    }
    reopen(task, file.as_fd(), libc::O_PATH)
}

fn reopen(task: &Task, file: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd, Errno> {
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    host::openat(task.directory(libc::AT_FDCWD)?.as_fd(), &path, flags, 0)
}

fn give_up(task: &mut Task, terminal: Terminal) -> SysResult {
    let kernel = Arc::clone(task.kernel());
    {
        let mut tree = kernel.tree();
        if terminal.is_master || !controls(&tree, task, terminal) {
            return Err(Errno::ENOTTY);
        }
        tree.give_up_terminal(task.process.pid);
    }
    drop(kernel.close_keepers());
    Ok(0)
}

/// The terminal of a pseudo-terminal's master.
fn peer_of(master: &File, flags: i32) -> Result<OwnedFd, Errno> {
    host::open_by_ioctl(master.as_fd(), TIOCGPTPEER, flags | libc::O_NOCTTY | libc::O_CLOEXEC)
}

fn open_peer(task: &mut Task, file: &File, flags: u64) -> SysResult {
    let flags = flags as i32;
    let peer = Arc::new(File::new(peer_of(file, flags)?));
    task.opened_terminal(&peer, flags);
    task.files().insert(peer, flags & libc::O_CLOEXEC != 0).map(i64::from)
}

/// Hanging up the caller's terminal takes a privilege (CAP_SYS_TTY_CONFIG) that no guest has.
pub(super) fn vhangup(_: &mut Task) -> SysResult {
    Err(Errno::EPERM)
}

impl Task {
    /// `/dev/tty`: the caller's controlling terminal.
    pub(super) fn open_own_terminal(&self, flags: i32) -> Result<OwnedFd, Errno> {
        let path = {
            let tree = self.kernel().tree();
            match &tree.terminal_of(self.process.pid).ok_or(Errno::ENXIO)?.link {
                Link::Host => None,
                Link::Kept { path, .. } => Some(Arc::clone(path)),
            }
        };
        match path {
            Some(path) => {
                reopen(self, path.as_fd(), flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW))
            }
            None => host::openat(
                self.directory(libc::AT_FDCWD)?.as_fd(),
                c"/dev/tty",
                flags | libc::O_CLOEXEC | libc::O_NOCTTY,
                0,
            ),
        }
    }

    /// A leader of a session without a terminal that opens one makes it the session's (`tty_open_proc_set_tty`).
    pub(super) fn opened_terminal(&mut self, file: &Arc<File>, flags: i32) {
        let readable = flags & libc::O_ACCMODE != libc::O_WRONLY;
        if flags & libc::O_NOCTTY == 0
            && readable
            && let Some(terminal) = file.terminal().filter(|terminal| !terminal.is_master)
        {
            // Whoever may not take it has opened it all the same.
            let _ = take(self, file, terminal);
        }
    }

    /// Before the terminal is read from.
    pub(super) fn check_terminal_read(&mut self, file: &File, terminal: Terminal) -> Result<(), Errno> {
        match terminal.is_master {
            true => Ok(()),
            false => self.check_foreground(file, terminal, libc::SIGTTIN),
        }
    }

    /// Before the terminal is written to.
    pub(super) fn check_terminal_write(&mut self, file: &File, terminal: Terminal) -> Result<(), Errno> {
        if terminal.is_master || self.background_group(file, terminal).is_none() {
            return Ok(());
        }
        const LOCAL_FLAGS: usize = 12; // the fourth word of a struct termios
        let mut termios = [0; 256];
        host::ioctl_bytes(file.as_fd(), TCGETS, &mut termios)?;
        let mut flags = [0; 4];
        flags.copy_from_slice(&termios[LOCAL_FLAGS..LOCAL_FLAGS + 4]);
        match u32::from_ne_bytes(flags) & libc::TOSTOP {
            0 => Ok(()),
            _ => self.check_foreground(file, terminal, libc::SIGTTOU),
        }
    }

    /// The caller's group, if the terminal controls its session and has another group in the foreground.
    fn background_group(&self, file: &File, terminal: Terminal) -> Option<i32> {
        let tree = self.kernel().tree();
        let group = tree.node(self.process.pid)?.group;
        let held = tree.terminal_of(self.process.pid).filter(|held| held.device == terminal.device)?;
        let foreground = held.foreground_now(file.as_fd());
        (foreground != 0 && foreground != group).then_some(group)
    }

    /// `tty_check_change`: stops a group in the background, unless it does not want to know or nobody would continue
    /// it.
    fn check_foreground(&mut self, file: &File, terminal: Terminal, signo: i32) -> Result<(), Errno> {
        let Some(group) = self.background_group(file, terminal) else { return Ok(()) };
        let ignored = self.handle.mask().contains(signo)
            || self.process.actions().disposition(signo) == Disposition::Ignore;
        if ignored {
            return if signo == libc::SIGTTIN { Err(Errno::EIO) } else { Ok(()) };
        }
        let kernel = Arc::clone(self.kernel());
        let mut tree = kernel.tree();
        if tree.is_orphaned(group) {
            return Err(Errno::EIO);
        }
        let members = tree.group_members(group);
        let _ = tree.send_to_all(&members, SigInfo::from_kernel(signo));
        Err(Errno::ERESTARTSYS)
    }
}
