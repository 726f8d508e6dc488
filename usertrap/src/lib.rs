//! Decodes the code around a `syscall` instruction and plans its replacement by a jump to a trampoline.
#![forbid(unsafe_code)]
