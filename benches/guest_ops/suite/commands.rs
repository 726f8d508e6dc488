//! Whole commands, measured from outside.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::child;
use super::figures::Sample;
use super::{Effort, Mode, Programs};

/// What each command printed natively: anything else under systrap is a failure, however fast.
static EXPECTED: Mutex<Vec<(&[&str], String)>> = Mutex::new(Vec::new());

/// A command with its own words, made into a program and its arguments.
fn words(argv: &[&str], programs: &Programs, effort: &Effort) -> Result<(PathBuf, Vec<String>), String> {
    let (name, args) = argv.split_first().ok_or("no command")?;
    let args = args.iter().map(|word| programs.word(word, effort)).collect::<Result<_, _>>()?;
    Ok((locate(name)?, args))
}

/// One run, from start to end.
pub fn measure(
    argv: &'static [&'static str],
    mode: Mode,
    programs: &Programs,
    effort: &Effort,
) -> Result<Sample, String> {
    let (program, args) = words(argv, programs, effort)?;
    let expected = expected(argv, &program, &args, effort)?;
    let run = child::run(mode.command(&program).args(args), effort.patience)?;
    if !run.status.success() {
        return Err(run.complaint());
    }
    if run.stdout != expected {
        return Err(format!("printed {:?} instead of {expected:?}", run.stdout));
    }
    Ok(Sample { value: run.wall.as_nanos() as f64, cpu_ns: Some(run.cpu.as_nanos() as f64) })
}

/// One run of a command that says how long a request took.
pub fn ask(
    argv: &'static [&'static str],
    mode: Mode,
    programs: &Programs,
    effort: &Effort,
) -> Result<Sample, String> {
    let (program, args) = words(argv, programs, effort)?;
    let run = child::run(mode.command(&program).args(args), effort.patience)?;
    if !run.status.success() {
        return Err(run.complaint());
    }
    match run.stdout.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => {
            Ok(Sample { value, cpu_ns: Some(run.cpu.as_nanos() as f64) })
        }
        _ => Err(format!("no time in {:?}", run.stdout)),
    }
}

/// The native output, from a run that also warms the page cache and is not counted.
fn expected(
    argv: &'static [&'static str],
    program: &Path,
    args: &[String],
    effort: &Effort,
) -> Result<String, String> {
    let mut known = EXPECTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, output)) = known.iter().find(|(known, _)| *known == argv) {
        return Ok(output.clone());
    }
    let run = child::run(Mode::Native.command(program).args(args), effort.patience)?;
    if !run.status.success() {
        return Err(format!("natively {}", run.complaint()));
    }
    known.push((argv, run.stdout.clone()));
    Ok(run.stdout)
}

/// The file that the host would execute; the interpreter itself where `python3` is a script that picks one.
fn locate(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|directory| directory.join(name));
    let found = std::iter::once(PathBuf::from(name)).filter(|path| path.is_absolute()).chain(candidates);
    let found = { found }.find(|file| file.is_file()).ok_or_else(|| format!("{name} is not installed"))?;
    if name != "python3" {
        return Ok(found);
    }
    let query = Command::new(&found).args(["-c", "import sys; print(sys.executable)"]).output();
    let query = query.map_err(|error| format!("{}: {error}", found.display()))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&query.stdout).trim()))
}
