//! Waiting for descriptors: poll, select and their precise variants.

use super::SysResult;
use super::args::InTimespec;
use crate::GuestAddr;
use crate::sentry::abi::{Pollfd, Timespec, Timeval};
use crate::sentry::errno::Errno;
use crate::sentry::file::{File, Kind};
use crate::sentry::guest_memory::{GuestMemory as _, GuestMemoryExt as _};
use crate::sentry::host;
use crate::sentry::signalfd::SignalFile;
use crate::sentry::signals::SignalSet;
use crate::sentry::task::{Restart, Task};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes as _;

/// When a wait gives up.
#[derive(Clone, Copy)]
enum Timeout {
    Never,
    After(Duration),
}

impl Timeout {
    fn from_timespec(time: Option<Timespec>) -> Result<Self, Errno> {
        match time {
            None => Ok(Timeout::Never),
            Some(time) => time.to_duration().map(Timeout::After).ok_or(Errno::EINVAL),
        }
    }
}

/// What a wait is for, with host descriptors in it.
struct Waited {
    fds: Vec<libc::pollfd>,
    /// Kept open for the length of the wait.
    files: Vec<Option<Arc<File>>>,
}

impl Waited {
    /// The guest's array; what is no descriptor of the guest's has -1 in it.
    fn translate(task: &Task, guest: &[Pollfd]) -> Self {
        let mut files = Vec::with_capacity(guest.len());
        let fds = guest
            .iter()
            .map(|entry| {
                let file = if entry.fd < 0 { None } else { task.file(entry.fd).ok() };
                let fd = file.as_ref().map_or(-1, |file| file.as_fd().as_raw_fd());
                let events = file.as_ref().map_or(0, |file| match file.kind() {
                    Kind::Signals(_) => 0, // looked at here
                    _ => file.host_events(entry.events as u16 as u32) as i16,
                });
                files.push(file);
                libc::pollfd { fd, events, revents: 0 }
            })
            .collect();
        Self { fds, files }
    }

    /// The signalfds among them that are waited for to be readable, by their places.
    fn signal_files<'a>(&'a self, guest: &'a [Pollfd]) -> impl Iterator<Item = (usize, &'a SignalFile)> {
        let readable = |entry: &Pollfd| entry.events & (libc::POLLIN | libc::POLLRDNORM) != 0;
        let files = self.files.iter().zip(guest).enumerate().filter(move |(_, (_, entry))| readable(entry));
        files.filter_map(|(at, (file, _))| match file.as_deref().map(File::kind) {
            Some(Kind::Signals(signals)) => Some((at, signals)),
            _ => None,
        })
    }

    /// The signals whose arrival makes one of them readable.
    fn watched(&self, guest: &[Pollfd]) -> SignalSet {
        self.signal_files(guest).fold(SignalSet::default(), |all, (_, signals)| all.union(signals.mask()))
    }

    /// Marks the signalfds that the task could read; returns how many.
    fn mark_signals(&mut self, task: &Task, guest: &[Pollfd]) -> usize {
        let pending = task.all_pending();
        let ready = |signals: &SignalFile| !signals.mask().intersection(pending).is_empty();
        let found: Vec<usize> =
            self.signal_files(guest).filter(|(_, signals)| ready(signals)).map(|(at, _)| at).collect();
        for at in &found {
            if let (Some(entry), Some(guest)) = (self.fds.get_mut(*at), guest.get(*at)) {
                entry.revents = guest.events & (libc::POLLIN | libc::POLLRDNORM);
            }
        }
        found.len()
    }
}

/// Polls until something is ready; the time that is left comes back with the count.
fn poll_files(
    task: &mut Task,
    guest: &[Pollfd],
    waited: &mut Waited,
    timeout: Timeout,
) -> (Result<usize, Errno>, Duration) {
    let started = Instant::now();
    let limit = match timeout {
        Timeout::Never => None,
        Timeout::After(limit) => Some(limit),
    };
    let left = |limit: Duration| limit.saturating_sub(started.elapsed());
    let watched = waited.watched(guest);
    if !watched.is_empty() {
        task.handle.set_watched(watched);
    }
    let result = loop {
        let ready = host::poll_now(&mut waited.fds, 0);
        let signals = if watched.is_empty() { 0 } else { waited.mark_signals(task, guest) };
        match ready.map(|ready| ready + signals) {
            Ok(0) if limit != Some(Duration::ZERO) => {}
            other => break other,
        }
        let result = task.wait(|_, attention| {
            let mut time = limit.map(|limit| Timespec::from_duration(left(limit)).to_array());
            host::wait_ppoll(attention, &mut waited.fds, time.as_mut(), 0)
        });
        match result {
            Err(Errno::ERESTARTSYS) if !task.all_pending().intersection(watched).is_empty() => {}
            // These calls start again only when no handler runs, whatever SA_RESTART says.
            Err(Errno::ERESTARTSYS) => break Err(Errno::ERESTARTNOHAND),
            other => break other,
        }
    };
    if !watched.is_empty() {
        task.handle.set_watched(SignalSet::default());
    }
    (result, limit.map_or(Duration::ZERO, left))
}

fn poll_guest(task: &mut Task, addr: GuestAddr, count: u32, timeout: Timeout) -> (SysResult, Duration) {
    let limit = task.process.limits().descriptors();
    let count = count as usize;
    if count > limit {
        return (Err(Errno::EINVAL), Duration::ZERO);
    }
    let mut guest = vec![Pollfd::default(); count];
    if task.call_memory().read(addr, guest.as_mut_bytes()).is_err() {
        return (Err(Errno::EFAULT), Duration::ZERO);
    }
    let mut waited = Waited::translate(task, &guest);
    let is_bad = |(guest, host): (&Pollfd, &libc::pollfd)| guest.fd >= 0 && host.fd < 0;
    let bad = guest.iter().zip(&waited.fds).filter(|pair| is_bad(*pair)).count();
    // A bad descriptor is ready at once.
    let timeout = if bad > 0 { Timeout::After(Duration::ZERO) } else { timeout };
    let (ready, left) = poll_files(task, &guest, &mut waited, timeout);
    let ready = match ready {
        Ok(ready) => ready,
        Err(errno) => return (Err(errno), left),
    };
    for (guest, host) in guest.iter_mut().zip(&waited.fds) {
        guest.revents = if is_bad((guest, host)) { libc::POLLNVAL } else { host.revents };
    }
    let written = task.give(addr, guest.as_bytes());
    (written.map(|()| (ready + bad) as i64), left)
}

pub(super) fn poll(task: &mut Task, fds: GuestAddr, count: u32, timeout_ms: i32) -> SysResult {
    let limit = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    poll_until(task, fds, count, limit.and_then(|limit| Instant::now().checked_add(limit)))
}

fn poll_until(task: &mut Task, fds: GuestAddr, count: u32, deadline: Option<Instant>) -> SysResult {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.map_or(Timeout::Never, Timeout::After);
    match poll_guest(task, fds, count, timeout).0 {
        Err(Errno::ERESTARTNOHAND) => {
            task.restart = Some(Restart::Poll { fds, count, deadline });
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        result => result,
    }
}

/// Goes on with a `poll`.
pub(super) fn poll_again(
    task: &mut Task,
    fds: GuestAddr,
    count: u32,
    deadline: Option<Instant>,
) -> SysResult {
    poll_until(task, fds, count, deadline)
}

/// Installs the mask of `ppoll` and `pselect6` for the length of the call.
fn with_mask(task: &mut Task, mask: GuestAddr, size: usize) -> Result<(), Errno> {
    let Some(mask) = task.memory().read_optional::<u64>(mask)? else { return Ok(()) };
    if size != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    task.suspend_mask(SignalSet(mask));
    Ok(())
}

pub(super) fn ppoll(
    task: &mut Task,
    fds: GuestAddr,
    count: u32,
    timeout: InTimespec,
    mask: GuestAddr,
    size: usize,
) -> SysResult {
    let time = task.memory().read_optional::<Timespec>(timeout.0)?;
    let limit = Timeout::from_timespec(time)?;
    with_mask(task, mask, size)?;
    let (result, left) = poll_guest(task, fds, count, limit);
    if time.is_some() {
        // As the kernel: the time that is left is written back if it can be.
        let _ = task.memory().write_object(timeout.0, &Timespec::from_duration(left));
    }
    result
}

/// The bits of an `fd_set`, 64 at a time.
struct FdSet {
    addr: GuestAddr,
    words: Vec<u64>,
}

impl FdSet {
    fn read(task: &Task, addr: GuestAddr, count: usize) -> Result<Self, Errno> {
        let mut words = vec![0; if addr == GuestAddr::NULL { 0 } else { count.div_ceil(64) }];
        task.memory().read(addr, words.as_mut_bytes())?;
        Ok(Self { addr, words })
    }

    fn has(&self, fd: usize) -> bool {
        self.words.get(fd / 64).is_some_and(|word| word >> (fd % 64) & 1 != 0)
    }
}

/// What each of the three sets waits for (fs/select.c `POLLIN_SET` and so on).
const IN_SET: i16 = libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLIN | libc::POLLHUP | libc::POLLERR;
const OUT_SET: i16 = libc::POLLWRBAND | libc::POLLWRNORM | libc::POLLOUT | libc::POLLERR;
const EXCEPT_SET: i16 = libc::POLLPRI;

fn select_files(
    task: &mut Task,
    count: i32,
    sets: [GuestAddr; 3],
    timeout: Timeout,
) -> (SysResult, Duration) {
    let count = match usize::try_from(count) {
        Ok(count) => count.min(task.files().room()),
        Err(_) => return (Err(Errno::EINVAL), Duration::ZERO),
    };
    let read = || -> Result<[FdSet; 3], Errno> {
        let [a, b, c] = sets.map(|addr| FdSet::read(task, addr, count));
        Ok([a?, b?, c?])
    };
    let mut sets = match read() {
        Ok(sets) => sets,
        Err(errno) => return (Err(errno), Duration::ZERO),
    };
    const EVENTS: [i16; 3] = [IN_SET, OUT_SET, EXCEPT_SET];
    let mut guest = Vec::new();
    for fd in 0..count {
        let events =
            sets.iter().zip(EVENTS).filter(|(set, _)| set.has(fd)).fold(0, |all, (_, events)| all | events);
        if events != 0 {
            guest.push(Pollfd { fd: fd as i32, events, revents: 0 });
        }
    }
    let mut waited = Waited::translate(task, &guest);
    if waited.fds.iter().any(|entry| entry.fd < 0) {
        return (Err(Errno::EBADF), Duration::ZERO);
    }
    let (ready, left) = poll_files(task, &guest, &mut waited, timeout);
    if let Err(errno) = ready {
        return (Err(errno), left);
    }
    let mut bits = 0;
    for (set, events) in sets.iter_mut().zip(EVENTS) {
        let mut result = vec![0_u64; set.words.len()];
        for (guest, host) in guest.iter().zip(&waited.fds) {
            let fd = guest.fd as usize;
            if set.has(fd) && host.revents & events != 0 {
                result[fd / 64] |= 1 << (fd % 64);
                bits += 1;
            }
        }
        // The kernel copies whole longs back.
        if task.memory().write(set.addr, result.as_bytes()).is_err() {
            return (Err(Errno::EFAULT), left);
        }
    }
    (Ok(bits), left)
}

pub(super) fn select(
    task: &mut Task,
    count: i32,
    reads: GuestAddr,
    writes: GuestAddr,
    excepts: GuestAddr,
    timeout: GuestAddr,
) -> SysResult {
    let time = task.memory().read_optional::<Timeval>(timeout)?;
    // select(2) takes microseconds beyond a second and carries them over.
    let time = time.map(|time| Timespec {
        sec: time.sec.saturating_add(time.usec.div_euclid(1_000_000)),
        nsec: time.usec.rem_euclid(1_000_000) * 1000,
    });
    let limit = Timeout::from_timespec(time)?;
    let (result, left) = select_files(task, count, [reads, writes, excepts], limit);
    if time.is_some() {
        let left = Timeval { sec: left.as_secs() as i64, usec: i64::from(left.subsec_micros()) };
        let _ = task.memory().write_object(timeout, &left);
    }
    result
}

pub(super) fn pselect6(
    task: &mut Task,
    count: i32,
    reads: GuestAddr,
    writes: GuestAddr,
    excepts: GuestAddr,
    timeout: InTimespec,
    mask: GuestAddr,
) -> SysResult {
    let time = task.memory().read_optional::<Timespec>(timeout.0)?;
    let limit = Timeout::from_timespec(time)?;
    if let Some([addr, size]) = task.memory().read_optional::<[u64; 2]>(mask)? {
        with_mask(task, GuestAddr::new(addr), size as usize)?;
    }
    let (result, left) = select_files(task, count, [reads, writes, excepts], limit);
    if time.is_some() {
        let _ = task.memory().write_object(timeout.0, &Timespec::from_duration(left));
    }
    result
}
