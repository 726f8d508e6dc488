//! Many processes, many threads.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

#[test]
fn crowds_come_and_go() {
    common::parts::compare("crowds");
}
