//! The command `systrap`: runs a program with every system call in the sentry's hands, or shows what patching would
//! make of it.

mod cli;
mod find;
mod limits;
mod manual;
mod report;
mod run;
mod scan;
mod values;

use clap::Parser as _;
use clap::error::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; anything else is this command's own failure.
            let code = if error.use_stderr() { run::OWN_FAILURE } else { 0 };
            match error.kind() {
                // What is wrong with a value is said in a line of its own.
                ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
                    let text = error.to_string();
                    let line = text.lines().next().unwrap_or_default();
                    run::complain(line.strip_prefix("error: ").unwrap_or(line));
                }
                _ => drop(error.print()),
            }
            return ExitCode::from(code);
        }
    };
    match arguments.command {
        cli::Command::Run(arguments) => run::run(arguments),
        cli::Command::Scan(arguments) => scan::run(&arguments),
        cli::Command::Man => manual::print_page(),
        cli::Command::Completions { shell } => manual::print_completions(shell),
    }
}
