//! `systrap run`.

use crate::cli::RunArguments;
use crate::find;
use crate::report::Figures;
use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;
use systrap::Options;
use systrap::sentry::{Errno, Guest, LoadError, RunError};

/// Exit status: the guest's time was up, as `timeout` has it.
const TIMED_OUT: u8 = 124;
/// Exit status: systrap itself failed, as `env` and `timeout` have it.
pub const OWN_FAILURE: u8 = 125;
/// Exit status: the program was found but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status: the program was not found.
const NOT_FOUND: u8 = 127;

/// Says one line on standard error.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "systrap: {text}");
}

/// Runs the program and ends as it did; returns only if it could not be run.
pub fn run(arguments: RunArguments) -> ExitCode {
    let Err((code, text)) = try_run(arguments);
    complain(&text);
    ExitCode::from(code)
}

fn try_run(arguments: RunArguments) -> Result<Infallible, (u8, String)> {
    let own = |text: String| (OWN_FAILURE, text);
    let name = arguments.program.first().cloned().unwrap_or_default();
    let search =
        arguments.limits.environment().into_iter().find(|(name, _)| name == "PATH").map(|(_, path)| path);
    let search = search.unwrap_or_else(|| find::USUAL_PATH.into());
    let mounts = arguments.mounts.mounts();
    let path = match &mounts {
        None => find::program(&name, &search),
        Some(mounts) => {
            mounts.find_program(Path::new(&name), &search).map_err(|error| own(error.to_string()))?
        }
    };
    let path = path.ok_or_else(|| (NOT_FOUND, format!("{}: command not found", show(&name))))?;
    let c_string =
        |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| own("zero byte in an argument".to_owned()));
    let argv = arguments.program.iter().map(|arg| c_string(arg)).collect::<Result<Vec<_>, _>>()?;

    let mut guest = Guest::new(c_string(path.as_os_str())?)
        .args(argv)
        .options(Options::new().patching(arguments.patching.into()).patch_after(arguments.patch_after));
    guest = arguments.limits.apply(guest).map_err(own)?;
    if let Some(mounts) = mounts {
        guest = guest.mounts(mounts);
    }
    if let Some(target) = &arguments.trace {
        let output: Box<dyn Write + Send> = match target {
            Some(file) => Box::new(create(file).map_err(own)?),
            None => Box::new(std::io::stderr()),
        };
        guest = guest.trace(output);
    }
    // Opened first, so that a bad name is reported before the program runs.
    let mut json = arguments.stats_json.as_deref().map(create).transpose().map_err(own)?;

    let outcome = guest.run().map_err(|error| (exit_code(&error), error.to_string()))?;
    let figures = Figures::new(&outcome);
    if let Some(file) = &mut json {
        writeln!(file, "{}", figures.json()).map_err(|error| own(format!("statistics: {error}")))?;
    }
    if arguments.stats {
        let _ = std::io::stderr().write_all(figures.table().as_bytes());
    }
    if outcome.timed_out {
        std::process::exit(TIMED_OUT.into());
    }
    outcome.status.end_this_process()
}

fn show(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|error| {
        let reason = Errno::from(error).message();
        format!("{}: {reason}", path.display())
    })
}

fn exit_code(error: &RunError) -> u8 {
    match error {
        RunError::Load(LoadError::Open { errno: Errno::ENOENT | Errno::ENOTDIR, .. }) => NOT_FOUND,
        RunError::Load(LoadError::Map { .. }) => OWN_FAILURE,
        RunError::Load(_) => NOT_EXECUTABLE,
        _ => OWN_FAILURE,
    }
}
