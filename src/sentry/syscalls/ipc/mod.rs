//! System V IPC (sysvipc(7)): shared memory, semaphores and message queues that the processes of one guest share.
//!
//! They are the sentry's own. Processes of the host do not see them, and they end with the guest.

mod ledger;
mod msg;
mod sem;
mod shm;

pub(super) use msg::{msgctl, msgget, msgrcv, msgsnd};
pub(super) use sem::{semctl, semget, semop, semtimedop};
pub(super) use shm::{shmat, shmctl, shmdt, shmget};

use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::task::{Task, TaskHandle};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// All objects of a guest. Each lock is a leaf, but that bells are rung under it.
#[derive(Default)]
pub(crate) struct Ipc {
    memory: Mutex<Table<shm::Segment>>,
    semaphores: Mutex<sem::Semaphores>,
    queues: Mutex<Table<msg::Queue>>,
    messages: ledger::Ledger,
}

impl Ipc {
    /// Undoes what a process that has ended did to semaphores with `SEM_UNDO`.
    pub(crate) fn process_ended(&self, pid: i32) {
        crate::sentry::process::lock(&self.semaphores).process_ended(pid);
    }
}

/// `IPC_STAT` and its kin come with this bit from 32-bit C libraries only; x86-64 has one layout.
const IPC_64: i32 = 0x100;

/// `struct ipc64_perm`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Permissions {
    key: i32,
    uid: u32,
    gid: u32,
    creator_uid: u32,
    creator_gid: u32,
    mode: u32,
    sequence: u16,
    padding: [u16; 3],
    unused: [u64; 2],
}

const _: () =
    assert!(size_of::<Permissions>() == size_of::<libc::ipc_perm>(), "it starts all status structures");

fn own_uid() -> u32 {
    host::geteuid().map_or(u32::MAX, |uid| uid as u32)
}

fn own_gid() -> u32 {
    host::getegid().map_or(u32::MAX, |gid| gid as u32)
}

impl Permissions {
    fn new(key: i32, flags: i32) -> Self {
        let (uid, gid) = (own_uid(), own_gid());
        let mode = flags as u32 & 0o777;
        Self { key, uid, gid, creator_uid: uid, creator_gid: gid, mode, ..Self::default() }
    }

    /// Whether the caller may do this (octal digits of read, write and execute, as for the owner).
    fn check(&self, wanted: u32) -> Result<(), Errno> {
        let uid = own_uid();
        let granted = match uid {
            0 => return Ok(()),
            _ if uid == self.uid || uid == self.creator_uid => self.mode >> 6,
            _ if [self.gid, self.creator_gid].contains(&own_gid()) => self.mode >> 3,
            _ => self.mode,
        };
        let wanted = wanted >> 6 | wanted >> 3 | wanted;
        if wanted & 0o7 & !granted == 0 { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether the caller may change or remove the object.
    fn check_owner(&self) -> Result<(), Errno> {
        let uid = own_uid();
        if uid == 0 || uid == self.uid || uid == self.creator_uid { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// `IPC_SET`.
    fn set(&mut self, new: &Permissions) {
        (self.uid, self.gid) = (new.uid, new.gid);
        self.mode = self.mode & !0o777 | new.mode & 0o777;
    }
}

/// What all kinds of objects have.
trait Object {
    fn permissions(&self) -> &Permissions;

    fn permissions_mut(&mut self) -> &mut Permissions;

    /// `get` with an existing key: whether the object is what is asked for.
    fn check_get(&self, size: u64) -> Result<(), Errno>;
}

/// The objects of one kind by their ids.
struct Table<T> {
    objects: BTreeMap<i32, T>,
    next_id: i32,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), next_id: 0 }
    }
}

impl<T: Object> Table<T> {
    /// The common part of `shmget`, `semget` and `msgget`.
    fn get_or_make(
        &mut self,
        key: i32,
        flags: i32,
        size: u64,
        most: usize,
        make: impl FnOnce(Permissions) -> Result<T, Errno>,
    ) -> Result<i32, Errno> {
        let existing = self
            .objects
            .iter()
            .find(|(_, object)| key != libc::IPC_PRIVATE && object.permissions().key == key);
        if let Some((id, object)) = existing {
            if flags & libc::IPC_CREAT != 0 && flags & libc::IPC_EXCL != 0 {
                return Err(Errno::EEXIST);
            }
            object.check_get(size)?;
            object.permissions().check(flags as u32 & 0o777)?;
            return Ok(*id);
        }
        if key != libc::IPC_PRIVATE && flags & libc::IPC_CREAT == 0 {
            return Err(Errno::ENOENT);
        }
        let object = make(Permissions::new(key, flags))?;
        if self.objects.len() >= most {
            return Err(Errno::ENOSPC);
        }
        while self.objects.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1) & i32::MAX;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1) & i32::MAX;
        self.objects.insert(id, object);
        Ok(id)
    }

    /// How many there are, and the highest place in the table.
    fn numbers(&self) -> (i32, i64) {
        (self.objects.len() as i32, self.objects.len().saturating_sub(1) as i64)
    }

    /// The id of the object at a place in the table (`SHM_STAT` and its kin).
    fn at(&self, place: i32) -> Result<i32, Errno> {
        let id = usize::try_from(place).ok().and_then(|place| self.objects.keys().nth(place));
        id.copied().ok_or(Errno::EINVAL)
    }

    fn get(&mut self, id: i32) -> Result<&mut T, Errno> {
        self.objects.get_mut(&id).ok_or(Errno::EINVAL)
    }

    /// Takes an object out, if the caller may.
    fn remove(&mut self, id: i32) -> Result<T, Errno> {
        self.get(id)?.permissions().check_owner()?;
        self.objects.remove(&id).ok_or(Errno::EINVAL)
    }
}

/// Seconds since 1970, as the status structures have them.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64)
}

/// Tasks that wait for a change of an object; whatever changes, all look again.
#[derive(Default)]
struct Waiters<T> {
    tasks: Vec<(Arc<TaskHandle>, T)>,
}

impl<T> Waiters<T> {
    fn set(&mut self, task: &Task, what: T) {
        self.clear(task);
        self.tasks.push((Arc::clone(&task.handle), what));
    }

    fn clear(&mut self, task: &Task) {
        self.tasks.retain(|(handle, _)| !Arc::ptr_eq(handle, &task.handle));
    }

    fn ring(&self) {
        for (handle, _) in &self.tasks {
            handle.ring();
        }
    }
}

impl<T> Drop for Waiters<T> {
    /// The object is gone: `EIDRM` for those who wait.
    fn drop(&mut self) {
        self.ring();
    }
}
