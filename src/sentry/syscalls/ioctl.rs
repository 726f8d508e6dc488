//! ioctl(2): only requests whose argument is known are passed on.

use super::SysResult;
use super::args::{Fd, Hex, IoctlRequest};
use super::terminal;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::network;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

/// What the argument of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument {
    /// A plain number, or nothing.
    Number,
    /// A structure of so many bytes that the host reads.
    In(usize),
    /// A structure of so many bytes that the host writes.
    Out(usize),
    /// A structure of so many bytes that the host reads and writes.
    InOut(usize),
    /// A list of network interfaces (`struct ifconf`), which holds an address.
    Interfaces,
    /// Close-on-exec, which the descriptor table has.
    CloseOnExec(bool),
}

const TERMIO: usize = 18;
const TERMIOS: usize = 36; // the kernel's, not the C library's
const TERMIOS2: usize = 44;
const WINSIZE: usize = 8;
const INT: usize = 4;
const IFREQ: usize = 40;
const SIOCATMARK: u32 = 0x8905;
const SIOCGSTAMP: u32 = 0x8906;
const SIOCGSTAMPNS: u32 = 0x8907;
const TCGETS2: u32 = 0x802c_542a;
pub(super) const TCSETS2: u32 = 0x402c_542b;
pub(super) const TCSETSW2: u32 = 0x402c_542c;
pub(super) const TCSETSF2: u32 = 0x402c_542d;
const TIOCGDEV: u32 = 0x8004_5432;
const TIOCSIG: u32 = 0x4004_5436;
const TIOCGPTLCK: u32 = 0x8004_5439;
const TIOCGPKT: u32 = 0x8004_5438;
const BLKGETSIZE64: u32 = 0x8008_1272;
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;
const FIGETBSZ: u32 = 2;
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const KDGKBTYPE: u32 = 0x4b33;
const KDGKBMODE: u32 = 0x4b44;

fn argument(request: u32) -> Option<Argument> {
    use Argument::{CloseOnExec, In, InOut, Interfaces, Number, Out};
    const _: () = assert!(size_of::<libc::winsize>() == WINSIZE, "TIOCGWINSZ");
    let request_wide = libc::Ioctl::from(request);
    Some(match request_wide {
        libc::TCGETS => Out(TERMIOS),
        libc::TCSETS | libc::TCSETSW | libc::TCSETSF => In(TERMIOS),
        libc::TCGETA => Out(TERMIO),
        libc::TCSETA | libc::TCSETAW | libc::TCSETAF => In(TERMIO),
        libc::TIOCGLCKTRMIOS => Out(TERMIOS),
        libc::TIOCGWINSZ => Out(WINSIZE),
        libc::TIOCSWINSZ => In(WINSIZE),
        libc::TIOCOUTQ | libc::FIONREAD | libc::TIOCGPTN | libc::TIOCGETD => Out(INT),
        libc::TIOCMGET | libc::TIOCGSOFTCAR | libc::TIOCGEXCL => Out(INT),
        libc::FIONBIO | libc::FIOASYNC | libc::TIOCSPTLCK | libc::TIOCPKT => In(INT),
        libc::TCSBRK
        | libc::TCSBRKP
        | libc::TCXONC
        | libc::TCFLSH
        | libc::TIOCSBRK
        | libc::TIOCCBRK
        | libc::TIOCEXCL
        | libc::TIOCNXCL => Number,
        libc::FIOCLEX => CloseOnExec(true),
        libc::FIONCLEX => CloseOnExec(false),
        libc::SIOCGIFNAME
        | libc::SIOCGIFINDEX
        | libc::SIOCGIFFLAGS
        | libc::SIOCGIFADDR
        | libc::SIOCGIFDSTADDR
        | libc::SIOCGIFBRDADDR
        | libc::SIOCGIFNETMASK
        | libc::SIOCGIFMETRIC
        | libc::SIOCGIFMTU
        | libc::SIOCGIFHWADDR
        | libc::SIOCGIFMAP
        | libc::SIOCGIFTXQLEN => InOut(IFREQ),
        libc::SIOCGIFCONF => Interfaces,
        _ => match request {
            SIOCATMARK => Out(INT),
            SIOCGSTAMP | SIOCGSTAMPNS => Out(16),
            TCGETS2 => Out(TERMIOS2),
            TIOCGDEV | TIOCGPTLCK | TIOCGPKT => Out(INT),
            TIOCSIG => Number,
            TCSETS2 | TCSETSW2 | TCSETSF2 => In(TERMIOS2),
            BLKGETSIZE64 | FS_IOC_GETFLAGS => Out(8),
            FS_IOC_SETFLAGS => In(8),
            BLKSSZGET | BLKPBSZGET | FIGETBSZ | KDGKBTYPE | KDGKBMODE => Out(INT),
            FS_IOC_FSGETXATTR => Out(28),
            _ => return None,
        },
    })
}

pub(super) fn ioctl(task: &mut Task, fd: Fd, request: IoctlRequest, arg: Hex) -> SysResult {
    let file = task.file(fd.0)?;
    if let Some(terminal) = file.terminal()
        && let Some(result) = terminal::ioctl(task, &file, terminal, request.0, arg.0)
    {
        return result;
    }
    let addr = GuestAddr::new(arg.0);
    let file = if request.0 == FS_IOC_SETFLAGS { task.file_to_change(fd.0)? } else { file };
    // The host reads and writes within these 256 bytes, whatever the request: the largest known structure has 44.
    let mut bytes = [0; 256];
    let result = match argument(request.0).ok_or(Errno::ENOTTY)? {
        // Terminals are asked to drain their output, which may take as long as the reader likes.
        Argument::Number if file.terminal().is_some() => {
            task.wait(|_, attention| host::wait_ioctl_number(attention, file.as_fd(), request.0, arg.0))?
        }
        // Another kind of device may take the same number for something else, and its argument for an address.
        Argument::Number => host::ioctl_number(file.as_fd(), request.0, 0)?,
        Argument::CloseOnExec(cloexec) => {
            task.files().set_cloexec(fd.0, cloexec)?;
            0
        }
        Argument::In(len) => {
            task.memory().read(addr, &mut bytes[..len])?;
            match file.terminal() {
                Some(_) => task.wait(|_, attention| {
                    host::wait_ioctl_bytes(attention, file.as_fd(), request.0, &mut bytes)
                })?,
                None => host::ioctl_bytes(file.as_fd(), request.0, &mut bytes)?,
            }
        }
        // There is no interface of any name.
        Argument::InOut(IFREQ) if network::private(task.kernel()).is_some() => return Err(Errno::ENODEV),
        Argument::InOut(len) => {
            task.memory().read(addr, &mut bytes[..len])?;
            let result = host::ioctl_bytes(file.as_fd(), request.0, &mut bytes)?;
            task.memory().write(addr, &bytes[..len])?;
            result
        }
        Argument::Interfaces => interfaces(task, &file, addr)?,
        Argument::Out(len) => {
            let result = host::ioctl_bytes(file.as_fd(), request.0, &mut bytes)?;
            task.give(addr, &bytes[..len])?;
            result
        }
    };
    Ok(result as i64)
}

/// `SIOCGIFCONF`: a length and where the list goes; without an address only the length is wanted.
fn interfaces(task: &Task, file: &File, addr: GuestAddr) -> Result<usize, Errno> {
    let [len, list]: [u64; 2] = task.memory().read_object(addr)?;
    let len = len as u32 as i32; // the rest is padding
    // A negative length is room for nothing; who asks how long the list is may leave anything there.
    let room = usize::try_from(len).unwrap_or(0);
    let list = GuestAddr::new(list);
    let (needed, entries) = match network::private(task.kernel()) {
        Some(_) => (0, Vec::new()),
        None => host::interfaces(file.as_fd())?,
    };
    let filled = match list {
        GuestAddr::NULL => needed,
        _ => {
            let filled = (room.min(entries.len()) / IFREQ) * IFREQ;
            task.memory().write(list, entries.get(..filled).unwrap_or_default())?;
            filled
        }
    };
    task.memory().write_object(addr, &(filled as i32))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_encode_their_size_agree_with_the_table() {
        for request in [
            TCGETS2,
            TCSETS2,
            TIOCGDEV,
            TIOCGPTLCK,
            TIOCGPKT,
            BLKGETSIZE64,
            FS_IOC_GETFLAGS,
            FS_IOC_FSGETXATTR,
            libc::TIOCGPTN as u32,
        ] {
            let encoded = (request >> 16 & 0x3fff) as usize;
            match argument(request) {
                Some(Argument::In(len) | Argument::Out(len)) => assert_eq!(len, encoded, "{request:#x}"),
                other => panic!("{request:#x}: {other:?}"),
            }
        }
        assert_eq!(argument(0xdead_beef), None);
    }
}
