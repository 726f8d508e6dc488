//! Files of the host's `/proc` that the host would open for the supervisor but that are not the guest's to open.

use super::{host_link, is_proc_device, walk};
use crate::sentry::errno::Errno;
use crate::sentry::file::StatView;
use crate::sentry::host;
use crate::sentry::network;
use crate::sentry::task::Task;
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, BorrowedFd};

impl Task {
    /// Looks at a file of the host's that has just been opened, wherever its path led through:
    ///
    /// * Nobody's `net` directory is there in a guest without network.
    /// * sysctls are opened by the rights of others where the guest is not the supervisor's user: the host goes by the
    ///   supervisor's effective ids there (fs/proc/proc_sysctl.c `test_perm`), not by those of file calls.
    pub(crate) fn check_opened(&self, opened: BorrowedFd<'_>, flags: i32) -> Result<(), Errno> {
        let without_network = network::private(self.kernel()).is_some();
        let is_other = self.credentials().user.fs != self.kernel().supervisor.user.fs;
        if !without_network && !is_other {
            return Ok(());
        }
        let mut stat = [0; 144];
        host::fstat(opened, &mut stat)?;
        let stat = StatView(&stat);
        if !is_proc_device(stat.device()) {
            return Ok(());
        }
        let path =
            CString::new(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(|_| Errno::ENOENT)?;
        let path = host_link(&path)?;
        if without_network && is_network(&path) {
            return Err(Errno::ENOENT);
        }
        let (read, write) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (0o4, 0),
            libc::O_WRONLY => (0, 0o2),
            _ => (0o4, 0o2),
        };
        let wanted = if flags & libc::O_PATH != 0 { 0 } else { read | write };
        if is_other && is_of_machine(&path) && stat.mode() & wanted != wanted {
            return Err(Errno::EACCES);
        }
        Ok(())
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

/// Whether a path of the host's, as a link of `/proc/self/fd` shows it, leads to what a process has of the network.
fn is_network(path: &[u8]) -> bool {
    let of_process = |name: &&[u8]| walk::number(name).is_some();
    let mut rest = names(path).skip_while(|name| !of_process(name)).skip(1);
    match rest.next() {
        Some(b"net") => true,
        Some(b"task") => rest.next().is_some() && rest.next() == Some(b"net"),
        _ => false,
    }
}

/// Whether it is of no process.
fn is_of_machine(path: &[u8]) -> bool {
    names(path).all(|name| walk::number(name).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_directories_are_known_by_their_place() {
        for path in ["/proc/1/net", "/proc/1/net/tcp", "/proc/12/task/13/net/unix", "/mnt/proc/1/net/dev"] {
            assert!(is_network(path.as_bytes()), "{path}");
        }
        for path in
            ["/proc/1/ns/net", "/proc/sys/net/core", "/proc/1/task/net", "/proc/1", "/proc/1/task/1/status"]
        {
            assert!(!is_network(path.as_bytes()), "{path}");
        }
        assert!(is_of_machine(b"/proc/sys/kernel/hostname") && !is_of_machine(b"/proc/1/maps"));
    }
}
