//! A Linux personality on top of the platform: what makes `systrap run` run programs.
//!
//! The sentry keeps for itself what makes a process (descriptors, memory map, signals, identity) and has the host do
//! what the host does well (files, pipes, terminals, clocks) on the guest's behalf. [`Guest`] runs one program.
//!
//! Where to look: [`run`](self) drives a task; `syscalls` has the table and one module per family of calls;
//! `loader` and `exec` start programs; `memory`, `fd_table`, `signals` are what a process owns; `filesystem` is
//! what paths lead to where a guest has [`Mounts`] of its own; `host` is the list
//! of host calls; `hook` shows calls to the embedder, `trace` is one such hook.
//!
//! # Hooks
//!
//! A [`Hook`] sees a guest's calls before and after they are made. Each of these is a program in `examples/`:
//!
//! <details><summary>A counter of calls</summary>
//!
//! ```no_run
#![doc = include_str!("../../examples/call_counter.rs")]
//! ```
//! </details>
//! <details><summary>A fault injector: every n-th write fails</summary>
//!
//! ```no_run
#![doc = include_str!("../../examples/fault_injector.rs")]
//! ```
//! </details>
//! <details><summary>A file policy: only below one directory</summary>
//!
//! ```no_run
#![doc = include_str!("../../examples/file_policy.rs")]
//! ```
//! </details>
//! <details><summary>A network policy: only this machine</summary>
//!
//! ```no_run
#![doc = include_str!("../../examples/network_policy.rs")]
//! ```
//! </details>
//! <details><summary>Virtual time: the guest's clock is the embedder's</summary>
//!
//! ```no_run
#![doc = include_str!("../../examples/virtual_time.rs")]
//! ```
//! </details>
#![deny(unsafe_code)]

mod abi;
mod attributes;
mod credentials;
mod epoll;
mod errno;
mod exec;
mod fd_table;
mod file;
mod filesystem;
mod fs_context;
mod futex;
mod guest_memory;
mod hook;
mod host;
mod kernel;
mod limits;
mod loader;
mod memory;
mod network;
mod observe;
mod passed_files;
mod pidfd;
mod process;
mod procfs;
mod record_locks;
mod restrictions;
mod run;
mod self_confinement;
mod signalfd;
mod signals;
mod socket;
mod socket_address;
mod syscalls;
mod task;
mod timers;
mod trace;

pub use errno::Errno;
pub use filesystem::{Access, MountError, Mounts};
pub use hook::{
    ArgError, ArgValue, Argument, Call, CallEnd, CallSet, DeliveredSignal, Hook, OpenHow, OutgoingMessage,
    TaskId, UnknownCall, Verdict,
};
pub use loader::LoadError;
pub use network::Network;
pub use observe::CallCounts;
pub use run::{Guest, Outcome, RunError};
pub use self_confinement::SupervisorFilter;
pub use socket_address::SocketAddress;
pub use syscalls::{Support, call_support};
pub use task::ExitStatus;
