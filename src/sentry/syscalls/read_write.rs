//! read, write and the calls that move bytes between files.

use super::SysResult;
use super::args::{Fd, InBytes, InIovecs, OutBytes, OutIovecs, Whence};
use super::transfer::{self, Segments};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::task::Task;
use std::os::fd::AsFd as _;

pub(super) fn read(task: &mut Task, fd: Fd, buf: OutBytes, count: usize) -> SysResult {
    let file = task.file(fd.0)?;
    transfer::read(task, &file, Segments::single(buf.0, count), None)
}

pub(super) fn write(task: &mut Task, fd: Fd, buf: InBytes, count: usize) -> SysResult {
    let file = task.file(fd.0)?;
    transfer::write(task, &file, Segments::single(buf.0, count), None)
}

pub(super) fn pread64(task: &mut Task, fd: Fd, buf: OutBytes, count: usize, offset: i64) -> SysResult {
    let file = task.file(fd.0)?;
    transfer::read(task, &file, Segments::single(buf.0, count), Some(offset))
}

pub(super) fn pwrite64(task: &mut Task, fd: Fd, buf: InBytes, count: usize, offset: i64) -> SysResult {
    let file = task.file(fd.0)?;
    transfer::write(task, &file, Segments::single(buf.0, count), Some(offset))
}

pub(super) fn readv(task: &mut Task, fd: Fd, iov: OutIovecs, count: usize) -> SysResult {
    let file = task.file(fd.0)?;
    let segments = Segments::read(&task.call_memory(), iov.0, count)?;
    transfer::read(task, &file, segments, None)
}

pub(super) fn writev(task: &mut Task, fd: Fd, iov: InIovecs, count: usize) -> SysResult {
    let file = task.file(fd.0)?;
    let segments = Segments::read(&task.call_memory(), iov.0, count)?;
    transfer::write(task, &file, segments, None)
}

pub(super) fn preadv(task: &mut Task, fd: Fd, iov: OutIovecs, count: usize, offset: i64) -> SysResult {
    let file = task.file(fd.0)?;
    let segments = Segments::read(&task.call_memory(), iov.0, count)?;
    transfer::read(task, &file, segments, Some(offset))
}

pub(super) fn pwritev(task: &mut Task, fd: Fd, iov: InIovecs, count: usize, offset: i64) -> SysResult {
    let file = task.file(fd.0)?;
    let segments = Segments::read(&task.call_memory(), iov.0, count)?;
    transfer::write(task, &file, segments, Some(offset))
}

/// The offset of the `…v2` calls: -1 means the file's own position. No flag of theirs is offered.
fn offset_v2(offset: i64, flags: i32) -> Result<Option<i64>, Errno> {
    if flags != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok((offset != -1).then_some(offset))
}

pub(super) fn preadv2(
    task: &mut Task,
    fd: Fd,
    iov: OutIovecs,
    count: usize,
    offset: i64,
    _high: u64,
    flags: i32,
) -> SysResult {
    let file = task.file(fd.0)?;
    let segments = Segments::read(&task.call_memory(), iov.0, count)?;
    transfer::read(task, &file, segments, offset_v2(offset, flags)?)
}

pub(super) fn pwritev2(
    task: &mut Task,
    fd: Fd,
    iov: InIovecs,
    count: usize,
    offset: i64,
    _high: u64,
    flags: i32,
) -> SysResult {
    let file = task.file(fd.0)?;
    let segments = Segments::read(&task.call_memory(), iov.0, count)?;
    transfer::write(task, &file, segments, offset_v2(offset, flags)?)
}

pub(super) fn lseek(task: &mut Task, fd: Fd, offset: i64, whence: Whence) -> SysResult {
    let file = task.file(fd.0)?;
    if let Some(position) = file.proc().and_then(|proc| proc.seek(offset, whence.0)) {
        return position;
    }
    if task.mounts().is_some() {
        file.set_listed(false);
    }
    host::lseek(file.as_fd(), offset, whence.0).map(|position| position as i64)
}

/// The most that one of the copying calls moves, so that a signal does not wait for gigabytes.
const COPY_LIMIT: usize = 16 << 20;

/// Reads an optional offset that the call updates.
fn read_offset(task: &Task, addr: GuestAddr) -> Result<Option<[u8; 8]>, Errno> {
    task.memory().read_optional::<[u8; 8]>(addr)
}

/// Both files are such that copying between them does not wait.
fn never_waits(files: [&File; 2]) -> bool {
    files.iter().all(|file| !file.file_type().may_wait())
}

/// Makes a copying call, waiting if one of the files is a stream, and writes the offsets back.
fn copy(
    task: &mut Task,
    files: [&File; 2],
    offsets: [(GuestAddr, &mut Option<[u8; 8]>); 2],
    mut call: impl FnMut(&host::Attention, Option<&mut [u8; 8]>, Option<&mut [u8; 8]>) -> Result<usize, Errno>,
) -> SysResult {
    if files.iter().any(|file| !file.is_of_host()) {
        return Err(Errno::EINVAL);
    }
    let [(from_addr, from), (to_addr, to)] = offsets;
    // What the bytes go to may be told who wrote them.
    let shown = files[1].as_socket().ok().and_then(|socket| task.shown_through(socket));
    let copied = if never_waits(files) {
        // The flag is not looked at: nothing here takes long.
        host::shown_as(shown.as_ref(), || call(&host::Attention::default(), from.as_mut(), to.as_mut()))
    } else {
        task.wait(|_, attention| {
            host::shown_as(shown.as_ref(), || call(attention, from.as_mut(), to.as_mut()))
        })
    };
    task.was_shown(shown.as_ref());
    if copied == Err(Errno::EPIPE) {
        let info = crate::sentry::signals::SigInfo::from_kernel(libc::SIGPIPE);
        let _ = task.signal_self(info);
    }
    let copied = copied?;
    for (addr, offset) in [(from_addr, from), (to_addr, to)] {
        if let Some(offset) = offset {
            task.memory().write_object(addr, offset)?;
        }
    }
    Ok(copied as i64)
}

pub(super) fn sendfile(task: &mut Task, out: Fd, input: Fd, offset: GuestAddr, count: usize) -> SysResult {
    let (out, input) = (task.file(out.0)?, task.file(input.0)?);
    let mut from = read_offset(task, offset)?;
    let count = task.within_file_limit(&out, None, count.min(COPY_LIMIT))?;
    task.refresh(&input, from.map(i64::from_ne_bytes))?;
    let offsets = [(offset, &mut from), (GuestAddr::NULL, &mut None)];
    copy(task, [&input, &out], offsets, |attention, from, _| {
        host::wait_sendfile(attention, out.as_fd(), input.as_fd(), from, count)
    })
}

pub(super) fn copy_file_range(
    task: &mut Task,
    input: Fd,
    from_addr: GuestAddr,
    out: Fd,
    to_addr: GuestAddr,
    len: usize,
    flags: u32,
) -> SysResult {
    let (input, out) = (task.file(input.0)?, task.file(out.0)?);
    let (mut from, mut to) = (read_offset(task, from_addr)?, read_offset(task, to_addr)?);
    let len = task.within_file_limit(&out, to.map(i64::from_ne_bytes), len.min(COPY_LIMIT))?;
    copy(task, [&input, &out], [(from_addr, &mut from), (to_addr, &mut to)], |attention, from, to| {
        host::wait_copy_file_range(attention, input.as_fd(), from, out.as_fd(), to, len, flags)
    })
}

pub(super) fn splice(
    task: &mut Task,
    input: Fd,
    from_addr: GuestAddr,
    out: Fd,
    to_addr: GuestAddr,
    len: usize,
    flags: u32,
) -> SysResult {
    let (input, out) = (task.file(input.0)?, task.file(out.0)?);
    let (mut from, mut to) = (read_offset(task, from_addr)?, read_offset(task, to_addr)?);
    let len = task.within_file_limit(&out, to.map(i64::from_ne_bytes), len.min(COPY_LIMIT))?;
    task.refresh(&input, from.map(i64::from_ne_bytes))?;
    copy(task, [&input, &out], [(from_addr, &mut from), (to_addr, &mut to)], |attention, from, to| {
        host::wait_splice(attention, input.as_fd(), from, out.as_fd(), to, len, flags)
    })
}

pub(super) fn tee(task: &mut Task, input: Fd, out: Fd, len: usize, flags: u32) -> SysResult {
    let (input, out) = (task.file(input.0)?, task.file(out.0)?);
    let offsets = [(GuestAddr::NULL, &mut None), (GuestAddr::NULL, &mut None)];
    copy(task, [&input, &out], offsets, |attention, _, _| {
        host::wait_tee(attention, input.as_fd(), out.as_fd(), len, flags)
    })
}
