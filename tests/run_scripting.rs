//! Runtimes of scripting languages that compile while they run: node and LuaJIT.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::path::Path;

/// Runs a script of `fixtures/runtimes` natively and in every mode; it has to end with `status`.
fn compare(program: &str, script: &str, status: i32) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runtimes").join(script);
    let native = bounded::compare(&cli::program(program), &[&script], b"");
    let text = String::from_utf8_lossy(&native.stdout).into_owned();
    assert_eq!(native.status.code(), Some(status), "{text}{}", String::from_utf8_lossy(&native.stderr));
    text
}

#[test]
fn node_has_workers_and_children() {
    let text = compare("node", "workers.js", 6);
    for line in ["terminated 1", "forked [ 0, null ]", "[ null, 'SIGTERM' ]", "ETIMEDOUT SIGTERM", "watched"]
    {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
}

#[test]
fn luajit_runs_what_it_compiled() {
    let text = compare("luajit", "jit.lua", 9);
    assert!(text.starts_with("true\n"), "the compiler is not on: {text}");
    assert!(text.contains("stack overflow\nfrom a child\n"), "{text}");
}
