//! New threads and processes (kernel/fork.c).

use super::{Task, TaskHandle, TaskParts};
use crate::sentry::credentials::cap;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemoryExt as _;
use crate::sentry::hook::TaskId;
use crate::sentry::kernel::{Child, Tree};
use crate::sentry::observe::Observer;
use crate::sentry::pidfd;
use crate::sentry::process::{Process, lock};
use crate::sentry::signals::{AltStack, TaskSignals};
use crate::{GuestAddr, SwitchError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What `clone`, `clone3`, `fork` and `vfork` ask for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CloneRequest {
    /// `CLONE_*`, without the exit signal.
    pub(crate) flags: u64,
    pub(crate) exit_signal: i32,
    /// The child's stack pointer; 0 to keep the parent's.
    pub(crate) stack: u64,
    pub(crate) parent_tid: GuestAddr,
    pub(crate) child_tid: GuestAddr,
    /// Where the number of the `CLONE_PIDFD` goes.
    pub(crate) pid_fd: GuestAddr,
    pub(crate) tls: u64,
}

const fn bits(flag: i32) -> u64 {
    flag as u32 as u64
}

/// `CLONE_CLEAR_SIGHAND`, beyond the range of `clone`'s flags.
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
/// `CLONE_INTO_CGROUP`.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// `CLONE_NEWTIME`, only for `clone3`.
pub(crate) const CLONE_NEWTIME: u64 = 0x80;

/// `CLONE_NEW*`.
pub(crate) const NAMESPACES: u64 = bits(libc::CLONE_NEWNS)
    | bits(libc::CLONE_NEWCGROUP)
    | bits(libc::CLONE_NEWUTS)
    | bits(libc::CLONE_NEWIPC)
    | bits(libc::CLONE_NEWUSER)
    | bits(libc::CLONE_NEWPID)
    | bits(libc::CLONE_NEWNET)
    | CLONE_NEWTIME;

/// Closed until it is dropped: the parent of a `vfork` waits behind it.
pub(crate) struct VforkGate {
    open: Arc<AtomicBool>,
    parent: Arc<TaskHandle>,
}

impl Drop for VforkGate {
    fn drop(&mut self) {
        self.open.store(true, Ordering::SeqCst);
        self.parent.ring();
    }
}

impl CloneRequest {
    pub(crate) fn has(&self, flag: i32) -> bool {
        self.flags & bits(flag) != 0
    }

    /// The rules of `copy_process`.
    fn check(&self) -> Result<(), Errno> {
        let has = |flag| self.has(flag);
        let wrong = has(libc::CLONE_SIGHAND) && !has(libc::CLONE_VM)
            || has(libc::CLONE_THREAD) && !has(libc::CLONE_SIGHAND)
            || has(libc::CLONE_FS) && has(libc::CLONE_NEWNS)
            || self.flags & CLONE_CLEAR_SIGHAND != 0 && has(libc::CLONE_SIGHAND)
            || has(libc::CLONE_PIDFD) && (has(libc::CLONE_DETACHED) || has(libc::CLONE_THREAD))
            || self.exit_signal < 0
            || self.exit_signal > crate::sentry::abi::NSIG;
        if wrong {
            return Err(Errno::EINVAL);
        }
        if self.flags & NAMESPACES != 0 {
            // Namespaces are the supervisor's to make, not the guest's.
            return Err(Errno::EPERM);
        }
        if self.flags & CLONE_INTO_CGROUP != 0 {
            return Err(Errno::EBADF);
        }
        Ok(())
    }
}

fn out_of_threads(error: SwitchError) -> Errno {
    match error {
        SwitchError::Platform(_) => Errno::EAGAIN,
        _ => Errno::ENOMEM,
    }
}

impl Task {
    /// Makes a thread or a process that goes on where this one is, with 0 as the call's result.
    pub(crate) fn clone_task(&mut self, request: &CloneRequest) -> Result<i64, Errno> {
        request.check()?;
        let is_thread = request.has(libc::CLONE_THREAD);
        if self.kernel().tree().is_full(self.kernel().bounds.most_tasks) {
            return Err(Errno::EAGAIN); // before anything is made for nothing
        }
        self.context.pull_full_state().map_err(out_of_threads)?;
        let mut context = self.context.duplicate().map_err(|_| Errno::EAGAIN)?;
        let registers = context.registers_mut();
        registers.rax = 0;
        if request.stack != 0 {
            registers.rsp = request.stack;
        }
        if request.has(libc::CLONE_SETTLS) {
            if request.tls >= self.kernel().platform.max_user_address().raw() {
                return Err(Errno::EPERM);
            }
            registers.fs_base = request.tls;
        }
        let mm = match request.has(libc::CLONE_VM) {
            true => Arc::clone(&self.mm),
            false => Arc::new(self.mm.fork()?),
        };
        let files = match request.has(libc::CLONE_FILES) {
            true => Arc::clone(&self.files),
            false => Arc::new(Mutex::new(self.files().clone())),
        };
        let fs = match request.has(libc::CLONE_FS) {
            true => Arc::clone(&self.fs),
            false => Arc::new(Mutex::new(self.fs().clone())),
        };
        let keeps_stack = !request.has(libc::CLONE_VM) || request.has(libc::CLONE_VFORK);
        let signals = TaskSignals {
            stack: if keeps_stack { self.signals.stack } else { AltStack::DISABLED },
            last_fault: self.signals.last_fault,
            ..TaskSignals::default()
        };
        // Made before anything can be seen of the child: its table of descriptors is a copy without it.
        let pid_file = match request.has(libc::CLONE_PIDFD) {
            true => Some(self.install_unborn_pid_file(request.pid_fd)?),
            false => None,
        };
        let kernel = Arc::clone(self.kernel());
        let mut tree = kernel.tree();
        let allowed = tree.new_id().and_then(|id| self.check_process_limit(&tree).map(|()| id));
        let id = allowed.inspect_err(|_| self.take_back(pid_file.as_ref()))?;
        let process = match is_thread {
            true => Arc::clone(&self.process),
            false => Arc::new(self.new_process(id, request)),
        };
        let handle = Arc::new(TaskHandle::new(
            id,
            Arc::clone(&process),
            self.handle.mask(),
            self.handle.name(),
            self.handle.credentials(),
            self.handle.attributes().for_child(),
        ));
        if !is_thread {
            process.set_stub_pid(mm.space().pid());
            let parent = match request.has(libc::CLONE_PARENT) {
                true => tree.node(self.process.pid).map_or(0, |node| node.parent),
                false => self.process.pid,
            };
            let exit_signal = request.exit_signal;
            tree.add(Child { process: Arc::clone(&process), parent, creator: self.tid(), exit_signal });
            process.sample_if_limited();
            if let Some(file) = &pid_file {
                pidfd::adopt(file, &process);
            }
        }
        tree.add_thread(&handle);
        if process.is_stopped() {
            handle.attention.raise(); // it stops with the others
        }
        drop(tree);
        if self.handle.is_doomed() {
            // Whoever ended this thread may not have seen the new one.
            handle.doom();
        }

        let ids = TaskId { pid: handle.process.pid, tid: id };
        let observer = Observer::new(&kernel, ids, Some(&self.observer));
        let mut task =
            Task::new(TaskParts { context, mm, handle: Arc::clone(&handle), files, fs, signals, observer });
        if request.has(libc::CLONE_CHILD_CLEARTID) {
            task.clear_child_tid = request.child_tid.raw();
        }
        // As the kernel: ids are stored where they can be, a bad address is nobody's error.
        if request.has(libc::CLONE_PARENT_SETTID) {
            let _ = self.memory().write_object(request.parent_tid, &id);
        }
        if request.has(libc::CLONE_CHILD_SETTID) {
            let _ = task.memory().write_object(request.child_tid, &id);
        }
        let gate = Arc::new(AtomicBool::new(false));
        if request.has(libc::CLONE_VFORK) {
            task.vfork_gate = Some(VforkGate { open: Arc::clone(&gate), parent: Arc::clone(&self.handle) });
        }
        task.publish_answers();
        if kernel.workers.run(move || task.run_to_end()).is_err() {
            kernel.thread_ended(&handle, super::ExitStatus::Signaled(libc::SIGKILL), Default::default());
            kernel.tree().reap(id);
            self.take_back(pid_file.as_ref());
            return Err(Errno::EAGAIN);
        }
        if request.has(libc::CLONE_VFORK) {
            self.wait_for_gate(&gate);
        }
        Ok(i64::from(id))
    }

    /// The limit of the guest as a whole, and `RLIMIT_NPROC`: the tasks of the task's real user, of this guest. Root has
    /// no limit of the second kind.
    fn check_process_limit(&self, tree: &Tree) -> Result<(), Errno> {
        if tree.is_full(self.kernel().bounds.most_tasks) {
            return Err(Errno::EAGAIN);
        }
        let limit = self.process.limits().soft(libc::RLIMIT_NPROC);
        let own = self.credentials();
        let exempt = own.user.real == 0 || own.has(cap::SYS_RESOURCE) || own.has(cap::SYS_ADMIN);
        if limit == libc::RLIM_INFINITY || exempt {
            return Ok(());
        }
        let user = own.user.real;
        let count = tree.threads().filter(|thread| thread.credentials().user.real == user).count();
        if count as u64 >= limit { Err(Errno::EAGAIN) } else { Ok(()) }
    }

    fn new_process(&self, pid: i32, request: &CloneRequest) -> Process {
        let actions = if request.has(libc::CLONE_SIGHAND) {
            Arc::clone(self.process.shared_actions())
        } else {
            let actions = lock(self.process.shared_actions());
            let cleared = request.flags & CLONE_CLEAR_SIGHAND != 0;
            Arc::new(Mutex::new(if cleared { actions.after_exec() } else { actions.clone() }))
        };
        let limits = self.process.limits().clone();
        let program = self.process.program().clone();
        let credentials = self.handle.credentials();
        let process = Process::new(Arc::clone(self.kernel()), pid, actions, limits, program, credentials);
        process.copy_oom_score_adj(&self.process);
        *process.attributes() = self.process.attributes().clone();
        process
    }

    /// Waits until the child of a `vfork` lets go of the memory. Only the process's end ends it earlier.
    fn wait_for_gate(&mut self, gate: &AtomicBool) {
        self.context.prepare_sleep();
        loop {
            let seen = self.handle.bell();
            if gate.load(Ordering::SeqCst) || self.handle.is_doomed() {
                return;
            }
            // Signals wait for the call's end.
            self.handle.sleep_through(seen);
        }
    }
}
