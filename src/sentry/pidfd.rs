//! pidfd_open(2): a process as a descriptor, readable when it has ended.

use super::errno::Errno;
use super::file::{File, Kind};
use super::guest_memory::GuestMemoryExt as _;
use super::host;
use super::kernel::{Life, Tree};
use super::process::{Process, lock};
use super::task::Task;
use crate::GuestAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock, Weak};

/// What an open pidfd stands for. Empty while the process of a `CLONE_PIDFD` is being made.
#[derive(Debug, Default)]
pub(crate) struct PidFile {
    process: OnceLock<Weak<Process>>,
}

/// The open pidfds of a process.
#[derive(Default)]
pub(crate) struct PidFiles {
    ended: bool,
    open: Vec<Weak<File>>,
}

impl PidFile {
    /// The process, until it has been waited for; `ESRCH` afterwards.
    pub(crate) fn process(&self, tree: &Tree) -> Result<Arc<Process>, Errno> {
        let process = self.process.get().and_then(Weak::upgrade).ok_or(Errno::ESRCH)?;
        let known = tree.node(process.pid).is_some_and(|node| Arc::ptr_eq(&node.process, &process));
        if known { Ok(process) } else { Err(Errno::ESRCH) }
    }

    /// What `/proc/self/fdinfo` adds: the process's id, -1 once it has been waited for.
    pub(crate) fn info(&self, tree: &Tree) -> String {
        let pid = self.process(tree).map_or(-1, |process| process.pid);
        format!("Pid:\t{pid}\nNSpid:\t{pid}\n")
    }
}

fn new_file(flags: i32) -> Result<Arc<File>, Errno> {
    let host = host::eventfd2(0, libc::EFD_CLOEXEC | flags & libc::O_NONBLOCK)?;
    Ok(Arc::new(File::made(host, Kind::Pid(PidFile::default()))))
}

/// Makes a file stand for a process.
pub(crate) fn adopt(file: &Arc<File>, process: &Arc<Process>) {
    let Kind::Pid(pid_file) = file.kind() else { return };
    let _ = pid_file.process.set(Arc::downgrade(process));
    let mut files = lock(&process.pid_files);
    if files.ended {
        tell(file);
    }
    files.open.retain(|file| file.strong_count() > 0);
    files.open.push(Arc::downgrade(file));
}

/// Makes the pidfds of a process that has ended readable.
pub(crate) fn ended(process: &Process) {
    let mut files = lock(&process.pid_files);
    files.ended = true;
    for file in std::mem::take(&mut files.open).iter().filter_map(Weak::upgrade) {
        tell(&file);
    }
}

fn tell(file: &File) {
    let _ = host::write(file.as_fd(), &1_u64.to_ne_bytes()[..]);
}

impl Task {
    /// `pidfd_open`. A thread that is not its process's first has none.
    pub(crate) fn open_pid_file(&self, pid: i32, flags: i32) -> Result<i64, Errno> {
        let file = new_file(flags)?;
        {
            let tree = self.kernel().tree();
            match tree.node(pid) {
                Some(node) => adopt(&file, &node.process),
                None if tree.thread(pid).is_some() => return Err(Errno::EINVAL),
                None => return Err(Errno::ESRCH),
            }
        }
        self.install_file(file, true)
    }

    /// `CLONE_PIDFD`: a descriptor for a process that is about to be made, its number stored for the guest.
    pub(crate) fn install_unborn_pid_file(&self, addr: GuestAddr) -> Result<Arc<File>, Errno> {
        let file = new_file(0)?;
        let fd = self.files().insert(Arc::clone(&file), true)?;
        if let Err(errno) = self.memory().write_object(addr, &fd) {
            self.take_back(Some(&file));
            return Err(errno);
        }
        Ok(file)
    }

    /// The process could not be made after all.
    pub(crate) fn take_back(&self, file: Option<&Arc<File>>) {
        let Some(file) = file else { return };
        let mut files = self.files();
        let number = files.numbers().find(|fd| files.get(*fd).is_ok_and(|other| Arc::ptr_eq(&other, file)));
        let _closed = number.map(|fd| files.remove(fd));
    }

    /// The process that a descriptor stands for: `EBADF` if it is no pidfd.
    pub(crate) fn process_of_pid_file(&self, fd: i32) -> Result<Arc<Process>, Errno> {
        let file = self.file(fd)?;
        match file.kind() {
            Kind::Pid(pid_file) => pid_file.process(&self.kernel().tree()),
            _ => Err(Errno::EBADF),
        }
    }

    /// `pidfd_getfd`: an open file of another process.
    pub(crate) fn file_in(&self, process: &Process, fd: i32) -> Result<Arc<File>, Errno> {
        let ended = self
            .kernel()
            .tree()
            .node(process.pid)
            .is_none_or(|node| matches!(node.life, Life::Zombie { .. }));
        let thread = process.threads().first().cloned().filter(|_| !ended).ok_or(Errno::ESRCH)?;
        let files = thread.files().ok_or(Errno::ESRCH)?;
        lock(&files).get(fd)
    }
}
