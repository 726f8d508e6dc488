//! Programs whose processes share memory, descriptors and locks, and that use the rules of the memory map.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

use common::parts::compare;

#[test]
fn processes_share_memory() {
    compare("shared_mappings");
}

#[test]
fn calls_for_mappings() {
    compare("mapping_calls");
}

#[test]
fn processes_share_descriptors() {
    compare("shared_descriptors");
}

#[test]
fn locks_between_processes() {
    compare("file_locks");
}

#[test]
fn data_moves_between_descriptors() {
    compare("transfers");
}
