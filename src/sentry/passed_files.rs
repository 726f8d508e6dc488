//! Files of the sentry's own on their way through a Unix socket.
//!
//! A descriptor that a guest sends (`SCM_RIGHTS`) travels as a host descriptor. For most files that is all there is to
//! them. An epoll instance and its like have a part that only the sentry knows: the receiver must get the same [`File`].
//! Which one it is, the host tells (kcmp(2)).

use super::file::File;
use super::host;
use super::process::lock;
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};

/// The most files that are kept alive for a receiver: a message may be dropped unread, which nobody hears of.
const MOST: usize = 256;

/// Files that were sent and that somebody may still receive.
#[derive(Debug, Default)]
pub(crate) struct PassedFiles {
    sent: Mutex<VecDeque<Arc<File>>>,
}

impl PassedFiles {
    /// Keeps a file that is being sent.
    pub(crate) fn sent(&self, file: &Arc<File>) {
        if file.is_of_host() {
            return;
        }
        let mut sent = lock(&self.sent);
        sent.retain(|other| !Arc::ptr_eq(other, file));
        // The oldest is closed without the lock.
        let oldest = if sent.len() >= MOST { sent.pop_front() } else { None };
        sent.push_back(Arc::clone(file));
        drop(sent);
        drop(oldest);
    }

    /// The open file of a descriptor that was received.
    pub(crate) fn received(&self, host: OwnedFd) -> Arc<File> {
        let candidates: Vec<_> = lock(&self.sent).iter().cloned().collect();
        match candidates.into_iter().find(|file| host::is_same_open_file(file.as_fd(), host.as_fd())) {
            Some(file) => file,
            None => Arc::new(File::new(host)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_sentrys_own_is_recognised_by_another_descriptor() {
        let passed = PassedFiles::default();
        let epoll = |_| Arc::new(File::epoll(host::epoll_create1(libc::EPOLL_CLOEXEC).unwrap()));
        let files: Vec<_> = (0..3).map(epoll).collect();
        files.iter().for_each(|file| passed.sent(file));
        let duplicate = |file: &File| host::dup_cloexec(file.as_fd(), libc::F_DUPFD_CLOEXEC, 0).unwrap();
        assert!(Arc::ptr_eq(&passed.received(duplicate(&files[1])), &files[1]));
        let plain = Arc::new(File::new(host::eventfd2(0, libc::EFD_CLOEXEC).unwrap()));
        passed.sent(&plain);
        assert!(!Arc::ptr_eq(&passed.received(duplicate(&plain)), &plain));
        for _ in 0..MOST {
            passed.sent(&epoll(0));
        }
        assert!(!Arc::ptr_eq(&passed.received(duplicate(&files[1])), &files[1]));
    }
}
