//! The bench of guest operations: what is measured, how, and what is made of it.

mod chart;
pub mod child;
mod commands;
mod figures;
mod idle;
mod json;
mod load;
mod operations;
mod programs;
mod rows;
mod table;

pub use figures::{Line, Outcome, Report};
pub use programs::Programs;
pub use rows::{Measured, ROWS, Row};

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use figures::Series;
use load::Load;

/// The command under test.
pub const SYSTRAP: &str = env!("CARGO_BIN_EXE_systrap");

/// How a program is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By the host kernel alone: the yardstick.
    Native,
    /// Under `systrap run` with its defaults; the goals are about this.
    Lazy,
    /// Under `systrap run` without patching.
    Off,
}

/// All modes, in the order of the table.
pub const MODES: [Mode; 3] = [Mode::Native, Mode::Lazy, Mode::Off];

impl Mode {
    /// Its name in the table and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Lazy => "lazy",
            Self::Off => "off",
        }
    }

    /// A command that runs `program` in this mode.
    pub fn command(self, program: &Path) -> Command {
        let under = |option| {
            let mut command = Command::new(SYSTRAP);
            command.args(["run", option, "--"]).arg(program);
            command
        };
        let mut command = match self {
            Self::Native => Command::new(program),
            Self::Lazy => under("--patching=lazy"),
            Self::Off => under("--patching=off"),
        };
        // cargo names directories in which every program would look for its libraries first, call by call.
        command.env_remove("LD_LIBRARY_PATH");
        command
    }
}

/// What stands for several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// The middle one.
    Median,
    /// The least one, for a machine that others use meanwhile.
    Least,
}

impl Statistic {
    /// Its name in the table and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Median => "median",
            Self::Least => "least",
        }
    }
}

/// How much is done to get a figure.
#[derive(Debug, Clone)]
pub struct Effort {
    /// How often everything is run.
    pub rounds: usize,
    /// The rounds of the idle guest, which takes seconds each time.
    pub idle_rounds: usize,
    /// Batches of an operation in one run of the program.
    pub batches: u32,
    /// How long a batch takes, about.
    pub batch: Duration,
    /// How many requests a server is sent.
    pub requests: u32,
    /// How long the idle guest is watched.
    pub watch: Duration,
    /// When a run is given up.
    pub patience: Duration,
    /// What stands for the rounds of a row.
    pub statistic: Statistic,
}

impl Effort {
    /// For figures.
    pub const FULL: Self = Self {
        rounds: 7,
        idle_rounds: 3,
        batches: 25,
        batch: Duration::from_millis(2),
        requests: 10_000,
        watch: Duration::from_secs(2),
        patience: Duration::from_secs(60),
        statistic: Statistic::Median,
    };
    /// For a machine that others use meanwhile: of many short batches some run undisturbed.
    pub const LEAST: Self =
        Self { batches: 250, batch: Duration::from_micros(200), statistic: Statistic::Least, ..Self::FULL };
    /// To see that everything runs.
    pub const QUICK: Self = Self {
        rounds: 1,
        idle_rounds: 1,
        batches: 3,
        batch: Duration::from_micros(100),
        requests: 200,
        watch: Duration::from_millis(200),
        ..Self::FULL
    };
}

/// Measures all rows whose name contains one of `filters`, or all of them if there are none.
pub fn run(effort: &Effort, filters: &[String]) -> Result<Report, String> {
    let chosen =
        |row: &&Row| filters.is_empty() || filters.iter().any(|part| row.name.contains(part.as_str()));
    let rows: Vec<&'static Row> = ROWS.iter().filter(chosen).collect();
    if rows.is_empty() {
        return Err(format!("no row is named like {filters:?}"));
    }
    let programs = Programs::build()?;
    let mut known = programs.operations()?;
    let mut wanted: Vec<&str> =
        ROWS.iter().filter(|row| matches!(row.measured, Measured::Operation)).map(|row| row.name).collect();
    known.sort_unstable();
    wanted.sort_unstable();
    if known != wanted {
        return Err(format!("the program measures {known:?}, the table has {wanted:?}"));
    }
    let lines = rows.into_iter().map(|row| {
        eprintln!("measuring {}", row.name);
        measure(row, &programs, effort)
    });
    Ok(Report { effort: effort.clone(), lines: lines.collect() })
}

/// One row in all modes. The modes take turns, and who is first changes, so that a busy spell of the machine meets all.
pub fn measure(row: &'static Row, programs: &Programs, effort: &Effort) -> Line {
    let rounds = match row.measured {
        Measured::IdleMemory | Measured::IdleCpu => effort.idle_rounds,
        Measured::Operation | Measured::Command(_) | Measured::Reported(_) => effort.rounds,
    };
    let load = Load::now();
    let mut series = MODES.map(|_| Series::default());
    for round in 0..rounds {
        for turn in 0..MODES.len() {
            let index = (round + turn) % MODES.len();
            let (Some(&mode), Some(series)) = (MODES.get(index), series.get_mut(index)) else { continue };
            series.take(|| match row.measured {
                Measured::Operation => operations::measure(row.name, mode, programs, effort),
                Measured::Command(argv) => commands::measure(argv, mode, programs, effort),
                Measured::Reported(argv) => commands::ask(argv, mode, programs, effort),
                Measured::IdleMemory => idle::memory(mode, programs, effort),
                Measured::IdleCpu => idle::cpu(mode, programs, effort),
            });
        }
    }
    let outcomes = series.map(|series| series.outcome(effort.statistic));
    Line { row, outcomes, others_cpus: load.and_then(|load| load.others_since()) }
}
