//! What a trapped, a patched and an answered call, an address space and a fork cost, with the yardsticks of the same run:
//! a native null call, the bare one-line hand-off between two cores, a native fork, and a null call under ptrace.
//!
//! At the end a table and the goals are printed, each with `met` or `MISSED`. A row that cannot be measured is a failure.
//!
//! # Safety
//!
//! The yardsticks make raw system calls on memory of their own; forked children run only what is async-signal-safe.
#![allow(unsafe_code)]

mod calls;
mod goals;
mod record;
mod spaces;
mod yardsticks;

use std::process::ExitCode;
use std::time::Duration;

use criterion::Criterion;
use record::Record;
use systrap::{Entry, Patching};

const NATIVE: &str = "native null call";
const BARE: &str = "bare one-line hand-off";
const TRAPPED: &str = "trapped null call";
const PATCHED: &str = "patched null call";
const ANSWERED: &str = "null call answered in the stub";
const PTRACE: &str = "null call under ptrace (SYSEMU)";
const NATIVE_ONE: &str = "one CPU: native null call";
const PATCHED_ONE: &str = "one CPU: patched null call";
const CPU_TIME: &str = "one CPU: CPU time of a call that waits";
const NEW_SPACE: &str = "new_address_space + release";
const NATIVE_FORK: &str = "native fork";
const FORK: &str = "AddressSpace::fork";

fn one_cpu(record: &mut Record, criterion: &mut Criterion) {
    let bound = calls::on_one_cpu(|| {
        yardsticks::native(record, criterion, NATIVE_ONE);
        calls::null_call(record, criterion, PATCHED_ONE, Patching::Lazy, Entry::Patched);
        calls::cpu_time_of_waiting(record, criterion);
    });
    if let Err(error) = bound {
        record.cannot(PATCHED_ONE, format!("binding to one CPU: {error}"));
    }
}

fn main() -> ExitCode {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    let (mut record, criterion) = (Record::default(), &mut criterion);
    yardsticks::native(&mut record, criterion, NATIVE);
    yardsticks::bare_hand_off(&mut record, criterion);
    calls::null_call(&mut record, criterion, TRAPPED, Patching::Off, Entry::Trapped);
    calls::null_call(&mut record, criterion, PATCHED, Patching::Lazy, Entry::Patched);
    calls::answered_call(&mut record, criterion);
    yardsticks::ptrace(&mut record, criterion);
    one_cpu(&mut record, criterion);
    spaces::new_address_space(&mut record, criterion);
    spaces::forks(&mut record, criterion);
    criterion.final_summary();

    record.print(NATIVE, BARE);
    let mut failures: Vec<String> = record.failures().collect();
    if let (Ok(fork), Ok(native)) = (record.get(FORK), record.get(NATIVE_FORK)) {
        let (factor, more) = (fork.median / native.median, (fork.median - native.median) / 1e6);
        println!("AddressSpace::fork is {factor:.2} times the native fork, {more:+.3} ms (medians)");
    }
    failures.extend(goals::print(&record));
    for failure in &failures {
        eprintln!("NOT MEASURED: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
