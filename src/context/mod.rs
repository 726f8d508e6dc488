//! The execution state of one guest thread, and how it is run.

mod answers;
mod copy;
mod execute;
mod handoff;
mod interrupt;
mod memory;
mod patched;
mod sent;
mod state;
mod switch;

use std::sync::Arc;

use systrap_stub::wire;

use answers::Answers;
pub use answers::PassedCalls;
pub use execute::Executed;
use execute::{Executing, StubCall};
pub(crate) use handoff::HandOff;
pub use interrupt::Interrupter;
pub use memory::{ContextMemory, Made, MemoryOnReturn};
pub use sent::SentArguments;
use state::FullState;

use crate::address_space::SpaceInner;
use crate::platform::Inner;
use crate::stats::{RecentSites, Registered};
use crate::subprocess::{Attention, Member, StubThread};
use crate::{Error, Registers};

/// The execution state of one guest thread; the counterpart of gVisor's `platform.Context`.
///
/// While it stays in one address space its registers stay in a stub thread and are only copied on demand:
/// see [`Context::pull_full_state`].
#[derive(Debug)]
pub struct Context {
    platform: Arc<Inner>,
    attention: Arc<Attention>,
    home: Option<Home>,
    full: FullState,
    /// `full` is the guest's state as of the last event.
    pulled: bool,
    /// `full` differs from what the stub thread holds.
    changed: bool,
    /// The result that the next switch gives to the call that the last one returned.
    result: i64,
    /// What the stub thread does for the guest before it goes on.
    executing: Executing,
    host_call: StubCall,
    /// What became of that, if it was not the result of the guest's call.
    executed: Option<Executed>,
    counts: Registered,
    answers: Answers,
    /// The last event is a call that brought something along, as far as its number and its way say.
    brought: bool,
    recent_sites: RecentSites,
    turn: Member,
}

/// The stub thread that holds a context's registers.
#[derive(Debug)]
struct Home {
    space: Arc<SpaceInner>,
    thread: StubThread,
    stop: Stop,
}

/// What the stub thread of a home waits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It has no guest state yet: the next reply has to be RESUME_FULL.
    Empty,
    /// A 64-bit call whose result the next reply carries.
    Call,
    /// An i386 or vsyscall call: as `Call`, but rcx and r11 are not clobbered.
    OtherCall,
    /// A fault or an interrupt: the guest goes on where it is.
    Plain,
    /// A call through a patched site: the registers are where the guest left them.
    Patched,
    /// The same after SPILL: the registers are in the state area.
    Spilled,
}

impl Context {
    pub(crate) fn new(platform: Arc<Inner>) -> Self {
        let full = FullState::initial(&platform.xstate);
        let counts = platform.counters.register();
        Self {
            platform,
            attention: Arc::default(),
            home: None,
            full,
            pulled: true,
            changed: true,
            result: -i64::from(libc::ENOSYS),
            executing: Executing::Nothing,
            host_call: StubCall::default(),
            executed: None,
            counts,
            answers: Answers::default(),
            brought: false,
            recent_sites: RecentSites::new(),
            turn: Member::default(),
        }
    }

    /// Sets the result of the system call that the last switch returned: what the guest finds in rax.
    ///
    /// Without it a call returns `-ENOSYS`. After an event that was no call it has no effect.
    pub fn set_return(&mut self, value: i64) {
        self.result = value;
        if self.executing == Executing::Copy {
            self.host_call.args[0] = value as u64;
        }
        if self.pulled && self.in_call() {
            self.full.regs.rax = value as u64;
        }
    }

    fn in_call(&self) -> bool {
        matches!(
            &self.home,
            Some(Home { stop: Stop::Call | Stop::OtherCall | Stop::Patched | Stop::Spilled, .. })
        )
    }

    /// The general registers.
    ///
    /// # Panics
    ///
    /// If the state was not pulled since the last event; see [`Context::pull_full_state`].
    #[must_use]
    pub fn registers(&self) -> &Registers {
        assert!(self.pulled, "call pull_full_state before looking at the registers");
        &self.full.regs
    }

    /// The general registers, to be changed before the next switch (gVisor `FullStateChanged`). After a call,
    /// `rax` set here is the result.
    ///
    /// # Panics
    ///
    /// As [`Context::registers`].
    pub fn registers_mut(&mut self) -> &mut Registers {
        assert!(self.pulled, "call pull_full_state before changing the registers");
        self.changed = true;
        &mut self.full.regs
    }

    /// The xsave image in the standard format, as a signal frame holds it, without the second magic number.
    ///
    /// # Panics
    ///
    /// As [`Context::registers`].
    #[must_use]
    pub fn xstate(&self) -> &[u8] {
        assert!(self.pulled, "call pull_full_state before looking at the vector state");
        self.full.xstate_bytes(&self.platform.xstate)
    }

    /// The xsave image, to be changed before the next switch. Whatever is written is made loadable first.
    ///
    /// # Panics
    ///
    /// As [`Context::registers`].
    pub fn xstate_mut(&mut self) -> &mut [u8] {
        assert!(self.pulled, "call pull_full_state before changing the vector state");
        self.changed = true;
        self.full.xstate_bytes_mut(&self.platform.xstate)
    }

    /// Marks the full state as changed (gVisor `FullStateChanged`): the next switch loads all of it.
    /// [`Context::registers_mut`] and [`Context::xstate_mut`] do so by themselves.
    ///
    /// # Panics
    ///
    /// As [`Context::registers`].
    pub fn full_state_changed(&mut self) {
        assert!(self.pulled, "call pull_full_state before declaring the state changed");
        self.changed = true;
    }

    /// Another context with the same state, as for a new guest thread.
    ///
    /// # Errors
    ///
    /// As [`Systrap::new_context`](crate::Systrap::new_context).
    ///
    /// # Panics
    ///
    /// As [`Context::registers`].
    pub fn duplicate(&self) -> Result<Context, Error> {
        assert!(self.pulled, "call pull_full_state before duplicating a context");
        let mut other = Context::new(Arc::clone(&self.platform));
        other.full = self.full.clone();
        Ok(other)
    }

    /// A handle by which any thread can interrupt this context.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        Interrupter::new(Arc::clone(&self.attention))
    }

    /// Lets go of the address space: the state moves into the context, the stub thread into its pool
    /// (gVisor `Release`; dropping the context does the same but for the state).
    ///
    /// # Errors
    ///
    /// As [`Context::pull_full_state`].
    pub fn release(&mut self) -> Result<(), crate::SwitchError> {
        self.execute_at_once()?;
        self.pull_full_state()?;
        self.leave_home();
        Ok(())
    }

    /// Lets go of an address space that ends with this: the state is lost, and the stub thread is not brought to where
    /// another context could take it.
    #[cfg(feature = "sentry")]
    pub(crate) fn leave_for_good(&mut self) {
        self.count_answers();
        self.abandon_home();
    }

    fn leave_home(&mut self) {
        self.cool();
        self.count_answers();
        if let Some(home) = self.home.take() {
            crate::patching::forget_changes(&home.space, self.key());
            home.space.process.detach(&self.attention);
            // A pooled thread waits in the loop that knows all replies, not in the syshandler's.
            let spilled = home.stop != Stop::Patched
                || HandOff::detached(&self.platform, &home.thread).exchange(wire::SPILL).is_ok();
            if spilled && home.space.process.exit().is_none() {
                home.thread.park();
            }
            self.changed = true;
        }
    }

    /// What tells this context from others.
    fn key(&self) -> crate::patching::ContextKey {
        crate::patching::ContextKey::of(Arc::as_ptr(&self.attention))
    }

    /// The guest is about to run. If others want the CPUs this waits for them first, for a bounded time.
    fn heat(&mut self) {
        let is_quick = || self.home.as_ref().is_some_and(|home| home.thread.seat().is_quick());
        if self.turn.gives_way(&self.platform.gangs, is_quick) {
            self.prepare_sleep();
        }
        self.turn.heat(&self.platform.gangs);
    }

    fn cool(&mut self) {
        self.turn.cool(&self.platform.gangs);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.leave_home();
        crate::subprocess::roam();
        self.platform.counters.unregister(&self.counts);
    }
}
