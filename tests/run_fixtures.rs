//! Small C programs, each about one area, print the same under `systrap run` as natively.

#[path = "common/cli.rs"]
mod cli;

use cli::{compare, compare_with, fixture};

/// Runs a fixture that works in a directory of its own.
fn compare_in_fresh_directory(name: &str) {
    let directory = cli::scratch().join(format!("{name}.d"));
    let fresh = || {
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
    };
    let native = compare_with(&fixture(name, &[]), &[directory.to_str().unwrap()], b"", fresh);
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
}

#[test]
fn a_dynamic_program_finds_its_start_as_the_abi_says() {
    compare(&fixture("start", &[]), &["5", "two", ""]);
}

#[test]
fn a_static_program_finds_its_start_as_the_abi_says() {
    compare(&fixture("start", &["-static"]), &["6", "two"]);
    compare(&fixture("start", &["-static", "-no-pie"]), &["0"]);
}

#[test]
fn a_static_pie_program_finds_its_start_as_the_abi_says() {
    compare(&fixture("start", &["-static-pie"]), &["7"]);
}

#[test]
fn a_program_at_a_fixed_address_with_an_interpreter_starts() {
    compare(&fixture("start", &["-no-pie"]), &["8"]);
}

#[test]
fn signals() {
    let native = compare(&fixture("signals", &[]), &[""; 0]);
    assert_eq!(native.status.code(), Some(0));
}

#[test]
fn file_calls() {
    compare_in_fresh_directory("files");
}

#[test]
fn memory_calls() {
    compare_in_fresh_directory("memory");
}

#[test]
fn descriptors() {
    compare(&fixture("descriptors", &[]), &[""; 0]);
}

#[test]
fn proc_self_shows_the_guest() {
    compare(&fixture("procself", &[]), &["one", "two"]);
}

#[test]
fn exec_in_place() {
    let script = cli::scratch().join("stage3");
    let native = compare(&fixture("exec", &[]), &[script.to_str().unwrap()]);
    assert_eq!(native.status.code(), Some(7), "{}", String::from_utf8_lossy(&native.stdout));
}

#[test]
fn death_by_each_signal_gives_128_and_its_number() {
    let death = fixture("death", &[]);
    for how in ["segv", "ill", "trap", "abort", "blocked", "ignored", "stack", "pipe"] {
        compare(&death, &[how]);
    }
    // SIGSTOP and its kin stop, SIGCHLD, SIGURG, SIGWINCH and SIGCONT do nothing.
    for signo in (1..=31).filter(|signo| ![19, 20, 21, 22].contains(signo)).chain([34, 64]) {
        let native = compare(&death, &[signo.to_string()]);
        assert!(cli::shell_status(&native) == 128 + signo || [17, 18, 23, 28].contains(&signo));
    }
}
