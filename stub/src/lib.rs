//! What a stub process and its supervisor share: the structures in shared memory, the values that
//! travel through them, the address map of a stub process, and the code that a stub process runs.
//!
//! This crate exists so that there is **one** definition of everything both sides rely on. The code
//! ([`code`]) is written as naked functions whose every offset is an `offset_of!` of the structures in
//! [`sysmsg`] and [`request`], so no second list of offsets exists.
//!
//! A stub process is untrusted as a whole. Everything here that is writable in a stub process is an
//! allegation to the supervisor; everything read-only is a promise of the supervisor to the stub.
//!
//! # Stability
//!
//! None: this is a part of `systrap`, which asks for exactly its own version. Anything here may change with any release.
#![no_std]

pub mod code;
pub mod handoff;
pub mod layout;
pub mod request;
pub mod sysmsg;
pub mod wire;
