//! Run unmodified Linux programs with every system call in your own hands.
//!
//! `systrap` runs x86-64 Linux programs (*guests*) in seccomp-confined *stub processes* and hands every system
//! call, fault and interrupt to the program that links this library (the *supervisor*). It needs no ptrace, no
//! privilege and no virtualisation. It exists because the alternatives are slow (ptrace), not usable as a
//! library (gVisor's systrap, whose idea it takes up), or without isolation (in-process rewriting).
//!
//! A [`Systrap`] is the platform, an [`AddressSpace`] is a guest process's memory, a [`Context`] is a guest
//! thread's registers, and [`Context::switch`] runs it until the next [`Event`]. Who has a personality of their own
//! needs nothing else:
//!
//! ```
#![doc = include_str!("../examples/bare_platform.rs")]
//! ```
//!
//! # Programs
//!
//! The module `sentry` is a Linux personality on top of it, which runs whole programs. A `sentry::Hook` sees their calls
//! and decides what becomes of them; calls that it does not ask for stay as fast as they are without it. The module's
//! page shows a counter of calls, a fault injector, a file policy and a clock of the embedder's.
//!
//! # Threads and ownership
//!
//! [`Systrap`] and [`AddressSpace`] are handles that can be cloned and shared between threads. A [`Context`] belongs to
//! one thread at a time and may move; an [`Interrupter`] reaches it from any. A `sentry::Guest` may be set up in one
//! thread and run in another; a hook is shared by all threads that run tasks.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `sentry` (default) | the module `sentry` |
//! | `cli` (default) | the command `systrap`, with `sentry` |

mod addr;
mod address_space;
mod arch;
mod context;
mod copy;
mod error;
mod event;
mod mapping;
mod options;
mod patching;
mod platform;
mod registers;
pub mod seccomp;
#[cfg(feature = "sentry")]
pub mod sentry;
mod shared;
mod stats;
mod subprocess;
mod sys;

pub use addr::GuestAddr;
pub use address_space::{AddressSpace, Advice, Protection, Sharing};
pub use context::{
    Context, ContextMemory, Executed, Interrupter, Made, MemoryOnReturn, PassedCalls, SentArguments,
};
pub use error::{CopyError, Error, MapError, StubExit, SwitchError};
pub use event::{AccessType, Arch, Entry, Event, Signal, Syscall};
pub use options::{Options, Patching};
pub use platform::{Systrap, Vdso};
pub use registers::Registers;
pub use stats::{EagerStats, Stats};

/// The page size of x86-64 in bytes.
pub const PAGE_SIZE: u64 = systrap_stub::layout::PAGE_SIZE;

/// The call is restarted after a signal handler if that was set up with SA_RESTART, else it fails with EINTR
/// (include/linux/errno.h of the kernel; gVisor `ERESTARTSYS`).
pub const ERESTARTSYS: i64 = 512;
/// The call is restarted after a signal handler.
pub const ERESTARTNOINTR: i64 = 513;
/// The call is restarted if there is no signal handler, else it fails with EINTR.
pub const ERESTARTNOHAND: i64 = 514;

/// The example in the README is compiled and run.
#[cfg(all(doctest, feature = "sentry"))]
#[doc = include_str!("../README.md")]
struct Readme;
