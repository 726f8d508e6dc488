//! epoll(7): the host's own, whose descriptors stand for the guest's.

use super::SysResult;
use super::args::{EpollOperation, Fd, OpenFlags};
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, Kind};
use crate::sentry::guest_memory::{GuestMemory as _, GuestMemoryExt as _};
use crate::sentry::host::{self, EPOLL_EVENT, Events};
use crate::sentry::process::lock;
use crate::sentry::signals::SignalSet;
use crate::sentry::task::Task;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `EP_MAX_EPOLL_EVENTS`.
const MOST_EVENTS: i32 = i32::MAX / EPOLL_EVENT as i32;
/// More than this are not fetched from the host at once.
const BATCH: usize = 512;

pub(super) fn epoll_create(task: &mut Task, size: i32) -> SysResult {
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    epoll_create1(task, OpenFlags(0))
}

pub(super) fn epoll_create1(task: &mut Task, flags: OpenFlags) -> SysResult {
    if flags.0 & !libc::EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let host = host::epoll_create1(libc::EPOLL_CLOEXEC)?;
    let file = Arc::new(File::epoll(host));
    task.files().insert(file, flags.0 & libc::EPOLL_CLOEXEC != 0).map(i64::from)
}

pub(super) fn epoll_ctl(
    task: &mut Task,
    epoll: Fd,
    EpollOperation(operation): EpollOperation,
    fd: Fd,
    event: GuestAddr,
) -> SysResult {
    let mut bytes = [0_u8; EPOLL_EVENT];
    if operation != libc::EPOLL_CTL_DEL {
        task.call_memory().read(event, &mut bytes)?;
    }
    let (instance, file) = (task.file(epoll.0)?, task.file(fd.0)?);
    let [a, b, c, d, ..] = bytes;
    let events = file.host_events(u32::from_ne_bytes([a, b, c, d]));
    for (to, from) in bytes.iter_mut().zip(events.to_ne_bytes()) {
        *to = from;
    }
    let Some(state) = instance.as_epoll().filter(|_| !Arc::ptr_eq(&instance, &file)) else {
        return Err(Errno::EINVAL);
    };
    let control = |host: BorrowedFd<'_>, bytes: &mut [u8; EPOLL_EVENT]| {
        host::epoll_ctl(instance.as_fd(), operation, host, bytes)
    };
    let mut watched = lock(&state.watched);
    watched.forget_closed();
    let known = watched.knows(fd.0, &file);
    match operation {
        libc::EPOLL_CTL_ADD if known => Err(Errno::EEXIST),
        libc::EPOLL_CTL_ADD => {
            let duplicate = match watched.knows_another(&file) {
                true => Some(host::dup_cloexec(file.as_fd(), libc::F_DUPFD_CLOEXEC, 0)?),
                false => None,
            };
            control(duplicate.as_ref().map_or(file.as_fd(), OwnedFd::as_fd), &mut bytes)?;
            if let Kind::Signals(signals) = file.kind() {
                signals.used_by(&file, &task.process);
            }
            watched.add(fd.0, &file, duplicate);
            Ok(0)
        }
        libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL if known => {
            control(watched.duplicate(fd.0, &file).unwrap_or(file.as_fd()), &mut bytes)?;
            if operation == libc::EPOLL_CTL_DEL {
                watched.remove(fd.0, &file);
            }
            Ok(0)
        }
        libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL => Err(Errno::ENOENT),
        _ => Err(Errno::EINVAL),
    }
}

fn wait(
    task: &mut Task,
    epoll: Fd,
    events: GuestAddr,
    most: i32,
    timeout: Option<Duration>,
    mask: Option<SignalSet>,
) -> SysResult {
    if most <= 0 || most > MOST_EVENTS {
        return Err(Errno::EINVAL);
    }
    let instance = task.file(epoll.0)?;
    if instance.as_epoll().is_none() {
        return Err(Errno::EINVAL);
    }
    if let Some(mask) = mask {
        task.suspend_mask(mask);
    }
    let started = Instant::now();
    let most = (most as usize).min(BATCH);
    let mut buffer = std::mem::take(&mut task.buffer);
    buffer.resize(most * EPOLL_EVENT, 0);
    let limit =
        |timeout: Duration| Timespec::from_duration(timeout.saturating_sub(started.elapsed())).to_array();
    let now = [0; 16];
    // Without waiting first: most waits find something.
    let mut ready = host::epoll_pwait2(instance.as_fd(), Events(&mut buffer), Some(&now), 0);
    if ready == Ok(0) && timeout != Some(Duration::ZERO) {
        ready = task.wait(|_, attention| {
            let time = timeout.map(limit);
            host::wait_epoll(attention, instance.as_fd(), Events(&mut buffer), time.as_ref(), 0)
        });
    }
    let result = match ready {
        // Like poll: it starts again only when no handler runs.
        Err(Errno::ERESTARTSYS) => Err(Errno::EINTR),
        Err(errno) => Err(errno),
        Ok(count) => {
            let filled = buffer.get(..count * EPOLL_EVENT).unwrap_or_default();
            task.give(events, filled).map(|()| count as i64)
        }
    };
    task.buffer = buffer;
    result
}

fn from_millis(timeout_ms: i32) -> Option<Duration> {
    u64::try_from(timeout_ms).ok().map(Duration::from_millis)
}

pub(super) fn epoll_wait(
    task: &mut Task,
    epoll: Fd,
    events: GuestAddr,
    most: i32,
    timeout_ms: i32,
) -> SysResult {
    wait(task, epoll, events, most, from_millis(timeout_ms), None)
}

fn read_mask(task: &Task, mask: GuestAddr, size: usize) -> Result<Option<SignalSet>, Errno> {
    let mask = task.memory().read_optional::<u64>(mask)?.map(SignalSet);
    if mask.is_some() && size != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    Ok(mask)
}

pub(super) fn epoll_pwait(
    task: &mut Task,
    epoll: Fd,
    events: GuestAddr,
    most: i32,
    timeout_ms: i32,
    mask: GuestAddr,
    size: usize,
) -> SysResult {
    let mask = read_mask(task, mask, size)?;
    wait(task, epoll, events, most, from_millis(timeout_ms), mask)
}

pub(super) fn epoll_pwait2(
    task: &mut Task,
    epoll: Fd,
    events: GuestAddr,
    most: i32,
    timeout: GuestAddr,
    mask: GuestAddr,
    size: usize,
) -> SysResult {
    let timeout = match task.memory().read_optional::<Timespec>(timeout)? {
        Some(time) => Some(time.to_duration().ok_or(Errno::EINVAL)?),
        None => None,
    };
    let mask = read_mask(task, mask, size)?;
    wait(task, epoll, events, most, timeout, mask)
}
