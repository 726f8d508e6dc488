//! From samples to figures, ratios and verdicts.

use super::rows::{Goal, Row, Yardstick};
use super::{Effort, MODES, Mode, Statistic};

/// What one run gave.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// In the unit of its row.
    pub value: f64,
    /// CPU time, where that is known beside it.
    pub cpu_ns: Option<f64>,
}

impl Sample {
    /// Without CPU time.
    pub fn of(value: f64) -> Self {
        Self { value, cpu_ns: None }
    }
}

/// Samples of one row in one mode, up to the first failure.
#[derive(Debug, Default)]
pub struct Series {
    samples: Vec<Sample>,
    failed: Option<String>,
}

impl Series {
    /// Adds what `run` gives; after a failure nothing is run any more.
    pub fn take(&mut self, run: impl FnOnce() -> Result<Sample, String>) {
        if self.failed.is_some() {
            return;
        }
        match run() {
            Ok(sample) => self.samples.push(sample),
            Err(reason) => self.failed = Some(reason),
        }
    }

    /// What comes of all that was taken.
    pub fn outcome(self, statistic: Statistic) -> Outcome {
        if let Some(reason) = self.failed {
            return Outcome::Failed(reason);
        }
        let samples: Vec<f64> = self.samples.iter().map(|sample| sample.value).collect();
        let Some((least, median, most)) = spread(samples.clone()) else {
            return Outcome::Failed("nothing was measured".to_owned());
        };
        let value = match statistic {
            Statistic::Median => median,
            Statistic::Least => least,
        };
        let cpu: Option<Vec<f64>> = self.samples.iter().map(|sample| sample.cpu_ns).collect();
        let cpu_ns = cpu.and_then(spread).map(|(_, median, _)| median);
        Outcome::Measured(Figure { value, median, least, most, cpu_ns, samples })
    }
}

/// What came of a row in one mode.
#[derive(Debug)]
pub enum Outcome {
    /// Every round gave a figure.
    Measured(Figure),
    /// Some round did not, and why.
    Failed(String),
}

/// Of several samples.
#[derive(Debug)]
pub struct Figure {
    /// What is shown and compared: the median or the least.
    pub value: f64,
    pub median: f64,
    pub least: f64,
    pub most: f64,
    /// Median CPU time, where there is one.
    pub cpu_ns: Option<f64>,
    /// In the order in which they were taken.
    pub samples: Vec<f64>,
}

fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    Some((*values.first()?, *values.get(values.len() / 2)?, *values.last()?))
}

/// A row and what came of it in each mode.
#[derive(Debug)]
pub struct Line {
    pub row: &'static Row,
    /// In the order of [`MODES`].
    pub outcomes: [Outcome; MODES.len()],
    /// How many CPUs others used meanwhile, if the host says so.
    pub others_cpus: Option<f64>,
}

/// What is said about a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Met,
    Missed,
    Failed,
    /// There is no goal.
    None,
}

impl Line {
    /// All modes with what came of them.
    pub fn modes(&self) -> impl Iterator<Item = (Mode, &Outcome)> {
        MODES.into_iter().zip(&self.outcomes)
    }

    /// The figure of a mode, if it has one.
    pub fn figure(&self, wanted: Mode) -> Option<&Figure> {
        self.modes().find_map(|(mode, outcome)| match outcome {
            Outcome::Measured(figure) if mode == wanted => Some(figure),
            _ => None,
        })
    }

    /// A mode's figure, compared as the yardstick says.
    pub fn compared(&self, mode: Mode, yardstick: Yardstick) -> Option<f64> {
        let value = self.figure(mode)?.value;
        match yardstick {
            Yardstick::Nothing => Some(value),
            Yardstick::TimesNative => Some(value / self.figure(Mode::Native)?.value),
            Yardstick::MoreThanNative => Some(value - self.figure(Mode::Native)?.value),
        }
    }

    /// How the row is compared.
    pub fn yardstick(&self) -> Yardstick {
        self.row.goal.map_or(Yardstick::TimesNative, |goal| goal.yardstick)
    }

    /// Whether the goal is met, with patching as it is by default.
    pub fn verdict(&self) -> Verdict {
        if self.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(_))) {
            return Verdict::Failed;
        }
        let Some(Goal { yardstick, most, .. }) = self.row.goal else { return Verdict::None };
        match self.compared(Mode::Lazy, yardstick) {
            Some(value) if value <= most => Verdict::Met,
            _ => Verdict::Missed,
        }
    }
}

/// Everything that was measured in one run.
#[derive(Debug)]
pub struct Report {
    pub effort: Effort,
    pub lines: Vec<Line>,
}

/// Others that use more of a CPU than this are in the way.
const NOTICEABLE: f64 = 0.1;

impl Report {
    /// The rows during which others used much of the machine.
    pub fn disturbed(&self) -> impl Iterator<Item = (&'static Row, f64)> {
        self.lines.iter().filter_map(|line| {
            line.others_cpus.filter(|others| *others > NOTICEABLE).map(|others| (line.row, others))
        })
    }

    /// What could not be measured: the row, the mode, the reason.
    pub fn failures(&self) -> impl Iterator<Item = (&'static Row, Mode, &str)> {
        self.lines.iter().flat_map(|line| {
            line.modes().filter_map(|(mode, outcome)| match outcome {
                Outcome::Failed(reason) => Some((line.row, mode, reason.as_str())),
                Outcome::Measured(_) => None,
            })
        })
    }
}
