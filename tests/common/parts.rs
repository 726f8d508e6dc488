//! The guest programs that consist of parts (`fixtures/programs/check.h`): each part runs natively and under systrap in
//! every mode, and has to print the same checks, all of them good.
#![allow(dead_code, reason = "each test binary uses its part")]

use super::{bounded, cli};
use std::path::Path;
use std::process::Output;
use std::sync::Mutex;

/// Most of the parts' time is spent asleep.
const AT_ONCE: usize = 3;

/// The lines of a run: processes may print theirs in any order.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// What is wrong with a run that should be like the native one.
fn difference(native: &Output, guest: &Output) -> Option<String> {
    let (wanted, got) = (String::from_utf8_lossy(&native.stdout), String::from_utf8_lossy(&guest.stdout));
    if sorted(&wanted) == sorted(&got)
        && native.stderr == guest.stderr
        && cli::shell_status(native) == cli::shell_status(guest)
    {
        return None;
    }
    let known: std::collections::HashSet<_> = wanted.lines().collect();
    let strange: Vec<_> = got.lines().filter(|line| !known.contains(line)).take(8).collect();
    let mut text = format!("status {} instead of {}", cli::shell_status(guest), cli::shell_status(native));
    if strange.is_empty() {
        let seen: std::collections::HashSet<_> = got.lines().collect();
        let missing: Vec<_> = wanted.lines().filter(|line| !seen.contains(line)).take(4).collect();
        text += &format!("; missing: {missing:?}");
    } else {
        text += &format!("\n    {}", strange.join("\n    "));
    }
    if native.stderr != guest.stderr {
        text += &format!("\n    standard error: {}", String::from_utf8_lossy(&guest.stderr).trim());
    }
    Some(text)
}

/// One part, once natively and once in every mode; what went wrong.
fn check(program: &Path, part: &str) -> Vec<String> {
    let run = |mode: Option<&str>| {
        let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
        let path = directory.path().to_str().expect("a plain path");
        bounded::try_output(bounded::command(mode, program, &[part, path]), b"", bounded::limit())
    };
    let native = match run(None) {
        Ok(native) => native,
        Err(hung) => return vec![format!("{part} natively: {hung}")],
    };
    let printed = String::from_utf8_lossy(&native.stdout).into_owned();
    if cli::shell_status(&native) != 0
        || printed.is_empty()
        || printed.lines().any(|line| line.starts_with("FAIL"))
    {
        let bad: Vec<_> = printed.lines().filter(|line| !line.starts_with("ok")).collect();
        return vec![format!("{part} natively: status {}: {bad:?}", cli::shell_status(&native))];
    }
    let guest = |mode: &str| match run(Some(mode)) {
        Ok(guest) => difference(&native, &guest).map(|text| format!("{part} {mode}: {text}")),
        Err(hung) => Some(format!("{part} {mode}: {hung}")),
    };
    cli::MODES.iter().filter_map(|mode| guest(mode)).collect()
}

/// Runs all parts of a program of `fixtures/programs`. `SYSTRAP_PART` names a single one, to look into it.
pub fn compare(name: &str) {
    compare_program(name, &cli::fixture(name, &[]));
}

/// Runs all parts of a program that has been built.
pub fn compare_program(name: &str, program: &Path) {
    let list = bounded::output(bounded::command(None, program, &[""; 0]), b"");
    let list = String::from_utf8(list.stdout).expect("names");
    let only = std::env::var("SYSTRAP_PART").ok();
    let parts: Vec<_> =
        list.lines().filter(|part| only.as_deref().is_none_or(|only| only == *part)).collect();
    assert!(!parts.is_empty() || only.is_some(), "{name} has no parts");
    let queue = Mutex::new(parts.iter());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no panic").next();
                    let Some(part) = next else { break };
                    let found = check(program, part);
                    wrong.lock().expect("no panic").extend(found);
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no panic");
    assert!(wrong.is_empty(), "{name}: {} of {} runs:\n{}", wrong.len(), parts.len() * 2, wrong.join("\n"));
}
