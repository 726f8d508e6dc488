//! Stub threads: one per context for as long as the context stays; pooled afterwards.

use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use systrap_stub::code::leader::CLONE_THREAD_FLAGS;
use systrap_stub::layout::{MAX_SLOTS, SLOT_SIZE, SYSMSG};
use systrap_stub::sysmsg::Sysmsg;
use systrap_stub::wire;

use super::head_start::HeadStart;
use super::placement::Cpus;
use super::seat::{Seat, Sitter};
use super::spin::Spinning;
use super::{ANSWER_DEADLINE, HostCall, Subprocess};
use crate::shared::{SLOT_STEP, Slots};
use crate::{Error, sys};

/// The slot of the thread that a process is born with.
const FIRST_SLOT: u32 = 1;

/// How long a stub thread sleeps at most before it looks again.
const STUB_SLEEP_NS: u64 = 500_000_000;

/// The slots of an address space and who has them. Slot 0 is the leader's.
#[derive(Debug)]
pub(crate) struct ThreadPool {
    /// Threads that wait for a RESUME_FULL: slot and thread id.
    parked: Vec<Parked>,
    /// The thread that a process is born with, when nobody has taken it.
    first: Option<Parked>,
    /// Slots for which no thread could be made.
    vacant: Vec<u32>,
    /// Slots that never had a thread begin here.
    untouched: u32,
    /// Slots that exist in the memfd.
    usable: u32,
}

/// A thread that nobody has.
#[derive(Debug)]
struct Parked {
    slot: u32,
    tid: i32,
    /// Where it is confined to.
    cpu: Option<u32>,
}

impl ThreadPool {
    pub(super) fn new() -> Self {
        Self { parked: Vec::new(), first: None, vacant: Vec::new(), untouched: 1, usable: SLOT_STEP }
    }

    /// That of a process whose leader makes a thread before it is asked to.
    pub(super) fn with_first_thread() -> Self {
        Self { untouched: FIRST_SLOT + 1, ..Self::new() }
    }
}

/// A stub thread in the hands of one context. It waits for a reply whenever nobody runs it.
#[derive(Debug)]
pub(crate) struct StubThread {
    process: Arc<Subprocess>,
    slot: u32,
    tid: i32,
    spinning: Spinning,
    seat: Seat,
}

impl StubThread {
    fn new(process: &Arc<Subprocess>, slot: u32, tid: i32, cpu: Option<u32>) -> Self {
        let spinning = Spinning::new(HeadStart::measured());
        Self { process: Arc::clone(process), slot, tid, spinning, seat: Seat::new(cpu) }
    }

    pub(crate) fn spinning(&self) -> &Spinning {
        &self.spinning
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    pub(crate) fn process(&self) -> &Arc<Subprocess> {
        &self.process
    }

    pub(crate) fn sysmsg(&self) -> &Sysmsg {
        self.process.slots().sysmsg(self.slot)
    }

    /// The host's id of the thread.
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// The slot's address in the stub process.
    pub(crate) fn stub_addr(&self) -> u64 {
        self.process.base() + SYSMSG + u64::from(self.slot) * SLOT_SIZE
    }

    /// Sends the interrupt signal to this thread, if its process lives.
    pub(crate) fn kick(&self) {
        if let Ok(_alive) = self.process.hold_alive() {
            // ESRCH means that the thread is gone; the process's death or the deadline will tell.
            let _ =
                sys::tgkill(self.process.pid(), self.tid, systrap_stub::code::sighandler::INTERRUPT_SIGNAL);
        }
    }

    /// Gives the thread back. It must be waiting for a reply.
    pub(crate) fn park(self) {
        let mut pool = self.process.threads.lock().unwrap_or_else(PoisonError::into_inner);
        pool.parked.push(Parked { slot: self.slot, tid: self.tid, cpu: self.seat.cpu() });
    }
}

impl Sitter for StubThread {
    fn id(&self) -> u32 {
        self.tid.unsigned_abs()
    }

    fn confine(&self, cpu: u32) -> bool {
        self.process.confine(self.tid, cpu).is_some()
    }

    fn let_roam(&self, cpus: &Cpus) {
        self.process.let_roam(self.tid, cpus);
    }
}

impl Subprocess {
    /// A stub thread that waits for a RESUME_FULL.
    pub(crate) fn take_thread(self: &Arc<Self>) -> Result<StubThread, Error> {
        // The leader has no more to do in a hurry.
        self.let_leader_sleep();
        let slot = {
            // The first thread is known when the leader has the time to make another.
            let _seat = self.sit()?;
            let mut pool = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(first) = pool.first.take() {
                drop(pool);
                return self.wait_until_ready(&first);
            }
            if let Some(Parked { slot, tid, cpu }) = pool.parked.pop() {
                // As a new thread's: the budgets begin anew.
                let sysmsg = self.slots.sysmsg(slot);
                sysmsg.spin.store(0, Ordering::Relaxed);
                sysmsg.head_start.store(0, Ordering::Relaxed);
                return Ok(StubThread::new(self, slot, tid, cpu));
            }
            if let Some(slot) = pool.vacant.pop() { slot } else { self.new_slot(&mut pool)? }
        };
        self.start_thread(slot).inspect_err(|error| {
            // The host refused: no thread knows of the slot.
            if matches!(error, Error::Stub { .. }) {
                self.threads.lock().unwrap_or_else(PoisonError::into_inner).vacant.push(slot);
            }
        })
    }

    fn new_slot(&self, pool: &mut ThreadPool) -> Result<u32, Error> {
        let slot = pool.untouched;
        if u64::from(slot) == MAX_SLOTS {
            return Err(Error::TooMany { what: "stub threads in an address space", limit: MAX_SLOTS - 1 });
        }
        if slot == pool.usable {
            let usable = pool.usable + SLOT_STEP;
            self.slots.grow(usable).map_err(|source| Error::host("growing the sysmsg memfd", source))?;
            pool.usable = usable;
        }
        pool.untouched += 1;
        Ok(slot)
    }

    /// Makes a stub thread in a slot that never had one.
    fn start_thread(self: &Arc<Self>, slot: u32) -> Result<StubThread, Error> {
        let call = Self::prepare_thread(self.slots.sysmsg(slot), self.base, slot);
        let (tid, cpu) = self.host_call_somewhere(&call)?;
        self.wait_until_ready(&Parked { slot, tid: i32::try_from(tid).unwrap_or(-1), cpu })
    }

    /// Prepares the call by which the leader of a process that does not exist yet makes its first thread.
    pub(super) fn prepare_first_thread(slots: &Slots, base: u64) -> HostCall {
        Self::prepare_thread(slots.sysmsg(FIRST_SLOT), base, FIRST_SLOT)
    }

    /// The leader has made the thread that it was born to make, or could not.
    pub(super) fn first_thread_is_made(&self, tid: Option<i32>, cpu: Option<u32>) {
        let mut pool = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        match tid {
            Some(tid) => pool.first = Some(Parked { slot: FIRST_SLOT, tid, cpu }),
            // Whoever wants it will ask again, and hear why not.
            None => pool.vacant.push(FIRST_SLOT),
        }
    }

    /// Prepares a slot for its thread, and the call that makes it.
    fn prepare_thread(sysmsg: &Sysmsg, base: u64, slot: u32) -> HostCall {
        sysmsg.sleep_timeout.nsec.store(STUB_SLEEP_NS, Ordering::Relaxed);
        let stack = base + SYSMSG + u64::from(slot) * SLOT_SIZE;
        let scratch_top = offset_of!(Sysmsg, scratch) + size_of_val(&sysmsg.scratch);
        sysmsg.scratch_top.store(stack + scratch_top as u64, Ordering::Relaxed);
        sysmsg.supervisor_sleeps.store(1, Ordering::SeqCst);
        let args = [CLONE_THREAD_FLAGS, stack, 0, 0, 0, 0];
        HostCall { what: "clone of a stub thread", nr: libc::SYS_clone, args }
    }

    fn wait_until_ready(self: &Arc<Self>, new: &Parked) -> Result<StubThread, Error> {
        let sysmsg = self.slots.sysmsg(new.slot);
        let thread = StubThread::new(self, new.slot, new.tid, new.cpu);
        // READY is a hint like everything in the slot: whoever forges it harms its own address space only.
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            let state = sysmsg.line.state.load(Ordering::Acquire);
            if state == wire::READY {
                sysmsg.supervisor_sleeps.store(0, Ordering::Relaxed);
                return Ok(thread);
            }
            if let Some(how) = self.exit() {
                return Err(Error::StubDied { how });
            }
            if Instant::now() > deadline {
                self.kill();
                return Err(Error::StubSilent { seconds: ANSWER_DEADLINE.as_secs() });
            }
            if state == wire::RESUME {
                sys::futex_wait_shared(&sysmsg.line.state, state, Duration::from_millis(10));
            } else {
                // Somebody scribbles: no busy loop on his account.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
