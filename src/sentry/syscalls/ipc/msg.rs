//! System V message queues.

use super::ledger::Charge;
use super::{IPC_64, Object, Permissions, Waiters, now, own_uid};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::process::lock;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Parked, Task};
use std::collections::VecDeque;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `MSGMNI`.
const MOST: usize = 32_000;
/// `MSGMAX`.
const LARGEST: usize = 8192;
/// `MSGMNB`, and what the superuser can raise it to.
const ROOM: u64 = 16_384;
const MOST_ROOM: u64 = 16 << 20;
const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
const MSG_COPY: i32 = 0o40_000;

struct Message {
    kind: i64,
    bytes: Vec<u8>,
    _charge: Charge,
}

#[derive(Default)]
pub(super) struct Queue {
    permissions: Permissions,
    messages: VecDeque<Message>,
    bytes: u64,
    room: u64,
    sent_at: i64,
    received_at: i64,
    changed_at: i64,
    last_sender: i32,
    last_receiver: i32,
    waiters: Waiters<()>,
}

/// `struct msqid64_ds`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Status {
    permissions: Permissions,
    sent_at: i64,
    received_at: i64,
    changed_at: i64,
    bytes: u64,
    count: u64,
    room: u64,
    last_sender: i32,
    last_receiver: i32,
    unused: [u64; 2],
}

const _: () = assert!(size_of::<Status>() == 120, "msgctl copies it");

impl Object for Queue {
    fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    fn permissions_mut(&mut self) -> &mut Permissions {
        &mut self.permissions
    }

    fn check_get(&self, _: u64) -> Result<(), Errno> {
        Ok(())
    }
}

impl Queue {
    /// Which message a receiver gets.
    fn find(&self, kind: i64, flags: i32) -> Option<usize> {
        let first =
            |wanted: &dyn Fn(i64) -> bool| self.messages.iter().position(|message| wanted(message.kind));
        match kind {
            0 => (!self.messages.is_empty()).then_some(0),
            1.. if flags & libc::MSG_EXCEPT != 0 => first(&|other| other != kind),
            1.. => first(&|other| other == kind),
            _ => {
                let highest = kind.saturating_neg();
                let kinds = self.messages.iter().map(|message| message.kind);
                let lowest = kinds.filter(|kind| *kind <= highest).min()?;
                first(&|other| other == lowest)
            }
        }
    }

    fn has_room_for(&self, len: usize) -> bool {
        self.bytes + len as u64 <= self.room && (self.messages.len() as u64) < self.room
    }
}

pub(in crate::sentry::syscalls) fn msgget(task: &mut Task, key: i32, flags: i32) -> SysResult {
    let make = |permissions| Ok(Queue { permissions, room: ROOM, changed_at: now(), ..Queue::default() });
    lock(&task.kernel().ipc.queues).get_or_make(key, flags, 0, MOST, make).map(i64::from)
}

/// Tries until it works, waiting for changes of the queue in between. A queue that goes away meanwhile is `EIDRM`.
fn until<T>(
    task: &mut Task,
    id: i32,
    may_wait: bool,
    refused: Errno,
    mut attempt: impl FnMut(&Task, &mut Queue) -> Result<Option<T>, Errno>,
) -> Result<T, Errno> {
    let mut gone = Errno::EINVAL;
    loop {
        let seen = task.handle.bell();
        {
            let kernel = task.kernel();
            let mut table = lock(&kernel.ipc.queues);
            let queue = table.get(id).map_err(|_| gone)?;
            queue.waiters.clear(task);
            if let Some(done) = attempt(task, queue)? {
                queue.waiters.ring();
                return Ok(done);
            }
            if !may_wait {
                return Err(refused);
            }
            queue.waiters.set(task, ());
        }
        gone = Errno::EIDRM;
        if task.park(seen, None) == Parked::Interrupted {
            let kernel = task.kernel();
            if let Ok(queue) = lock(&kernel.ipc.queues).get(id) {
                queue.waiters.clear(task);
            }
            return Err(Errno::ERESTARTNOHAND);
        }
    }
}

pub(in crate::sentry::syscalls) fn msgsnd(
    task: &mut Task,
    id: i32,
    message: GuestAddr,
    len: usize,
    flags: i32,
) -> SysResult {
    let kind: i64 = task.memory().read_object(message)?;
    if len > LARGEST || id < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let charge = task.kernel().ipc.messages.charge(len)?;
    let mut bytes = vec![0; len];
    task.memory().read(message.checked_add(8).ok_or(Errno::EFAULT)?, &mut bytes)?;
    let mut message = Some(Message { kind, bytes, _charge: charge });
    until(task, id, flags & libc::IPC_NOWAIT == 0, Errno::EAGAIN, |task, queue| {
        queue.permissions.check(0o2)?;
        if !queue.has_room_for(len) {
            return Ok(None);
        }
        queue.messages.extend(message.take());
        queue.bytes += len as u64;
        queue.sent_at = now();
        queue.last_sender = task.process.pid;
        Ok(Some(0))
    })
}

pub(in crate::sentry::syscalls) fn msgrcv(
    task: &mut Task,
    id: i32,
    message: GuestAddr,
    len: usize,
    kind: i64,
    flags: i32,
) -> SysResult {
    if id < 0 || i64::try_from(len).is_err() {
        return Err(Errno::EINVAL);
    }
    if flags & MSG_COPY != 0 {
        return Err(Errno::ENOSYS); // as a kernel without checkpoint support
    }
    let (kind, bytes) = until(task, id, flags & libc::IPC_NOWAIT == 0, Errno::ENOMSG, |task, queue| {
        queue.permissions.check(0o4)?;
        let Some(at) = queue.find(kind, flags) else { return Ok(None) };
        let too_long = queue.messages.get(at).is_some_and(|message| message.bytes.len() > len);
        if too_long && flags & libc::MSG_NOERROR == 0 {
            return Err(Errno::E2BIG);
        }
        let Some(Message { kind, bytes, .. }) = queue.messages.remove(at) else { return Ok(None) };
        queue.bytes -= bytes.len() as u64;
        queue.received_at = now();
        queue.last_receiver = task.process.pid;
        Ok(Some((kind, bytes)))
    })?;
    let bytes = &bytes[..bytes.len().min(len)];
    task.memory().write_object(message, &kind)?;
    task.memory().write(message.checked_add(8).ok_or(Errno::EFAULT)?, bytes)?;
    Ok(bytes.len() as i64)
}

pub(in crate::sentry::syscalls) fn msgctl(
    task: &mut Task,
    id: i32,
    command: i32,
    buf: GuestAddr,
) -> SysResult {
    let kernel = std::sync::Arc::clone(task.kernel());
    match command & !IPC_64 {
        libc::IPC_RMID => {
            let queue = lock(&kernel.ipc.queues).remove(id)?;
            drop(queue);
            Ok(0)
        }
        libc::IPC_SET => {
            let new: Status = task.memory().read_object(buf)?;
            let mut table = lock(&kernel.ipc.queues);
            let queue = table.get(id)?;
            queue.permissions.check_owner()?;
            if new.room > if own_uid() == 0 { MOST_ROOM } else { ROOM } {
                return Err(Errno::EPERM);
            }
            queue.permissions_mut().set(&new.permissions);
            queue.room = new.room;
            queue.changed_at = now();
            queue.waiters.ring();
            Ok(0)
        }
        libc::IPC_INFO | MSG_INFO => {
            let (used, highest) = lock(&kernel.ipc.queues).numbers();
            // struct msginfo: msgpool, msgmap, msgmax, msgmnb, msgmni, msgssz, msgtql, msgseg (16 bits)
            let (pool, map) =
                if command & !IPC_64 == MSG_INFO { (used, used) } else { (MOST as i32, ROOM as i32) };
            let info = [pool, map, LARGEST as i32, ROOM as i32, MOST as i32, 16, ROOM as i32, 0xffff];
            task.memory().write_object(buf, &info).map(|()| highest)
        }
        kind @ (libc::IPC_STAT | MSG_STAT | MSG_STAT_ANY) => {
            let id = if kind == libc::IPC_STAT { id } else { lock(&kernel.ipc.queues).at(id)? };
            let result = if kind == libc::IPC_STAT { 0 } else { i64::from(id) };
            let status = {
                let mut table = lock(&kernel.ipc.queues);
                let queue = table.get(id)?;
                if kind != MSG_STAT_ANY {
                    queue.permissions.check(0o4)?;
                }
                Status {
                    permissions: queue.permissions,
                    sent_at: queue.sent_at,
                    received_at: queue.received_at,
                    changed_at: queue.changed_at,
                    bytes: queue.bytes,
                    count: queue.messages.len() as u64,
                    room: queue.room,
                    last_sender: queue.last_sender,
                    last_receiver: queue.last_receiver,
                    unused: [0; 2],
                }
            };
            task.memory().write_object(buf, &status).map(|()| result)
        }
        _ => Err(Errno::EINVAL),
    }
}
