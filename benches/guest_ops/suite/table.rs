//! The table that a person reads.

use std::fmt::Write as _;

use super::figures::{Figure, Line, Outcome, Report, Verdict};
use super::rows::{Measured, Yardstick};
use super::{MODES, Mode};

impl Report {
    /// Figures with ranges, comparisons with goals, CPU time of whole commands, and what failed.
    pub fn table(&self) -> String {
        let mut text = format!(
            "\n{:<32}{:>24}{:>27}{:>27}{:>10}{:>10}   {:<20}{:>8}\n",
            format!("{} (range)", self.effort.statistic.name()),
            "native",
            "lazy",
            "off",
            "lazy",
            "off",
            "goal",
            "gVisor"
        );
        for line in &self.lines {
            let _ = writeln!(text, "{}", row(line));
        }
        let cpu: String = self.lines.iter().filter_map(cpu_row).collect();
        if !cpu.is_empty() {
            let _ = write!(text, "\n{:<32}{:>14}{:>14}{:>14}\n{cpu}", "CPU time", "native", "lazy", "off");
        }
        let disturbed: Vec<String> =
            self.disturbed().map(|(row, others)| format!("{} {others:.2}", row.name)).collect();
        if !disturbed.is_empty() {
            let rows = disturbed.join(", ");
            let _ = writeln!(text, "\nDISTURBED, others used so many CPUs meanwhile: {rows}");
        }
        for (row, mode, reason) in self.failures() {
            let _ = writeln!(text, "FAILED: {} ({}): {reason}", row.name, mode.name());
        }
        let of = |verdict| self.lines.iter().filter(|line| line.verdict() == verdict).count();
        let (met, missed, failed) = (of(Verdict::Met), of(Verdict::Missed), of(Verdict::Failed));
        let _ = writeln!(text, "\n{met} goals met, {missed} missed, {failed} rows failed");
        text
    }
}

fn row(line: &Line) -> String {
    let cell =
        |mode| line.figure(mode).map_or("failed".to_owned(), |figure| spread(figure, line.row.measured));
    let compared = |mode| compared(line, line.compared(mode, line.yardstick()));
    let [native, lazy, off] = MODES.map(cell);
    let goal = line.row.goal.map_or(String::new(), |goal| {
        let said = match line.verdict() {
            Verdict::Met => "met",
            Verdict::Missed => "MISSED",
            Verdict::Failed | Verdict::None => "FAILED",
        };
        format!("≤ {:<11}{said}", value(line, goal.most))
    });
    let gvisor = line.row.goal.and_then(|goal| goal.gvisor).map_or(String::new(), |other| value(line, other));
    format!(
        "{:<32}{native:>24}{lazy:>27}{off:>27}{:>10}{:>10}   {goal:<20}{gvisor:>8}",
        line.row.what,
        compared(Mode::Lazy),
        compared(Mode::Off),
    )
    .trim_end()
    .to_owned()
}

fn cpu_row(line: &Line) -> Option<String> {
    if !matches!(line.row.measured, Measured::Command(_) | Measured::Reported(_)) {
        return None;
    }
    let [native, lazy, off] =
        MODES.map(|mode| line.figure(mode).and_then(|figure| figure.cpu_ns).map_or("-".to_owned(), duration));
    Some(format!("{:<32}{native:>14}{lazy:>14}{off:>14}\n", line.row.what))
}

fn spread(figure: &Figure, measured: Measured) -> String {
    let show = |value| quantity(value, measured);
    let (least, most) = (show(figure.least), show(figure.most));
    format!("{} ({}–{most})", show(figure.value), bare(&least, &most))
}

/// The least without its unit where that is also the most's.
fn bare(least: &str, most: &str) -> String {
    match (least.split_once(' '), most.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => number.to_owned(),
        _ => least.to_owned(),
    }
}

fn compared(line: &Line, what: Option<f64>) -> String {
    what.map_or("-".to_owned(), |compared| value(line, compared))
}

/// A compared value, as the goal is given.
pub fn value(line: &Line, value: f64) -> String {
    match line.yardstick() {
        Yardstick::TimesNative if value < 10.0 => format!("{value:.2} x"),
        Yardstick::TimesNative => format!("{value:.1} x"),
        Yardstick::MoreThanNative if value < 0.0 => format!("-{}", quantity(-value, line.row.measured)),
        Yardstick::MoreThanNative => format!("+{}", quantity(value, line.row.measured)),
        Yardstick::Nothing => quantity(value, line.row.measured),
    }
}

fn quantity(value: f64, measured: Measured) -> String {
    match measured {
        Measured::Operation | Measured::Command(_) | Measured::Reported(_) => duration(value),
        Measured::IdleMemory => format!("{:.2} MB", value / 1e6),
        Measured::IdleCpu => format!("{value:.3} %"),
    }
}

fn duration(ns: f64) -> String {
    let (number, unit) = match ns {
        ns if ns < 1e4 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = if number < 10.0 {
        2
    } else if number < 100.0 {
        1
    } else {
        0
    };
    format!("{number:.digits$} {unit}")
}

impl Outcome {
    /// The figure, or the reason why there is none.
    pub fn as_result(&self) -> Result<&Figure, &str> {
        match self {
            Self::Measured(figure) => Ok(figure),
            Self::Failed(reason) => Err(reason),
        }
    }
}
