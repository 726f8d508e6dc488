//! signalfd(2): pending signals as something to read.
//!
//! What can be read is what is pending for whoever reads, so readiness is not a property of the file. A read or a poll
//! of the sentry's looks at the task's own queues, and says in its handle which signals it watches; sending wakes it.
//! The eventfd behind the file is for those who can only wait for descriptors (epoll): it is readable while something
//! may be pending for one of the processes that have used the file, and is set right by every read.

use super::file::{File, Kind};
use super::host;
use super::process::{Process, lock};
use super::signals::{SigInfo, SignalSet};
use super::task::TaskHandle;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// What an open signalfd is for.
#[derive(Debug)]
pub(crate) struct SignalFile {
    mask: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The processes for which the eventfd is kept.
    users: Vec<Weak<Process>>,
    /// The eventfd is readable.
    raised: bool,
}

impl SignalFile {
    pub(crate) fn new(mask: SignalSet) -> Self {
        Self { mask: AtomicU64::new(mask.0), state: Mutex::default() }
    }

    pub(crate) fn mask(&self) -> SignalSet {
        SignalSet(self.mask.load(Ordering::SeqCst))
    }

    /// What `/proc/self/fdinfo` adds.
    pub(crate) fn info(&self) -> String {
        format!("sigmask:\t{:016x}\n", self.mask().0)
    }

    pub(crate) fn set_mask(&self, mask: SignalSet) {
        self.mask.store(mask.0, Ordering::SeqCst);
    }

    /// The process uses the file: signals that come for it make the eventfd of `file`, which this is of, readable.
    pub(crate) fn used_by(&self, file: &File, process: &Arc<Process>) {
        {
            let mut state = lock(&self.state);
            if state.users.iter().any(|user| std::ptr::eq(user.as_ptr(), Arc::as_ptr(process))) {
                return;
            }
            state.users.retain(|user| user.strong_count() > 0);
            state.users.push(Arc::downgrade(process));
        }
        self.settle(file);
    }

    /// Sets the eventfd to what is pending.
    pub(crate) fn settle(&self, file: &File) {
        let mask = self.mask();
        let mut state = lock(&self.state);
        let users = state.users.iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        let pending = users.iter().any(|process| {
            let threads = process.threads().clone();
            let own =
                threads.iter().fold(SignalSet::default(), |all, thread| all.union(thread.pending().set()));
            !own.union(process.pending().set()).intersection(mask).is_empty()
        });
        if pending != state.raised {
            state.raised = pending;
            show(file, pending);
        }
    }
}

/// Makes the eventfd behind a file of the sentry's readable, or not. Only under the lock of whoever keeps count.
fn show(file: &File, readable: bool) {
    if readable {
        let _ = host::write(file.as_fd(), &1_u64.to_ne_bytes()[..]);
    } else {
        // It is readable, so that this does not wait.
        let _ = host::read(file.as_fd(), &mut [0; 8][..]);
    }
}

/// All signalfds of a guest.
#[derive(Default)]
pub(crate) struct SignalFiles {
    /// There is one, or was.
    any: AtomicBool,
    files: Mutex<Vec<Weak<File>>>,
}

impl SignalFiles {
    pub(crate) fn add(&self, file: &Arc<File>) {
        let mut files = lock(&self.files);
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(file));
        self.any.store(true, Ordering::SeqCst);
    }

    /// A signal has come for one of these threads of the process. Without any signalfd this is one look.
    pub(crate) fn arrived(&self, process: &Arc<Process>, threads: &[Arc<TaskHandle>], signo: i32) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        for thread in threads.iter().filter(|thread| thread.watched().contains(signo)) {
            thread.wake();
        }
        let files = lock(&self.files).iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        for file in files {
            if let Kind::Signals(signals) = file.kind()
                && signals.mask().contains(signo)
                && lock(&signals.state)
                    .users
                    .iter()
                    .any(|user| std::ptr::eq(user.as_ptr(), Arc::as_ptr(process)))
            {
                signals.settle(&file);
            }
        }
    }
}

/// `struct signalfd_siginfo`.
pub(crate) const RECORD: usize = 128;

/// A signal as a signalfd shows it (fs/signalfd.c `signalfd_copyinfo`).
pub(crate) fn record(info: &SigInfo) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = record.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    let word = |at| info.word(at).to_ne_bytes();
    let long = |at: usize| {
        let (low, high) = (u64::from(info.word(at)), u64::from(info.word(at + 4)));
        (high << 32 | low).to_ne_bytes()
    };
    const POLL_CODES: std::ops::RangeInclusive<i32> = 1..=6;
    put(0, &word(0)); // ssi_signo
    put(4, &word(4)); // ssi_errno
    put(8, &word(8)); // ssi_code
    match info.code() {
        libc::SI_TIMER => {
            put(24, &word(16)); // ssi_tid
            put(32, &word(20)); // ssi_overrun
            put(44, &word(24)); // ssi_int
            put(48, &long(24)); // ssi_ptr
        }
        code if info.signo() == libc::SIGCHLD && (libc::CLD_EXITED..=libc::CLD_CONTINUED).contains(&code) => {
            put(12, &word(16)); // ssi_pid
            put(16, &word(20)); // ssi_uid
            put(40, &word(24)); // ssi_status
            put(56, &long(32)); // ssi_utime
            put(64, &long(40)); // ssi_stime
        }
        code if info.signo() == libc::SIGIO && POLL_CODES.contains(&code) || code == libc::SI_SIGIO => {
            put(28, &word(16)); // ssi_band
            put(20, &word(24)); // ssi_fd
        }
        code if info.address().is_some() && (1..0x80).contains(&code) => put(72, &long(16)), // ssi_addr
        code => {
            put(12, &word(16));
            put(16, &word(20));
            if code < 0 {
                put(44, &word(24));
                put(48, &long(24));
            }
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sentry::kernel::tree::Usage;

    fn words(info: &SigInfo) -> Vec<(usize, u32)> {
        let record = record(info);
        let words = record.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        words.enumerate().map(|(index, word)| (4 * index, word)).filter(|(_, word)| *word != 0).collect()
    }

    #[test]
    fn each_kind_of_signal_shows_its_own_fields() {
        assert_eq!(words(&SigInfo::from_user(10, 0, 77, 5)), [(0, 10), (12, 77), (16, 5)]);
        assert_eq!(words(&SigInfo::from_kernel(14)), [(0, 14), (8, 0x80)]);
        let mut timer = SigInfo::from_timer(40, 3, 9);
        timer.finish_timer(6);
        assert_eq!(words(&timer), [(0, 40), (8, -2_i32 as u32), (24, 3), (32, 6), (44, 9), (48, 9)]);
        let usage = Usage { user_ns: 20_000_000, ..Usage::default() };
        let child = SigInfo::from_child(libc::SIGCHLD, libc::CLD_EXITED, (8, 0), 4, usage);
        assert_eq!(words(&child), [(0, 17), (8, 1), (12, 8), (40, 4), (56, 2)]);
    }
}
