//! What a guest's epoll instances watch: the host's instances do the work, and know nothing of the guest's numbers.

use crate::sentry::file::File;
use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

/// Fewer registrations than this are not worth looking for those of closed files.
const FEW: usize = 64;

/// A guest's epoll instance.
#[derive(Debug, Default)]
pub(crate) struct Epoll {
    pub(crate) watched: Mutex<Registrations>,
}

/// What an instance watches. Servers change the registrations of thousands of files all the time: finding one takes the
/// same time however many there are.
#[derive(Debug)]
pub(crate) struct Registrations {
    /// By the address of the file, which is nobody else's as long as it is in here.
    by_file: HashMap<usize, Vec<Registration>>,
    /// How many of them have a duplicate.
    duplicates: usize,
    /// With so many files it is time to look for closed ones.
    full: usize,
}

/// The host knows it by a host descriptor, the guest by its own number.
#[derive(Debug)]
struct Registration {
    fd: i32,
    file: Weak<File>,
    /// The host tells registrations apart by file and number. Two numbers of the guest can be one of the host's: the
    /// second gets a duplicate. It keeps the file open until the instance is used next.
    duplicate: Option<OwnedFd>,
}

impl Default for Registrations {
    fn default() -> Self {
        Self { by_file: HashMap::new(), duplicates: 0, full: FEW }
    }
}

fn key(file: &Arc<File>) -> usize {
    Arc::as_ptr(file).addr()
}

impl Registrations {
    /// Forgets files that are closed, if that is due: at once where a duplicate keeps one open for the host.
    pub(crate) fn forget_closed(&mut self) {
        if self.duplicates == 0 && self.by_file.len() < self.full {
            return;
        }
        self.by_file.retain(|_, same| same.iter().any(|one| one.file.strong_count() > 0));
        self.count_duplicates();
        self.full = FEW.max(2 * self.by_file.len());
    }

    fn count_duplicates(&mut self) {
        self.duplicates = self.by_file.values().flatten().filter(|one| one.duplicate.is_some()).count();
    }

    fn find(&self, fd: i32, file: &Arc<File>) -> Option<&Registration> {
        self.by_file.get(&key(file))?.iter().find(|one| one.fd == fd)
    }

    /// Whether this number of this file is watched.
    pub(crate) fn knows(&self, fd: i32, file: &Arc<File>) -> bool {
        self.find(fd, file).is_some()
    }

    /// Whether any number of this file is watched.
    pub(crate) fn knows_another(&self, file: &Arc<File>) -> bool {
        self.by_file.contains_key(&key(file))
    }

    /// The descriptor that the host knows the registration by, if it is not the file's own.
    pub(crate) fn duplicate(&self, fd: i32, file: &Arc<File>) -> Option<BorrowedFd<'_>> {
        self.find(fd, file)?.duplicate.as_ref().map(OwnedFd::as_fd)
    }

    /// Watches one more.
    pub(crate) fn add(&mut self, fd: i32, file: &Arc<File>, duplicate: Option<OwnedFd>) {
        self.duplicates += usize::from(duplicate.is_some());
        let registration = Registration { fd, file: Arc::downgrade(file), duplicate };
        self.by_file.entry(key(file)).or_default().push(registration);
    }

    /// Watches this one no more.
    pub(crate) fn remove(&mut self, fd: i32, file: &Arc<File>) {
        let Some(same) = self.by_file.get_mut(&key(file)) else { return };
        same.retain(|one| one.fd != fd);
        if same.is_empty() {
            self.by_file.remove(&key(file));
        }
        if self.duplicates > 0 {
            self.count_duplicates();
        }
    }
}
