//! Programs with threads: life and death, locks, futexes, signals; built against glibc and, static, against musl.

mod common {
    pub mod bounded;
    pub mod cli;
    pub mod parts;
}

use common::cli;
use common::parts::{compare, compare_program};
use std::path::Path;
use std::process::Command;

#[test]
fn threads_lock_wait_and_join() {
    compare("threads");
}

#[test]
fn threads_end_in_every_order() {
    compare("thread_ends");
}

#[test]
fn signals_reach_the_right_thread() {
    compare("thread_signals");
}

#[test]
fn futexes_of_one_process() {
    compare("futexes");
}

#[test]
fn futexes_between_processes() {
    compare("shared_futexes");
}

#[test]
fn a_static_program_has_threads() {
    for name in ["threads", "thread_ends"] {
        compare_program(name, &cli::fixture(name, &["-static"]));
    }
}

#[test]
fn a_static_musl_program_has_threads() {
    for name in ["threads", "thread_signals"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/programs/{name}.c"));
        let target = cli::scratch().join(format!("{name}-musl"));
        let status = Command::new(cli::program("musl-gcc"))
            .args(["-O1", "-w", "-static", "-o"])
            .args([&target, &source])
            .status()
            .expect("musl-gcc starts");
        assert!(status.success(), "musl-gcc cannot build {name}");
        compare_program(name, &target);
    }
}
