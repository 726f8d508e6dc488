//! Running a guest from its first instruction to its end.

use super::attributes::TaskAttributes;
use super::credentials::Credentials;
use super::errno::Errno;
use super::exec::{self, StartError, Started};
use super::fd_table::FdTable;
use super::filesystem::{MountError, MountTable, Mounts, Territory};
use super::fs_context::FsContext;
use super::hook::{AnyHook, GuestHooks, Hook, TaskId};
use super::host;
use super::kernel::Kernel;
use super::limits::{self, Limits};
use super::loader::{LoadError, Program};
use super::observe::{CallCounts, Observer};
use super::process::{Process, ProgramInfo, lock};
use super::restrictions::Restrictions;
use super::signals::{Actions, Incoming, SignalSet, TaskSignals};
use super::task::{ExitStatus, Task, TaskHandle, TaskParts};
use super::trace::Trace;
use crate::{Error, Options, Stats, SwitchError, Systrap};
use std::ffi::{CStr, CString};
use std::fmt;
use std::io::Write;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A program to run as a guest.
///
/// ```no_run
/// use systrap::sentry::Guest;
///
/// let outcome = Guest::new(c"/bin/echo").args([c"echo", c"hello"]).run()?;
/// assert_eq!(outcome.status.code(), 0);
/// # Ok::<(), systrap::sentry::RunError>(())
/// ```
pub struct Guest {
    path: CString,
    argv: Vec<CString>,
    envp: Vec<CString>,
    options: Options,
    trace: Option<Box<dyn Write + Send>>,
    hooks: Vec<Arc<dyn AnyHook>>,
    hides_vdso: bool,
    pub(super) restrictions: Restrictions,
    mounts: Option<Mounts>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("path", &self.path)
            .field("args", &self.argv)
            .field("options", &self.options)
            .field("traces", &self.trace.is_some())
            .field("hooks", &self.hooks.len())
            .field("hides_vdso", &self.hides_vdso)
            .field("restrictions", &self.restrictions)
            .field("mounts", &self.mounts)
            .finish_non_exhaustive()
    }
}

/// How a guest ended and what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// The calls that reached the sentry.
    pub counts: CallCounts,
    /// The platform's own figures.
    pub platform: Stats,
    /// Its time was up ([`Guest::timeout`]), and it was told to end or killed.
    pub timed_out: bool,
    /// From the start of the program to its end.
    pub wall_time: Duration,
}

/// Why a guest could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The program cannot be run: bad input, not a failure of the sentry.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The platform cannot be set up on this host.
    #[error(transparent)]
    Platform(#[from] Error),
    /// The guest cannot be continued.
    #[error("the guest cannot be continued: {0}")]
    Switch(#[from] SwitchError),
    /// The guest's file system cannot be made.
    #[error(transparent)]
    Mounts(#[from] MountError),
    /// A [`Hook`] panicked, and the guest was killed.
    #[error("a hook panicked: {message}")]
    Hook {
        /// What it said.
        message: String,
    },
    /// The guest cannot be started in that directory.
    #[error("working directory {path}: {}", errno.message())]
    WorkingDirectory {
        /// The directory.
        path: String,
        /// What the host said.
        errno: Errno,
    },
    /// The supervisor cannot act as that user and group ([`Guest::user`]).
    #[error("user {uid}, group {gid}: {}: only a privileged user can run a guest as somebody else", errno.message())]
    User {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
        /// What the host said.
        errno: Errno,
    },
    /// The filter of the supervisor cannot be installed ([`Guest::supervisor_filter`]).
    #[error("seccomp filter of the supervisor: {message}")]
    Filter {
        /// What went wrong.
        message: String,
    },
    /// The sentry's own set-up failed.
    #[error("{what}: {}", errno.message())]
    Setup {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        errno: Errno,
    },
}

impl Guest {
    /// A guest that runs the program at `path`, which is not searched for, without arguments or environment.
    #[must_use]
    pub fn new(path: impl Into<CString>) -> Self {
        let path = path.into();
        Self {
            argv: vec![path.clone()],
            path,
            envp: Vec::new(),
            options: Options::default(),
            trace: None,
            hooks: Vec::new(),
            hides_vdso: false,
            restrictions: Restrictions::default(),
            mounts: None,
        }
    }

    /// Sets all arguments, the name of the program (`argv[0]`) included.
    #[must_use]
    pub fn args<A: Into<CString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.argv = args.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the environment, as `NAME=value`.
    #[must_use]
    pub fn env<A: Into<CString>>(mut self, env: impl IntoIterator<Item = A>) -> Self {
        self.envp = env.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the platform's options.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Writes every call to `output`, one line each, in strace's style: what the guest asked for and what it got,
    /// whatever hooks do in between.
    #[must_use]
    pub fn trace(mut self, output: impl Write + Send + 'static) -> Self {
        self.trace = Some(Box::new(output));
        self
    }

    /// Shows the guest's calls to a hook. Of several, the one installed first sees a call first and its result last.
    ///
    /// An [`Arc`] of a hook is one as well: for an embedder that wants to look at it afterwards.
    #[must_use]
    pub fn hook(mut self, hook: impl Hook) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    /// Does not tell programs of the vdso, so that they read clocks by calls (`clock_gettime`, `gettimeofday`, `time`,
    /// `getcpu`), which hooks see. It stays mapped: a program that looks for it can find it, as it can read the
    /// processor's time stamp counter.
    #[must_use]
    pub fn hide_vdso(mut self, hide: bool) -> Self {
        self.hides_vdso = hide;
        self
    }

    /// Gives the guest a file system of its own; without one it sees the host's as it is.
    ///
    /// The path of the program is then the guest's, and so is the working directory: this process's own where the guest
    /// can see it, else `/`.
    #[must_use]
    pub fn mounts(mut self, mounts: Mounts) -> Self {
        self.mounts = Some(mounts);
        self
    }

    /// Runs the guest in the calling thread until it ends.
    ///
    /// The guest gets this process's working directory, its descriptors that are not close-on-exec, its resource
    /// limits and its terminal. The calling thread's file mode mask becomes 0; signals such as SIGINT and SIGTERM
    /// are blocked in it and in threads made later, and reach the guest. SIGPIPE and SIGXFSZ are
    /// ignored in this process: a guest that writes to a closed pipe gets its own.
    ///
    /// # Errors
    ///
    /// [`RunError::Load`] if the program cannot be run, [`RunError::Hook`] if a hook panicked, the others if the sentry
    /// or the platform fails. What the guest does, including dying of a signal, is no error.
    pub fn run(self) -> Result<Outcome, RunError> {
        let setup = |what| move |errno| RunError::Setup { what, errno };
        let inherited = host::inheritable_descriptors();
        let mut process_limits = Limits::inherited();
        self.restrictions.limit(&mut process_limits);
        limits::raise_host_limits();
        let supervisor = Credentials::of_supervisor();
        let credentials = self.restrictions.credentials(&supervisor)?;
        let mounts = self.mounts.map(|mounts| MountTable::new(&mounts).map(Arc::new)).transpose()?;
        let act_as = |identity: host::Identity| {
            host::assume(&identity).map_err(|_| RunError::Setup { what: "credentials", errno: Errno::EPERM })
        };
        // What the guest could not find, enter or execute is not found for it.
        act_as(credentials.identity())?;
        let opened = open_start(&self.restrictions, mounts.as_ref(), &self.path, self.argv, self.envp);
        act_as(supervisor.identity())?;
        let (cwd, territory, mut program) = opened?;
        // Signals are blocked before any thread is made.
        let incoming = Incoming::block();
        host::ignore_signals_of_files();
        host::install_kick_handler().map_err(setup("signal handler"))?;

        let first_pid = std::process::id() as i32;
        let trace = self.trace.map(|writer| Arc::new(Trace::new(writer, first_pid)) as Arc<dyn AnyHook>);
        let hooks = GuestHooks::new(trace.into_iter().chain(self.hooks).collect())
            .map_err(|message| RunError::Hook { message })?;

        let started_at = Instant::now();
        let platform = Systrap::new(self.options.co_location(true))?;
        program.set_owner(credentials.owner(false));
        let vdso = if self.hides_vdso { None } else { platform.vdso() };
        let started =
            exec::start(&platform, &program, process_limits.stack(), vdso, self.restrictions.bounds())
                .map_err(|error| match error {
                    StartError::Load(error) => RunError::Load(error),
                    StartError::Platform(error) => RunError::Platform(error),
                })?;
        let mut files = FdTable::inherited(&inherited, process_limits.descriptors());
        if let Some(mounts) = &mounts {
            files.close_outside(mounts);
        }
        // The mask applies to what the guest creates and is applied by the sentry. Where unshare is forbidden the
        // whole process has the empty mask, which matters to nobody else in a command.
        let _ = host::unshare(libc::CLONE_FS);
        let umask = host::umask(0).unwrap_or(0o22) as u32;
        let kernel =
            Arc::new(Kernel::new(platform.clone(), first_pid, hooks, vdso, &self.restrictions, mounts));
        incoming.start(&kernel).map_err(|error| setup("signal thread")(error.into()))?;
        let fs = FsContext { cwd, proc_directory: None, territory, umask };
        let clock = self.restrictions.start_timeout(&kernel)?;
        let first = First { program: &program, limits: process_limits, credentials, files, fs };
        let task = first.task(&kernel, started, incoming.ignored());
        if let Some(filter) = &self.restrictions.filter {
            let install = filter.install(&platform, self.restrictions.has_network());
            install.map_err(|message| RunError::Filter { message })?;
        }
        task.run_to_end();
        let status = kernel.wait_until_gone();
        let timed_out = clock.is_some_and(|clock| clock.join().unwrap_or(false));
        if let Some(message) = kernel.hooks.panic_message() {
            return Err(RunError::Hook { message });
        }
        let status = status?;
        let counts = std::mem::take(&mut *lock(&kernel.counts));
        Ok(Outcome {
            status,
            counts: counts.report(),
            platform: platform.stats(),
            timed_out,
            wall_time: started_at.elapsed(),
        })
    }
}

/// The working directory that the guest starts in, and its program.
fn open_start(
    restrictions: &Restrictions,
    mounts: Option<&Arc<MountTable>>,
    path: &CStr,
    argv: Vec<CString>,
    envp: Vec<CString>,
) -> Result<(Arc<OwnedFd>, Territory, Program), RunError> {
    let Some(mounts) = mounts else {
        let cwd = Arc::new(restrictions.open_working_directory()?);
        let program = Program::open(cwd.as_fd(), path, argv, envp)?;
        return Ok((cwd, Territory::Host, program));
    };
    let (cwd, territory) = restrictions.open_working_directory_in(mounts)?;
    let open = |path: &CStr, flags| mounts.open_first(&cwd, territory, path, flags);
    let program = Program::open_with(&open, path, argv, envp)?;
    Ok((cwd, territory, program))
}

/// What the first process starts with.
struct First<'a> {
    program: &'a Program,
    limits: Limits,
    credentials: Credentials,
    files: FdTable,
    fs: FsContext,
}

impl First<'_> {
    /// The first task of the first process.
    fn task(self, kernel: &Arc<Kernel>, started: Started, ignored: SignalSet) -> Task {
        let Self { program, limits, credentials, mut files, fs } = self;
        files.record_locks_in(&kernel.record_locks);
        let info = ProgramInfo::new(program, started.image);
        let actions = Arc::new(Mutex::new(Actions::new(ignored)));
        let pid = kernel.first_pid;
        let credentials = match credentials == *kernel.supervisor {
            true => Arc::clone(&kernel.supervisor),
            false => Arc::new(credentials),
        };
        let process =
            Arc::new(Process::new(Arc::clone(kernel), pid, actions, limits, info, Arc::clone(&credentials)));
        process.set_stub_pid(started.mm.space().pid());
        process.sample_if_limited();
        let handle = Arc::new(TaskHandle::new(
            pid,
            Arc::clone(&process),
            SignalSet::default(),
            [0; 16],
            credentials,
            TaskAttributes::of_supervisor(),
        ));
        handle.set_name(program.command_name());
        handle.process.inherit_oom_score_adj();
        {
            let id = |result: Result<usize, Errno>| result.map_or(pid, |id| id as i32);
            let mut tree = kernel.tree();
            let (group, session) = (id(host::getpgid(0)), id(host::getsid(0)));
            tree.add_first(process, group, session);
            tree.inherit_terminal(session, group);
            tree.add_thread(&handle);
        }
        let mut task = Task::new(TaskParts {
            context: started.context,
            mm: started.mm,
            handle,
            files: Arc::new(Mutex::new(files)),
            fs: Arc::new(Mutex::new(fs)),
            signals: TaskSignals::default(),
            observer: Observer::new(kernel, TaskId { pid, tid: pid }, None),
        });
        task.publish_answers();
        task.tell_of_program();
        task
    }
}
