//! Starting a program: the first one of a guest, and `execve` in place.

use super::abi::PATH_MAX;
use super::errno::Errno;
use super::file::StatView;
use super::host;
use super::loader::{Image, LoadError, Program};
use super::memory::{Layout, Mm};
use super::process::ProgramInfo;
use super::procfs::{Anchor, Found};
use super::restrictions::Bounds;
use super::signals::AltStack;
use super::syscalls::args::{Arguments, Environment, Path};
use super::task::{AfterCall, Task};
use crate::{Context, Error, Systrap, Vdso};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

/// A program in an address space of its own, with a context that stands at its first instruction.
pub(crate) struct Started {
    pub(crate) mm: Arc<Mm>,
    pub(crate) context: Context,
    pub(crate) image: Image,
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Platform(#[from] Error),
}

/// Loads a program into a new address space.
pub(crate) fn start(
    platform: &Systrap,
    program: &Program,
    stack_limit: u64,
    vdso: Option<Vdso>,
    bounds: Bounds,
) -> Result<Started, StartError> {
    /// Interrupts enabled and the bit that is always set.
    const INITIAL_FLAGS: u64 = 0x202;
    let bottom = platform.min_user_address().raw();
    let layout = Layout::random(bottom, platform.max_user_address().raw(), stack_limit);
    let space = platform.new_address_space()?;
    if let Some(bytes) = bounds.stub_bytes(layout.stack_len) {
        space.set_memory_limit(Some(bytes))?;
    }
    let mm = Arc::new(Mm::new(space, layout));
    let mut context = platform.new_context()?;
    let image = program.load(&mm, &mut context, vdso)?;
    let registers = context.registers_mut();
    registers.rip = image.entry.raw();
    registers.rsp = image.stack_pointer.raw();
    registers.rflags = INITIAL_FLAGS;
    Ok(Started { mm, context, image })
}

impl Task {
    /// `execve`: replaces the program in place. Until the new one is loaded nothing has changed.
    pub(super) fn execute(
        &mut self,
        dirfd: i32,
        path: &Path,
        (argv, envp): (Arguments, Environment),
        flags: i32,
    ) -> Result<i64, Errno> {
        if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
            return Err(Errno::EINVAL);
        }
        if path.0.as_bytes().len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if let Some(mounts) = self.mounts().cloned() {
            let (argv, envp) = (argv.read(self.memory())?, envp.read(self.memory())?);
            let program = self.open_program_in(&mounts, dirfd, path.as_c_str(), flags, argv, envp)?;
            return self.become_program(program);
        }
        let by_descriptor = path.0.is_empty() && flags & libc::AT_EMPTY_PATH != 0;
        let found = if by_descriptor {
            Found::Behind(Anchor::File(self.file(dirfd)?), CString::default())
        } else {
            self.find(dirfd, &path.0, flags & libc::AT_SYMLINK_NOFOLLOW == 0)?
        };
        // Held until the program is open.
        let (name, dirfd, _held) = match found.host_path(self)? {
            Some((name, held)) => (name, libc::AT_FDCWD, held),
            None => (path.0.clone(), dirfd, None),
        };
        let directory = self.directory(dirfd)?;
        if flags & libc::AT_SYMLINK_NOFOLLOW != 0 {
            let mut stat = [0; 144];
            host::newfstatat(directory.as_fd(), &name, &mut stat, libc::AT_SYMLINK_NOFOLLOW)?;
            if StatView(&stat).mode() & libc::S_IFMT == libc::S_IFLNK {
                return Err(Errno::ELOOP);
            }
        }
        let (argv, envp) = (argv.read(self.memory())?, envp.read(self.memory())?);
        let program = Program::open(directory.as_fd(), &name, argv, envp).map_err(|error| error.errno())?;
        self.become_program(program)
    }

    /// Replaces the program by one that has been opened.
    fn become_program(&mut self, mut program: Program) -> Result<i64, Errno> {
        let (credentials, secure) = self.credentials_after_exec();
        program.set_owner(credentials.owner(secure));
        let stack_limit = self.process.limits().stack();
        let platform = self.kernel().platform.clone();
        let started = start(&platform, &program, stack_limit, self.kernel().vdso, self.kernel().bounds)
            .map_err(|error| match error {
                StartError::Load(error) => error.errno(),
                StartError::Platform(_) => Errno::ENOMEM,
            })?;
        // From here on there is no way back.
        self.become_only_thread()?;
        self.take_credentials(credentials);
        {
            let mut attributes = self.process.attributes();
            attributes.barriers = 0;
            attributes.dumpable = !secure;
        }
        self.clear_tid();
        self.release_robust_mutexes();
        self.context.count_answers();
        self.handle.leave_stub();
        let alone = Arc::strong_count(&self.mm) == 1;
        self.process.change_stub(started.mm.space().pid(), alone);
        if alone {
            self.context.leave_for_good();
        }
        self.handle.enter_stub();
        self.process.delete_posix_timers();
        self.context = started.context;
        self.publish_answers();
        self.mm = started.mm;
        self.unshare_files();
        let closed = self.files().close_on_exec();
        drop(closed);
        {
            let mut actions = self.process.actions();
            *actions = actions.after_exec();
        }
        self.signals.stack = AltStack::DISABLED;
        self.handle.set_name(program.command_name());
        *self.process.program() = ProgramInfo::new(&program, started.image);
        self.share_belongings();
        if let Some(node) = self.kernel().tree().node_mut(self.process.pid) {
            node.has_executed = true;
        }
        self.handle.attach(self.context.interrupter());
        self.open_vfork_gate();
        self.after_call = AfterCall::Replaced;
        self.tell_of_program();
        Ok(0)
    }

    /// Ends the other threads of the process; the caller goes on as its first (`de_thread`).
    fn become_only_thread(&mut self) -> Result<(), Errno> {
        let kernel = Arc::clone(self.kernel());
        {
            // Under the tree's lock only one thread at a time does this, and none is added.
            let _tree = kernel.tree();
            if self.handle.is_doomed() {
                return Err(Errno::EAGAIN);
            }
            let threads = self.process.threads().clone();
            for other in threads.iter().filter(|other| !Arc::ptr_eq(other, &self.handle)) {
                other.doom();
            }
        }
        loop {
            let seen = self.handle.bell();
            if self.process.threads().len() == 1 {
                break;
            }
            if self.handle.is_doomed() {
                return Err(Errno::EAGAIN);
            }
            self.handle.sleep_through(seen);
        }
        if self.tid() != self.process.pid {
            kernel.tree().rename_to_leader(&self.handle);
        }
        Ok(())
    }
}

/// The working directory of the supervisor, as a descriptor for the guest.
pub(crate) fn working_directory() -> Result<OwnedFd, Errno> {
    open_directory(c"/proc/self/cwd")
}

/// A directory to work in; a relative path starts in the supervisor's own.
pub(crate) fn open_directory(path: &CStr) -> Result<OwnedFd, Errno> {
    let here = std::fs::File::open(".")?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    host::openat(here.as_fd(), path, flags, 0)
}
