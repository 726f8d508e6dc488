//! A task's way through its events: switch, serve, switch again.

use super::{AfterCall, ExitStatus, Task};
use crate::sentry::errno::Errno;
use crate::sentry::signals::deliver::ReturningCall;
use crate::sentry::syscalls;
use crate::{AddressSpace, Event, Executed, SwitchError, Syscall};

impl Task {
    /// Runs until the task has ended.
    pub(super) fn run(&mut self) -> Result<ExitStatus, SwitchError> {
        loop {
            // Not the `Mm`: how many share that says whether somebody else is in it.
            let space = self.memory().clone();
            if let Some(status) = self.run_in(&space)? {
                return Ok(status);
            }
        }
    }

    /// Runs in one address space, until the guest has ended (its status) or executed another program (`None`).
    fn run_in(&mut self, space: &AddressSpace) -> Result<Option<ExitStatus>, SwitchError> {
        loop {
            match self.context.switch(space)? {
                Event::Syscall(call) => self.serve(&call)?,
                Event::Signal(signal) => self.fault(&signal)?,
                Event::Interrupted => self.interrupted()?,
            }
            if self.exit.is_some() {
                return Ok(self.exit);
            }
            if matches!(self.after_call, AfterCall::Replaced) {
                self.after_call = AfterCall::Return;
                return Ok(None);
            }
        }
    }

    /// The guest was interrupted, maybe in a call that its stub thread made for it; or a change of its mappings failed.
    fn interrupted(&mut self) -> Result<(), SwitchError> {
        // After every other event this says nothing: the last call has been made.
        let call = match (self.context.executed(), std::mem::take(&mut self.after_call)) {
            (Some(_), AfterCall::Changed(undo)) => {
                self.mm.take_back(undo);
                None
            }
            (Some(Executed::Interrupted), AfterCall::Executed { nr, restart }) => {
                Some(ReturningCall { nr, result: restart.as_return() })
            }
            _ => None,
        };
        if call.is_some() || self.handle.attention.is_raised() {
            self.deliver_signals(call)?;
        }
        Ok(())
    }

    /// Makes one call and sets what the guest goes on with.
    fn serve(&mut self, call: &Syscall) -> Result<(), SwitchError> {
        self.observer.counts.record(call);
        self.after_call = AfterCall::Return;
        let outcome = syscalls::dispatch(self, call);
        let result = outcome.unwrap_or_else(Errno::as_return);
        if self.exit.is_some() {
            return Ok(());
        }
        match self.after_call {
            AfterCall::Return => {
                let restarts = outcome.is_err_and(Errno::is_restart);
                if !restarts && self.signals.saved_mask.is_none() && !self.handle.attention.is_raised() {
                    self.context.set_return(result);
                    return Ok(());
                }
                self.deliver_signals(Some(ReturningCall { nr: call.nr, result }))
            }
            AfterCall::ReturnFromHandler => {
                self.after_call = AfterCall::Return;
                self.return_from_handler()
            }
            // A new program: signals wait until it runs. What the stub executes may be interrupted by then.
            AfterCall::Replaced | AfterCall::Executed { .. } | AfterCall::Changed(_) => Ok(()),
        }
    }
}
