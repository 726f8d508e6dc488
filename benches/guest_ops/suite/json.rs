//! The figures for other programs.

use serde_json::{Map, Value, json};

use super::figures::{Line, Report, Verdict};
use super::rows::{Measured, Yardstick};
use super::{MODES, Mode};

impl Report {
    /// One document: how it was measured and an object for each row.
    pub fn json(&self) -> String {
        let rows: Map<String, Value> =
            self.lines.iter().map(|line| (line.row.name.to_owned(), row(line))).collect();
        let document = json!({
            "cpus": std::thread::available_parallelism().map_or(1, usize::from),
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "statistic": self.effort.statistic.name(),
            "rounds": self.effort.rounds,
            "batches": self.effort.batches,
            "batch_us": self.effort.batch.as_micros() as u64,
            "rows": rows,
        });
        format!("{document:#}\n")
    }
}

fn row(line: &Line) -> Value {
    let unit = match line.row.measured {
        Measured::Operation | Measured::Command(_) | Measured::Reported(_) => "ns",
        Measured::IdleMemory => "bytes",
        Measured::IdleCpu => "per cent of a CPU",
    };
    let modes: Map<String, Value> =
        line.modes().map(|(mode, outcome)| (mode.name().to_owned(), outcome_json(outcome))).collect();
    let times: Map<String, Value> = MODES
        .into_iter()
        .filter(|mode| *mode != Mode::Native)
        .map(|mode| (mode.name().to_owned(), json!(line.compared(mode, Yardstick::TimesNative))))
        .collect();
    let goal = line.row.goal.map(|goal| {
        let yardstick = match goal.yardstick {
            Yardstick::TimesNative => "times native",
            Yardstick::MoreThanNative => "more than native",
            Yardstick::Nothing => "itself",
        };
        let met = match line.verdict() {
            Verdict::Met => json!(true),
            Verdict::Missed => json!(false),
            Verdict::Failed | Verdict::None => Value::Null,
        };
        let lazy = line.compared(Mode::Lazy, goal.yardstick);
        json!({ "most": goal.most, "of": yardstick, "lazy": lazy, "met": met, "gvisor": goal.gvisor })
    });
    json!({
        "what": line.row.what,
        "unit": unit,
        "modes": modes,
        "times_native": times,
        "goal": goal,
        "others_cpus": line.others_cpus,
    })
}

fn outcome_json(outcome: &super::Outcome) -> Value {
    match outcome.as_result() {
        Ok(figure) => json!({
            "median": figure.median,
            "least": figure.least,
            "most": figure.most,
            "cpu_ns": figure.cpu_ns,
            "samples": figure.samples,
        }),
        Err(reason) => json!({ "failed": reason }),
    }
}
