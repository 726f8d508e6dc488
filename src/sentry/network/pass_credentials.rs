//! `SO_PASSCRED` in a guest without network.
//!
//! A socket with this option and without a name is given one by the kernel when it connects or names whom it sends to
//! (`unix_autobind`), in the host's namespace of abstract names, where anybody could find it. So it is given one of the
//! guest's before: by the call that connects or sends, or, if such a call is under way or was made, by the one that sets
//! the option. Both look under one lock, and at the host's socket, of which the guest may have several open files.

use super::PrivateNames;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host::{self, AddressBuffer, OptionBuffer};
use crate::sentry::process::lock;
use crate::sentry::socket::{Socket, inode};
use crate::sentry::task::Task;
use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::Mutex;

/// How many calls are under way that may make the kernel choose a name, by the socket's inode. This lock comes before
/// those of the names.
#[derive(Debug, Default)]
pub(crate) struct PassCredentials(Mutex<HashMap<u64, usize>>);

/// A call that is under way.
pub(crate) struct UnderWay<'a> {
    calls: &'a PassCredentials,
    inode: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut calls = lock(&self.calls.0);
        match calls.get_mut(&self.inode) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(calls.remove(&self.inode)),
        }
    }
}

fn is_set(file: &File) -> bool {
    let mut value = OptionBuffer::new(size_of::<i32>());
    // What cannot be asked is taken to be so.
    host::getsockopt(file.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, &mut value).is_err()
        || value.as_bytes().iter().any(|byte| *byte != 0)
}

impl PrivateNames {
    /// Called before the host is asked to connect a socket, or to send to an address; held until that is done.
    pub(crate) fn before_naming_another(&self, task: &Task, file: &File) -> Result<UnderWay<'_>, Errno> {
        let inode = inode(file);
        let mut calls = lock(&self.pass_credentials.0);
        if is_set(file) {
            self.bind_to_any(task, file)?;
        }
        *calls.entry(inode).or_default() += 1;
        Ok(UnderWay { calls: &self.pass_credentials, inode })
    }

    /// Sets the option, whatever to.
    pub(crate) fn set_pass_credentials(
        &self,
        task: &Task,
        file: &File,
        socket: &Socket,
        value: &[u8],
    ) -> Result<(), Errno> {
        let calls = lock(&self.pass_credentials.0);
        let mut peer = AddressBuffer::new();
        // A connection of bytes is not named after it has been made.
        let sends_on = !socket.is_stream() && host::getpeername(file.as_fd(), &mut peer).is_ok();
        if sends_on || calls.contains_key(&inode(file)) {
            self.bind_to_any(task, file)?;
        }
        host::setsockopt(file.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, value).map(drop)
    }
}
