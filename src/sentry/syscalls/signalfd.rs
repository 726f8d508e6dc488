//! signalfd and signalfd4.

use super::SysResult;
use super::args::Fd;
use super::transfer::Segments;
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, Kind};
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::signalfd::{RECORD, SignalFile, record};
use crate::sentry::signals::SignalSet;
use crate::sentry::task::Task;
use std::sync::Arc;

pub(super) fn signalfd(task: &mut Task, fd: Fd, mask: GuestAddr, size: usize) -> SysResult {
    signalfd4(task, fd, mask, size, 0)
}

pub(super) fn signalfd4(task: &mut Task, fd: Fd, mask: GuestAddr, size: usize, flags: i32) -> SysResult {
    if size != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    let mask = SignalSet(task.memory().read_object::<u64>(mask)?).minus(SignalSet::UNBLOCKABLE);
    if flags & !(libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    if fd.0 == -1 {
        let host = host::eventfd2(0, libc::EFD_CLOEXEC | flags & libc::SFD_NONBLOCK)?;
        let file = Arc::new(File::made(host, Kind::Signals(SignalFile::new(mask))));
        task.kernel().signal_files.add(&file);
        if let Kind::Signals(signals) = file.kind() {
            signals.used_by(&file, &task.process);
        }
        return task.install_file(file, flags & libc::SFD_CLOEXEC != 0);
    }
    let file = task.file(fd.0)?;
    let Kind::Signals(signals) = file.kind() else { return Err(Errno::EINVAL) };
    signals.set_mask(mask);
    signals.settle(&file);
    // Those who wait for the old signals look again.
    let threads = task.process.threads().clone();
    for thread in threads.iter().filter(|thread| !thread.watched().is_empty()) {
        thread.wake();
    }
    Ok(i64::from(fd.0))
}

/// Takes as many signals as there are and as there is room for, at least one.
pub(super) fn read(task: &mut Task, file: &File, signals: &SignalFile, mut segments: Segments) -> SysResult {
    let most = segments.left() / RECORD;
    if most == 0 {
        return Err(Errno::EINVAL);
    }
    signals.used_by(file, &task.process);
    let first = match task.take_signal(signals.mask()) {
        Some(info) => info,
        None if file.is_nonblocking() => {
            signals.settle(file);
            return Err(Errno::EAGAIN);
        }
        None => wait(task, signals)?,
    };
    let mut total = 0;
    let mut next = Some(first);
    while let Some(info) = next {
        let copied = segments.copy_out(task.memory(), &record(&info));
        if copied < RECORD {
            // As natively the signal is lost.
            total = if total == 0 { -Errno::EFAULT.raw() as i64 } else { total };
            break;
        }
        total += RECORD as i64;
        next = if total < (most * RECORD) as i64 { task.take_signal(signals.mask()) } else { None };
    }
    signals.settle(file);
    if total < 0 { Err(Errno::EFAULT) } else { Ok(total) }
}

fn wait(task: &mut Task, signals: &SignalFile) -> Result<crate::sentry::signals::SigInfo, Errno> {
    let result = loop {
        let mask = signals.mask();
        task.handle.set_watched(mask);
        if let Some(info) = task.take_signal(mask) {
            break Ok(info);
        }
        match task.wait(|_, attention| host::wait_ppoll(attention, &mut [], None, 0)) {
            Err(Errno::ERESTARTSYS) if !task.all_pending().intersection(mask).is_empty() => {}
            Err(errno) => break Err(errno),
            Ok(_) => {}
        }
    };
    task.handle.set_watched(SignalSet::default());
    result
}
