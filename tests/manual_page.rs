//! The manual page and the completion scripts that the command prints of itself.

#[path = "common/cli.rs"]
mod cli;

use cli::{SYSTRAP, output, program};
use std::process::Command;

fn printed(args: &[&str]) -> String {
    let mut command = Command::new(SYSTRAP);
    command.args(args);
    let run = output(command, b"");
    assert!(run.status.success() && run.stderr.is_empty(), "{args:?}: {run:?}");
    String::from_utf8(run.stdout).expect("text")
}

/// The long options that `systrap SUBCOMMAND --help` shows.
fn options_of(subcommand: &str) -> Vec<String> {
    let help = printed(&[subcommand, "--help"]);
    let options: Vec<String> = help
        .lines()
        .filter_map(|line| line.trim_start().split_once("--").filter(|(before, _)| before.len() <= 4))
        .map(|(_, rest)| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
            format!("--{}", &rest[..end])
        })
        .collect();
    assert!(options.contains(&"--help".to_owned()), "{help}");
    options
}

/// A program that is not there is named, and its test is not made.
fn is_there(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !found {
        eprintln!("NOT TESTED: {name} is not installed on this machine");
    }
    found
}

#[test]
fn the_page_mentions_every_option_of_every_subcommand() {
    let page = printed(&["man"]).replace("\\-", "-");
    let mut checked = 0;
    for subcommand in ["run", "scan", "man", "completions"] {
        assert!(page.contains(&format!(".SH \"SYSTRAP {}\"", subcommand.to_uppercase())), "{page}");
        for option in options_of(subcommand) {
            assert!(page.contains(&option), "{option} of {subcommand} is not in\n{page}");
            checked += 1;
        }
    }
    assert!(checked >= 20, "only {checked} options");
    assert!(page.contains("124 if its time was up") && page.contains("systrap run --timeout 10s"), "{page}");
}

#[test]
fn the_page_formats_without_warnings() {
    let page = printed(&["man"]);
    if is_there("groff") {
        let mut command = Command::new(program("groff"));
        command.args(["-man", "-Tutf8", "-ww", "-P-c"]);
        let run = output(command, page.as_bytes());
        assert!(run.status.success() && run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
        let text = String::from_utf8_lossy(&run.stdout).into_owned();
        for expected in ["--no-net", "./untrusted", "EAFNOSUPPORT"] {
            assert!(text.to_lowercase().contains(&expected.to_lowercase()), "no {expected} in\n{text}");
        }
    }
    if is_there("man") {
        let mut command = Command::new(program("man"));
        command.args(["--warnings", "--encoding=UTF-8", "--troff-device=utf8", "--ditroff", "-l", "-"]);
        command.env("LC_ALL", "C.UTF-8");
        let run = output(command, page.as_bytes());
        assert!(run.status.success() && run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

#[test]
fn bash_completes_subcommands_options_and_values() {
    let script = printed(&["completions", "bash"]);
    let mut check = Command::new(program("bash"));
    check.arg("-n");
    let run = output(check, script.as_bytes());
    assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    let complete = |words: &[&str]| {
        let line = words.join("' '");
        let ask = format!(
            "{script}\nCOMP_WORDS=('systrap' '{line}'); COMP_CWORD={}; _systrap systrap '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            words.len(),
            words.last().copied().unwrap_or_default(),
            words.iter().rev().nth(1).copied().unwrap_or("systrap"),
        );
        let mut command = Command::new(program("bash"));
        command.args(["--norc", "-c", &ask]);
        let run = output(command, b"");
        assert!(run.stderr.is_empty(), "{run:?}");
        String::from_utf8(run.stdout).expect("text").trim().to_owned()
    };
    assert_eq!(complete(&["sc"]), "scan");
    assert_eq!(complete(&["run", "--no-n"]), "--no-net");
    assert_eq!(complete(&["run", "--patching", "l"]), "lazy");
    assert_eq!(complete(&["completions", "f"]), "fish");
}

#[test]
fn scripts_of_other_shells_know_every_option() {
    for shell in ["zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for option in options_of("run") {
            let name = option.trim_start_matches('-');
            assert!(script.contains(name), "{option} is not in the script for {shell}");
        }
        if is_there(shell) {
            let mut command = Command::new(program(shell));
            command.arg("-n");
            let run = output(command, script.as_bytes());
            assert!(run.status.success(), "{shell}: {}", String::from_utf8_lossy(&run.stderr));
        }
    }
    let run = output(
        {
            let mut command = Command::new(SYSTRAP);
            command.args(["completions", "ksh"]);
            command
        },
        b"",
    );
    assert_eq!(run.status.code(), Some(125));
}
