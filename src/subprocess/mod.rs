//! One stub process: its life, its leader, its stub threads.

mod gang;
mod head_start;
mod image;
mod leader;
mod placement;
mod reaper;
mod seat;
mod spin;
mod template;
mod threads;
mod turns;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

pub(crate) use gang::{Gangs, Member};
pub(crate) use image::build as build_image;
pub(crate) use leader::HostCall;
pub(crate) use placement::{Cpus, roam};
#[cfg(feature = "sentry")]
pub(crate) use placement::{adopt, confine, confined};
pub(crate) use reaper::{Prepared, Reaper};
pub(crate) use seat::STAY;
pub(crate) use spin::Spinning;
pub(crate) use template::{Plan, Reservation};
pub(crate) use threads::StubThread;
pub(crate) use turns::Leavers;
use turns::Turns;

use crate::shared::{RequestPages, Slots};
use crate::sys::{self, ChildState};
use crate::{Error, StubExit};
use leader::LeaderSeat;
use threads::ThreadPool;

/// How long a stub process may take to answer its supervisor before it is killed. Generous: it may wait for
/// a core behind hundreds of others.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// What wakes a supervisor thread that waits for a stub: a word that no stub can see. And what others may know of
/// the context it runs.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    word: AtomicU32,
    /// Written by the context's own thread only.
    turns: Turns,
    /// The stub thread's id; 0 before there is one.
    thread: AtomicI32,
}

impl Attention {
    /// An interrupt was asked for and not reported yet.
    pub(crate) const INTERRUPT: u32 = 1;
    /// The stub process that the context is attached to is dead.
    pub(crate) const DEATH: u32 = 2;
    /// The guest is to leave the trampoline it may be in, and to go on.
    pub(crate) const STEP_ASIDE: u32 = 4;

    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.word
    }

    pub(crate) fn get(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// Sets a bit and wakes whoever sleeps on the word.
    pub(crate) fn raise(&self, bit: u32) {
        if self.word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            sys::futex_wake_private(&self.word);
        }
    }

    pub(crate) fn thread(&self) -> Option<i32> {
        Some(self.thread.load(Ordering::Relaxed)).filter(|tid| *tid > 0)
    }

    pub(crate) fn set_thread(&self, tid: i32) {
        self.thread.store(tid, Ordering::Relaxed);
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Clears a bit and says whether it was set.
    pub(crate) fn take(&self, bit: u32) -> bool {
        self.word.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }
}

/// Whether the stub process's pid still names it.
#[derive(Debug)]
enum Life {
    Alive,
    Dead(StubExit),
}

/// A new process that could not be taken charge of.
#[derive(Debug)]
struct NotAdopted {
    error: Error,
    /// It certainly does not exist any more.
    gone: bool,
}

/// One stub process. Dropped by the reaper only after the process was reaped, so that nothing it shares is
/// reused before.
#[derive(Debug)]
pub(crate) struct Subprocess {
    pid: i32,
    pidfd: OwnedFd,
    /// Read-locked while the pid is used; write-locked by the reaper to declare the process dead.
    life: RwLock<Life>,
    slots: Slots,
    /// Where the stub region lies.
    base: u64,
    requests: Arc<RequestPages>,
    request_page: u32,
    leader: Mutex<LeaderSeat>,
    threads: Mutex<ThreadPool>,
    /// Contexts to wake when the process dies.
    attached: Mutex<Vec<Weak<Attention>>>,
}

impl Subprocess {
    /// The process id, for `/proc` only: it may be somebody else's once the process is dead.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Prepares everything a stub process shares, before it exists.
    fn prepare(requests: &Arc<RequestPages>) -> Result<(Slots, u32), Error> {
        Ok((Slots::new()?, requests.take()?))
    }

    /// A pidfd of the new process `pid`.
    fn open_child(pid: i32) -> Result<OwnedFd, NotAdopted> {
        let pidfd = sys::pidfd_open(pid).map_err(|source| {
            // Usually the table of open files is full. The leader said that the child is ours, and nobody else
            // knows of it.
            if source.raw_os_error() != Some(libc::ESRCH) {
                sys::kill_and_reap_child(pid);
            }
            let error = Error::host("pidfd_open of a stub process", source);
            NotAdopted { error, gone: true }
        })?;
        // Proof that the pid is a child of ours and not somebody's who got the number since.
        match sys::wait_pidfd(pidfd.as_fd(), false) {
            Ok(_) => Ok(pidfd),
            Err(_) => Err(NotAdopted { error: Error::StubDied { how: StubExit::Unknown }, gone: false }),
        }
    }

    /// Takes charge of a new process.
    fn adopt(
        pid: i32,
        pidfd: OwnedFd,
        base: u64,
        requests: &Arc<RequestPages>,
        page: u32,
        slots: Slots,
        (leader, threads): (LeaderSeat, ThreadPool),
    ) -> Arc<Self> {
        Arc::new(Self {
            pid,
            pidfd,
            life: RwLock::new(Life::Alive),
            slots,
            base,
            requests: Arc::clone(requests),
            request_page: page,
            leader: Mutex::new(leader),
            threads: Mutex::new(threads),
            attached: Mutex::new(Vec::new()),
        })
    }

    /// Makes a stub process whose guest memory is a copy-on-write copy of this one's.
    ///
    /// The shared areas are not inherited (MADV_DONTFORK); the child maps its own before it waits on anything.
    ///
    /// `to_be_filled`: the leader of the child stays awake for a moment, for it will be asked to map a program.
    pub(crate) fn clone_process(
        &self,
        reaper: &Reaper,
        supervisor: i32,
        to_be_filled: bool,
    ) -> Result<Arc<Self>, Error> {
        use std::os::fd::AsRawFd;
        use systrap_stub::code::leader::CLONE_PROCESS_FLAGS;
        if let Some(how) = self.exit() {
            return Err(Error::StubDied { how });
        }
        let (slots, page) = Self::prepare(&self.requests)?;
        let offset = u64::from(page) * crate::PAGE_SIZE;
        let memfd = slots.file().as_raw_fd() as u64;
        let request_fd = self.requests.file().as_raw_fd() as u64;
        // Whoever makes a process runs a thread in it.
        let first_thread = Self::prepare_first_thread(&slots, self.base);
        Self::request_at_birth(&self.requests, page, &first_thread, to_be_filled);
        let args = [CLONE_PROCESS_FLAGS, 0, memfd, offset, supervisor as u64, request_fd];
        let call = HostCall { what: "clone", nr: libc::SYS_clone, args };
        let birth = reaper.birth();
        let (pid, cpu) = match self.host_call_somewhere(&call) {
            Ok((pid, cpu)) => (i32::try_from(pid).unwrap_or(-1), cpu),
            // The leader itself says that there is no child.
            Err(error @ Error::Stub { .. }) => {
                self.requests.give_back(page);
                return Err(error);
            }
            // This process ended between the clone and the answer, perhaps: somebody may hold page and descriptor.
            Err(error) => {
                self.kill();
                self.wait_dead(ANSWER_DEADLINE);
                self.requests.abandon(page, slots);
                drop(birth);
                reaper.expect_stranger();
                return Err(error);
            }
        };
        let pidfd = match Self::open_child(pid) {
            Ok(pidfd) => pidfd,
            Err(NotAdopted { error, gone: true }) => {
                self.requests.give_back(page);
                return Err(error);
            }
            Err(NotAdopted { error, gone: false }) => {
                self.requests.abandon(page, slots);
                drop(birth);
                reaper.expect_stranger();
                return Err(error);
            }
        };
        let inner = (LeaderSeat::with_request_at_birth(cpu), ThreadPool::with_first_thread());
        let child = Self::adopt(pid, pidfd, self.base, &self.requests, page, slots, inner);
        reaper.watch(&child)?;
        drop(birth);
        match child.wait_for_hello() {
            Ok(()) => Ok(child),
            Err(error) => {
                child.kill();
                Err(error)
            }
        }
    }

    /// Holds the process's pid valid while the guard lives.
    pub(crate) fn hold_alive(&self) -> Result<RwLockReadGuard<'_, impl Sized>, StubExit> {
        let life = self.life.read().unwrap_or_else(PoisonError::into_inner);
        match *life {
            Life::Alive => Ok(life),
            Life::Dead(how) => Err(how),
        }
    }

    pub(crate) fn exit(&self) -> Option<StubExit> {
        match *self.life.read().unwrap_or_else(PoisonError::into_inner) {
            Life::Alive => None,
            Life::Dead(how) => Some(how),
        }
    }

    /// Sends SIGKILL. The reaper does the rest.
    pub(crate) fn kill(&self) {
        // An error means that it is dead already.
        let _ = sys::pidfd_kill(self.pidfd.as_fd());
    }

    /// Waits until the process has been reaped.
    pub(crate) fn wait_dead(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let leader = self.slots.leader();
        while self.exit().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            let hint = leader.hint.load(Ordering::Relaxed);
            sys::futex_wait_shared(&leader.hint, hint, Duration::from_millis(1));
        }
        true
    }

    /// Registers a context to be told of the death of the process.
    pub(crate) fn attach(&self, attention: &Arc<Attention>) -> Result<(), StubExit> {
        self.lock_attached().push(Arc::downgrade(attention));
        match self.exit() {
            None => Ok(()),
            Some(how) => Err(how),
        }
    }

    /// Undoes `attach`.
    pub(crate) fn detach(&self, attention: &Arc<Attention>) {
        self.lock_attached().retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(attention)));
        attention.take(Attention::DEATH);
    }

    /// How many contexts are attached.
    pub(crate) fn attached_count(&self) -> usize {
        self.lock_attached().len()
    }

    /// The contexts that run at this moment.
    pub(crate) fn running(&self) -> Leavers {
        Leavers::of(&self.lock_attached())
    }

    fn lock_attached(&self) -> MutexGuard<'_, Vec<Weak<Attention>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the reaper when the pidfd says that the process has ended.
    fn bury(&self) {
        let how = match sys::wait_pidfd(self.pidfd.as_fd(), false) {
            Ok(ChildState::Exited(code)) => StubExit::Code(code),
            Ok(ChildState::Killed(signal)) => StubExit::Signal(signal),
            Ok(ChildState::Running) | Err(_) => StubExit::Unknown,
        };
        *self.life.write().unwrap_or_else(PoisonError::into_inner) = Life::Dead(how);
        // Only now may the pid become somebody else's.
        let _ = sys::wait_pidfd(self.pidfd.as_fd(), true);
        for attention in self.lock_attached().iter().filter_map(Weak::upgrade) {
            attention.raise(Attention::DEATH);
        }
        sys::futex_wake_shared(&self.slots.leader().hint);
    }
}

impl Drop for Subprocess {
    fn drop(&mut self) {
        // Dead and reaped in every case but a failed `reaper.watch`.
        if self.exit().is_none() {
            self.kill();
            sys::reap_pidfd(self.pidfd.as_fd());
        }
        self.requests.give_back(self.request_page);
    }
}

/// Whether a signal is one of the synchronous ones that a stub thread reports.
pub(crate) fn is_fault_signal(signo: i32) -> bool {
    matches!(signo, libc::SIGSEGV | libc::SIGBUS | libc::SIGFPE | libc::SIGTRAP | libc::SIGILL)
}
