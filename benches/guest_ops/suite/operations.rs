//! Operations, measured by the C program from inside.

use super::child;
use super::figures::Sample;
use super::{Effort, Mode, Programs};

/// The median of one run's batches, or the least of them.
pub fn measure(name: &str, mode: Mode, programs: &Programs, effort: &Effort) -> Result<Sample, String> {
    let mut command = mode.command(&programs.ops);
    command.arg(&programs.data).arg(&programs.nothing).arg(name);
    command.args([effort.batches.to_string(), effort.batch.as_micros().to_string()]);
    command.arg(effort.statistic.name());
    let run = child::run(&mut command, effort.patience)?;
    let figure = parse(&run.stdout, name);
    if run.status.success() {
        return figure.map(Sample::of);
    }
    // Its own word says more than its status, if it had one.
    Err(match figure {
        Err(reason) if run.stdout.contains(FAILED) => reason,
        _ => run.complaint(),
    })
}

const FAILED: &str = " failed: ";

/// Reads `name ns` or `name failed: reason`.
fn parse(output: &str, name: &str) -> Result<f64, String> {
    let line = output.lines().find_map(|line| line.strip_prefix(name));
    let rest = line.ok_or_else(|| format!("no line about it in {output:?}"))?;
    if let Some(reason) = rest.strip_prefix(FAILED) {
        return Err(reason.trim().to_owned());
    }
    match rest.trim().parse::<f64>() {
        Ok(ns) if ns.is_finite() && ns > 0.0 => Ok(ns),
        _ => Err(format!("no time in {output:?}")),
    }
}
