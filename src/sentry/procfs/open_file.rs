//! Open files and directories of the guest's `/proc`.

use super::directory::{self, RecordFormat};
use super::node::{Entry, Node};
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host;
use crate::sentry::process::lock;
use crate::sentry::task::Task;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Mutex;

/// What the sentry adds to the host's file behind an open node.
#[derive(Debug)]
pub(crate) struct ProcFile {
    node: Node,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The host's file is all there is (a pass-through file, an `O_PATH` descriptor).
    Plain,
    /// A directory, and where the next reading goes on.
    Directory { position: Mutex<u64> },
    /// A file whose text is written, whenever it is read from its start, to the memory behind it.
    Text { memory: OwnedFd },
}

impl ProcFile {
    pub(crate) fn node(&self) -> Node {
        self.node
    }

    /// Whether its entries come from [`Task::read_entries`].
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// Whether what is written to it goes to [`Task::write_text`].
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.kind, Kind::Text { .. })
    }

    /// `lseek` on a directory; `None` if the host's file has the position.
    pub(crate) fn seek(&self, offset: i64, whence: i32) -> Option<Result<i64, Errno>> {
        let Kind::Directory { position } = &self.kind else { return None };
        let mut position = lock(position);
        let base = match whence {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => *position as i64,
            _ => return Some(Err(Errno::EINVAL)),
        };
        let new = base.checked_add(offset).and_then(|new| u64::try_from(new).ok());
        Some(new.map(|new| *position = new).map(|()| *position as i64).ok_or(Errno::EINVAL))
    }
}

impl Task {
    /// Opens a node as `open` does with those flags.
    pub(crate) fn open_node(&self, node: Node, flags: i32) -> Result<File, Errno> {
        let (path, _held) = self.stand_in(node)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let is_host = matches!(node, Node::Owned(_, Entry::Host(_))) && self.mount_list(node).is_none();
        if is_host && writes && flags & libc::O_PATH == 0 {
            // The supervisor's own maps of users and labels are not the guest's to change.
            return Err(Errno::EACCES);
        }
        // The host's answer for the supervisor's own file is the one for the guest's: type, permissions, flags.
        let host_flags = flags & !(libc::O_TRUNC | libc::O_ASYNC) | libc::O_CLOEXEC;
        let opened = host::openat(super::anywhere()?, &path, host_flags, 0)?;
        let file = |host, kind| File::of_proc(host, ProcFile { node, kind });
        if flags & libc::O_PATH != 0 || is_host {
            return Ok(file(opened, Kind::Plain));
        }
        if node.is_directory() {
            return Ok(file(opened, Kind::Directory { position: Mutex::new(0) }));
        }
        if let Node::Owned(owner, _) = node {
            self.subject(owner)?;
        }
        drop(opened);
        let memory = host::memfd_create(c"proc", libc::MFD_CLOEXEC)?;
        // Opened once more, so that it says of itself how the guest opened it.
        let again =
            CString::new(format!("/proc/self/fd/{}", memory.as_raw_fd())).map_err(|_| Errno::ENOENT)?;
        let flags = flags & (libc::O_ACCMODE | libc::O_APPEND | libc::O_NONBLOCK) | libc::O_CLOEXEC;
        let host = host::openat(super::anywhere()?, &again, flags, 0)?;
        Ok(file(host, Kind::Text { memory }))
    }

    /// Writes the text of an open node anew if it is about to be read from its start.
    pub(crate) fn refresh(&self, file: &File, offset: Option<i64>) -> Result<(), Errno> {
        let Some(ProcFile { node, kind: Kind::Text { memory } }) = file.proc() else { return Ok(()) };
        let at = match offset {
            Some(offset) => offset,
            None => host::lseek(file.as_fd(), 0, libc::SEEK_CUR)? as i64,
        };
        if at != 0 {
            return Ok(());
        }
        let text = self.node_text(*node)?;
        host::ftruncate(memory.as_fd(), 0)?;
        let mut written = 0;
        while written < text.len() {
            written += host::pwrite64(memory.as_fd(), &text[written..], written as i64)?;
        }
        Ok(())
    }

    /// Entries of an open directory, from where it stands.
    pub(crate) fn read_entries(
        &self,
        proc: &ProcFile,
        format: RecordFormat,
        buf: &mut [u8],
    ) -> Result<usize, Errno> {
        let Kind::Directory { position } = &proc.kind else { return Err(Errno::ENOTDIR) };
        let records = self.list(proc.node)?;
        directory::fill(&records, &mut lock(position), format, buf)
    }
}
