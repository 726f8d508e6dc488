//! The bench of guest operations works: its program measures each operation natively and under `systrap run`, whole
//! commands and the idle guest are measured too, and what could not be measured is said, not hidden. No time is judged.

#[allow(dead_code, reason = "the bench uses all of it")]
#[path = "../benches/guest_ops/suite/mod.rs"]
mod suite;

use std::time::Duration;

use suite::{Effort, Measured, Mode, Outcome, Programs, ROWS, Report, Row};

fn named(name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no row is called {name}"))
}

fn failure(report: &Report, name: &str, wanted: Mode) -> Option<String> {
    report
        .failures()
        .find_map(|(row, mode, reason)| (row.name == name && mode == wanted).then(|| reason.to_owned()))
}

fn json(report: &Report) -> serde_json::Value {
    serde_json::from_str(&report.json()).expect("JSON")
}

fn chart(report: &Report) -> String {
    let svg = tempfile::NamedTempFile::new().expect("a temporary file");
    report.chart(svg.path()).expect("a chart");
    std::fs::read_to_string(svg.path()).expect("text")
}

#[test]
fn every_row_is_measured_in_every_mode_and_shown() {
    let report = suite::run(&Effort::QUICK, &[]).expect("the bench runs");
    assert_eq!(report.lines.len(), ROWS.len());
    for (row, mode, reason) in report.failures() {
        println!("{} ({}): {reason}", row.name, mode.name());
    }
    assert_eq!(report.failures().count(), 0, "every operation works in a guest");

    let table = report.table();
    let json = json(&report);
    let chart = chart(&report);
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"));
    for line in &report.lines {
        let row = line.row;
        assert!(table.lines().any(|text| text.starts_with(row.what)), "no {} in\n{table}", row.name);
        assert!(chart.contains(row.what), "no {} in the chart", row.name);
        for (mode, outcome) in line.modes() {
            let shown = &json["rows"][row.name]["modes"][mode.name()];
            let Outcome::Measured(figure) = outcome else { continue };
            let may_be_zero = matches!(row.measured, Measured::IdleCpu);
            assert!(figure.median > 0.0 || may_be_zero, "{}: {figure:?}", row.name);
            // Reading decimals back may be off by the last bit.
            let read = shown["median"].as_f64().expect("a number");
            assert!((read - figure.median).abs() <= 1e-9 * figure.median, "{}: {shown}", row.name);
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
    let lazy = &json(&report)["rows"]["stat"]["modes"]["lazy"];
    assert_eq!(lazy["failed"].as_str(), Some(reasons[0].as_str()));
    assert!(chart(&report).contains("lazy: failed"));
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
