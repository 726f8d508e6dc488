//! Databases: SQLite takes in a large file, PostgreSQL is set up and used.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Many times what it takes on a busy machine with a supervisor that was not optimised.
const LIMIT: Duration = Duration::from_secs(600);

const TABLE_BYTES: usize = 100_000_000;

fn run(command: Command, input: &[u8], what: &str) -> Output {
    bounded::try_output(command, input, LIMIT).unwrap_or_else(|hung| panic!("{what}: {hung}"))
}

/// Deterministic rows of numbers and text.
fn rows() -> Vec<u8> {
    let mut text = String::with_capacity(TABLE_BYTES + 200);
    let mut number = 1_u64;
    while text.len() < TABLE_BYTES {
        number = number * 48_271 % 2_147_483_647;
        let pad = "x".repeat((number % 60) as usize);
        writeln!(text, "{},{number},name {},{pad}", text.len(), number % 100_003).expect("a string takes it");
    }
    text.into_bytes()
}

#[test]
fn sqlite_imports_100_megabytes() {
    let sqlite = cli::program("sqlite3");
    let table = cli::input("table.csv", rows);
    let script = format!(
        ".bail on\npragma cache_size = -100000;\ncreate table t (n integer, v integer, name text, pad text);\n.mode csv\n\
         .import {} t\nselect count(*), sum(v), sum(length(pad)), count(distinct name) from t;\ncreate index i on t (v);\n\
         select n from t where v < 5000 order by v limit 3;\nupdate t set pad = name where v % 10 = 0;\n\
         delete from t where v % 7 = 0;\npragma integrity_check;",
        table.display()
    );
    let import = |mode: Option<&str>| {
        let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
        let mut command = bounded::command(mode, &sqlite, &["file.db"]);
        command.current_dir(directory.path());
        let output = run(command, script.as_bytes(), "sqlite3");
        let mut sum = Command::new(cli::program("sha256sum"));
        sum.arg("file.db").current_dir(directory.path());
        (output, run(sum, b"", "sha256sum").stdout)
    };
    let (native, file) = import(None);
    assert!(native.status.success(), "{}", String::from_utf8_lossy(&native.stderr));
    assert!(native.stdout.ends_with(b"ok\n"), "{}", String::from_utf8_lossy(&native.stdout));
    for mode in cli::MODES {
        let (guest, guest_file) = import(Some(mode));
        cli::assert_same(&format!("{mode}: sqlite3"), &native, &guest);
        assert_eq!(file, guest_file, "{mode}: the file of the database");
    }
}

/// A copy of the command that any user may execute, wherever it was built. Another process copies it: a descriptor of
/// this one, open for writing, would be inherited by what other threads start, and the copy could not be executed.
fn copy_of_the_command() -> PathBuf {
    let copy = cli::scratch().join("systrap");
    let mut command = Command::new(cli::program("cp"));
    command.arg(cli::SYSTRAP).arg(&copy);
    assert!(run(command, b"", "cp").status.success());
    std::fs::set_permissions(cli::scratch(), Permissions::from_mode(0o755)).expect("ours");
    copy
}

/// PostgreSQL does not run as root; root has an ordinary user run all of it, systrap included.
#[test]
fn postgresql_is_set_up_and_benchmarked_by_an_ordinary_user() {
    let installed = std::fs::read_dir("/usr/lib/postgresql").is_ok_and(|mut versions| {
        versions.any(|version| version.is_ok_and(|version| version.path().join("bin/pgbench").exists()))
    });
    assert!(installed, "no /usr/lib/postgresql/*/bin/pgbench: install postgresql and postgresql-contrib");
    let systrap = copy_of_the_command();
    let script = cli::input("postgres.sh", || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runtimes/postgres.sh");
        std::fs::read(source).expect("the script is there")
    });
    std::fs::set_permissions(&script, Permissions::from_mode(0o644)).expect("ours");
    let root = std::fs::metadata("/proc/self").expect("/proc is mounted").uid() == 0;
    let database = |mode: Option<&str>| {
        let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("ours");
        let mut words = Vec::new();
        if root {
            words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"].to_vec();
        }
        if let Some(mode) = mode {
            words.extend([systrap.to_str().expect("plain"), "run", mode, "--"]);
        }
        words.extend(["sh", script.to_str().expect("plain")]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(directory.path()).env("HOME", directory.path());
        run(command, b"", "PostgreSQL")
    };
    let native = database(None);
    let text = String::from_utf8_lossy(&native.stdout);
    assert!(native.status.success(), "{text}{}", String::from_utf8_lossy(&native.stderr));
    for part in [
        "processed: 400/400\n",
        "processed: 60/60\n",
        "200000|t\n",
        "ended with 0\nLOG:  database system is shut down",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    for mode in cli::MODES {
        cli::assert_same(&format!("{mode}: PostgreSQL"), &native, &database(Some(mode)));
    }
}
