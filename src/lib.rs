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
//! and decides what becomes of them; calls that it does not ask for stay as fast as they are without it. Nobody makes
//! directories here:
//!
#![cfg_attr(feature = "sentry", doc = "```no_run")]
#![cfg_attr(not(feature = "sentry"), doc = "```ignore")]
//! use systrap::sentry::{Call, CallSet, Errno, Guest, Hook, Verdict};
//!
//! struct NoDirectories;
//!
//! impl Hook for NoDirectories {
//!     type TaskState = (); // what is kept of each guest thread
//!
//!     fn calls(&self) -> CallSet {
//!         CallSet::numbered([libc::SYS_mkdir, libc::SYS_mkdirat])
//!     }
//!
//!     fn before(&self, _: &mut (), call: &mut Call<'_>) -> Verdict {
//!         eprintln!("{call}"); // mkdir("/tmp/x", 0777)
//!         Verdict::Deny(Errno::EPERM)
//!     }
//! }
//!
//! let outcome = Guest::new(c"/bin/mkdir").args([c"mkdir", c"/tmp/x"]).hook(NoDirectories).run()?;
//! assert_eq!(outcome.status.code(), 1);
//! # Ok::<(), systrap::sentry::RunError>(())
//! ```
//!
//! The module's page shows a counter of calls, a fault injector, a file policy, a network policy and a clock of the
//! embedder's.
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
//!
//! # Stability
//!
//! Semantic versioning. Enumerations and structures that may grow are `#[non_exhaustive]`, and traits to implement gain
//! methods only with a default. The texts of errors, of the trace and of `Debug`, the calls that the sentry serves, the rules
//! of [`Systrap::syscall_filters`] and the tables in [`seccomp`] may change with any release. `seccompiler`, re-exported in
//! [`seccomp`], is the one dependency whose types are part of the interface: a new major version of it is one here. Numbers
//! of calls, signals and flags are the kernel's, as in the crate `libc`. The minimum Rust version (1.88) may rise with a
//! minor version.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("systrap runs on Linux on x86-64 only: build it with `--target x86_64-unknown-linux-gnu`");

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
