//! The goals of the hand-off, each with what was measured.

use crate::record::Record;
use crate::{ANSWERED, BARE, CPU_TIME, NATIVE, NATIVE_ONE, PATCHED, PATCHED_ONE, PTRACE, TRAPPED};

/// Prints each goal with what was measured and whether it is met. Says which could not be measured.
pub fn print(record: &Record) -> Vec<String> {
    let ns = |name: &str| record.get(name).map(|row| row.tenth);
    let ratio = |a: &str, b: &str| Ok::<_, String>(ns(a)? / ns(b)?);
    let mut missing = Vec::new();
    println!("\n{:<58}{:>12}   {:<34}", "goals", "measured", "goal");
    let mut row = |what: &str, measured: Result<(f64, bool), String>, unit: &str, goal: &str| match measured {
        Ok((value, met)) => {
            let met = if met { "met" } else { "MISSED" };
            println!("{what:<58}{:>12}   {goal:<34} {met}", format!("{value:.2}{unit}"));
        }
        Err(why) => {
            println!("{what:<58}{:>12}   {goal:<34} NOT MEASURED", "-");
            missing.push(format!("{what}: {why}"));
        }
    };
    let at_most = |measured: Result<f64, String>, most: f64| measured.map(|value| (value, value <= most));

    row("patched call / native call", at_most(ratio(PATCHED, NATIVE), 2.5), " x", "<= 2.5 x");
    row("patched call / bare hand-off", at_most(ratio(PATCHED, BARE), 1.6), " x", "<= 1.6 x");
    let gain =
        ratio(TRAPPED, PATCHED).and_then(|gain| Ok((gain, gain >= 4.0 || ratio(TRAPPED, NATIVE)? <= 9.0)));
    row("trapped call / patched call", gain, " x", ">= 4 x, or trapped <= 9 x native");
    let gain = ratio(PTRACE, PATCHED).map(|gain| (gain, gain > 1.0));
    row("call under ptrace / patched call", gain, " x", "> 1 x");
    row("call answered in the stub", at_most(ns(ANSWERED), 10.0), " ns", "<= 10 ns");
    row(
        "one CPU: patched call / native call",
        at_most(ratio(PATCHED_ONE, NATIVE_ONE), 30.0),
        " x",
        "<= 30 x",
    );
    let cpu_time = ns(CPU_TIME).map(|ns| ns / 1e3);
    row(
        "one CPU: CPU time of a call that waits 1 ms",
        at_most(cpu_time, 40.0),
        " us",
        "<= 40 us (a spin is 50)",
    );
    missing
}
