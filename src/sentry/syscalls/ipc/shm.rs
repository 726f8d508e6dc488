//! Shared memory segments: a memfd each.

use super::{IPC_64, Object, Permissions, Table, now};
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::host;
use crate::sentry::memory::{Maker, MapRequest};
use crate::sentry::process::lock;
use crate::sentry::syscalls::SysResult;
use crate::sentry::task::Task;
use crate::{GuestAddr, PAGE_SIZE};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SHMMNI`.
const MOST: usize = 4096;
/// `SHMMAX`, which leaves room for rounding.
const LARGEST: u64 = i64::MAX as u64 - (1 << 24);
/// Lengths of the status structures.
const STATUS: usize = 112;
/// Shows in the mode of a segment that is removed with its last mapping.
const SHM_DEST: u32 = 0o1000;
const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;

/// A segment.
pub(super) struct Segment {
    permissions: Permissions,
    memory: Arc<OwnedFd>,
    size: u64,
    attached_at: i64,
    detached_at: i64,
    changed_at: i64,
    creator: i32,
    last_user: i32,
    /// The files that were mapped, one for each `shmat`. A region of memory keeps its file, and so does its copy in a
    /// child: as many use it as there are attachments.
    attachments: Vec<Weak<File>>,
    removed: bool,
}

/// `struct shmid64_ds`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Status {
    permissions: Permissions,
    size: u64,
    attached_at: i64,
    detached_at: i64,
    changed_at: i64,
    creator: i32,
    last_user: i32,
    attached: u64,
    unused: [u64; 2],
}

const _: () = assert!(size_of::<Status>() == STATUS, "shmctl copies it");

impl Segment {
    fn attached(&mut self) -> u64 {
        self.attachments.retain(|file| file.strong_count() > 0);
        self.attachments.iter().map(|file| file.strong_count() as u64).sum()
    }

    fn status(&mut self) -> Status {
        let attached = self.attached();
        Status {
            permissions: self.permissions,
            size: self.size,
            attached_at: self.attached_at,
            detached_at: self.detached_at,
            changed_at: self.changed_at,
            creator: self.creator,
            last_user: self.last_user,
            attached,
            unused: [0; 2],
        }
    }
}

impl Object for Segment {
    fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    fn permissions_mut(&mut self) -> &mut Permissions {
        &mut self.permissions
    }

    fn check_get(&self, size: u64) -> Result<(), Errno> {
        if size > self.size { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// Forgets segments that were removed and that nobody has mapped any more.
fn clear(table: &mut Table<Segment>) {
    table.objects.retain(|_, segment| !segment.removed || segment.attached() > 0);
}

pub(in crate::sentry::syscalls) fn shmget(task: &mut Task, key: i32, size: u64, flags: i32) -> SysResult {
    let pid = task.process.pid;
    let mut table = lock(&task.kernel().ipc.memory);
    clear(&mut table);
    let make = |permissions| {
        if size == 0 || size > LARGEST {
            return Err(Errno::EINVAL);
        }
        if flags & libc::SHM_HUGETLB != 0 {
            return Err(Errno::ENOMEM); // as on a host without reserved huge pages
        }
        let len = size.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let memory = host::memfd_create(c"SYSV", libc::MFD_CLOEXEC)?;
        host::ftruncate(memory.as_fd(), i64::try_from(len).map_err(|_| Errno::ENOMEM)?)
            .map_err(|_| Errno::ENOMEM)?;
        Ok(Segment {
            permissions,
            memory: Arc::new(memory),
            size,
            attached_at: 0,
            detached_at: 0,
            changed_at: now(),
            creator: pid,
            last_user: 0,
            attachments: Vec::new(),
            removed: false,
        })
    };
    table.get_or_make(key, flags, size, MOST, make).map(i64::from)
}

pub(in crate::sentry::syscalls) fn shmat(task: &mut Task, id: i32, addr: GuestAddr, flags: i32) -> SysResult {
    let fixed = addr != GuestAddr::NULL;
    if fixed && !addr.is_page_aligned() && flags & libc::SHM_RND == 0 {
        return Err(Errno::EINVAL);
    }
    if !fixed && flags & libc::SHM_REMAP != 0 {
        return Err(Errno::EINVAL);
    }
    let read_only = flags & libc::SHM_RDONLY != 0;
    let execute = flags & libc::SHM_EXEC != 0;
    let (memory, size) = {
        let mut table = lock(&task.kernel().ipc.memory);
        clear(&mut table);
        let segment = table.get(id)?;
        let wanted = if read_only { 0o4 } else { 0o6 } | u32::from(execute);
        segment.permissions.check(wanted)?;
        (Arc::clone(&segment.memory), segment.size)
    };
    // An open file of its own: a read-only one cannot be made writable later, and each counts by itself.
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*memory)))
        .map_err(|_| Errno::EINVAL)?;
    let mode = if read_only { libc::O_RDONLY } else { libc::O_RDWR };
    let host = host::openat(memory.as_fd(), &path, mode | libc::O_CLOEXEC, 0)?;
    let file = Arc::new(File::new(host));
    let mut prot = libc::PROT_READ;
    prot |= if read_only { 0 } else { libc::PROT_WRITE };
    prot |= if execute { libc::PROT_EXEC } else { 0 };
    let place = match (fixed, flags & libc::SHM_REMAP != 0) {
        (false, _) => 0,
        (true, true) => libc::MAP_FIXED,
        (true, false) => libc::MAP_FIXED_NOREPLACE,
    };
    let request = MapRequest {
        addr: addr.page_down(),
        len: size,
        prot: prot as u64,
        flags: libc::MAP_SHARED | place,
        file: Some(Arc::clone(&file)),
        offset: 0,
    };
    let at = task.mm.map(&mut Maker::at_once(&mut task.context), &request).map_err(|errno| match errno {
        Errno::EEXIST => Errno::EINVAL,
        other => other,
    })?;
    drop(request);
    let mut table = lock(&task.kernel().ipc.memory);
    if let Ok(segment) = table.get(id) {
        if segment.attachments.len() == segment.attachments.capacity() {
            // Those that are gone make room.
            segment.attached();
        }
        segment.attachments.push(Arc::downgrade(&file));
        segment.attached_at = now();
        segment.last_user = task.process.pid;
    }
    drop(table);
    Ok(at.raw() as i64)
}

pub(in crate::sentry::syscalls) fn shmdt(task: &mut Task, addr: GuestAddr) -> SysResult {
    let file = task.mm.shared_file_at(addr).ok_or(Errno::EINVAL)?;
    let len = {
        let mut table = lock(&task.kernel().ipc.memory);
        let of_file = |segment: &&mut Segment| {
            segment.attachments.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&file)))
        };
        let segment = table.objects.values_mut().find(of_file).ok_or(Errno::EINVAL)?;
        segment.detached_at = now();
        segment.last_user = task.process.pid;
        segment.size
    };
    task.mm.unmap_file(&mut task.context, addr, len, &file)?;
    drop(file);
    clear(&mut lock(&task.kernel().ipc.memory));
    Ok(0)
}

pub(in crate::sentry::syscalls) fn shmctl(
    task: &mut Task,
    id: i32,
    command: i32,
    buf: GuestAddr,
) -> SysResult {
    let command = command & !IPC_64;
    let new: Option<Status> = match command {
        libc::IPC_SET => Some(task.memory().read_object(buf)?),
        _ => None,
    };
    let mut table = lock(&task.kernel().ipc.memory);
    clear(&mut table);
    let (_, highest) = table.numbers();
    match command {
        libc::IPC_RMID => {
            let segment = table.get(id)?;
            segment.permissions.check_owner()?;
            segment.removed = true;
            // Nobody finds it by its key any more.
            segment.permissions.key = libc::IPC_PRIVATE;
            segment.permissions.mode |= SHM_DEST;
            clear(&mut table);
            Ok(0)
        }
        libc::IPC_SET => {
            let segment = table.get(id)?;
            segment.permissions.check_owner()?;
            if let Some(new) = new {
                segment.permissions.set(&new.permissions);
                segment.changed_at = now();
            }
            Ok(0)
        }
        libc::IPC_STAT | SHM_STAT | SHM_STAT_ANY => {
            // The second kind names a segment by its place in the table, and returns its id.
            let id = match command {
                libc::IPC_STAT => id,
                _ => table.at(id)?,
            };
            let segment = table.get(id)?;
            if command != SHM_STAT_ANY {
                segment.permissions.check(0o4)?;
            }
            let status = segment.status();
            drop(table);
            task.memory().write_object(buf, &status)?;
            Ok(if command == libc::IPC_STAT { 0 } else { i64::from(id) })
        }
        libc::IPC_INFO => {
            drop(table);
            // struct shminfo64: shmmax, shmmin, shmmni, shmseg, shmall
            let info = [LARGEST, 1, MOST as u64, MOST as u64, LARGEST, 0, 0, 0, 0];
            task.memory().write_object(buf, &info)?;
            Ok(highest)
        }
        SHM_INFO => {
            let pages: u64 = table.objects.values().map(|segment| segment.size.div_ceil(PAGE_SIZE)).sum();
            let used = table.objects.len() as u64;
            drop(table);
            // struct shm_info: used_ids (and padding), shm_tot, shm_rss, shm_swp, swap_attempts, swap_successes
            task.memory().write_object(buf, &[used, pages, pages, 0, 0, 0])?;
            Ok(highest)
        }
        libc::SHM_LOCK | libc::SHM_UNLOCK => table.get(id)?.permissions.check_owner().map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}
