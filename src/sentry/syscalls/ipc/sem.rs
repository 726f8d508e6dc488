//! System V semaphores.

use super::{IPC_64, Object, Permissions, Table, Waiters, now};
use crate::GuestAddr;
use crate::sentry::abi::Timespec;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::process::lock;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::{Parked, Task};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SEMMNI`, `SEMMSL`, `SEMOPM`, `SEMVMX`.
const MOST: usize = 32_000;
const MOST_IN_SET: usize = 32_000;
/// `SEMMNS`: of all sets together.
const MOST_OF_ALL: usize = 1 << 20;
const MOST_OPERATIONS: usize = 500;
const HIGHEST: i32 = 32_767;
const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;

/// All sets, and what processes that asked for it have to have undone.
#[derive(Default)]
pub(super) struct Semaphores {
    sets: Table<Set>,
    /// By process and set: what is to be added to each semaphore.
    undo: BTreeMap<(i32, i32), Vec<i32>>,
}

#[derive(Clone, Copy, Default)]
struct Semaphore {
    value: i32,
    last_user: i32,
}

#[derive(Default)]
struct Set {
    permissions: Permissions,
    semaphores: Vec<Semaphore>,
    used_at: i64,
    changed_at: i64,
    /// Which semaphore, and whether for zero.
    waiters: Waiters<(u16, bool)>,
}

impl Object for Set {
    fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    fn permissions_mut(&mut self) -> &mut Permissions {
        &mut self.permissions
    }

    fn check_get(&self, size: u64) -> Result<(), Errno> {
        if size > self.semaphores.len() as u64 { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// `struct sembuf`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Operation {
    number: u16,
    change: i16,
    flags: i16,
}

impl Operation {
    fn has(&self, flag: i32) -> bool {
        i32::from(self.flags) & flag != 0
    }
}

/// `struct semid64_ds`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Status {
    permissions: Permissions,
    used_at: i64,
    unused: u64,
    changed_at: i64,
    unused2: u64,
    count: u64,
    unused3: [u64; 2],
}

const _: () = assert!(size_of::<Status>() == 104, "semctl copies it");

impl Semaphores {
    pub(super) fn process_ended(&mut self, pid: i32) {
        let sets: Vec<i32> = self.undo.range((pid, 0)..=(pid, i32::MAX)).map(|((_, id), _)| *id).collect();
        for id in sets {
            let Some(changes) = self.undo.remove(&(pid, id)) else { continue };
            let Ok(set) = self.sets.get(id) else { continue };
            for (semaphore, change) in set.semaphores.iter_mut().zip(changes) {
                if change != 0 {
                    semaphore.value = (semaphore.value + change).clamp(0, HIGHEST);
                    semaphore.last_user = pid;
                }
            }
            set.used_at = now();
            set.waiters.ring();
        }
    }

    /// Makes all operations or none; `Ok(Some)` says which of them has to wait.
    fn operate(&mut self, id: i32, pid: i32, operations: &[Operation]) -> Result<Option<Operation>, Errno> {
        let set = self.sets.get(id)?;
        let count = set.semaphores.len();
        if operations.iter().any(|operation| usize::from(operation.number) >= count) {
            return Err(Errno::EFBIG);
        }
        let alters = operations.iter().any(|operation| operation.change != 0);
        set.permissions.check(if alters { 0o2 } else { 0o4 })?;
        let mut values: BTreeMap<u16, i32> = BTreeMap::new();
        let mut undo: BTreeMap<u16, i32> = BTreeMap::new();
        for operation in operations {
            let index = operation.number;
            let old = set.semaphores.get(usize::from(index)).map_or(0, |semaphore| semaphore.value);
            let value = values.entry(index).or_insert(old);
            let change = i32::from(operation.change);
            if change == 0 && *value != 0 || change < 0 && *value + change < 0 {
                return Ok(Some(*operation));
            }
            if *value + change > HIGHEST {
                return Err(Errno::ERANGE);
            }
            *value += change;
            if operation.has(libc::SEM_UNDO) {
                *undo.entry(index).or_default() -= change;
            }
        }
        if !undo.is_empty() {
            let recorded = self.undo.entry((pid, id)).or_insert_with(|| vec![0; count]);
            for (index, change) in &undo {
                let old = recorded.get(usize::from(*index)).copied().unwrap_or(0);
                if (old + change).abs() > HIGHEST {
                    return Err(Errno::ERANGE);
                }
            }
            for (index, change) in undo {
                if let Some(entry) = recorded.get_mut(usize::from(index)) {
                    *entry += change;
                }
            }
        }
        for (index, value) in values {
            if let Some(semaphore) = set.semaphores.get_mut(usize::from(index)) {
                *semaphore = Semaphore { value, last_user: pid };
            }
        }
        set.used_at = now();
        if alters {
            set.waiters.ring();
        }
        Ok(None)
    }
}

pub(in crate::sentry::syscalls) fn semget(task: &mut Task, key: i32, count: i32, flags: i32) -> SysResult {
    let count = usize::try_from(count).ok().filter(|count| *count <= MOST_IN_SET).ok_or(Errno::EINVAL)?;
    let mut all = lock(&task.kernel().ipc.semaphores);
    let used: usize = all.sets.objects.values().map(|set| set.semaphores.len()).sum();
    let make = |permissions| {
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        if used + count > MOST_OF_ALL {
            return Err(Errno::ENOSPC);
        }
        let semaphores = vec![Semaphore::default(); count];
        Ok(Set { permissions, semaphores, changed_at: now(), ..Set::default() })
    };
    all.sets.get_or_make(key, flags, count as u64, MOST, make).map(i64::from)
}

pub(in crate::sentry::syscalls) fn semop(
    task: &mut Task,
    id: i32,
    operations: GuestAddr,
    count: usize,
) -> SysResult {
    semtimedop(task, id, operations, count, GuestAddr::NULL)
}

pub(in crate::sentry::syscalls) fn semtimedop(
    task: &mut Task,
    id: i32,
    addr: GuestAddr,
    count: usize,
    timeout: GuestAddr,
) -> SysResult {
    let limit = match task.memory().read_optional::<Timespec>(timeout)? {
        Some(time) => Some(time.to_duration().ok_or(Errno::EINVAL)?),
        None => None,
    };
    if count == 0 || id < 0 {
        return Err(Errno::EINVAL);
    }
    if count > MOST_OPERATIONS {
        return Err(Errno::E2BIG);
    }
    let mut operations = vec![Operation::default(); count];
    task.memory().read(addr, operations.as_mut_bytes())?;
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let kernel = Arc::clone(task.kernel());
    let mut gone = Errno::EINVAL;
    loop {
        let seen = task.handle.bell();
        {
            let mut all = lock(&kernel.ipc.semaphores);
            all.sets.get(id).map_err(|_| gone)?.waiters.clear(task);
            let Some(waits_for) = all.operate(id, task.process.pid, &operations)? else { return Ok(0) };
            if waits_for.has(libc::IPC_NOWAIT) {
                return Err(Errno::EAGAIN);
            }
            let what = (waits_for.number, waits_for.change == 0);
            all.sets.get(id)?.waiters.set(task, what);
        }
        gone = Errno::EIDRM;
        let errno = match task.park(seen, deadline) {
            Parked::Rang => continue,
            Parked::Interrupted => Errno::EINTR, // never started again, whatever SA_RESTART says
            Parked::TimedOut => Errno::EAGAIN,
        };
        if let Ok(set) = lock(&kernel.ipc.semaphores).sets.get(id) {
            set.waiters.clear(task);
        }
        return Err(errno);
    }
}

fn check_value(value: i32) -> Result<i32, Errno> {
    if (0..=HIGHEST).contains(&value) { Ok(value) } else { Err(Errno::ERANGE) }
}

pub(in crate::sentry::syscalls) fn semctl(
    task: &mut Task,
    id: i32,
    number: i32,
    command: i32,
    argument: u64,
) -> SysResult {
    let kernel = Arc::clone(task.kernel());
    let command = command & !IPC_64;
    let addr = GuestAddr::new(argument);
    let count = |task: &Task| -> Result<usize, Errno> {
        let mut all = lock(&task.kernel().ipc.semaphores);
        Ok(all.sets.get(id)?.semaphores.len())
    };
    // What comes from the guest is read before the lock is taken.
    let new: Option<Status> = match command {
        libc::IPC_SET => Some(task.memory().read_object(addr)?),
        _ => None,
    };
    let mut all_values = vec![0_u16; if matches!(command, SETALL | GETALL) { count(task)? } else { 0 }];
    if command == SETALL {
        task.memory().read(addr, all_values.as_mut_bytes())?;
    }
    let mut all = lock(&kernel.ipc.semaphores);
    if matches!(command, libc::IPC_INFO | SEM_INFO) {
        let (used, highest) = all.sets.numbers();
        let semaphores: usize = all.sets.objects.values().map(|set| set.semaphores.len()).sum();
        drop(all);
        // struct seminfo: semmap, semmni, semmns, semmnu, semmsl, semopm, semume, semusz, semvmx, semaem
        let (usz, aem) = if command == SEM_INFO { (used, semaphores as i32) } else { (20, HIGHEST) };
        let total = MOST_OF_ALL as i32;
        let (sets, size, operations) = (MOST as i32, MOST_IN_SET as i32, MOST_OPERATIONS as i32);
        let info = [total, sets, total, total, size, operations, operations, usz, HIGHEST, aem];
        return task.memory().write_object(addr, &info).map(|()| highest);
    }
    let id = if matches!(command, SEM_STAT | SEM_STAT_ANY) { all.sets.at(id)? } else { id };
    if command == libc::IPC_RMID {
        let set = all.sets.remove(id)?;
        all.undo.retain(|(_, other), _| *other != id);
        drop(all);
        drop(set);
        return Ok(0);
    }
    let set = all.sets.get(id)?;
    match command {
        libc::IPC_SET | SEM_STAT_ANY => {}
        SETVAL | SETALL => set.permissions.check(0o2)?,
        _ => set.permissions.check(0o4)?,
    }
    let index = usize::try_from(number).map_err(|_| Errno::EINVAL);
    let waiting = |for_zero: bool| {
        set.waiters.tasks.iter().filter(|(_, what)| (i32::from(what.0), what.1) == (number, for_zero)).count()
    };
    match command {
        libc::IPC_STAT | SEM_STAT | SEM_STAT_ANY => {
            let status = Status {
                permissions: set.permissions,
                used_at: set.used_at,
                unused: 0,
                changed_at: set.changed_at,
                unused2: 0,
                count: set.semaphores.len() as u64,
                unused3: [0; 2],
            };
            drop(all);
            let result = if command == libc::IPC_STAT { 0 } else { i64::from(id) };
            task.memory().write_object(addr, &status).map(|()| result)
        }
        libc::IPC_SET => {
            set.permissions.check_owner()?;
            if let Some(new) = new {
                set.permissions_mut().set(&new.permissions);
                set.changed_at = now();
            }
            Ok(0)
        }
        GETALL => {
            for (value, semaphore) in all_values.iter_mut().zip(&set.semaphores) {
                *value = semaphore.value as u16;
            }
            drop(all);
            task.memory().write(addr, all_values.as_bytes())?;
            Ok(0)
        }
        SETALL => {
            for value in &all_values {
                check_value(i32::from(*value))?;
            }
            for (semaphore, value) in set.semaphores.iter_mut().zip(&all_values) {
                *semaphore = Semaphore { value: i32::from(*value), last_user: task.process.pid };
            }
            set.changed_at = now();
            set.waiters.ring();
            all.forget_undo(id, None);
            Ok(0)
        }
        GETVAL | GETPID | GETNCNT | GETZCNT | SETVAL => {
            let (less, zero) = (waiting(false) as i64, waiting(true) as i64);
            let semaphore = set.semaphores.get_mut(index?).ok_or(Errno::EINVAL)?;
            match command {
                GETVAL => Ok(i64::from(semaphore.value)),
                GETPID => Ok(i64::from(semaphore.last_user)),
                GETNCNT => Ok(less),
                GETZCNT => Ok(zero),
                _ => {
                    let value = check_value(argument as i32)?;
                    *semaphore = Semaphore { value, last_user: task.process.pid };
                    set.changed_at = now();
                    set.waiters.ring();
                    all.forget_undo(id, Some(index?));
                    Ok(0)
                }
            }
        }
        _ => Err(Errno::EINVAL),
    }
}

impl Semaphores {
    /// A value that is set makes what was to be undone to it void; `None` for all of a set.
    fn forget_undo(&mut self, id: i32, index: Option<usize>) {
        for ((_, set), changes) in &mut self.undo {
            if *set == id {
                match index {
                    Some(index) => {
                        if let Some(change) = changes.get_mut(index) {
                            *change = 0;
                        }
                    }
                    None => changes.fill(0),
                }
            }
        }
    }
}
