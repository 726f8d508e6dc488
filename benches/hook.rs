//! What an installed hook costs: the call that it looks at, and those that it does not.
//!
//! A guest times batches of a call by the vdso's clock, without a hook, with one that looks at another call, and with one
//! that looks at this call; in turns, round by round. The least batch of all rounds counts.
//!
//! `cargo bench --bench hook -- [--rounds N]`

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use systrap::sentry::{CallSet, ExitStatus, Guest, Hook};

/// Looks at one call and does nothing about it.
struct Looks(i64);

impl Hook for Looks {
    type TaskState = ();

    fn calls(&self) -> CallSet {
        CallSet::numbered([self.0])
    }
}

/// What is timed, and what becomes of it without a hook.
const ROWS: [(&str, i64, &str); 3] = [
    ("getpid", libc::SYS_getpid, "answered in the stub"),
    ("sched_yield", libc::SYS_sched_yield, "passed on by the stub"),
    ("getppid", libc::SYS_getppid, "served by the supervisor"),
];
/// A call that no row makes.
const ANOTHER: i64 = libc::SYS_memfd_create;

fn time(
    program: &Path,
    directory: &Path,
    number: i64,
    batches: u32,
    hook: Option<i64>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let result = directory.join("picoseconds");
    let path = CString::new(program.as_os_str().as_bytes())?;
    let words = ["timing".to_owned(), number.to_string(), batches.to_string(), result.display().to_string()];
    let args = std::iter::once(Ok(path.clone())).chain(words.into_iter().map(CString::new));
    let mut guest = Guest::new(path.clone()).args(args.collect::<Result<Vec<_>, _>>()?);
    if let Some(number) = hook {
        guest = guest.hook(Looks(number));
    }
    let outcome = guest.run()?;
    if outcome.status != ExitStatus::Exited(0) {
        return Err(format!("the guest ended with {:?}", outcome.status).into());
    }
    Ok(std::fs::read_to_string(result)?.trim().parse::<f64>()? / 1000.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let measures = args.iter().any(|arg| arg == "--bench");
    let given = args.iter().position(|arg| arg == "--rounds").and_then(|at| args.get(at + 1));
    // Without `--bench` this is a test that the bench runs.
    let rounds = if measures { given.map_or(Ok(8), |rounds| rounds.parse())? } else { 1 };
    let batches = if measures { 400 } else { 4 };

    let directory = tempfile::tempdir()?;
    let program = directory.path().join("hooked");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/programs/hooked.c");
    let built =
        Command::new("gcc").args(["-O1", "-w", "-pthread", "-o"]).arg(&program).arg(source).status()?;
    if !built.success() {
        return Err("gcc cannot build the guest".into());
    }

    println!(
        "{:<12} {:>9} {:>22} {:>19}   without a hook",
        "ns per call", "no hook", "hook on another call", "hook on this call"
    );
    for (name, number, way) in ROWS {
        let hooks = [None, Some(ANOTHER), Some(number)];
        let mut least = [f64::INFINITY; 3];
        for _ in 0..rounds {
            for (least, hook) in least.iter_mut().zip(hooks) {
                *least = least.min(time(&program, directory.path(), number, batches, hook)?);
            }
        }
        let [without, another, this] = least;
        println!(
            "{name:<12} {without:>9.1} {another:>12.1} ({:>6.2} ×) {this:>19.1}   {way}",
            another / without
        );
    }
    Ok(())
}
