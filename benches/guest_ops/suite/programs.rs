//! The C programs that are measured, built for this run.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/programs/ops");
/// Long enough for every read of it.
const DATA_BYTES: usize = 1 << 16;

/// Programs and what they work on; gone with this value.
#[derive(Debug)]
pub struct Programs {
    /// Measures operations.
    pub ops: PathBuf,
    /// Ends at once; static.
    pub nothing: PathBuf,
    /// Waits for ever; static.
    pub idle: PathBuf,
    /// A file.
    pub data: PathBuf,
    _directory: tempfile::TempDir,
}

impl Programs {
    /// Builds them. The measuring program is linked dynamically, as most programs are.
    pub fn build() -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        let at = |name: &str| directory.path().join(name);
        let families = ["ops.c", "calls.c", "memory.c", "signals.c", "threads.c", "processes.c"];
        compile(&families, &["-pthread"], &at("ops"))?;
        compile(&["nothing.c"], &["-static"], &at("nothing"))?;
        compile(&["idle.c"], &["-static"], &at("idle"))?;
        let data = at("data");
        std::fs::write(&data, vec![b'.'; DATA_BYTES])
            .map_err(|error| format!("{}: {error}", data.display()))?;
        Ok(Self { ops: at("ops"), nothing: at("nothing"), idle: at("idle"), data, _directory: directory })
    }

    /// The operations that the program knows.
    pub fn operations(&self) -> Result<Vec<String>, String> {
        let output =
            Command::new(&self.ops).arg("--list").output().map_err(|error| format!("ops: {error}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

fn compile(sources: &[&str], flags: &[&str], target: &Path) -> Result<(), String> {
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra"])
        .args(flags)
        .arg("-o")
        .arg(target)
        .args(sources.iter().map(|name| Path::new(SOURCES).join(name)))
        .output()
        .map_err(|error| format!("cc does not start, the bench needs a C compiler: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "cc cannot build {sources:?} with {flags:?} (static ones need the static C library):\n{complaint}"
    ))
}
