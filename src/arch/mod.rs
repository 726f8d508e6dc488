//! What depends on the instruction set: only x86-64 so far.

pub(crate) mod xstate;
