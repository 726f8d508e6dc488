//! Real programs under `systrap run` with patching off, lazy and eager: the same output, and figures that add up.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const MODES: [&str; 3] = ["off", "lazy", "eager"];
/// What has to be true of the calls that are not their site's first.
const WANTED_PERCENT: f64 = 99.0;

/// What a run left behind.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    status: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// The system's program of that name, rather than what a version manager puts in front of it.
fn find(program: &str) -> Option<PathBuf> {
    let found =
        ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(program)).into_iter().find(|p| p.is_file());
    if found.is_none() {
        eprintln!("**** NOT CHECKED: no {program} in /usr/bin or /bin");
    }
    found
}

/// Runs a program, in a mode or natively; gives the figures of `--stats-json` too.
fn run(mode: Option<&str>, directory: &Path, program: &[&str]) -> (Said, Value) {
    let figures = tempfile::NamedTempFile::new().expect("a file");
    let mut command = match mode {
        None => Command::new(program[0]),
        Some(mode) => {
            let mut command = Command::new(env!("CARGO_BIN_EXE_systrap"));
            command.arg("run").arg(format!("--patching={mode}")).arg("--patch-after=1");
            command.arg(format!("--stats-json={}", figures.path().display())).arg("--").arg(program[0]);
            command
        }
    };
    let output =
        command.args(&program[1..]).current_dir(directory).env("LC_ALL", "C").output().expect("it runs");
    let said = Said { status: output.status.code(), stdout: output.stdout, stderr: output.stderr };
    let text = std::fs::read_to_string(figures.path()).expect("readable");
    (said, if mode.is_some() { serde_json::from_str(&text).expect("JSON") } else { Value::Null })
}

fn count(figures: &Value, name: &str) -> u64 {
    figures[name].as_u64().unwrap_or_else(|| panic!("{name} in {figures}"))
}

/// Fails unless the figures are consistent, and in line with the mode.
fn check_figures(mode: &str, figures: &Value) {
    let [calls, trapped, patched] = ["calls", "trapped", "patched"].map(|name| count(figures, name));
    let [sites, sites_patched] = ["sites", "sites_patched"].map(|name| count(figures, name));
    assert_eq!(calls, trapped + patched + count(figures, "answered"), "{mode}: {figures}");
    assert!(sites_patched <= sites && sites <= calls, "{mode}: {figures}");
    assert_eq!(patched == 0, sites_patched == 0, "{mode}: {figures}");
    let eager = &figures["eager"];
    match mode {
        "off" => assert_eq!((patched, count(eager, "files_scanned")), (0, 0), "{figures}"),
        "lazy" => assert_eq!(count(eager, "files_scanned"), 0, "{figures}"),
        _ => {
            assert!(count(eager, "files_scanned") > 0 && count(eager, "sites_patched") > 0, "{figures}");
            assert!(count(eager, "sites_patched") <= count(eager, "sites_planned"), "{figures}");
        }
    }
}

/// Per cent of the calls behind the first of each site, which traps (with eager patching it need not either), that did not.
/// What the syshandler answers or passes on by itself has come through a patched site, too.
fn percent_after_the_first(figures: &Value) -> f64 {
    let [calls, sites, trapped] = ["calls", "sites", "trapped"].map(|name| count(figures, name));
    100.0 - trapped.saturating_sub(sites) as f64 * 100.0 / calls.saturating_sub(sites).max(1) as f64
}

/// Runs a program in all modes and natively; `normalise` takes out what differs between any two runs.
fn same_in_all_modes(program: &[&str], directory: &Path, normalise: impl Fn(&mut Said)) {
    let Some(path) = find(program[0]) else { return };
    let mut program = program.to_vec();
    program[0] = path.to_str().expect("a plain path");
    let (mut native, _) = run(None, directory, &program);
    normalise(&mut native);
    assert_eq!(native.status, Some(0), "{program:?}: {native:?}");
    for mode in MODES {
        let (mut said, figures) = run(Some(mode), directory, &program);
        normalise(&mut said);
        assert!(said == native, "{program:?} with {mode}: {said:?}, natively {native:?}");
        check_figures(mode, &figures);
        let percent = percent_after_the_first(&figures);
        println!(
            "{} {mode}: {} calls, {} sites ({} patched), {percent:.2} % after the first; eager {}",
            program[0], figures["calls"], figures["sites"], figures["sites_patched"], figures["eager"]
        );
        if mode != "off" {
            assert!(percent >= WANTED_PERCENT, "{program:?} with {mode}: {percent:.2} % of {figures}");
        }
    }
}

/// A small tree that lists the same every time.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for d in 0..8 {
        let directory = root.path().join(format!("d{d}/inner"));
        std::fs::create_dir_all(&directory).expect("made");
        for f in 0..12 {
            std::fs::write(directory.join(format!("f{f}")), vec![b'x'; d * 1000 + f]).expect("written");
        }
        std::os::unix::fs::symlink("inner/f0", root.path().join(format!("d{d}/link"))).expect("linked");
    }
    root
}

#[test]
fn dd_copies_the_same_number_of_blocks() {
    let program = ["dd", "if=/dev/zero", "of=/dev/null", "bs=512", "count=20000"];
    // The last line says how long it took.
    same_in_all_modes(&program, Path::new("/"), |said| {
        let end = said.stderr.windows(8).position(|w| w == b" copied,").unwrap_or(said.stderr.len());
        said.stderr.truncate(end);
    });
}

#[test]
fn ls_lists_the_same() {
    same_in_all_modes(&["ls", "-lR"], tree().path(), |_| ());
    same_in_all_modes(&["ls", "-l", "/usr"], Path::new("/"), |_| ());
}

#[test]
fn tar_packs_the_same() {
    let program = ["tar", "--sort=name", "-cf", "-", "."];
    same_in_all_modes(&program, tree().path(), |_| ());
}

#[test]
fn find_finds_the_same() {
    let program = ["find", ".", "-type", "f", "-size", "+2", "-printf", "%p %s %m\\n"];
    same_in_all_modes(&program, tree().path(), |_| ());
}

#[test]
fn python_computes_the_same() {
    let code = "import os, json, hashlib\n\
        for i in range(3000): os.getppid() and os.stat('.')\n\
        names = sorted(f for _, _, fs in os.walk('.') for f in fs)\n\
        print(json.dumps([len(names), hashlib.sha256(''.join(names).encode()).hexdigest()]))";
    same_in_all_modes(&["python3", "-c", code], tree().path(), |_| ());
}

#[test]
fn a_go_program_does_the_same() {
    // Its own sources; `/usr/lib/go` is a link.
    let root = ["/usr/lib/go/src", "/usr/local/go/src"]
        .map(Path::new)
        .into_iter()
        .find_map(|p| p.canonicalize().ok());
    let Some(root) = root else {
        return eprintln!("**** NOT CHECKED: no Go sources in /usr/lib/go or /usr/local/go");
    };
    let sources: Vec<String> =
        ["fmt", "strings", "net", "os"].iter().map(|part| root.join(part).display().to_string()).collect();
    let mut program = vec!["gofmt"];
    program.extend(sources.iter().map(String::as_str));
    same_in_all_modes(&program, Path::new("/"), |said| {
        // Megabytes: enough to tell them apart.
        said.stdout = format!("{:x?}", (said.stdout.len(), digest(&said.stdout))).into_bytes();
    });
}

/// FNV-1a.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
