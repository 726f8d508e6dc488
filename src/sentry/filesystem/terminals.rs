//! Which terminals below the guest's `/dev/pts` it may open.
//!
//! The host's terminals are all in one directory, and the supervisor's user can open more of them than are the guest's
//! business: what is typed at others could be read there. So a terminal is opened by its name only while somebody in the
//! guest has it open, or its other end, which whoever made it has.

use super::{MountTable, Territory};
use crate::sentry::errno::Errno;
use crate::sentry::fd_table::FdTable;
use crate::sentry::file::{File, StatView};
use crate::sentry::process::lock;
use crate::sentry::task::Task;
use std::sync::{Arc, Mutex};

/// `UNIX98_PTY_SLAVE_MAJOR` and those after it.
const MAJORS: std::ops::RangeInclusive<u32> = 136..=143;

impl Task {
    /// Looks at a device of one of the mounts that is to be opened, or has just been.
    ///
    /// The second time decides: a number is given out again only when nobody has the terminal open any more, so that an
    /// open terminal and an open other end of the same number belong together.
    pub(in crate::sentry) fn check_terminal_of(
        &self,
        mounts: &MountTable,
        territory: Territory,
        stat: &StatView<'_>,
    ) -> Result<(), Errno> {
        let device = stat.rdev();
        let is_lent = mounts.terminals.is_some_and(|terminals| territory == Territory::Mount(terminals));
        if !is_lent || !MAJORS.contains(&libc::major(device)) || self.is_open_in_guest(device as u32) {
            return Ok(());
        }
        Err(Errno::EACCES)
    }

    fn is_open_in_guest(&self, device: u32) -> bool {
        let tables: Vec<Arc<Mutex<FdTable>>> = {
            let tree = self.kernel().tree();
            let processes: Vec<_> = tree.nodes().map(|node| Arc::clone(&node.process)).collect();
            drop(tree);
            // Threads need not share their tables.
            let threads = processes.iter().flat_map(|process| process.threads().clone());
            threads.filter_map(|thread| thread.files()).collect()
        };
        let is_it = |file: Arc<File>| file.terminal().is_some_and(|terminal| terminal.device == device);
        tables.iter().any(|table| {
            let files: Vec<_> = {
                let table = lock(table);
                table.numbers().filter_map(|number| table.get(number).ok()).collect()
            };
            files.into_iter().any(is_it)
        })
    }
}
