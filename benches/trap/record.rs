//! What was measured, in short batches, and the table of it.
//!
//! A neighbour that takes a CPU makes a batch longer, never shorter: the tenth percentile of batches shorter than a
//! tick of the scheduler is what the code costs, and all ratios are of that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use criterion::Criterion;

/// The benchmarks that were run, and why others were not.
#[derive(Default)]
pub struct Record {
    names: Vec<&'static str>,
    /// Nanoseconds for one iteration, batch by batch.
    samples: BTreeMap<&'static str, Vec<f64>>,
    not_measured: BTreeMap<&'static str, String>,
}

/// Least, tenth percentile, median and ninetieth percentile.
#[derive(Clone, Copy)]
pub struct Summary {
    pub least: f64,
    pub tenth: f64,
    pub median: f64,
    pub ninetieth: f64,
}

impl Record {
    /// One benchmark: `run` makes so many iterations and says how long they took. It is never asked for more than
    /// `batch`.
    pub fn bench(
        &mut self,
        criterion: &mut Criterion,
        name: &'static str,
        batch: u64,
        mut run: impl FnMut(u64) -> Duration,
    ) {
        let (mut full, mut parts) = (Vec::new(), Vec::new());
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let now = left.min(batch);
                    let took = run(now);
                    total += took;
                    left -= now;
                    let samples = if now == batch { &mut full } else { &mut parts };
                    samples.push(took.as_nanos() as f64 / now as f64);
                }
                total
            });
        });
        let samples = if full.is_empty() { parts } else { full };
        if samples.is_empty() {
            self.cannot(name, "the command line left it out");
        } else {
            self.names.push(name);
            self.samples.insert(name, samples);
        }
    }

    /// A benchmark cannot be run here.
    pub fn cannot(&mut self, name: &'static str, why: impl Into<String>) {
        self.not_measured.insert(name, why.into());
    }

    /// What was measured, or why it was not.
    pub fn get(&self, name: &str) -> Result<Summary, String> {
        let Some(samples) = self.samples.get(name) else {
            let why = self.not_measured.get(name).map_or("it was never tried", String::as_str);
            return Err(format!("{name}: {why}"));
        };
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |tenths: usize| sorted[(sorted.len() - 1) * tenths / 10];
        Ok(Summary { least: at(0), tenth: at(1), median: at(5), ninetieth: at(9) })
    }

    /// Prints what was measured beside two yardsticks.
    pub fn print(&self, native: &str, bare: &str) {
        println!(
            "\n{:<40}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}",
            "nanoseconds", "10th %", "least", "median", "90th %", "x native", "x hand-off"
        );
        let ratio = |value: f64, yardstick: &str| {
            self.get(yardstick).map_or("-".to_owned(), |yardstick| format!("{:.2}", value / yardstick.tenth))
        };
        for name in &self.names {
            let Ok(row) = self.get(name) else { continue };
            let precise = usize::from(row.tenth < 10.0);
            println!(
                "{name:<40}{:>10.precise$}{:>10.precise$}{:>10.precise$}{:>10.precise$}{:>10}{:>12}",
                row.tenth,
                row.least,
                row.median,
                row.ninetieth,
                ratio(row.tenth, native),
                ratio(row.tenth, bare)
            );
        }
    }

    /// The lines of what could not be measured.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.not_measured.iter().map(|(name, why)| format!("{name}: {why}"))
    }
}

/// How long so many calls of `one` take.
pub fn timed(iterations: u64, mut one: impl FnMut()) -> Duration {
    let started = Instant::now();
    for _ in 0..iterations {
        one();
    }
    started.elapsed()
}
