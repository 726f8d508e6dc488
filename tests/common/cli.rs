//! Running the same command natively and under `systrap run`, and comparing what comes out.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The command under test.
pub const SYSTRAP: &str = env!("CARGO_BIN_EXE_systrap");

/// The modes in which everything has to come out the same.
pub const MODES: [&str; 2] = ["--patching=off", "--patching=lazy"];

/// A program on this machine. Its absence fails the test: nothing passes because it did not run.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed on this machine: install it, the test needs it"))
}

/// The Python interpreter itself, even where `python3` is a shell script that picks one.
pub fn python() -> PathBuf {
    let query = Command::new(program("python3"))
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .expect("python3 starts");
    PathBuf::from(String::from_utf8(query.stdout).expect("a path").trim())
}

/// A directory for this test binary, removed when it ends well.
pub fn scratch() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path()
}

/// Builds a C program of `fixtures/programs`.
pub fn fixture(name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs").join(format!("{name}.c"));
    let target = scratch().join(format!("{name}{}", flags.concat()));
    static BUILDING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !target.exists() {
        let status = Command::new(program("gcc"))
            .args(["-O1", "-w", "-mavx2"])
            .args(flags)
            .arg("-o")
            .arg(&target)
            .arg(source)
            .status()
            .expect("gcc starts");
        assert!(status.success(), "gcc {flags:?} cannot build {name}: is the static C library installed?");
    }
    target
}

/// `systrap run OPTIONS -- PROGRAM ARGS`.
pub fn systrap<A: AsRef<OsStr>>(options: &[&str], program: &Path, args: &[A]) -> Command {
    let mut command = Command::new(SYSTRAP);
    command.arg("run").args(options).arg("--").arg(program).args(args);
    command
}

/// Runs to the end, with `input` on standard input.
pub fn output(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read all of its input closes the pipe early.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("the child ends")
    })
}

/// The status that a shell would show.
pub fn shell_status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0))
}

fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).into_owned();
    format!("{} bytes: {text}", bytes.len())
}

/// Asserts that two runs were the same to the byte.
pub fn assert_same(what: &str, native: &Output, guest: &Output) {
    let difference = native.stdout.iter().zip(&guest.stdout).position(|(a, b)| a != b);
    assert!(
        native.stdout == guest.stdout
            && native.stderr == guest.stderr
            && shell_status(native) == shell_status(guest),
        "{what} differs\nstatus: {} native, {} guest; first difference in stdout: {difference:?}\n\
         native stdout {}\nguest stdout {}\nnative stderr {}\nguest stderr {}",
        shell_status(native),
        shell_status(guest),
        shorten(&native.stdout),
        shorten(&guest.stdout),
        shorten(&native.stderr),
        shorten(&guest.stderr),
    );
}

/// Runs a command natively and under systrap in every mode; `prepare` runs before each.
pub fn compare_with<A: AsRef<OsStr>>(program: &Path, args: &[A], input: &[u8], prepare: impl Fn()) -> Output {
    let shown: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    prepare();
    let mut command = Command::new(program);
    command.args(args);
    let native = output(command, input);
    for mode in MODES {
        prepare();
        let guest = output(systrap(&[mode], program, args), input);
        assert_same(&format!("{mode} -- {} {}", program.display(), shown.join(" ")), &native, &guest);
    }
    native
}

/// Runs a command natively and under systrap in every mode.
pub fn compare<A: AsRef<OsStr>>(program: &Path, args: &[A]) -> Output {
    compare_with(program, args, b"", || ())
}

/// Deterministic bytes.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Deterministic lines of words.
pub fn text(len: usize) -> Vec<u8> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz      ";
    noise(len)
        .into_iter()
        .enumerate()
        .map(|(index, byte)| if index % 61 == 60 { b'\n' } else { LETTERS[usize::from(byte % 32)] })
        .collect()
}

/// A file in the scratch directory, made once.
pub fn input(name: &str, make: impl FnOnce() -> Vec<u8>) -> PathBuf {
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = scratch().join(name);
    if !path.exists() {
        std::fs::write(&path, make()).expect("the scratch directory takes it");
    }
    path
}
