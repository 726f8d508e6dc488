//! Running a guest until its next event.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use systrap_stub::wire::{self, StubEvent};

use super::patched::Settled;
use super::{Context, Executing, HandOff, Home, Stop};
use crate::patching;
use crate::stats::RecentSites;
use crate::subprocess::Attention;
use crate::{AddressSpace, Arch, Entry, Error, Event, GuestAddr, Patching, Signal, SwitchError, Syscall};

impl Context {
    /// Runs the guest in `aspace` until its next event (gVisor `Context.Switch`).
    ///
    /// The result of a call that the last switch returned is given by [`Context::set_return`] before. A context
    /// that was in another address space moves with its whole state.
    ///
    /// # Errors
    ///
    /// [`SwitchError`]; what the guest does is an [`Event`].
    pub fn switch(&mut self, aspace: &AddressSpace) -> Result<Event, SwitchError> {
        self.executed = None;
        self.brought = false;
        if self.executing != Executing::Nothing && !self.can_execute(aspace) && self.execute_at_once()? {
            return Ok(Event::Interrupted);
        }
        // A load first: the locked instruction would cost every call some nanoseconds.
        let seen = self.attention.get();
        if seen & Attention::STEP_ASIDE != 0 {
            // It stands, which is as good.
            self.attention.take(Attention::STEP_ASIDE);
        }
        if seen & Attention::INTERRUPT != 0 && self.attention.take(Attention::INTERRUPT) {
            self.execute_at_once()?;
            return Ok(Event::Interrupted);
        }
        self.heat();
        let mut reply = self.prepare_reply(aspace)?;
        self.attention.turns().begin();
        loop {
            let Some(home) = &self.home else { return Err(SwitchError::BadState { what: "no stub thread" }) };
            self.pulled = false;
            self.changed = false;
            let hand_off = HandOff::attached(&self.platform, &home.thread, &self.attention);
            let executing = std::mem::take(&mut self.executing);
            let event = match executing.reply() {
                None => hand_off.exchange_result(reply, self.result as u64),
                Some(reply) => hand_off.exchange_call(reply, self.host_call.nr, self.host_call.args),
            };
            let event = match event {
                Ok(StubEvent::Done) if executing != Executing::Nothing => {
                    match self.came_back(executing)? {
                        Settled::Event(event) => return Ok(event),
                        Settled::GoOn(next) => reply = next,
                    }
                    continue;
                }
                Ok(event) => self.decode(event)?,
                Err(error) => {
                    self.abandon_home();
                    return Err(error);
                }
            };
            match self.settle(event)? {
                Settled::Event(event) => return Ok(event),
                Settled::GoOn(next) => reply = next,
            }
        }
    }

    /// Makes the complete state available to [`Context::registers`] and [`Context::xstate`] (gVisor
    /// `PullFullState`). Cheap if it was done since the last event.
    ///
    /// # Errors
    ///
    /// [`SwitchError::StubDied`], or [`SwitchError::StubCorrupted`] if the stub thread does not hold a state.
    pub fn pull_full_state(&mut self) -> Result<(), SwitchError> {
        if self.pulled {
            return Ok(());
        }
        self.count_answers();
        let Some(home) = &self.home else { return Err(SwitchError::BadState { what: "the state was lost" }) };
        if let Some(how) = home.thread.process().exit() {
            return Err(SwitchError::StubDied { how });
        }
        let hand_off = HandOff::detached(&self.platform, &home.thread);
        let read = match home.stop {
            Stop::Patched => match hand_off.exchange(wire::SPILL) {
                Ok(StubEvent::Spilled) => {
                    self.full.read_area(&home.thread, &self.platform.xstate);
                    Ok(Stop::Spilled)
                }
                Ok(_) => Err(hand_off.corrupted("an event that answers nothing")),
                Err(error) => Err(error),
            },
            // A host call failed that the syshandler made for its guest.
            Stop::Spilled => {
                self.full.read_area(&home.thread, &self.platform.xstate);
                Ok(Stop::Spilled)
            }
            stop => match self.full.read_frame(&home.thread, &self.platform.xstate) {
                Ok(()) => Ok(stop),
                Err(what) => Err(hand_off.corrupted(what)),
            },
        };
        let stop = match read {
            Ok(stop) => stop,
            Err(error) => {
                self.abandon_home();
                return Err(error);
            }
        };
        if let Some(home) = &mut self.home {
            home.stop = stop;
        }
        let regs = &mut self.full.regs;
        match stop {
            Stop::Call | Stop::Spilled => {
                regs.rax = self.result as u64;
                regs.rcx = regs.rip;
                regs.r11 = regs.rflags;
            }
            Stop::OtherCall => regs.rax = self.result as u64,
            Stop::Plain | Stop::Empty | Stop::Patched => {}
        }
        self.pulled = true;
        Ok(())
    }

    /// Tells the stub thread to sleep at once instead of spinning for the result: for a supervisor that is about to
    /// block (gVisor `PrepareSleep`).
    pub fn prepare_sleep(&mut self) {
        self.cool();
        let Some(home) = &mut self.home else { return };
        home.thread.seat().leave(&self.platform.places);
        let line = &home.thread.sysmsg().line;
        if home.stop != Stop::Empty && home.thread.spinning().doze() {
            let state = line.state.load(Ordering::Acquire);
            if !wire::is_reply(state) {
                // The stub puts the event back unless the reply is there by then.
                let _ = line.state.compare_exchange(state, wire::SLEEP, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// Sees to it that there is a stub thread of `aspace`, and says by which reply it goes on.
    fn prepare_reply(&mut self, aspace: &AddressSpace) -> Result<u32, SwitchError> {
        if !Arc::ptr_eq(&aspace.inner.platform, &self.platform) {
            return Err(Error::ForeignAddressSpace.into());
        }
        let moves =
            self.home.as_ref().is_some_and(|home| !Arc::ptr_eq(&home.space.process, &aspace.inner.process));
        if moves {
            self.release()?;
        }
        if self.home.is_none() {
            if !self.pulled {
                return Err(SwitchError::BadState { what: "the state was lost with its stub process" });
            }
            let process = &aspace.inner.process;
            {
                // A patch that is being written relies on who is attached.
                let _books = patching::lock(&aspace.inner);
                process.attach(&self.attention).map_err(|how| SwitchError::StubDied { how })?;
            }
            let thread = match process.take_thread() {
                Ok(thread) => thread,
                Err(error) => {
                    process.detach(&self.attention);
                    return Err(error.into());
                }
            };
            self.answers.enter(thread.sysmsg());
            self.attention.set_thread(thread.tid());
            let space = Arc::clone(&aspace.inner);
            self.home = Some(Home { space, thread, stop: Stop::Empty });
            self.recent_sites = RecentSites::new();
            self.changed = true;
        }
        if self.changed {
            self.load_state()?;
            Ok(wire::RESUME_FULL)
        } else {
            Ok(wire::RESUME)
        }
    }

    /// Puts the full state where RESUME_FULL takes it from.
    pub(super) fn load_state(&mut self) -> Result<(), SwitchError> {
        let Some(home) = &self.home else { return Err(SwitchError::BadState { what: "no stub thread" }) };
        let regs = &mut self.full.regs;
        if regs.gs_base != 0 && patching::lock(&home.space).mode() != Patching::Off {
            // The syshandler needs %gs: from here on this address space traps.
            patching::drop_all(&home.space, Patching::Off);
        }
        regs.rip = patching::resume_at(&home.space, regs.rip);
        self.full
            .write_area(&home.thread, &self.platform.xstate)
            .map_err(|what| SwitchError::BadState { what })
    }

    /// Turns what the stub wrote into an event. Every word is read once.
    fn decode(&mut self, event: StubEvent) -> Result<Event, SwitchError> {
        let Some(home) = &mut self.home else { return Err(SwitchError::BadState { what: "no stub thread" }) };
        let line = &home.thread.sysmsg().line;
        let args = || {
            let mut args = [0_u64; 6];
            for (arg, shared) in args.iter_mut().zip(&line.args) {
                *arg = shared.load(Ordering::Relaxed);
            }
            args
        };
        let ip = GuestAddr::new(line.rip.load(Ordering::Relaxed));
        let nr = line.nr.load(Ordering::Relaxed);
        let (arch, entry, stop) = match event {
            StubEvent::Patched => (Arch::X86_64, Entry::Patched, Stop::Patched),
            StubEvent::Trapped => (Arch::X86_64, Entry::Trapped, Stop::Call),
            StubEvent::Compat => (Arch::I386, Entry::Trapped, Stop::OtherCall),
            StubEvent::Vsyscall => (Arch::X86_64, Entry::Vsyscall, Stop::OtherCall),
            StubEvent::Fault => {
                home.stop = Stop::Plain;
                let [code, addr, trapno, error_code, cr2, _] = args();
                let signo = match i32::try_from(nr) {
                    Ok(signo) if crate::subprocess::is_fault_signal(signo) => signo,
                    _ => return Err(self.corrupt("a fault without a signal")),
                };
                let code = code as i32;
                return Ok(Event::Signal(Signal {
                    signo,
                    code,
                    addr: GuestAddr::new(addr),
                    trapno,
                    error_code,
                    cr2,
                    ip,
                }));
            }
            StubEvent::Interrupted => {
                home.stop = Stop::Plain;
                return Ok(Event::Interrupted);
            }
            StubEvent::StubFault => return Err(self.corrupt("a fault in the stub's code")),
            StubEvent::Ready | StubEvent::Spilled | StubEvent::Done => {
                return Err(self.corrupt("an event that answers nothing"));
            }
        };
        home.stop = stop;
        match entry {
            Entry::Patched => self.counts.local.count_patched(),
            Entry::Trapped | Entry::Vsyscall => self.counts.local.count_trapped(),
        }
        self.result = -i64::from(libc::ENOSYS);
        self.brought = entry == Entry::Patched && self.answers.sends(nr);
        Ok(Event::Syscall(Syscall { nr, args: args(), ip, arch, entry }))
    }

    pub(super) fn corrupt(&mut self, what: &'static str) -> SwitchError {
        let error = match &self.home {
            Some(home) => HandOff::detached(&self.platform, &home.thread).corrupted(what),
            None => SwitchError::StubCorrupted { what },
        };
        self.abandon_home();
        error
    }

    /// Lets go of a stub thread whose process is dead or dying.
    pub(super) fn abandon_home(&mut self) {
        self.cool();
        if let Some(home) = self.home.take() {
            patching::forget_changes(&home.space, self.key());
            home.space.process.detach(&self.attention);
            self.attention.turns().end();
        }
    }
}
