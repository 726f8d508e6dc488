//! The descriptor table of a guest process: its own numbers, not the host's.

use super::errno::Errno;
use super::file::File;
use super::filesystem::MountTable;
use super::host;
use super::limits::first_reserved_descriptor;
use super::record_locks::{OwnedLocks, RecordLocks};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

#[derive(Debug, Clone)]
struct Slot {
    file: Arc<File>,
    cloexec: bool,
}

/// Numbers to open files, with Linux's rule that a new descriptor is the lowest free one.
#[derive(Debug)]
pub(crate) struct FdTable {
    slots: Vec<Option<Slot>>,
    /// No slot below this one is free.
    first_free: usize,
    /// `RLIMIT_NOFILE`: numbers at and above it are not given out.
    limit: usize,
    /// Record locks: they belong to the table, and go when a descriptor of their file is closed.
    locks: OwnedLocks,
}

impl Clone for FdTable {
    /// The descriptors without the record locks, as `fork` and `unshare` copy them.
    fn clone(&self) -> Self {
        let (slots, locks) = (self.slots.clone(), self.locks.none_like());
        Self { slots, first_free: self.first_free, limit: self.limit, locks }
    }
}

impl FdTable {
    /// An empty table.
    pub(crate) fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), first_free: 0, limit, locks: OwnedLocks::new(Arc::default()) }
    }

    /// A table with what this process would hand to a program it executes, under the same numbers.
    pub(crate) fn inherited(numbers: &[i32], limit: usize) -> Self {
        let mut table = Self::new(limit);
        for &number in numbers {
            if let (Some(host), Ok(index)) = (host::duplicate_inherited(number), usize::try_from(number)) {
                table.place(index, Slot { file: Arc::new(File::new(host)), cloexec: false });
            }
        }
        table
    }

    /// Says where all record locks of the guest are recorded.
    pub(crate) fn record_locks_in(&mut self, all: &Arc<RecordLocks>) {
        self.locks = OwnedLocks::new(Arc::clone(all));
    }

    /// The record locks that belong to the table.
    pub(crate) fn locks(&mut self) -> &mut OwnedLocks {
        &mut self.locks
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The open file of a descriptor.
    pub(crate) fn get(&self, fd: i32) -> Result<Arc<File>, Errno> {
        self.slot(fd).map(|slot| Arc::clone(&slot.file))
    }

    fn slot(&self, fd: i32) -> Result<&Slot, Errno> {
        usize::try_from(fd).ok().and_then(|fd| self.slots.get(fd)?.as_ref()).ok_or(Errno::EBADF)
    }

    fn slot_mut(&mut self, fd: i32) -> Result<&mut Slot, Errno> {
        usize::try_from(fd).ok().and_then(|fd| self.slots.get_mut(fd)?.as_mut()).ok_or(Errno::EBADF)
    }

    /// Whether `execve` closes the descriptor.
    pub(crate) fn cloexec(&self, fd: i32) -> Result<bool, Errno> {
        self.slot(fd).map(|slot| slot.cloexec)
    }

    pub(crate) fn set_cloexec(&mut self, fd: i32, cloexec: bool) -> Result<(), Errno> {
        self.slot_mut(fd).map(|slot| slot.cloexec = cloexec)
    }

    /// Gives the file the lowest free number that is at least `minimum`.
    pub(crate) fn insert_from(&mut self, minimum: i32, file: Arc<File>, cloexec: bool) -> Result<i32, Errno> {
        let minimum = usize::try_from(minimum).ok().filter(|fd| *fd < self.limit).ok_or(Errno::EINVAL)?;
        let start = minimum.max(self.first_free);
        let index = (start..self.slots.len())
            .find(|&index| self.slots[index].is_none())
            .unwrap_or(start.max(self.slots.len()));
        if index >= self.limit || file.as_fd().as_raw_fd() >= first_reserved_descriptor() {
            return Err(Errno::EMFILE);
        }
        self.place(index, Slot { file, cloexec });
        i32::try_from(index).map_err(|_| Errno::EMFILE)
    }

    /// Whether one more descriptor would get a number.
    pub(crate) fn has_room(&self) -> bool {
        self.first_free < self.limit
    }

    /// Gives the file the lowest free number.
    pub(crate) fn insert(&mut self, file: Arc<File>, cloexec: bool) -> Result<i32, Errno> {
        if self.limit == 0 {
            return Err(Errno::EMFILE);
        }
        self.insert_from(0, file, cloexec)
    }

    /// Puts the file at that number, closing what was there; `EBADF` past the limit.
    pub(crate) fn replace(&mut self, fd: i32, file: Arc<File>, cloexec: bool) -> Result<(), Errno> {
        let index = usize::try_from(fd).ok().filter(|fd| *fd < self.limit).ok_or(Errno::EBADF)?;
        self.place(index, Slot { file, cloexec });
        Ok(())
    }

    fn place(&mut self, index: usize, slot: Slot) {
        if index >= self.slots.len() {
            self.slots.resize(index + 1, None);
        }
        if let Some(old) = self.slots[index].replace(slot) {
            self.locks.closed(&old.file);
        }
        if index == self.first_free {
            self.first_free += 1;
            while self.slots.get(self.first_free).is_some_and(Option::is_some) {
                self.first_free += 1;
            }
        }
    }

    /// Closes a descriptor. The file is returned so that the caller drops it without holding the table.
    pub(crate) fn remove(&mut self, fd: i32) -> Result<Arc<File>, Errno> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let slot = self.slots.get_mut(index).and_then(Option::take).ok_or(Errno::EBADF)?;
        self.first_free = self.first_free.min(index);
        self.locks.closed(&slot.file);
        Ok(slot.file)
    }

    /// Closes the directories that are in no mount of the guest's.
    pub(crate) fn close_outside(&mut self, mounts: &Arc<MountTable>) {
        let is_outside = |fd: &i32| self.get(*fd).is_ok_and(|file| file.is_directory_outside(mounts));
        let outside: Vec<i32> = self.numbers().filter(is_outside).collect();
        for fd in outside {
            let _ = self.remove(fd);
        }
    }

    /// The open numbers in ascending order.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = i32> {
        self.slots.iter().zip(0..).filter_map(|(slot, number)| slot.as_ref().map(|_| number))
    }

    /// How many descriptors the kernel's table of this size has room for (fs/file.c `alloc_fdtable`): `select`
    /// looks at no more of them.
    pub(crate) fn room(&self) -> usize {
        const EMBEDDED: usize = 64;
        const STEP: usize = 128;
        if self.slots.len() <= EMBEDDED {
            EMBEDDED
        } else {
            (self.slots.len() / STEP + 1).next_power_of_two() * STEP
        }
    }

    /// Closes, or marks close-on-exec, every descriptor in an inclusive range (`close_range`).
    pub(crate) fn close_range(&mut self, first: u32, last: u32, only_mark: bool) {
        let affected: Vec<i32> = self
            .numbers()
            .filter(|fd| u32::try_from(*fd).is_ok_and(|fd| (first..=last).contains(&fd)))
            .collect();
        for fd in affected {
            let _ = if only_mark { self.set_cloexec(fd, true) } else { self.remove(fd).map(drop) };
        }
    }

    /// Closes what `execve` closes. The files are returned so that the caller drops them without holding the table.
    pub(crate) fn close_on_exec(&mut self) -> Vec<Arc<File>> {
        let affected: Vec<i32> = self.numbers().filter(|fd| self.cloexec(*fd) == Ok(true)).collect();
        affected.into_iter().filter_map(|fd| self.remove(fd).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<File> {
        Arc::new(File::new(host::eventfd2(0, libc::EFD_CLOEXEC).unwrap()))
    }

    #[test]
    fn the_lowest_free_number_is_used() {
        let mut table = FdTable::new(16);
        for expected in 0..5 {
            assert_eq!(table.insert(file(), false), Ok(expected));
        }
        table.remove(3).unwrap();
        table.remove(1).unwrap();
        assert_eq!(table.insert(file(), false), Ok(1));
        assert_eq!(table.insert(file(), false), Ok(3));
        assert_eq!(table.insert(file(), false), Ok(5));
        assert_eq!(table.insert_from(10, file(), true), Ok(10));
        assert_eq!(table.insert_from(10, file(), true), Ok(11));
        assert_eq!(table.insert(file(), false), Ok(6));
        assert_eq!(table.numbers().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 10, 11]);
    }

    #[test]
    fn limits_and_bad_numbers() {
        let mut table = FdTable::new(2);
        table.insert(file(), false).unwrap();
        table.insert(file(), false).unwrap();
        assert_eq!(table.insert(file(), false), Err(Errno::EMFILE));
        assert_eq!(table.insert_from(2, file(), false), Err(Errno::EINVAL));
        assert_eq!(table.insert_from(-1, file(), false), Err(Errno::EINVAL));
        assert_eq!(table.replace(2, file(), false), Err(Errno::EBADF));
        assert_eq!(table.remove(2).map(drop), Err(Errno::EBADF));
        assert_eq!(table.get(-1).map(drop), Err(Errno::EBADF));
        table.set_limit(0);
        assert_eq!(table.insert(file(), false), Err(Errno::EMFILE));
    }

    #[test]
    fn exec_and_close_range() {
        let mut table = FdTable::new(64);
        for index in 0..10 {
            table.insert(file(), index % 2 == 1).unwrap();
        }
        table.close_range(8, u32::MAX, false);
        table.close_range(2, 2, true);
        assert_eq!(table.cloexec(2), Ok(true));
        drop(table.close_on_exec());
        assert_eq!(table.numbers().collect::<Vec<_>>(), [0, 4, 6]);
        assert_eq!(table.insert(file(), false), Ok(1));
    }

    #[test]
    fn duplicates_share_the_file_and_the_last_close_closes_it() {
        let mut table = FdTable::new(64);
        let shared = file();
        let weak = Arc::downgrade(&shared);
        let first = table.insert(Arc::clone(&shared), false).unwrap();
        table.replace(7, shared, false).unwrap();
        drop(table.remove(first).unwrap());
        assert!(weak.upgrade().is_some());
        table.replace(7, file(), false).unwrap();
        assert!(weak.upgrade().is_none());
    }
}
