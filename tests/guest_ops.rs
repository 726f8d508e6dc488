//! The bench of guest operations works: its program measures each operation natively and under `systrap run`, whole
//! commands and the idle guest are measured too, and what could not be measured is said, not hidden. No time is judged.

#[allow(dead_code, reason = "the bench uses all of it")]
#[path = "../benches/guest_ops/suite/mod.rs"]
mod suite;

use std::time::Duration;

use suite::{Effort, Measured, Mode, Outcome, Programs, ROWS, Report, Row};

/// What a kernel says that has no such call.
const NOT_THERE: &str = "errno 38 ";

fn named(name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no row is called {name}"))
}

/// The rows for which a guest needs threads or processes.
fn needs_clone(row: &Row) -> bool {
    ["thread", "fork", "processes", "find-wc", "true-100"].iter().any(|part| row.name.contains(part))
}

fn failure(report: &Report, name: &str, wanted: Mode) -> Option<String> {
    report
        .failures()
        .find_map(|(row, mode, reason)| (row.name == name && mode == wanted).then(|| reason.to_owned()))
}

#[test]
fn every_row_is_measured_in_every_mode_and_shown() {
    let report = suite::run(&Effort::QUICK, &[]).expect("the bench runs");
    assert_eq!(report.lines.len(), ROWS.len());
    // As long as guests cannot make threads or processes, rows that need them fail, and are shown as failed; as soon as
    // they can, no row may fail.
    let no_clone =
        failure(&report, "fork-exit-wait", Mode::Lazy).is_some_and(|reason| reason.starts_with(NOT_THERE));
    for (row, mode, reason) in report.failures() {
        let known = no_clone && mode != Mode::Native && needs_clone(row);
        assert!(known, "{} ({}): {reason}", row.name, mode.name());
        println!("NOT MEASURED, guests have no clone yet: {} ({}): {reason}", row.name, mode.name());
    }

    let table = report.table();
    let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
    let svg = tempfile::NamedTempFile::new().expect("a temporary file");
    report.chart(svg.path()).expect("a chart");
    let chart = std::fs::read_to_string(svg.path()).expect("text");
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"));
    for line in &report.lines {
        let row = line.row;
        assert!(table.lines().any(|text| text.starts_with(row.what)), "no {} in\n{table}", row.name);
        assert!(chart.contains(row.what), "no {} in the chart", row.name);
        for (mode, outcome) in line.modes() {
            let shown = &json["rows"][row.name]["modes"][mode.name()];
            match outcome {
                Outcome::Measured(figure) => {
                    let may_be_zero = matches!(row.measured, Measured::IdleCpu);
                    assert!(figure.median > 0.0 || may_be_zero, "{}: {figure:?}", row.name);
                    assert_eq!(shown["median"].as_f64(), Some(figure.median));
                }
                Outcome::Failed(reason) => assert_eq!(shown["failed"].as_str(), Some(reason.as_str())),
            }
        }
    }
}

#[test]
fn an_operation_that_fails_is_shown_with_its_reason() {
    let programs = Programs::build().expect("the programs build");
    std::fs::remove_file(&programs.data).expect("its file was there");
    let line = suite::measure(named("stat"), &programs, &Effort::QUICK);
    let report = Report { effort: Effort::QUICK, lines: vec![line] };
    let reasons: Vec<_> = report.failures().map(|(.., reason)| reason.to_owned()).collect();
    assert_eq!(reasons, vec!["errno 2 (No such file or directory) in stat"; suite::MODES.len()]);
    let table = report.table();
    assert!(table.contains("FAILED: stat (lazy): errno 2"), "{table}");
    assert!(table.contains("0 goals met, 0 missed, 1 rows failed"), "{table}");
}

#[test]
fn a_program_that_does_not_end_is_given_up() {
    let programs = Programs::build().expect("the programs build");
    for mode in suite::MODES {
        let patience = Duration::from_millis(300);
        let error =
            suite::child::run(&mut mode.command(&programs.idle), patience).expect_err("it waits for ever");
        assert!(error.contains("no end within"), "{}: {error}", mode.name());
    }
}

#[test]
fn a_command_that_fails_is_no_figure() {
    static ROW: Row = Row {
        name: "false",
        what: "false",
        measured: Measured::Command(&["sh", "-c", "exit 3"]),
        goal: None,
    };
    let programs = Programs::build().expect("the programs build");
    let report =
        Report { effort: Effort::QUICK, lines: vec![suite::measure(&ROW, &programs, &Effort::QUICK)] };
    assert_eq!(failure(&report, "false", Mode::Native).as_deref(), Some("natively status 3"));
    assert_eq!(report.failures().count(), suite::MODES.len());
}
