//! The hooks of a guest, and those of one task with what they keep of it.

use super::call::Facts;
use super::slot::Slots;
use super::{Call, CallEnd, CallSet, DeliveredSignal, Hook, Slot, TaskId, Verdict};
use crate::Syscall;
use crate::sentry::errno::Errno;
use crate::sentry::kernel::Kernel;
use crate::sentry::process::lock;
use crate::sentry::syscalls::{Parameter, SysResult};
use crate::sentry::task::{AfterCall, ExitStatus, Task};
use std::any::Any;
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A hook, whatever the type of its states.
pub(crate) trait AnyHook: Send + Sync {
    fn wanted_calls(&self) -> CallSet;
    fn attach(self: Arc<Self>, task: TaskId, parent: Option<&dyn Any>) -> Box<dyn TaskHook>;
}

impl<H: Hook> AnyHook for H {
    fn wanted_calls(&self) -> CallSet {
        self.calls()
    }

    fn attach(self: Arc<Self>, task: TaskId, parent: Option<&dyn Any>) -> Box<dyn TaskHook> {
        let mut state = H::TaskState::default();
        self.task_started(task, &mut state, parent.and_then(<dyn Any>::downcast_ref));
        Box::new(Attached { hook: self, state })
    }
}

/// A hook with its state of one task.
pub(crate) trait TaskHook: Send {
    fn state(&self) -> &dyn Any;
    fn before(&mut self, call: &mut Call<'_>) -> Verdict;
    fn after(&mut self, call: &mut Call<'_>);
    fn program_started(&mut self, task: TaskId, executable: &Path);
    fn signal(&mut self, task: TaskId, signal: &DeliveredSignal);
    fn task_ended(&mut self, task: TaskId, status: ExitStatus);
}

struct Attached<H: Hook> {
    hook: Arc<H>,
    state: H::TaskState,
}

impl<H: Hook> TaskHook for Attached<H> {
    fn state(&self) -> &dyn Any {
        &self.state
    }

    fn before(&mut self, call: &mut Call<'_>) -> Verdict {
        self.hook.before(&mut self.state, call)
    }

    fn after(&mut self, call: &mut Call<'_>) {
        self.hook.after(&mut self.state, call);
    }

    fn program_started(&mut self, task: TaskId, executable: &Path) {
        self.hook.program_started(task, &mut self.state, executable);
    }

    fn signal(&mut self, task: TaskId, signal: &DeliveredSignal) {
        self.hook.signal(task, &mut self.state, signal);
    }

    fn task_ended(&mut self, task: TaskId, status: ExitStatus) {
        self.hook.task_ended(task, &mut self.state, status);
    }
}

/// Calls into a hook; the message of a panic.
fn try_hook<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // What the hook was about to change is its own; the guest that it was about ends.
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        // The payload's own destructor may panic.
        std::mem::forget(payload);
        text.unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

/// Calls into a hook; a panic ends the guest.
fn guard<T>(kernel: &Kernel, call: impl FnOnce() -> T) -> Option<T> {
    try_hook(call)
        .map_err(|message| {
            lock(&kernel.hooks.panic).get_or_insert(message);
            kernel.kill_all();
        })
        .ok()
}

/// The hooks of a guest, the outermost first, each with the calls that it wants to see.
#[derive(Default)]
pub(crate) struct GuestHooks {
    list: Vec<(CallSet, Arc<dyn AnyHook>)>,
    panic: Mutex<Option<String>>,
}

impl GuestHooks {
    /// Asks each hook for its calls; the message of one that panics is the error.
    pub(crate) fn new(hooks: Vec<Arc<dyn AnyHook>>) -> Result<Self, String> {
        let ask = |hook: Arc<dyn AnyHook>| try_hook(|| hook.wanted_calls()).map(|calls| (calls, hook));
        let list = hooks.into_iter().map(ask).collect::<Result<_, _>>()?;
        Ok(Self { list, panic: Mutex::default() })
    }

    /// What the first hook that panicked said.
    pub(crate) fn panic_message(&self) -> Option<String> {
        lock(&self.panic).clone()
    }
}

/// The hooks of one task.
pub(crate) struct TaskHooks {
    /// Empty while one of them is called.
    list: Vec<(CallSet, Box<dyn TaskHook>)>,
    /// The calls that any of them wants to see.
    wanted: CallSet,
    /// A call that one of them sees is being made.
    is_watching: bool,
    task: TaskId,
}

impl TaskHooks {
    /// Tells the hooks of a new task. Not to be called with a lock held.
    pub(crate) fn attach(kernel: &Kernel, task: TaskId, parent: Option<&TaskHooks>) -> Self {
        let mut wanted = CallSet::NONE;
        let mut list = Vec::with_capacity(kernel.hooks.list.len());
        for (index, (calls, hook)) in kernel.hooks.list.iter().enumerate() {
            let parent = parent.and_then(|parent| parent.list.get(index)).map(|(_, hook)| hook.state());
            let hook = Arc::clone(hook);
            // After a panic the guest ends, and its calls are made no more.
            let Some(hook) = guard(kernel, || hook.attach(task, parent)) else { break };
            wanted = wanted.union(*calls);
            list.push((*calls, hook));
        }
        Self { list, wanted, is_watching: false, task }
    }

    /// Whether a hook wants to see the call.
    #[inline]
    pub(crate) fn want(&self, call: &Syscall) -> bool {
        self.wanted.covers(call)
    }

    /// The calls that hooks want to see.
    pub(crate) fn wanted(&self) -> &CallSet {
        &self.wanted
    }

    /// Whether a hook will look at what the call that is being made has written.
    pub(crate) fn is_watching(&self) -> bool {
        self.is_watching
    }

    fn for_each(&mut self, kernel: &Kernel, mut tell: impl FnMut(&mut dyn TaskHook)) {
        for (_, hook) in &mut self.list {
            let _ = guard(kernel, || tell(&mut **hook));
        }
    }
}

impl Drop for TaskHooks {
    /// Of a task that never ran nothing else says that it is gone.
    fn drop(&mut self) {
        for (_, mut hook) in std::mem::take(&mut self.list) {
            let task = self.task;
            let _ = try_hook(move || hook.task_ended(task, ExitStatus::Signaled(libc::SIGKILL)));
        }
    }
}

impl Task {
    /// Tells the hooks that the task runs another program from now on.
    pub(crate) fn tell_of_program(&mut self) {
        let task = TaskId::of(self);
        let executable = self.process.program().executable.clone();
        let kernel = Arc::clone(self.kernel());
        self.observer.hooks.task = task;
        self.observer.hooks.for_each(&kernel, |hook| hook.program_started(task, &executable));
    }

    /// Tells the hooks of a signal.
    pub(crate) fn tell_of_signal(&mut self, signal: &DeliveredSignal) {
        if !self.observer.hooks.list.is_empty() {
            let (task, kernel) = (TaskId::of(self), Arc::clone(self.kernel()));
            self.observer.hooks.for_each(&kernel, |hook| hook.signal(task, signal));
        }
    }

    /// Tells the hooks of the task's end, and lets go of what they kept of it.
    pub(crate) fn tell_of_end(&mut self, status: ExitStatus) {
        let (task, kernel) = (TaskId::of(self), Arc::clone(self.kernel()));
        for (_, mut hook) in std::mem::take(&mut self.observer.hooks.list) {
            let _ = guard(&kernel, move || hook.task_ended(task, status));
        }
    }

    fn kill_process(&mut self) {
        self.process.end(ExitStatus::Signaled(libc::SIGKILL));
        self.exit = self.process.ending();
    }
}

/// A call on its way through the hooks.
pub(crate) struct HookedCall<'a> {
    call: &'a Syscall,
    facts: Facts,
    /// How many hooks have been asked: those hear of the end.
    asked: usize,
}

impl<'a> HookedCall<'a> {
    pub(crate) fn new(call: &'a Syscall, name: Cow<'static, str>, parameters: &'static [Parameter]) -> Self {
        let facts = Facts { name, number: call.nr, args: call.args, parameters, end: None };
        Self { call, facts, asked: 0 }
    }

    /// Asks the hooks in turn, until one decides: its decision is returned, `None` if the call is to be made.
    pub(crate) fn before(
        &mut self,
        task: &mut Task,
        slots: &mut [&mut (dyn Slot + 'static)],
    ) -> Option<SysResult> {
        task.observer.returned_address = None;
        let mut list = std::mem::take(&mut task.observer.hooks.list);
        let mut decided = None;
        for (_, hook) in
            list.iter_mut().inspect(|_| self.asked += 1).filter(|(calls, _)| calls.covers(self.call))
        {
            let mut call = Call { facts: &mut self.facts, slots: &mut Slots(slots), caller: task };
            match guard(task.kernel(), || hook.before(&mut call)).unwrap_or(Verdict::Kill) {
                Verdict::Proceed => continue,
                Verdict::Deny(errno) => decided = Some(Err(errno)),
                Verdict::Answer(value) => decided = Some(Ok(value)),
                Verdict::Kill => {
                    task.kill_process();
                    decided = Some(Err(Errno::EINTR));
                }
            }
            break;
        }
        let hooks = &mut task.observer.hooks;
        hooks.list = list;
        hooks.is_watching = true;
        decided
    }

    /// Tells the hooks that were asked how the call ended, the last one first, and returns the result that they leave.
    pub(crate) fn after(
        mut self,
        task: &mut Task,
        slots: &mut [&mut (dyn Slot + 'static)],
        result: SysResult,
    ) -> SysResult {
        task.observer.hooks.is_watching = false;
        self.facts.end = Some(match task.after_call {
            _ if task.exit.is_some() => CallEnd::NoReturn,
            AfterCall::ReturnFromHandler => CallEnd::NoReturn,
            AfterCall::Executed { .. } | AfterCall::Changed(_) => CallEnd::InGuest,
            _ => CallEnd::Returned(result),
        });
        let mut list = std::mem::take(&mut task.observer.hooks.list);
        for (_, hook) in list.iter_mut().take(self.asked).rev().filter(|(calls, _)| calls.covers(self.call)) {
            let mut call = Call { facts: &mut self.facts, slots: &mut Slots(slots), caller: task };
            if guard(task.kernel(), || hook.after(&mut call)).is_none() {
                task.exit = task.process.ending();
            }
        }
        task.observer.hooks.list = list;
        match self.facts.end {
            Some(CallEnd::Returned(result)) => result,
            _ => result,
        }
    }
}
