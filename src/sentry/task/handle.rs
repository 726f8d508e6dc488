//! What others may touch of a task: its signal queue, its mask, and the ways to make it look.

use crate::Interrupter;
use crate::sentry::attributes::TaskAttributes;
use crate::sentry::credentials::Credentials;
use crate::sentry::fd_table::FdTable;
use crate::sentry::fs_context::FsContext;
use crate::sentry::host::{self, Attention};
use crate::sentry::memory::Mm;
use crate::sentry::process::{Process, lock};
use crate::sentry::signals::{Pending, SigInfo, SignalSet};
use crate::sentry::timers::TaskClock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The shared part of a task.
///
/// To get a task's attention: change what it should see, raise the flag, then wake it where it is. A task that goes
/// to wait says where first and looks at the flag afterwards. One of the two sees the other (both sides are
/// sequentially consistent), so that no wake-up is lost.
pub(crate) struct TaskHandle {
    /// The thread id that the guest sees. It changes once at most: a thread that executes a program takes its
    /// process's.
    tid: AtomicI32,
    pub(crate) process: Arc<Process>,
    /// Tested together with each host call that may wait.
    pub(crate) attention: Attention,
    place: AtomicU8,
    /// The host's id of the thread that runs the task.
    host_tid: AtomicI32,
    interrupter: Mutex<Option<Interrupter>>,
    /// Counts what a parked task may be waiting for.
    bell: AtomicU32,
    /// The blocked signals. Only the task itself changes them.
    mask: AtomicU64,
    /// The signals that `sigtimedwait` waits for: not blocked meanwhile, and kept even if they are ignored.
    awaited: AtomicU64,
    /// The signals whose arrival a read or a poll of a signalfd waits for.
    watched: AtomicU64,
    /// Signals sent to this task in particular.
    pending: Mutex<Pending>,
    /// Its processor time.
    pub(crate) clock: Mutex<TaskClock>,
    /// `PR_SET_NAME`.
    name: Mutex<[u8; 16]>,
    /// Who the task is. Only the task itself changes it.
    credentials: Mutex<Arc<Credentials>>,
    attributes: Mutex<TaskAttributes>,
    /// It waits for the end of its process's stop. Changes under the tree's lock.
    at_stop: AtomicBool,
    /// It has taken a stop signal that no SIGCONT has undone since.
    took_stop: AtomicBool,
    /// It has to end, because its process ends or another thread executes a program.
    doomed: AtomicBool,
    belongings: Mutex<Belongings>,
    /// When the thread was made, in nanoseconds since the host started.
    pub(crate) started_ns: u64,
}

/// What the task shares with others, for `/proc`: only as long as the task, or another, has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Belongings {
    pub(crate) mm: Weak<Mm>,
    pub(crate) files: Weak<Mutex<FdTable>>,
    pub(crate) fs: Weak<Mutex<FsContext>>,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    /// In the guest, or about to go there.
    Running = 0,
    /// In a host call that may wait.
    HostCall = 1,
    /// Waiting for its bell.
    Parked = 2,
}

impl TaskHandle {
    pub(crate) fn new(
        tid: i32,
        process: Arc<Process>,
        mask: SignalSet,
        name: [u8; 16],
        credentials: Arc<Credentials>,
        attributes: TaskAttributes,
    ) -> Self {
        if tid == process.pid {
            process.remember_name(name);
        }
        Self {
            tid: AtomicI32::new(tid),
            process,
            attention: Attention::default(),
            place: AtomicU8::new(Place::Running as u8),
            host_tid: AtomicI32::new(0),
            interrupter: Mutex::new(None),
            bell: AtomicU32::new(0),
            mask: AtomicU64::new(mask.0),
            awaited: AtomicU64::new(0),
            watched: AtomicU64::new(0),
            pending: Mutex::default(),
            clock: Mutex::default(),
            name: Mutex::new(name),
            credentials: Mutex::new(credentials),
            attributes: Mutex::new(attributes),
            at_stop: AtomicBool::new(false),
            took_stop: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            belongings: Mutex::default(),
            started_ns: host::boot_time_ns(),
        }
    }

    pub(crate) fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// `execve` from a thread that is not the first: it goes on under the id of the process.
    pub(crate) fn become_leader(&self) {
        self.tid.store(self.process.pid, Ordering::Relaxed);
    }

    /// Names the context that runs the task, and the calling thread as the one that drives it.
    pub(crate) fn attach(&self, interrupter: Interrupter) {
        self.host_tid.store(host::gettid(), Ordering::SeqCst);
        *lock(&self.interrupter) = Some(interrupter.clone());
        if self.attention.is_raised() {
            // Whoever wanted the task before found nothing to interrupt.
            interrupter.interrupt();
        }
    }

    pub(crate) fn host_tid(&self) -> i32 {
        self.host_tid.load(Ordering::SeqCst)
    }

    pub(crate) fn mask(&self) -> SignalSet {
        SignalSet(self.mask.load(Ordering::SeqCst))
    }

    /// Only for the task itself.
    pub(crate) fn store_mask(&self, mask: SignalSet) {
        self.mask.store(mask.0, Ordering::SeqCst);
    }

    pub(crate) fn awaited(&self) -> SignalSet {
        SignalSet(self.awaited.load(Ordering::SeqCst))
    }

    /// Only for the task itself.
    pub(crate) fn set_awaited(&self, awaited: SignalSet) {
        self.awaited.store(awaited.0, Ordering::SeqCst);
    }

    pub(crate) fn watched(&self) -> SignalSet {
        SignalSet(self.watched.load(Ordering::SeqCst))
    }

    /// Only for the task itself. Look for what is pending afterwards.
    pub(crate) fn set_watched(&self, watched: SignalSet) {
        self.watched.store(watched.0, Ordering::SeqCst);
    }

    /// The stub thread that runs the task's code.
    pub(crate) fn stub_thread(&self) -> Option<i32> {
        lock(&self.interrupter).as_ref().and_then(Interrupter::stub_thread)
    }

    /// Its descriptor table, while it has one.
    pub(crate) fn files(&self) -> Option<Arc<Mutex<FdTable>>> {
        self.belongings().files.upgrade()
    }

    pub(crate) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is only recorded of the task. No other lock may be taken under it.
    pub(crate) fn attributes(&self) -> MutexGuard<'_, TaskAttributes> {
        self.attributes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only for the task itself.
    pub(crate) fn store_credentials(&self, credentials: Arc<Credentials>) {
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    pub(crate) fn name(&self) -> [u8; 16] {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the name that `prctl` and `/proc` show, cut to 15 bytes.
    pub(crate) fn set_name(&self, text: &[u8]) {
        let mut name = [0; 16];
        for (to, from) in name.iter_mut().take(15).zip(text) {
            *to = *from;
        }
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name;
        if self.tid() == self.process.pid {
            self.process.remember_name(name);
        }
    }

    pub(crate) fn belongings(&self) -> Belongings {
        self.belongings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_belongings(&self, belongings: Belongings) {
        *self.belongings.lock().unwrap_or_else(PoisonError::into_inner) = belongings;
    }

    /// Tells the task to end instead of going back to the guest.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_at_stop(&self) -> bool {
        self.at_stop.load(Ordering::SeqCst)
    }

    /// Only with the tree locked.
    pub(crate) fn set_at_stop(&self, at_stop: bool) {
        self.at_stop.store(at_stop, Ordering::SeqCst);
    }

    /// A stop signal is being taken (`true`; its queue is locked), or undone (`false`; the tree is locked, and there
    /// is no other in a queue). Returns what it was.
    pub(crate) fn set_took_stop(&self, took: bool) -> bool {
        self.took_stop.swap(took, Ordering::SeqCst)
    }

    /// Queues a signal for this task; `false` when the queue is full.
    pub(crate) fn push(&self, info: SigInfo) -> bool {
        self.pending().push(info)
    }

    pub(crate) fn place(&self) -> Place {
        match self.place.load(Ordering::SeqCst) {
            1 => Place::HostCall,
            2 => Place::Parked,
            _ => Place::Running,
        }
    }

    /// Makes the task come back from wherever it is and look at its signals.
    pub(crate) fn wake(&self) {
        self.attention.raise();
        // Whoever has looked at the bell and is about to sleep through is woken, too.
        self.bell.fetch_add(1, Ordering::SeqCst);
        match self.place() {
            Place::HostCall => host::kick(self.host_tid()),
            Place::Parked => host::wake_word(&self.bell),
            Place::Running => {
                if let Some(interrupter) = &*self.interrupter.lock().unwrap_or_else(PoisonError::into_inner) {
                    interrupter.interrupt();
                }
            }
        }
    }

    /// What the bell stands at: read it before the condition that is waited for.
    pub(crate) fn bell(&self) -> u32 {
        self.bell.load(Ordering::SeqCst)
    }

    /// Wakes the task if it is parked: what it waits for may have happened.
    pub(crate) fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        if self.place() == Place::Parked {
            host::wake_word(&self.bell);
        }
    }

    /// Runs something that waits, so that [`TaskHandle::wake`] knows how to end it.
    pub(crate) fn while_at<T>(&self, place: Place, wait: impl FnOnce() -> T) -> T {
        self.place.store(place as u8, Ordering::SeqCst);
        let result = wait();
        self.place.store(Place::Running as u8, Ordering::SeqCst);
        result
    }

    /// Sleeps until the bell is not at `seen` any more, whatever signals come.
    pub(crate) fn sleep_through(&self, seen: u32) {
        self.while_at(Place::Parked, || host::wait_word(&self.bell, seen, None));
    }

    /// Sleeps until the bell is not at `seen` any more, the flag is up or the time is over (whichever is first);
    /// may also return without a reason.
    pub(crate) fn sleep(&self, seen: u32, limit: Option<std::time::Duration>) {
        self.while_at(Place::Parked, || {
            if !self.attention.is_raised() && self.bell() == seen {
                host::wait_word(&self.bell, seen, limit);
            }
        });
    }
}
