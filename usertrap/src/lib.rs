//! Decodes the code around a `syscall` instruction and plans its replacement by a jump to a trampoline.
#![forbid(unsafe_code)]

mod addr;
mod arena;
mod bounded;
mod cache;
mod decode;
mod patch_map;
mod plan;
mod planner;
mod prove;
#[cfg(feature = "elf")]
mod scan;
mod targets;
mod trampoline;
mod window;
mod write;

pub use addr::*;
pub use arena::{ArenaError, TrampolineMemory};
pub use cache::{FileSite, PlanCache};
pub use decode::{CopyKind, Padding, Pinned};
pub use patch_map::*;
pub use plan::*;
pub use planner::{plan, prove_site_of};
pub use prove::{Unproved, Witness};
#[cfg(feature = "elf")]
pub use scan::{GvisorRule, Scan, ScanError, ScannedSite, scan};
pub use trampoline::*;
pub use window::*;
pub use write::{Step, WriteMode};
