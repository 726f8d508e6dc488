//! The end of a task, and the thread of the supervisor that runs it.

use super::Task;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::process::lock;
use crate::sentry::signals::SignalSet;
use crate::sentry::task::ExitStatus;
use crate::{GuestAddr, SwitchError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

impl Task {
    /// Runs the task in the calling thread until it has ended, and clears up after it.
    pub(crate) fn run_to_end(mut self) {
        self.handle.attach(self.context.interrupter());
        self.handle.start_clock();
        let killed = ExitStatus::Signaled(libc::SIGKILL);
        // A defect of the sentry's, which says so on standard error, is the end of this guest process only: who waits for
        // it is told.
        let run = || if self.act_as_guest() { self.run() } else { Ok(killed) };
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            self.process.end(killed);
            Ok(killed)
        });
        let status = match result {
            Ok(status) => status,
            // What the host cannot load, it answers with SIGSEGV when a program tries.
            Err(SwitchError::BadState { .. }) => {
                let status = ExitStatus::Signaled(libc::SIGSEGV);
                self.process.end(status);
                status
            }
            Err(error) => {
                // The stub process is gone: nothing of the guest process can go on.
                self.kernel().report_failure(self.process.pid, error);
                let status = ExitStatus::Signaled(libc::SIGKILL);
                self.process.end(status);
                status
            }
        };
        self.finish(status);
    }

    fn finish(mut self, status: ExitStatus) {
        self.tell_of_end(status);
        self.withdraw();
        self.release_robust_mutexes();
        self.clear_tid();
        self.context.count_answers();
        let kernel = Arc::clone(self.kernel());
        lock(&kernel.counts).absorb(&self.observer.counts);
        let usage = self.process.add_thread_usage(&self.handle);
        let is_last = self.process.threads().len() <= 1;
        let usage = if is_last { usage.plus(self.mm.memory_usage()) } else { usage };
        let handle = Arc::clone(&self.handle);
        // Everything that the task holds goes before others hear of its end; the parent of a vfork goes on first.
        let Task { mut context, mm, files, fs, vfork_gate, .. } = self;
        let mut shared = None;
        if Arc::strong_count(&mm) == 1 {
            context.leave_for_good();
            shared = mm.writes_to_shared_files().then(|| mm.space().clone());
        }
        drop(context);
        drop(mm);
        if let Some(space) = shared {
            // The host counts the mappings of a file (F_SEAL_WRITE): they are gone when the stub process is.
            let _ = space.release();
        }
        drop(files);
        drop(fs);
        drop(vfork_gate);
        kernel.thread_ended(&handle, status, usage);
        // The thread may run another guest's task next, or be the embedder's.
        kernel.act_as_supervisor();
    }

    /// Signals for the process are for other threads from here on (`exit_signals`), and the id is nobody's any more:
    /// whoever has joined the thread will not find it. The first thread's is the process's.
    fn withdraw(&self) {
        let unblocked = SignalSet(!self.handle.mask().0);
        self.handle.store_mask(SignalSet(u64::MAX));
        self.process.retarget(unblocked);
        if self.tid() != self.process.pid {
            self.kernel().tree().forget_id(&self.handle);
        }
    }

    /// `CLONE_CHILD_CLEARTID`: zeroes the word and wakes who waits for it (kernel/fork.c `mm_release`).
    pub(crate) fn clear_tid(&mut self) {
        let addr = std::mem::take(&mut self.clear_child_tid);
        // With nobody left in that memory there is nobody to tell.
        if addr != 0 && Arc::strong_count(&self.mm) > 1 {
            let addr = GuestAddr::new(addr);
            if self.memory().write_object(addr, &0_u32).is_ok() {
                self.wake_shared(addr, 1);
            }
        }
    }

    /// Ends the wait of a parent that made this task with `CLONE_VFORK`.
    pub(crate) fn open_vfork_gate(&mut self) {
        self.vfork_gate = None;
    }
}
