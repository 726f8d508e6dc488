//! The C programs that are measured, built for this run.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Effort;

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
    directory: tempfile::TempDir,
}

impl Programs {
    /// Builds them. The measuring program is linked dynamically, as most programs are.
    pub fn build() -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        let at = |name: &str| directory.path().join(name);
        let families = ["ops.c", "calls.c", "memory.c", "signals.c", "threads.c", "processes.c", "network.c"];
        compile(&families, &["-pthread"], &at("ops"))?;
        compile(&["nothing.c"], &["-static"], &at("nothing"))?;
        compile(&["idle.c"], &["-static"], &at("idle"))?;
        let data = at("data");
        std::fs::write(&data, vec![b'.'; DATA_BYTES])
            .map_err(|error| format!("{}: {error}", data.display()))?;
        Ok(Self { ops: at("ops"), nothing: at("nothing"), idle: at("idle"), data, directory })
    }

    /// A word of a command: `@NAME` is replaced by a file of that name, which is made if it has to be.
    pub fn word(&self, word: &str, effort: &Effort) -> Result<String, String> {
        let Some(name) = word.strip_prefix('@') else { return Ok(word.to_owned()) };
        let own = self.directory.path().join(name);
        match name {
            "requests" => return Ok(effort.requests.to_string()),
            // Ten times as many, with all effort as many as redis-benchmark makes by itself: natively they take less.
            "sets" => return Ok((10 * effort.requests).to_string()),
            "classes" => compile_java(&own)?,
            "lines.c" => std::fs::write(&own, lines(2_000)).map_err(|error| format!("{name}: {error}"))?,
            // Results of the commands.
            "lines.o" => (),
            _ => return Ok(Path::new(SOURCES).join(name).display().to_string()),
        }
        Ok(own.display().to_string())
    }

    /// The operations that the program knows.
    pub fn operations(&self) -> Result<Vec<String>, String> {
        let output =
            Command::new(&self.ops).arg("--list").output().map_err(|error| format!("ops: {error}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

/// Compiles `Hello` into a directory, once.
fn compile_java(classes: &Path) -> Result<(), String> {
    if classes.exists() {
        return Ok(());
    }
    let mut command = Command::new("javac");
    command.arg("-d").arg(classes).arg(Path::new(SOURCES).join("Hello.java"));
    let output = command.output().map_err(|error| format!("javac is not installed: {error}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("javac cannot compile Hello: {complaint}")) }
}

/// A C program of so many lines, in functions of ten lines that all differ a little.
fn lines(count: usize) -> String {
    const PER_FUNCTION: usize = 10;
    let mut text = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for i in 0..count.saturating_sub(3) / PER_FUNCTION {
        text += &format!(
            "unsigned function{i}(const char *text, unsigned seed) {{\n\
             \x20   unsigned sum = seed * {}u + {i};\n\
             \x20   char copy[64];\n\
             \x20   snprintf(copy, sizeof copy, \"%s {i} %u\", text, seed);\n\
             \x20   for (size_t at = 0; at < strlen(copy); at++) {{\n\
             \x20       sum = (sum << {}) ^ (sum >> 7) ^ (unsigned char)copy[at];\n\
             \x20       if (sum % {} == 0) sum += (unsigned)abs((int)at - {i});\n\
             \x20   }}\n\
             \x20   return sum;\n\
             }}\n",
            2 * i + 1,
            i % 5 + 1,
            i + 3,
        );
    }
    text
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
