//! Shared by the tests here, and by others that execute what is planned here.
#![allow(dead_code)] // each test uses its part

pub mod fuzz;
pub mod memory;
pub mod rng;
pub mod windows;
