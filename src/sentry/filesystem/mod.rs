//! The guest's file system: which of the host's directories it is made of, and what a path names in it.
//!
//! A guest without [`Mounts`] sees the host as it is, and none of this is used. Else every path of every call goes
//! through [`MountTable::walk`] (`resolve`), which begins at the guest's root or at a directory whose mount is known,
//! and takes one name, or one run of names without links and `..`, at a time from the host, never a path from the
//! host's root. What it finds is pinned by a descriptor or named by one last name in a pinned directory, so that
//! nothing that is renamed meanwhile changes what a call works on. `names` is the way back, from a descriptor to the
//! guest's path. `task` decides for a task's call, with the guest's `/proc`; `territory` says what it may change.

mod files;
mod listing;
mod mounts;
mod names;
mod open;
mod resolve;
mod setup;
mod sockets;
mod table;
mod task;
mod terminals;
mod territory;

pub(crate) use listing::MountList;
pub use mounts::{Access, MountError, Mounts};
pub(crate) use open::path_of_pinned;
pub(crate) use resolve::{Last, Reached};
pub(crate) use table::{MountId, MountTable};
pub(crate) use task::{Resolved, is_masked};
pub(crate) use territory::{Location, Territory};

#[cfg(test)]
mod tests;
