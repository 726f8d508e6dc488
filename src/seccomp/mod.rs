//! The seccomp filters: of stub processes, and (as rules) of the supervisor.
//!
//! seccompiler compiles the conditions on numbers and arguments. It cannot match the instruction pointer,
//! so the assembler puts a dispatcher on the instruction pointer in front of what it compiled.

mod assemble;
mod bpf;
#[cfg(feature = "sentry")]
mod by_number;
mod supervisor;
mod table;

pub(crate) use assemble::assemble;
#[cfg(feature = "sentry")]
pub(crate) use by_number::{Ruling, assemble_by_number};
/// The rules of [`Systrap::syscall_filters`](crate::Systrap::syscall_filters) are this crate's, in this version.
pub use seccompiler;
pub(crate) use supervisor::syscall_filters;
pub use supervisor::{SupervisorRow, supervisor_rows};
/// Where a stub process makes a host call.
pub use systrap_stub::code::SyscallSite;
pub use table::{Condition, FilterKind, Row, Test, rows};
pub(crate) use table::{MEMBARRIER_REGISTER_SYNC_CORE, MEMBARRIER_SYNC_CORE, is_private_futex_op};
