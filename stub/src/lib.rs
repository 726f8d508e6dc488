//! What a stub process and its supervisor share.
#![no_std]
