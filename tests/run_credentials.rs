//! Guests change users, groups and capabilities as programs do natively: as root and as an ordinary user.

#[path = "common/cli.rs"]
mod cli;

use cli::{MODES, SYSTRAP, assert_same, fixture, output, program};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// A fresh directory that anybody may use, whoever made what was there before.
fn fresh(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir(directory).unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(cli::scratch(), PermissionsExt::from_mode(0o755)).unwrap();
}

/// The command, where everybody may execute it. Another process copies it: a descriptor of this one, open for writing,
/// would be inherited by what other threads start, and the copy could not be executed meanwhile.
fn copy_of_the_command() -> PathBuf {
    static COPY: LazyLock<PathBuf> = LazyLock::new(|| {
        let copy = cli::scratch().join("systrap");
        let status = Command::new(program("cp")).arg(SYSTRAP).arg(&copy).status().unwrap();
        assert!(status.success(), "cp: {status}");
        copy
    });
    COPY.clone()
}

/// Compares the program's runs, natively and as a guest, each started behind `before`.
fn compare_behind(before: &[&str], name: &str) {
    let program_path = fixture("changing_credentials", &["-pthread"]);
    let directory = cli::scratch().join(name);
    // The user must be able to execute the command: it may lie where only root may go.
    let systrap = copy_of_the_command();
    let run = |words: &[&str]| {
        fresh(&directory);
        let words: Vec<&str> = before.iter().chain(words).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&program_path).arg(&directory);
        output(command, b"")
    };
    let native = run(&["env"]);
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
    assert!(String::from_utf8_lossy(&native.stdout).contains("afterwards ends with 0"));
    for mode in MODES {
        let guest = run(&[systrap.to_str().unwrap(), "run", mode, "--"]);
        assert_same(&format!("{mode}, {name}"), &native, &guest);
    }
}

#[test]
fn whoever_runs_the_tests() {
    compare_behind(&[], "own");
}

#[test]
fn an_ordinary_user() {
    // Who is no root is tested above.
    if is_root() {
        let setpriv = program("setpriv");
        let words = [setpriv.to_str().unwrap(), "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        compare_behind(&words, "user");
    }
}

#[test]
fn root_with_groups_and_fewer_capabilities() {
    if is_root() {
        let setpriv = program("setpriv");
        let words = [
            setpriv.to_str().unwrap(),
            "--groups=5,3,1000",
            "--bounding-set=-sys_admin",
            "--inh-caps=+net_raw",
            "--",
        ];
        compare_behind(&words, "fewer");
    }
}

/// Root who may not become anybody: the guest is told so, and nothing happens as somebody else.
#[test]
fn root_that_cannot_change() {
    if is_root() {
        let setpriv = program("setpriv");
        let words = [setpriv.to_str().unwrap(), "--bounding-set=-setuid,-setgid", "--"];
        compare_behind(&words, "fixed");
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
