//! The command `systrap`: runs a program with every system call in the sentry's hands, or shows what patching would
//! make of it.

mod cli;
mod find;
mod mounts;
mod report;
mod run;
mod scan;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; anything else is this command's own failure.
            let code = if error.use_stderr() { run::OWN_FAILURE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match arguments.command {
        cli::Command::Run(arguments) => run::run(arguments),
        cli::Command::Scan(arguments) => scan::run(&arguments),
    }
}
