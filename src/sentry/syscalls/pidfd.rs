//! Calls on pidfds.

use super::SysResult;
use super::args::{Fd, Signo};
use crate::GuestAddr;
use crate::sentry::abi::NSIG;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::kernel::Target;
use crate::sentry::signals::SigInfo;
use crate::sentry::task::Task;
use std::sync::Arc;

/// `PIDFD_NONBLOCK`: `waitid` on the descriptor does not wait.
const NONBLOCK: i32 = libc::O_NONBLOCK;

pub(super) fn pidfd_open(task: &mut Task, pid: i32, flags: i32) -> SysResult {
    if flags & !NONBLOCK != 0 || pid <= 0 {
        return Err(Errno::EINVAL);
    }
    task.open_pid_file(pid, flags)
}

pub(super) fn pidfd_send_signal(
    task: &mut Task,
    fd: Fd,
    signo: Signo,
    info: GuestAddr,
    flags: u32,
) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let process = task.process_of_pid_file(fd.0)?;
    let info = match task.memory().read_optional::<[u8; 128]>(info)? {
        None => super::kill::from_task(task, signo.0, libc::SI_USER),
        Some(bytes) => {
            let info = SigInfo(bytes).claimed_by_process();
            if info.signo() != signo.0 {
                return Err(Errno::EINVAL);
            }
            let own = Arc::ptr_eq(&process, &task.process);
            if !own && (info.code() >= 0 || info.code() == libc::SI_TKILL) {
                return Err(Errno::EPERM);
            }
            info
        }
    };
    if !(0..=NSIG).contains(&signo.0) {
        return Err(Errno::EINVAL);
    }
    task.kernel().tree().send(Target::Process(&process), info).map(|()| 0)
}

pub(super) fn pidfd_getfd(task: &mut Task, pidfd: Fd, fd: Fd, flags: u32) -> SysResult {
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    let process = task.process_of_pid_file(pidfd.0)?;
    let file = task.file_in(&process, fd.0)?;
    task.install_file(file, true)
}
