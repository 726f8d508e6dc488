//! A Linux personality on top of the platform.
#![deny(unsafe_code)]

mod abi;
mod errno;
mod fd_table;
mod file;
mod guest_memory;
mod host;
mod loader;
mod memory;

pub use errno::Errno;
pub use loader::LoadError;
