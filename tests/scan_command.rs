//! `systrap scan`: what it prints of the fixtures and of this machine's libcs, and what it makes of bad files.
//!
//! `INSTA_UPDATE=always cargo test --test scan_command` blesses a change of the snapshots.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The fixtures, in a fixed order, by names that hold no directory of this machine.
fn fixtures() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites");
    let entries = std::fs::read_dir(directory).expect("fixtures/sites exists");
    let names = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("plain names"));
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".elf")).collect();
    names.sort();
    assert!(names.len() >= 9, "fixtures are missing: {names:?}");
    names
}

fn scan(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_systrap"));
    command.current_dir(directory).arg("scan").args(args).output().expect("the command runs")
}

fn scan_fixtures(args: &[&str]) -> String {
    let output = scan(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites"), args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn json(output: &Output) -> Vec<Value> {
    let value: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    value.as_array().expect("an array").clone()
}

#[test]
fn summaries_of_all_fixtures() {
    let names = fixtures();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    insta::assert_snapshot!(scan_fixtures(&names));
}

#[test]
fn the_list_of_sites_shows_before_and_after() {
    insta::assert_snapshot!(scan_fixtures(&["--sites", "number_loads.elf", "stripped_false_mov.elf"]));
}

#[test]
fn json_says_the_same() {
    insta::assert_snapshot!(scan_fixtures(&["--json", "--sites", "windows.elf"]));
    let names = fixtures();
    let args: Vec<&str> = std::iter::once("--json").chain(names.iter().map(String::as_str)).collect();
    let output = scan(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites"), &args);
    let documents = json(&output);
    assert_eq!(documents.len(), names.len());
    for document in documents {
        let tiers: u64 = ["1", "2", "3", "4"].iter().map(|t| document["tiers"][t].as_u64().unwrap()).sum();
        assert_eq!(document["sites"], tiers, "each site has a tier: {document}");
        let unpatched = document["unpatched"].as_array().unwrap().len() as u64;
        assert_eq!(document["tiers"]["4"], unpatched, "each unpatched site has a reason: {document}");
        assert!(document.get("site_list").is_none(), "a list nobody asked for");
    }
}

/// What tiers 1 to 3 reach of a file, if it is there: sites, and per cent of them.
fn coverage(what: &str, candidates: &[&str]) -> Option<(u64, f64)> {
    let Some(path) = candidates.iter().find(|path| Path::new(path).is_file()) else {
        eprintln!("**** NOT CHECKED: {what} is not installed; looked for {candidates:?}");
        return None;
    };
    let output = scan(Path::new("/"), &["--json", path]);
    assert!(output.status.success(), "{path}: {}", String::from_utf8_lossy(&output.stderr));
    let document = json(&output).remove(0);
    let tier = |tier: &str| document["tiers"][tier].as_u64().expect("a count");
    let sites = document["sites"].as_u64().expect("a count");
    let reached = tier("1") + tier("2") + tier("3");
    let percent = reached as f64 * 100.0 / sites.max(1) as f64;
    println!(
        "{what} {path}: {sites} sites, tiers {} {} {} {}, {percent:.1} %, gVisor's rule {}",
        tier("1"),
        tier("2"),
        tier("3"),
        tier("4"),
        document["gvisor"]["patches"]
    );
    Some((sites, percent))
}

fn check(what: &str, candidates: &[&str], wanted_percent: f64) {
    if let Some((sites, percent)) = coverage(what, candidates) {
        assert!(sites >= 20, "{what} has few sites: {sites}");
        assert!(percent >= wanted_percent, "{what}: {percent:.1} % of {sites} sites");
    }
}

#[test]
fn glibc_and_its_linker_are_covered() {
    check("libc", &["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"], 98.0);
    check("ld.so", &["/lib64/ld-linux-x86-64.so.2"], 98.0);
}

#[test]
fn static_busybox_is_covered() {
    check("busybox-static", &["/bin/busybox", "/usr/bin/busybox"], 98.0);
}

#[test]
fn musl_is_covered() {
    check("musl", &["/lib/ld-musl-x86_64.so.1", "/usr/lib/musl/lib/libc.so"], 93.0);
}

#[test]
fn a_go_program_is_covered() {
    let candidates =
        ["/usr/bin/age", "/usr/bin/fzf", "/usr/bin/gron", "/usr/lib/go/bin/go", "/usr/local/go/bin/go"];
    check("a Go program", &candidates, 93.0);
}

#[test]
fn a_stripped_file_without_section_headers_is_scanned() {
    let directory = tempfile::tempdir().expect("a directory");
    let own =
        std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").or_else(|_| std::fs::read("/usr/lib/libc.so.6"));
    let Ok(mut data) = own else {
        eprintln!("**** NOT CHECKED: no libc to strip");
        return;
    };
    data[0x28..0x30].fill(0); // e_shoff
    data[0x3a..0x40].fill(0); // e_shentsize, e_shnum, e_shstrndx
    std::fs::write(directory.path().join("stripped"), &data).expect("written");
    let output = scan(directory.path(), &["--json", "stripped"]);
    assert!(output.status.success());
    let document = json(&output).remove(0);
    assert!(document["tiers"]["1"].as_u64().expect("a count") > 200, "{}", document["tiers"]);
}

/// Bad input, and what is said about it.
fn bad_files(directory: &Path) -> Vec<(&'static str, &'static str)> {
    let good =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites/windows.elf")).unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).expect("written");
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    put("empty", b"");
    put("text", b"#!/bin/sh\necho hello\n");
    put("cut", &good[..40]);
    put("elf32", &changed(4, 1));
    put("big_endian", &changed(5, 2));
    put("arm", &changed(18, 183));
    vec![
        ("empty", "not a readable ELF64 file"),
        ("text", "not a readable ELF64 file"),
        ("cut", "not a readable ELF64 file"),
        ("elf32", "not a readable ELF64 file"),
        ("big_endian", "not a readable ELF64 file"),
        ("arm", "not for x86-64"),
        ("missing", "No such file or directory"),
        (".", "not a regular file"),
        ("/dev/zero", "not a regular file"),
    ]
}

#[test]
fn bad_input_gets_one_line_and_the_other_files_are_scanned() {
    let directory = tempfile::tempdir().expect("a directory");
    let good = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites/windows.elf");
    let good = good.to_str().expect("a plain path");
    for (name, reason) in bad_files(directory.path()) {
        let output = scan(directory.path(), &[name, good]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(line, format!("systrap: {name}: {reason}\n"));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.starts_with(good), "the other file is scanned: {text}");

        let output = scan(directory.path(), &["--json", name, good]);
        let documents = json(&output);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert_eq!((&documents[0]["file"], &documents[0]["error"]), (&name.into(), &reason.into()));
        assert!(documents[1]["sites"].as_u64().is_some_and(|sites| sites > 0));
    }
}

#[test]
fn no_file_at_all_is_an_error_of_usage() {
    let output = scan(Path::new("/"), &[]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("FILE"));
}

#[test]
fn a_reader_that_has_had_enough_is_no_complaint() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_systrap"));
    command.args(["scan", "/proc/self/exe"]).stdout(writer).stderr(std::process::Stdio::piped());
    let output = command.output().expect("the command runs");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(125), &b""[..]));
}

/// Numbers that look random and are the same every time (xorshift64*).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// One damaged copy: bytes of the headers and tables changed, or cut short.
fn damage(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    if rng.below(8) == 0 {
        bytes.truncate(rng.below(good.len()));
    }
    for _ in 0..1 + rng.below(6) {
        if bytes.is_empty() {
            break;
        }
        // Half of the changes hit the file header and the program headers, a few the section headers at the end.
        let at = match rng.below(4) {
            0 | 1 => rng.below(bytes.len().min(0x200)),
            2 => bytes.len() - 1 - rng.below(bytes.len().min(0x400)),
            _ => rng.below(bytes.len()),
        };
        bytes[at] = match rng.below(3) {
            0 => 0xff,
            1 => bytes[at] ^ 1 << rng.below(8),
            _ => rng.below(256) as u8,
        };
    }
    bytes
}

#[test]
fn damaged_files_are_scanned_or_refused_and_nothing_else() {
    const FILES: usize = 400;
    let directory = tempfile::tempdir().expect("a directory");
    let sites = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sites");
    let originals: Vec<Vec<u8>> =
        fixtures().iter().map(|name| std::fs::read(sites.join(name)).expect("readable")).collect();
    let mut rng = Rng(0x5eed_0001);
    let names: Vec<PathBuf> = (0..FILES).map(|i| PathBuf::from(format!("{i:03}"))).collect();
    for (i, name) in names.iter().enumerate() {
        let bytes = damage(&originals[i % originals.len()], &mut rng);
        std::fs::write(directory.path().join(name), bytes).expect("written");
    }
    let args: Vec<&str> =
        ["--json", "--sites"].into_iter().chain(names.iter().filter_map(|n| n.to_str())).collect();
    let output = scan(directory.path(), &args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let documents = json(&output);
    assert_eq!(documents.len(), FILES);
    let refused = documents.iter().filter(|document| document["error"].is_string()).count();
    assert_eq!(stderr.lines().count(), refused, "one line for each: {stderr}");
    println!("{refused} of {FILES} refused");
    assert!(refused > FILES / 20 && refused < FILES, "the damage is neither nothing nor total: {refused}");
}
