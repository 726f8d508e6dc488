//! The Java virtual machine: its compiler, threads, code made while it runs, a server and clients.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::path::{Path, PathBuf};
use std::process::Command;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runtimes").join(format!("{name}.java"))
}

/// Compiles a class natively; gives the directory with it.
fn classes(name: &str) -> PathBuf {
    let directory = cli::scratch().join(format!("classes-{name}"));
    let mut command = Command::new(cli::program("javac"));
    command.arg("-d").arg(&directory).arg(source(name));
    let output = bounded::output(command, b"");
    assert!(output.status.success(), "javac: {}", String::from_utf8_lossy(&output.stderr));
    directory
}

/// Runs a class natively and in every mode.
fn compare(name: &str, options: &[&str]) -> std::process::Output {
    let java = cli::program("java");
    let classes = classes(name);
    let args = [options, &["-cp", classes.to_str().expect("a plain path"), name]].concat();
    bounded::compare(&java, &args, b"")
}

#[test]
fn threads_faults_and_compiled_loops() {
    let native = compare("Threads", &[]);
    let text = String::from_utf8_lossy(&native.stdout);
    assert_eq!(native.status.code(), Some(7), "{text}{}", String::from_utf8_lossy(&native.stderr));
    for line in ["null pointer", "stack overflow", "collected", "interrupted", "143", "hook"] {
        assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
    }
}

#[test]
fn an_http_server_and_its_clients_in_one_program() {
    let native = compare("Web", &[]);
    let text = String::from_utf8_lossy(&native.stdout);
    assert_eq!(native.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&native.stderr));
    assert_eq!(text.lines().filter(|line| line.starts_with("POST /")).count(), 40, "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("200 GET /simple")).count(), 20, "{text}");
}

#[test]
fn the_compiler_makes_the_same_classes() {
    cli::program("javac");
    let script = "javac -d . \"$1\" \"$2\" && sha256sum *.class && javap -c Web | tail -n 50";
    let (one, two) = (source("Threads"), source("Web"));
    let args = ["-c", script, "sh", one.to_str().expect("plain"), two.to_str().expect("plain")];
    let native = bounded::compare(&cli::program("sh"), &args, b"");
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
    assert!(String::from_utf8_lossy(&native.stdout).contains("  Threads$Circle.class"));
}

/// The collectors have their own threads and their own tricks with memory.
#[test]
fn every_collector_collects() {
    let java = cli::program("java");
    let classes = classes("Threads");
    for collector in ["-XX:+UseSerialGC", "-XX:+UseParallelGC", "-XX:+UseG1GC", "-XX:+UseZGC"] {
        let args = [collector, "-Xmx256m", "-cp", classes.to_str().expect("a plain path"), "Threads"];
        let native = bounded::compare_in(&["--patching=lazy"], &java, &args, b"", &|_| ());
        assert_eq!(native.status.code(), Some(7), "{collector}: {}", String::from_utf8_lossy(&native.stderr));
    }
}
