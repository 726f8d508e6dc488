//! Bytes between files and guest memory: the common part of read, write and their vectored kin.

use super::{SysResult, socket, stream};
use crate::sentry::abi::{Iovec, MAX_RW_COUNT};
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, FileType, Kind};
use crate::sentry::guest_memory::{GuestMemory, GuestMemoryExt as _};
use crate::sentry::host;
use crate::sentry::procfs::Node;
use crate::sentry::signals::SigInfo;
use crate::sentry::task::Task;
use crate::{Context, GuestAddr};
use std::os::fd::AsFd as _;

/// Bytes that go through the task's buffer at a time. A multiple of a pipe's atomic size.
pub(super) const CHUNK: usize = 256 << 10;

/// The guest buffers of one call, and how far they have been used.
pub(super) struct Segments {
    current: Iovec,
    /// The segments after the current one, last first.
    rest: Vec<Iovec>,
    left: usize,
}

impl Segments {
    /// One buffer.
    pub(super) fn single(addr: GuestAddr, len: usize) -> Self {
        let len = len.min(MAX_RW_COUNT);
        Self { current: Iovec { base: addr.raw(), len: len as u64 }, rest: Vec::new(), left: len }
    }

    /// The buffers of a vectored call.
    pub(super) fn read(memory: &dyn GuestMemory, addr: GuestAddr, count: usize) -> Result<Self, Errno> {
        let mut rest = memory.read_iovecs(addr, count)?;
        let left = rest.iter().map(|segment| segment.len as usize).sum();
        rest.reverse();
        Ok(Self { current: rest.pop().unwrap_or_default(), rest, left })
    }

    /// Bytes not yet transferred.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// The next piece of at most `limit` bytes that is contiguous in guest memory.
    fn next(&mut self, limit: usize) -> Option<(GuestAddr, usize)> {
        while self.current.len == 0 {
            self.current = self.rest.pop()?;
        }
        let len = limit.min(self.current.len as usize);
        let piece = (GuestAddr::new(self.current.base), len);
        self.current.base = self.current.base.wrapping_add(len as u64);
        self.current.len -= len as u64;
        self.left -= len;
        Some(piece)
    }

    /// Copies to the guest; returns how much arrived before a bad address.
    pub(super) fn copy_out(&mut self, memory: &dyn GuestMemory, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some((addr, len)) = (done < bytes.len()).then(|| self.next(bytes.len() - done)).flatten() {
            match memory.write(addr, &bytes[done..done + len]) {
                Ok(()) => done += len,
                Err(stopped) => return done + stopped.copied.min(len),
            }
        }
        done
    }

    /// The address of the whole, if it is contiguous and so short that it can travel with the result.
    pub(super) fn small(&self, len: usize) -> Option<GuestAddr> {
        // Within a page all of it arrives or nothing: what arrived of a part would be known too late.
        let page_rest = crate::PAGE_SIZE - self.current.base % crate::PAGE_SIZE;
        let is_small = len <= Context::SMALL_COPY && len as u64 <= self.current.len.min(page_rest);
        is_small.then(|| GuestAddr::new(self.current.base))
    }

    /// Copies from the guest; returns how much arrived before a bad address.
    pub(super) fn copy_in(&mut self, memory: &dyn GuestMemory, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some((addr, len)) = (done < bytes.len()).then(|| self.next(bytes.len() - done)).flatten() {
            match memory.read(addr, &mut bytes[done..done + len]) {
                Ok(()) => done += len,
                Err(stopped) => return done + stopped.copied.min(len),
            }
        }
        done
    }
}

/// Takes the task's buffer, grown to hold `len` bytes. The caller puts it back.
pub(super) fn take_buffer(task: &mut Task, len: usize) -> Vec<u8> {
    let mut buffer = std::mem::take(&mut task.buffer);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer
}

/// Reads from a file into guest memory, at the file's own position or at `offset`.
pub(super) fn read(task: &mut Task, file: &File, segments: Segments, offset: Option<i64>) -> SysResult {
    if offset.is_some_and(|offset| offset < 0) {
        return Err(Errno::EINVAL);
    }
    if offset.is_none() && file.file_type() == FileType::Socket {
        return socket::read(task, file, segments);
    }
    task.refresh(file, offset)?;
    match file.kind() {
        Kind::Signals(signals) if offset.is_none() => {
            return super::signalfd::read(task, file, signals, segments);
        }
        Kind::Pid(_) if offset.is_none() => return Err(Errno::EINVAL),
        _ => {}
    }
    if let Some(terminal) = file.terminal() {
        task.check_terminal_read(file, terminal)?;
    }
    let mut buffer = take_buffer(task, segments.left().min(CHUNK));
    let result = read_through(task, file, segments, offset, &mut buffer);
    task.buffer = buffer;
    result
}

fn read_through(
    task: &mut Task,
    file: &File,
    mut segments: Segments,
    offset: Option<i64>,
    buffer: &mut [u8],
) -> SysResult {
    // A stream gives what it has; only files of which there is always more are read on.
    let whole =
        segments.left() > CHUNK && matches!(file.file_type(), FileType::Regular | FileType::ReadyDevice);
    let mut total = 0_usize;
    loop {
        let part = &mut buffer[..segments.left().min(CHUNK)];
        let wanted = part.len();
        let result = match offset {
            Some(offset) => host::pread64(file.as_fd(), part, offset.saturating_add(total as i64)),
            None => stream::read(task, file, part),
        };
        let len = match result {
            Ok(len) => len,
            Err(_) if total > 0 => break,
            Err(errno) => return Err(errno),
        };
        // A regular file's position has to go back if the bytes do not arrive, which would be known too late.
        let is_last = total == 0 && (offset.is_some() || file.file_type() != FileType::Regular);
        if let Some(addr) = segments.small(len).filter(|_| is_last) {
            return task.give(addr, &buffer[..len]).map(|()| len as i64);
        }
        let copied = segments.copy_out(task.memory(), &buffer[..len]);
        total += copied;
        if copied < len {
            if offset.is_none() && file.file_type() == FileType::Regular {
                // What did not arrive was not read.
                let _ = host::lseek(file.as_fd(), -((len - copied) as i64), libc::SEEK_CUR);
            }
            if total == 0 {
                return Err(Errno::EFAULT);
            }
            break;
        }
        if !whole || len < wanted || segments.left() == 0 {
            break;
        }
    }
    Ok(total as i64)
}

/// Writes guest memory to a file, at the file's own position or at `offset`.
pub(super) fn write(task: &mut Task, file: &File, mut segments: Segments, offset: Option<i64>) -> SysResult {
    if offset.is_some_and(|offset| offset < 0) {
        return Err(Errno::EINVAL);
    }
    if offset.is_none() && file.file_type() == FileType::Socket {
        return socket::write(task, file, segments);
    }
    if let Some(proc) = file.proc().filter(|proc| proc.is_text()) {
        return write_to_proc(task, file, proc.node(), segments);
    }
    if matches!(file.kind(), Kind::Signals(_) | Kind::Pid(_)) && offset.is_none() {
        return Err(Errno::EINVAL);
    }
    if let Some(terminal) = file.terminal() {
        task.check_terminal_write(file, terminal)?;
    }
    let allowed = task.within_file_limit(file, offset, segments.left())?;
    segments.left = segments.left.min(allowed);
    let mut buffer = take_buffer(task, segments.left().min(CHUNK));
    let result = write_through(task, file, segments, offset, &mut buffer);
    task.buffer = buffer;
    result
}

/// Writes to a file of the guest's `/proc`, of which the first page is as much as any takes.
fn write_to_proc(task: &mut Task, file: &File, node: Node, mut segments: Segments) -> SysResult {
    // Nothing: the host says whether the descriptor is open for writing.
    host::write(file.as_fd(), &[][..])?;
    let mut bytes = vec![0; segments.left().min(crate::PAGE_SIZE as usize)];
    let copied = segments.copy_in(task.memory(), &mut bytes);
    if copied < bytes.len() {
        return Err(Errno::EFAULT);
    }
    task.write_text(node, &bytes).map(|taken| taken as i64)
}

fn write_through(
    task: &mut Task,
    file: &File,
    mut segments: Segments,
    offset: Option<i64>,
    buffer: &mut [u8],
) -> SysResult {
    let mut total = 0_usize;
    loop {
        // The odd part first: how a pipe fills its pages depends on the length modulo the page size.
        let wanted = match segments.left() {
            left if left <= CHUNK => left,
            left => (left - 1) % CHUNK + 1,
        };
        let copied = segments.copy_in(&task.call_memory(), &mut buffer[..wanted]);
        if copied == 0 && wanted > 0 {
            return if total > 0 { Ok(total as i64) } else { Err(Errno::EFAULT) };
        }
        let mut written = 0;
        loop {
            let part = &buffer[written..copied];
            let result = match offset {
                Some(offset) => host::pwrite64(file.as_fd(), part, offset.saturating_add(total as i64)),
                None => stream::write(task, file, part),
            };
            match result {
                Ok(len) => {
                    written += len;
                    total += len;
                    if len == 0 || written == copied {
                        break;
                    }
                }
                Err(errno) => {
                    if errno == Errno::EPIPE {
                        let _ = task.signal_self(SigInfo::from_user(
                            libc::SIGPIPE,
                            libc::SI_USER,
                            task.process.pid,
                            task.credentials().user.real,
                        ));
                    }
                    return if total > 0 { Ok(total as i64) } else { Err(errno) };
                }
            }
        }
        if copied < wanted || written < copied || segments.left() == 0 {
            return Ok(total as i64);
        }
    }
}
