//! POSIX message queues (mq_overview(7)): the host's, by their names.

use super::SysResult;
use super::args::{Fd, InBytes, Mode, OpenFlags, OutBytes, Text};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

/// `struct mq_attr`.
const ATTRIBUTES: usize = 64;
/// `HARD_MSGSIZEMAX`: no message is longer.
const LONGEST: usize = 16 << 20;

pub(super) fn mq_open(
    task: &mut Task,
    name: Text,
    flags: OpenFlags,
    mode: Mode,
    attributes: GuestAddr,
) -> SysResult {
    let attributes = match flags.0 & libc::O_CREAT {
        0 => None,
        _ => task.memory().read_optional::<[u8; ATTRIBUTES]>(attributes)?,
    };
    let mode = mode.0 & !task.fs().umask;
    let host = host::mq_open(name.as_c_str(), flags.0 | libc::O_CLOEXEC, mode, attributes.as_ref())?;
    // The descriptors of message queues are closed on exec, whatever the flags say.
    task.install(host, true)
}

pub(super) fn mq_unlink(_: &mut Task, name: Text) -> SysResult {
    host::mq_unlink(name.as_c_str()).map(|_| 0)
}

pub(super) fn mq_timedsend(
    task: &mut Task,
    fd: Fd,
    message: InBytes,
    len: usize,
    priority: u32,
    timeout: GuestAddr,
) -> SysResult {
    let time = task.memory().read_optional::<[u8; 16]>(timeout)?;
    let file = task.file(fd.0)?;
    if len > LONGEST {
        return Err(Errno::EMSGSIZE);
    }
    let mut bytes = vec![0; len];
    task.memory().read(message.0, &mut bytes)?;
    task.wait(|_, attention| {
        host::wait_mq_timedsend(attention, file.as_fd(), &bytes, priority, time.as_ref())
    })
    .map(|_| 0)
}

pub(super) fn mq_timedreceive(
    task: &mut Task,
    fd: Fd,
    message: OutBytes,
    len: usize,
    priority: GuestAddr,
    timeout: GuestAddr,
) -> SysResult {
    let time = task.memory().read_optional::<[u8; 16]>(timeout)?;
    let file = task.file(fd.0)?;
    let mut bytes = vec![0; len.min(LONGEST)];
    let mut sent_with = [0_u32; 1];
    let received = task.wait(|_, attention| {
        host::wait_mq_timedreceive(attention, file.as_fd(), &mut bytes, &mut sent_with, time.as_ref())
    })?;
    task.memory().write(message.0, bytes.get(..received).unwrap_or_default())?;
    task.memory().write_optional(priority, &sent_with)?;
    Ok(received as i64)
}

/// Nobody asks to be told of messages: a signal of the host's would come to the supervisor.
pub(super) fn mq_notify(task: &mut Task, fd: Fd, event: GuestAddr) -> SysResult {
    task.file(fd.0)?;
    if event == GuestAddr::NULL { Ok(0) } else { Err(Errno::ENOSYS) }
}

pub(super) fn mq_getsetattr(task: &mut Task, fd: Fd, new: GuestAddr, old: GuestAddr) -> SysResult {
    let new = task.memory().read_optional::<[u8; ATTRIBUTES]>(new)?;
    let file = task.file(fd.0)?;
    let mut before = [0; ATTRIBUTES];
    host::mq_getsetattr(file.as_fd(), new.as_ref(), Some(&mut before))?;
    task.memory().write_optional(old, &before).map(|()| 0)
}
