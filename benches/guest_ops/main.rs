//! What operations cost inside a guest, as multiples of what they cost natively.
//!
//! A C program (`fixtures/programs/ops`) measures one operation at a time from the inside; whole commands are measured
//! from outside. Each runs natively and under `systrap run` with patching lazy and off, in turns, round by round. Prints
//! a table of medians and ratios beside the goals and writes JSON and a chart. The exit status is 1 if anything could not
//! be measured; a missed goal is only said.
//!
//! `cargo bench --bench guest_ops -- [--quick] [--rounds N] [--least] [--json PATH] [--svg PATH] [NAME…]`

mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use suite::Effort;

/// What operations cost inside a guest
#[derive(Debug, Parser)]
#[command(name = "guest_ops")]
struct Arguments {
    /// Only the rows whose name contains one of these
    names: Vec<String>,
    /// How often everything is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// One round of few, short batches: shows that all of it works, not what it costs
    #[arg(long, conflicts_with = "least")]
    quick: bool,
    /// Many short batches, and the least of them instead of medians: for a machine that others use meanwhile
    #[arg(long)]
    least: bool,
    /// Where the figures go
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Where the chart goes
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
    /// Given by `cargo bench`; without it this is a test that the bench runs
    #[arg(long, hide = true)]
    bench: bool,
}

/// Cargo's directory for what is built, which the command under test lies in.
fn target() -> PathBuf {
    let ancestor = PathBuf::from(suite::SYSTRAP).ancestors().nth(2).map(PathBuf::from);
    ancestor.unwrap_or_else(|| PathBuf::from("target"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let rounds = arguments.rounds.max(1);
    let effort = match (arguments.quick || !arguments.bench, arguments.least) {
        (true, _) => Effort::QUICK,
        (false, false) => Effort { rounds, ..Effort::FULL },
        (false, true) => Effort { rounds, ..Effort::LEAST },
    };
    let json = arguments.json.unwrap_or_else(|| target().join("guest_ops.json"));
    let svg = arguments.svg.unwrap_or_else(|| target().join("guest_ops.svg"));
    let written = suite::run(&effort, &arguments.names).and_then(|report| {
        print!("{}", report.table());
        std::fs::write(&json, report.json()).map_err(|error| format!("{}: {error}", json.display()))?;
        report.chart(&svg).map_err(|error| format!("{}: {error}", svg.display()))?;
        Ok(report)
    });
    match written {
        Ok(report) => {
            println!("figures: {}\nchart: {}", json.display(), svg.display());
            ExitCode::from(u8::from(report.failures().next().is_some()))
        }
        Err(error) => {
            eprintln!("guest_ops: {error}");
            ExitCode::from(2)
        }
    }
}
