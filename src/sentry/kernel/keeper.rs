//! The thread that drives a session's keeper (see [`host::SessionKeeper`]).

use super::Kernel;
use crate::sentry::errno::Errno;
use crate::sentry::file::File;
use crate::sentry::host::SessionKeeper;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

/// A host process that holds a guest's terminal, and the thread that listens to it. Both end when this is dropped.
pub(crate) struct Keeper {
    channel: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Has the terminal control a host session of its own.
    pub(crate) fn start(kernel: &Arc<Kernel>, terminal: Arc<File>, device: u32) -> Result<Self, Errno> {
        let (send, receive) = sync_channel(1);
        let kernel = Arc::downgrade(kernel);
        crate::subprocess::roam();
        let thread = std::thread::Builder::new().name("systrap-session".to_owned()).spawn(move || {
            let started = SessionKeeper::start(terminal.as_fd());
            // An open descriptor would keep the other end from noticing that the guest has closed its last.
            drop(terminal);
            match started {
                Ok(keeper) => {
                    if send.send(keeper.hang_up_handle()).is_ok() {
                        listen(keeper, device, &kernel);
                    }
                }
                Err(errno) => drop(send.send(Err(errno))),
            }
        })?;
        let channel = receive.recv().unwrap_or(Err(Errno::EIO))?;
        Ok(Self { channel, thread: Some(thread) })
    }

    /// Ends the process; the terminal is free when this returns.
    pub(super) fn close(mut self) {
        let _ = self.channel.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.channel.shutdown(Shutdown::Both);
    }
}

fn listen(mut keeper: SessionKeeper, device: u32, kernel: &Weak<Kernel>) {
    while let Some(signo) = keeper.next_signal() {
        let Some(kernel) = kernel.upgrade() else { return };
        kernel.terminal_sent(device, signo);
    }
}
