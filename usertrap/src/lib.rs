//! Turns the `syscall` instructions of a guest program into jumps, so that a system call that trapped once (and costs
//! about fourteen native calls that way) does not trap again.
//!
//! The crate is pure: bytes and addresses in; a plan, a trampoline's bytes and a list of stores out. It reads no
//! memory, writes none and knows nothing of processes. Whoever links it decides where code lies, makes the stores, and
//! provides the syshandler that trampolines end in. A patch is an optimisation, never a boundary: what is not patched
//! traps, and everything here prefers a site that traps to a patch that might be wrong.
//!
//! # From a trap to a patch
//!
//! 1. [`CodeWindow`]: the bytes around the site; [`Hints`]: what else is known.
//! 2. [`plan`] proves the instruction boundaries it needs ([`Witness`]) and gives a [`Plan`] or a [`Refusal`] with the
//!    reasons. Neither depends on the load address; a [`PlanCache`] keeps both by file. `scan` (feature `elf`) plans a whole file,
//!    with its unwind tables and all its branches in sight, and its plans serve any mapping of that file.
//! 3. [`PatchMap::prepare`] allocates a trampoline ([`TrampolineMemory`]), builds it ([`Trampoline`]) and says which
//!    stores to make in which order ([`Step`], [`WriteMode`]). [`PatchMap::commit`] when they are made.
//! 4. [`PatchMap::locate`] turns an instruction pointer inside a trampoline back into the guest's
//!    ([`GuestPosition`]), for faults, interrupts and signal frames.
//! 5. [`PatchMap::remove`], [`PatchMap::invalidate`] and [`PatchMap::reclaim`] undo all of it; [`PatchMap::fork`] copies.
//!
//! # The syshandler's side
//!
//! A trampoline enters the syshandler by a jump, with the number in rax, the address behind the `syscall` in rcx, and
//! everything else — arguments, r11, flags, stack and red zone, vector registers — as it is at the site. The syshandler
//! may use rax, rcx and r11 (a `syscall` gives them away), sets r11 to the flags and rcx to the return address as a
//! native call does, and returns by jumping to that address.
//!
//! # Tier 1: one instruction
//!
//! The nearest instruction of five bytes or more in the straight line in front of the site becomes `jmp rel32`. No
//! instruction boundary disappears: whoever is past the jump, or jumps to the `syscall`, or restarts it at rip − 2,
//! finds the bytes that were there and traps. Conditional branches in between are no obstacle, the copies take them.
//!
//! ```
//! use usertrap::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let code = [
//!     0xb8, 0x27, 0, 0, 0, // 401000  mov eax, 39
//!     0x48, 0x89, 0xdf,    // 401005  mov rdi, rbx
//!     0x0f, 0x05,          // 401008  syscall
//!     0xc3,                // 40100a  ret
//!     0x90, 0x90, 0x90, 0x90, 0x90,
//! ];
//! let (start, site) = (GuestAddr::new(0x40_1000), GuestAddr::new(0x40_1008));
//! let function = Some(KnownFunction { start, end: Some(GuestAddr::new(0x40_100b)) });
//! let window = CodeWindow::new(start, &code, site)?;
//! let plan = plan(&window, &Hints { function, ..Hints::default() })?;
//! assert_eq!(*plan.tier(), Tier::OneInstruction);
//! assert_eq!(plan.head(), -8);
//!
//! // The trampoline runs what it replaces and skips, then goes where the `syscall` would have gone.
//! let at = TrampolineAddr::new(0x1000_0000);
//! let trampoline = Trampoline::build(&plan, site, at, SyshandlerAddr::new(0x7000_0000_0000))?;
//! assert_eq!(trampoline.code()[..8], code[..8]); //   mov eax, 39; mov rdi, rbx
//! assert_eq!(trampoline.code()[8..11], [0x48, 0x8d, 0x0d]); // lea rcx, [rip + …]
//! assert_eq!(trampoline.code()[15..17], [0xff, 0x25]); //      jmp [rip + …]
//!
//! // A fault in the second copy is a fault at the second instruction …
//! let rip = at.wrapping_offset(5).as_rip();
//! assert_eq!(trampoline.guest_position(rip), Some(GuestPosition::At(GuestAddr::new(0x40_1005))));
//! // … an interrupt at the `lea` is one in front of the `syscall` …
//! let rip = at.wrapping_offset(8).as_rip();
//! assert_eq!(trampoline.guest_position(rip), Some(GuestPosition::At(site)));
//! // … and behind the `lea` rcx is gone, as only a `syscall` may do it: the call counts as made.
//! let rip = at.wrapping_offset(15).as_rip();
//! let ret = GuestAddr::new(0x40_100a);
//! assert_eq!(trampoline.guest_position(rip), Some(GuestPosition::Call { site, ret }));
//! # Ok(())
//! # }
//! ```
//!
//! # Tier 2: padding
//!
//! Where nothing in front will do, the two bytes of the `syscall` become `jmp rel8` to five bytes of padding behind
//! a jump or return, which become the `jmp rel32`. Boundaries stay as well; a restart at rip − 2 arrives at the short
//! jump, which is as right.
//!
//! ```
//! use usertrap::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let code = [
//!     0x85, 0xff,                   // 401000  test edi, edi
//!     0x75, 0x06,                   // 401002  jne 40100a
//!     0xc3,                         // 401004  ret
//!     0xcc, 0xcc, 0xcc, 0xcc, 0xcc, // 401005  int3, five times
//!     0x0f, 0x05,                   // 40100a  syscall
//!     0xc3,                         // 40100c  ret
//! ];
//! let (start, site) = (GuestAddr::new(0x40_1000), GuestAddr::new(0x40_100a));
//! let function = Some(KnownFunction { start, end: Some(GuestAddr::new(0x40_100d)) });
//! let hints = Hints { site_executed: true, function, ..Hints::default() };
//! let plan = plan(&CodeWindow::new(start, &code, site)?, &hints)?;
//! assert_eq!(*plan.tier(), Tier::Padding { offset: -5, kind: Padding::Breakpoints });
//! assert!(plan.relocated().is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # Tier 3: a window
//!
//! Several short instructions up to the `syscall` are replaced together, when every jump of the function is known and
//! none goes between them. Boundaries vanish, so it is written only while no other thread of the address space runs,
//! and instruction pointers at vanished boundaries are sent to the copies ([`PatchMap::resume_at`]).
//!
//! ```
//! use usertrap::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let code = [
//!     0x48, 0x8b, 0x53, 0x18, // 401000  mov rdx, [rbx + 24]
//!     0x8b, 0x03,             // 401004  mov eax, [rbx]
//!     0x0f, 0x05,             // 401006  syscall
//!     0xc3,                   // 401008  ret
//! ];
//! let (start, site) = (GuestAddr::new(0x40_1000), GuestAddr::new(0x40_1006));
//! let function = Some(KnownFunction { start, end: Some(GuestAddr::new(0x40_1009)) });
//! let hints = Hints { function, targets_complete: true, ..Hints::default() };
//! let plan = plan(&CodeWindow::new(start, &code, site)?, &hints)?;
//! assert_eq!(*plan.tier(), Tier::Relocated { vanishing: vec![-2] });
//! assert!(plan.needs_stopped_threads());
//! # Ok(())
//! # }
//! ```
//!
//! # Tier 4: no patch
//!
//! The reasons are data, for people and for statistics, and to be remembered ([`PatchMap::refuse`]).
//!
//! ```
//! use usertrap::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // google/gvisor#10849: these bytes end like `mov eax, 16; syscall` and are not.
//! let code = [0xc7, 0x44, 0x24, 0xb8, 0x10, 0, 0, 0, 0x0f, 0x05];
//! let window = CodeWindow::new(GuestAddr::new(0x40_1000), &code, GuestAddr::new(0x40_1008))?;
//! // With nothing known, so few bytes prove nothing.
//! let refusal = plan(&window, &Hints { site_executed: true, ..Hints::default() }).unwrap_err();
//! assert!(matches!(refusal, Refusal::NoTier { one: Blocker::Unproved { .. }, .. }));
//! // With a function start, the instruction that is really there is replaced.
//! let function = Some(KnownFunction { start: GuestAddr::new(0x40_1000), end: None });
//! assert_eq!(plan(&window, &Hints { function, ..Hints::default() })?.head(), -8);
//! # Ok(())
//! # }
//! ```
//!
//! # What it rests on
//!
//! * Boundaries: a unanimous vote of decodings from 49 starts, a known function start, or both. A bare majority is
//!   no proof.
//! * Branches: no direct branch that the window holds or the caller knows goes between the replaced bytes. An indirect
//!   jump into the *middle* of an instruction would be missed; so would one to a boundary that tier 3 removes, which is
//!   why tier 3 wants the whole function and no indirect jump in it.
//! * Padding: `int3`s, or `nop`s inside of a known function, or `nop`s that end at a multiple of 16 and do not begin at
//!   one.
//! * The bytes behind the five of a `jmp rel32` are left as they were: nothing executes them, and a patch is undone by
//!   one store.
//!
//! # Stability
//!
//! Semantic versioning. Errors, reasons and what functions return may gain variants and fields (`#[non_exhaustive]`); what a
//! caller has to carry out in full, [`Step`] and [`WriteMode`], and what it has to tell apart, [`RipMeaning`] and
//! [`GuestPosition`], gain none without a new major version. *Which* sites are patched, and the bytes of trampolines, may
//! change with any release. No type of a dependency is part of the interface.
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

pub use addr::{GuestAddr, GuestRange, Reach, SyshandlerAddr, TrampolineAddr};
pub use arena::{ArenaError, TrampolineMemory};
pub use cache::{FileSite, PlanCache};
pub use decode::{CopyKind, Padding, Pinned, prepare_tables};
pub use patch_map::{
    ForkError, InstallError, Installation, Invalidated, Limits, Loss, PatchMap, Removal, Retirement,
    RipMeaning,
};
pub use plan::{Blocker, JUMP_LEN, Plan, Refusal, Relocated, Tier};
pub use planner::{plan, prove_site_of};
pub use prove::{Unproved, Witness};
#[cfg(feature = "elf")]
pub use scan::{GvisorRule, Scan, ScanError, ScannedSite, scan};
pub use trampoline::{BuildError, GuestPosition, TRAMPOLINE_ALIGN, Trampoline};
pub use window::{
    CodeWindow, Hints, KnownFunction, MAX_WINDOW, SYSCALL, WINDOW_AFTER, WINDOW_BEFORE, WindowError,
};
pub use write::{Step, WriteMode};
