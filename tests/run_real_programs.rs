//! Everyday programs under `systrap run`: standard output, standard error and exit status are those of a native run.

#[path = "common/cli.rs"]
mod cli;

use cli::{compare, compare_with, input, output, program, systrap};
use std::path::Path;
use std::process::{Command, Stdio};

const TEXT_LEN: usize = 20 << 20;
const DATA_LEN: usize = 100 << 20;

fn big_text() -> std::path::PathBuf {
    input("text", || cli::text(TEXT_LEN))
}

/// Compares, and expects the native run to have done something.
fn compare_busy(name: &str, args: &[&str]) {
    let native = compare(&program(name), args);
    assert!(!native.stdout.is_empty(), "{name} {args:?} printed nothing");
}

#[test]
fn ls_lists_a_tree() {
    compare_busy("ls", &["-lR", "/usr/include"]);
}

#[test]
fn sha256sum_reads_100_megabytes() {
    let data = input("data", || cli::noise(DATA_LEN));
    compare_busy("sha256sum", &[data.to_str().unwrap()]);
}

#[test]
fn sort_sorts_20_megabytes() {
    compare_busy("sort", &[big_text().to_str().unwrap()]);
}

#[test]
fn grep_counts_in_a_tree() {
    compare_busy("grep", &["-rc", "include", "/usr/include/linux"]);
}

#[test]
fn find_walks_a_tree() {
    compare_busy("find", &["/usr/share"]);
}

#[test]
fn dd_copies_in_blocks_of_all_sizes() {
    let text = big_text();
    let from = format!("if={}", text.display());
    compare_busy("dd", &[&from, "bs=4k", "status=none"]);
    compare_busy("dd", &[&from, "bs=1M", "status=none"]);
    compare_busy("dd", &["if=/dev/zero", "bs=3000001", "count=2", "status=none"]);
    compare_busy("dd", &[&from, "bs=1000", "count=200", "skip=10", "status=noxfer"]);
}

#[test]
fn awk_and_sed_work_through_text() {
    let text = big_text();
    let text = text.to_str().unwrap();
    compare_busy("awk", &["{ n += length($0); w += NF } END { print n, w, NR }", text]);
    compare_busy("sed", &["-e", "s/a/<&>/g", "-e", "/zz/d", text]);
}

/// Runs `first | second`, natively or both under systrap, and returns what comes out.
fn pipeline(mode: Option<&str>, first: (&Path, &[&str]), second: (&Path, &[&str])) -> std::process::Output {
    let command = |(program, args): (&Path, &[&str])| match mode {
        Some(mode) => systrap(&[mode], program, args),
        None => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
    };
    let mut producer = command(first).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
    let stdout = producer.stdout.take().expect("piped");
    let result = command(second).stdin(stdout).output().expect("starts");
    let status = producer.wait().expect("ends");
    assert!(status.success(), "{} in {mode:?}: {status}", first.0.display());
    result
}

fn compare_pipelines(first: (&Path, &[&str]), second: (&Path, &[&str])) {
    let native = pipeline(None, first, second);
    assert!(!native.stdout.is_empty());
    for mode in cli::MODES {
        let guest = pipeline(Some(mode), first, second);
        cli::assert_same(&format!("{mode}: a pipeline into {}", second.0.display()), &native, &guest);
    }
}

#[test]
fn gzip_to_gunzip_through_a_pipe() {
    let (gzip, text) = (program("gzip"), big_text());
    compare_pipelines((&gzip, &["-c", text.to_str().unwrap()]), (&gzip, &["-dc"]));
}

#[test]
fn tar_to_tar_through_a_pipe() {
    let tar = program("tar");
    compare_pipelines((&tar, &["cf", "-", "-C", "/usr/include", "linux"]), (&tar, &["tvf", "-"]));
}

#[test]
fn tar_extracts_what_it_packed() {
    let tar = program("tar");
    let archive = cli::scratch().join("packed.tar");
    let archive = archive.to_str().unwrap();
    let target = cli::scratch().join("unpacked");
    compare(&tar, &["cf", archive, "-C", "/usr/include", "asm-generic"]);
    let fresh = || {
        let _ = std::fs::remove_dir_all(&target);
        std::fs::create_dir(&target).unwrap();
    };
    compare_with(&tar, &["xvf", archive, "-C", target.to_str().unwrap()], b"", fresh);
    let status = Command::new(program("diff"))
        .args(["-r", "/usr/include/asm-generic", target.join("asm-generic").to_str().unwrap()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn python_imports_and_computes() {
    let python = cli::python();
    let script = "import json, re, os, sys, math, hashlib, datetime, collections, random, tempfile, zlib\n\
                  print(json.dumps({'a': [1, 2.5, None]}), re.sub('a+', 'b', 'caaat'), math.pi)\n\
                  print(hashlib.sha256(b'x' * 1000).hexdigest(), sys.argv, os.getcwd())\n\
                  with tempfile.TemporaryFile() as f:\n\
                  \x20   f.write(zlib.compress(bytes(100000))); f.seek(0); print(len(zlib.decompress(f.read())))\n\
                  print(sorted(os.environ) == sorted(os.environ), os.path.exists('/etc/passwd'))\n\
                  sys.exit(3)";
    let native = compare(&python, &["-c", script, "argument"]);
    assert_eq!(native.status.code(), Some(3), "{}", String::from_utf8_lossy(&native.stderr));
    compare(&python, &["-c", "raise ValueError('text on standard error')"]);
}

#[test]
fn programs_read_standard_input() {
    let text = cli::text(100_000);
    compare_with(&program("wc"), &["-lwc"], &text, || ());
    compare_with(&program("head"), &["-n", "3"], &text, || ());
    compare_with(&program("tr"), &["a-z", "A-Z"], &text, || ());
    compare_with(&program("cat"), &["-", "/dev/stdin"], &text, || ());
}

#[test]
fn small_tools_agree() {
    for (name, args) in [
        ("true", &[][..]),
        ("false", &[]),
        ("echo", &["a", "b  c", ""]),
        ("pwd", &[]),
        ("uname", &["-a"]),
        ("id", &[]),
        ("nproc", &[]),
        ("env", &["-i", "A=b", "env"]),
        ("printf", &["%5d|%s\\n", "42", "text"]),
        ("stat", &["-c", "%n %s %a %F", "/etc/passwd", "/", "/proc/self/exe"]),
        ("readlink", &["-f", "/proc/self/cwd"]),
        ("date", &["-u", "-d", "@86400", "+%F %T"]),
        ("ls", &["/no/such/directory"]),
        ("cat", &["/no/such/file", "/etc/hostname"]),
        ("du", &["-s", "/usr/include/linux"]),
        ("cmp", &["/bin/ls", "/bin/cat"]),
        ("base64", &["/bin/true"]),
        ("seq", &["1", "10000"]),
        ("sleep", &["0.05"]),
    ] {
        compare(&program(name), args);
    }
}

#[test]
fn a_program_is_looked_up_in_path() {
    let guest = output(systrap(&[], Path::new("echo"), &["found"]), b"");
    assert_eq!((guest.status.code(), guest.stdout.as_slice()), (Some(0), &b"found\n"[..]));
}
