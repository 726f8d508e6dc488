//! Reading and writing what may have to be waited for: pipes, terminals, eventfds and the like.
//!
//! A transfer is first tried without waiting, in one host call. Files of which the host cannot tell (`EOPNOTSUPP`) are
//! polled first. What has to wait, or may although it should not, is made so that signals for the guest interrupt it.

use crate::sentry::errno::Errno;
use crate::sentry::file::{File, FileType};
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::{AsFd as _, AsRawFd as _};

/// Whether the transfer can be expected not to wait.
fn is_ready(file: &File, events: i16) -> bool {
    let mut poll = [libc::pollfd { fd: file.as_fd().as_raw_fd(), events, revents: 0 }];
    matches!(host::poll_now(&mut poll[..], 0), Ok(ready) if ready > 0)
}

/// Reads a piece at the file's own position.
pub(super) fn read(task: &mut Task, file: &File, part: &mut [u8]) -> Result<usize, Errno> {
    if file.file_type() != FileType::Stream {
        return host::read(file.as_fd(), part);
    }
    if !file.needs_poll() {
        match host::read_now(file.as_fd(), part) {
            Err(Errno::EAGAIN) if file.is_nonblocking() => return Err(Errno::EAGAIN),
            Err(Errno::EAGAIN) => {
                return task.wait(|_, attention| host::wait_read(attention, file.as_fd(), part));
            }
            Err(Errno::EOPNOTSUPP) => file.set_needs_poll(),
            other => return other,
        }
    }
    if is_ready(file, libc::POLLIN) {
        return task.interruptible(|_, attention| host::wait_read(attention, file.as_fd(), part));
    }
    task.wait(|_, attention| host::wait_read(attention, file.as_fd(), part))
}

/// Writes a piece at the file's own position. A write that was interrupted half way has written something and returns
/// that.
pub(super) fn write(task: &mut Task, file: &File, part: &[u8]) -> Result<usize, Errno> {
    if file.file_type() != FileType::Stream {
        return host::write(file.as_fd(), part);
    }
    if !file.needs_poll() {
        match host::write_now(file.as_fd(), part) {
            Err(Errno::EAGAIN) if file.is_nonblocking() => return Err(Errno::EAGAIN),
            Err(Errno::EAGAIN) => {
                return task.wait(|_, attention| host::wait_write(attention, file.as_fd(), part));
            }
            Err(Errno::EOPNOTSUPP) => file.set_needs_poll(),
            other => return other,
        }
    }
    if part.len() <= libc::PIPE_BUF && is_ready(file, libc::POLLOUT) {
        return task.interruptible(|_, attention| host::wait_write(attention, file.as_fd(), part));
    }
    task.wait(|_, attention| host::wait_write(attention, file.as_fd(), part))
}
