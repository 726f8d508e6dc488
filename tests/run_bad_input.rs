//! What `systrap run` says about files that are not programs: one line and the shell's exit status, never a panic.

#[path = "common/cli.rs"]
mod cli;

use cli::{fixture, output, scratch, systrap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn write(name: &str, bytes: &[u8], mode: u32) -> PathBuf {
    let path = scratch().join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// Runs it and returns exit status and the one line, with the scratch directory's name taken out.
fn complaint(program: &Path) -> String {
    let run = output(systrap(&[], program, &[""; 0]), b"");
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(run.stdout.is_empty());
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("systrap: "), "{text}");
    let text = text.replace(&format!("{}/", scratch().display()), "");
    format!("{:?} {}", run.status.code(), text.trim_end())
}

#[test]
fn every_kind_of_bad_file_has_its_line() {
    let good = std::fs::read(fixture("start", &[])).unwrap();
    let mut wrong_interpreter = good.clone();
    let at = good.windows(11).position(|window| window == b"/lib64/ld-l").unwrap();
    wrong_interpreter[at..at + 11].copy_from_slice(b"/missing/ld");
    let mut elf32 = good.clone();
    elf32[4] = 1;
    let mut arm = good.clone();
    arm[18] = 183;
    let lines = [
        complaint(Path::new("no-such-program-anywhere")),
        complaint(&scratch().join("missing")),
        complaint(Path::new("/etc/passwd/x")),
        complaint(&write("plain", &good, 0o644)),
        complaint(Path::new("/")),
        complaint(Path::new("/dev/null")),
        complaint(&write("empty", b"", 0o755)),
        complaint(&write("text", b"echo hello\n", 0o755)),
        complaint(&write("head", &good[..40], 0o755)),
        complaint(&write("half", &good[..good.len() / 2], 0o755)),
        complaint(&write("elf32", &elf32, 0o755)),
        complaint(&write("arm", &arm, 0o755)),
        complaint(&write("interpreter", &wrong_interpreter, 0o755)),
        complaint(&write("script", b"#!/no/such/shell -x\n", 0o755)),
        complaint(&write("directory-script", b"#!/tmp\n", 0o755)),
        complaint(&write("empty-script", b"#!\n", 0o755)),
    ];
    insta::assert_snapshot!(lines.join("\n"), @"
    Some(127) systrap: no-such-program-anywhere: command not found
    Some(127) systrap: missing: No such file or directory
    Some(127) systrap: /etc/passwd/x: Not a directory
    Some(126) systrap: plain: Permission denied
    Some(126) systrap: /: Is a directory
    Some(126) systrap: /dev/null: Permission denied
    Some(126) systrap: empty: cannot execute: not an ELF file or a script
    Some(126) systrap: text: cannot execute: not an ELF file or a script
    Some(126) systrap: head: cannot execute: truncated ELF header
    Some(126) systrap: half: cannot execute: truncated: a segment reaches past the end of the file
    Some(126) systrap: elf32: cannot execute: 32-bit programs are not supported
    Some(126) systrap: arm: cannot execute: not a program for x86-64
    Some(126) systrap: interpreter: interpreter /missing/ldinux-x86-64.so.2 not usable: No such file or directory
    Some(126) systrap: script: interpreter /no/such/shell not usable: No such file or directory
    Some(126) systrap: directory-script: interpreter /tmp not usable: Permission denied
    Some(126) systrap: empty-script: cannot execute: the #! line names no interpreter
    ");
}

#[test]
fn truncated_and_random_files_never_panic() {
    let good = std::fs::read(fixture("start", &["-static"])).unwrap();
    let mut random = cli::noise(64 * 100).into_iter();
    let mut next = move || random.next().unwrap_or(0);
    for round in 0..60 {
        let mut bytes = good[..good.len().min(40_000)].to_vec();
        match round % 3 {
            0 => bytes.truncate(usize::from(next()) * 8),
            // The headers with some bytes changed. What still loads may run, and die as it likes.
            1 => (0..6).for_each(|_| bytes[4 + usize::from(next()) % 300] = next()),
            _ => bytes[4..400].iter_mut().for_each(|byte| *byte = next()),
        }
        let program = write("damaged", &bytes, 0o755);
        let mut command = Command::new(cli::program("timeout"));
        command.args(["-s", "KILL", "20", cli::SYSTRAP, "run", "--"]).arg(&program);
        let run = output(command, b"");
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!text.contains("panicked") && run.status.code() != Some(101), "round {round}: {text}");
    }
}

/// A guest that makes thousands of senseless calls neither crashes nor hangs the sentry.
#[test]
fn random_calls_never_panic() {
    let random = fixture("random", &["-static"]);
    let mut ended = 0;
    for seed in 0..40 {
        // One for each: a guest may leave its directory so that it cannot be removed.
        let directory = scratch().join(format!("random.{seed}"));
        std::fs::create_dir(&directory).unwrap();
        let figures = scratch().join(format!("random.{seed}.json"));
        let mut command = Command::new(cli::program("timeout"));
        command.args(["-s", "KILL", "60", cli::SYSTRAP, "run", "--stats-json"]).arg(&figures);
        command.arg("--").arg(&random).arg(&directory).arg(seed.to_string());
        let run = output(command, b"");
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        // The guest may well unmap itself and die of a signal, as then the command does; the sentry must see it to its
        // end, which the figures are written after.
        let code = run.status.code();
        assert!(code.is_none_or(|code| code != 101 && code != 125), "seed {seed}: {code:?} {text}");
        assert!(!text.contains("panicked"), "seed {seed}: {text}");
        let written = std::fs::read(&figures).unwrap_or_default();
        assert!(!written.is_empty(), "seed {seed}: no figures, {:?} {text}", run.status);
        ended += i32::from(code == Some(0));
    }
    println!("{ended} of 40 guests survived their own calls");
}

#[test]
fn wrong_usage_is_systraps_own_failure() {
    for args in
        [&["run"][..], &["run", "--patching=maybe", "--", "true"], &["jump"], &["run", "--stats-json"]]
    {
        let run = output(
            {
                let mut command = Command::new(cli::SYSTRAP);
                command.args(args);
                command
            },
            b"",
        );
        assert_eq!(run.status.code(), Some(125), "{args:?}");
        assert!(!run.stderr.is_empty());
    }
    let run = output(systrap(&["--stats-json", "/no/such/dir/file"], Path::new("true"), &[""; 0]), b"");
    assert_eq!(run.status.code(), Some(125));
}
