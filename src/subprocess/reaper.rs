//! The thread that forks the template and reaps every stub process.
//!
//! It is one thread for two reasons: the parent-death signal of all stub processes fires when *this thread*
//! ends, and it must not end before they do.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;

use super::Subprocess;
use super::leader::LeaderSeat;
use super::template::{self, Files, Plan};
use super::threads::ThreadPool;
use crate::Error;
use crate::shared::RequestPages;
use crate::sys;

/// Key of the eventfd among the pidfds.
const WAKE_KEY: u64 = 0;

/// When the search for children that nobody knows of is tried again after others were being born.
const LOOK_AGAIN_MS: u8 = 5;

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    wake: EventFd,
    state: Mutex<State>,
    /// Read-locked from the request for a clone until the child is watched: meanwhile a child that is not watched
    /// is no stranger.
    births: RwLock<()>,
    /// Somebody will patch soon, and asked for the tables that this takes.
    tables_wanted: AtomicBool,
}

#[derive(Debug)]
struct State {
    processes: HashMap<u64, Arc<Subprocess>>,
    next_key: u64,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle of the reaper thread. Dropping it kills and reaps all stub processes of the platform.
#[derive(Debug)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    /// Starts the thread and lets it fork the template. `patches`: as if [`Reaper::prepare_tables`] were
    /// called.
    pub(crate) fn start(
        plan: Plan,
        base: u64,
        requests: &Arc<RequestPages>,
        prepared: Prepared,
        patches: bool,
    ) -> Result<(Self, Arc<Subprocess>), Error> {
        let host = |what| move |errno: nix::Error| Error::host(what, errno.into());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(host("epoll_create"))?;
        let wake =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(host("eventfd"))?;
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE_KEY)).map_err(host("epoll_ctl"))?;
        let state = State { processes: HashMap::new(), next_key: WAKE_KEY + 1, closing: false };
        let shared = Arc::new(Shared {
            epoll,
            wake,
            state: Mutex::new(state),
            births: RwLock::new(()),
            tables_wanted: AtomicBool::new(patches),
        });
        let (send, receive) = mpsc::channel();
        let (of_thread, pages) = (Arc::clone(&shared), Arc::clone(requests));
        let thread = thread::Builder::new()
            .name("systrap-reaper".to_owned())
            .spawn(move || {
                // Blocked here, so that the template is born with every signal blocked and no handler of the
                // embedder runs on this thread.
                let _ = SigSet::all().thread_block();
                let forked = template::fork(&plan);
                let group = forked.as_ref().ok().copied();
                if send.send(forked).is_ok() {
                    run(&of_thread, &pages);
                }
                // The template made a session of its own, so every stub process is in its group. One is left
                // if the template was killed in the moment between making it and saying so.
                if let Some(group) = group {
                    sys::kill_and_reap_group(group);
                }
            })
            .map_err(|source| Error::host("starting the reaper thread", source))?;
        let forked = receive.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()));
        let reaper = Self { shared, thread: Some(thread) };
        let pid = forked.map_err(|source| Error::host("forking the template stub process", source))?;
        let pidfd = Subprocess::open_child(pid).map_err(|not_adopted| not_adopted.error)?;
        let template = {
            let inner = (LeaderSeat::default(), ThreadPool::new());
            Subprocess::adopt(pid, pidfd, base, requests, prepared.page, prepared.slots, inner)
        };
        reaper.watch(&template)?;
        template.wait_for_hello().map_err(Error::of_template)?;
        Ok((reaper, template))
    }

    /// Reaps a process when it dies, and keeps what it shares until then.
    pub(crate) fn watch(&self, process: &Arc<Subprocess>) -> Result<(), Error> {
        let mut state = self.shared.lock();
        let key = state.next_key;
        state.next_key += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, key);
        self.shared
            .epoll
            .add(process.pidfd.as_fd(), event)
            .map_err(|errno| Error::host("epoll_ctl", errno.into()))?;
        state.processes.insert(key, Arc::clone(process));
        Ok(())
    }

    /// The host's ids of the processes that are watched.
    #[cfg(feature = "sentry")]
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.shared.lock().processes.values().map(|process| process.pid()).collect()
    }

    /// To be held from the request for a clone until the child is watched.
    pub(crate) fn birth(&self) -> RwLockReadGuard<'_, ()> {
        self.shared.births.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for a child that may exist although nobody knows of it, what it may hold having been abandoned.
    pub(crate) fn expect_stranger(&self) {
        let _ = self.shared.wake.write(1);
    }

    /// Has this thread make the tables for patching, which is mostly idle.
    pub(crate) fn prepare_tables(&self) {
        if !self.shared.tables_wanted.swap(true, Ordering::Relaxed) {
            let _ = self.shared.wake.write(1);
        }
    }

    /// How many stub processes have not been reaped.
    pub(crate) fn process_count(&self) -> usize {
        self.shared.lock().processes.len()
    }
}

/// What the template shares, made before it exists.
#[derive(Debug)]
pub(crate) struct Prepared {
    slots: crate::shared::Slots,
    page: u32,
}

impl Prepared {
    pub(crate) fn new(requests: &Arc<RequestPages>) -> Result<Self, Error> {
        let (slots, page) = Subprocess::prepare(requests)?;
        Ok(Self { slots, page })
    }

    pub(crate) fn files<'a>(&'a self, text: &'a std::fs::File, requests: &'a RequestPages) -> Files<'a> {
        Files {
            text: text.as_fd(),
            slots: self.slots.file(),
            request: requests.file(),
            request_offset: u64::from(self.page) * crate::PAGE_SIZE,
        }
    }
}

/// Kills and reaps children that are not watched; false if that has to be tried again.
///
/// The parent of each, who did not say that it made it, is dead: no more can come. All stub processes are children
/// of the calling thread.
fn end_strangers(shared: &Shared, requests: &RequestPages) -> bool {
    let Ok(_no_birth) = shared.births.try_write() else { return false };
    let abandoned = requests.abandoned_count();
    let Ok(children) = std::fs::read_to_string("/proc/thread-self/children") else { return false };
    let known: HashSet<i32> = shared.lock().processes.values().map(|process| process.pid()).collect();
    for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        if !known.contains(&pid) {
            sys::kill_and_reap_child(pid);
        }
    }
    requests.reclaim(abandoned);
    true
}

fn run(shared: &Shared, requests: &RequestPages) {
    let mut events = [EpollEvent::empty(); 32];
    let mut has_tables = false;
    loop {
        if !has_tables && shared.tables_wanted.load(Ordering::Relaxed) {
            usertrap::prepare_tables();
            has_tables = true;
        }
        let timeout = if requests.abandoned_count() == 0 || end_strangers(shared, requests) {
            EpollTimeout::NONE
        } else {
            EpollTimeout::from(LOOK_AGAIN_MS)
        };
        let count = shared.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in &events[..count] {
            if event.data() == WAKE_KEY {
                let _ = shared.wake.read();
                continue;
            }
            let process = shared.lock().processes.remove(&event.data());
            if let Some(process) = process {
                let _ = shared.epoll.delete(process.pidfd.as_fd());
                process.bury();
            }
        }
        let state = shared.lock();
        if state.closing && state.processes.is_empty() {
            return;
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.closing = true;
            for process in state.processes.values() {
                process.kill();
            }
        }
        while self.shared.wake.write(1).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        if let Some(thread) = self.thread.take() {
            // The last handle may be dropped by a process that the reaper itself lets go.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
