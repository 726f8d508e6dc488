//! The manual page and the completion scripts, made from the command line's definition.

use crate::cli;
use crate::run::{OWN_FAILURE, complain};
use clap::Command;
use clap_mangen::Man;
use std::io::{self, Write as _};
use std::process::ExitCode;

const NAME: &str = "systrap";

fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("standard output: {error}"));
            ExitCode::from(OWN_FAILURE)
        }
    }
}

/// `systrap completions SHELL`.
pub fn print_completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::definition(), NAME, &mut script);
    print(&script)
}

/// `systrap man`.
pub fn print_page() -> ExitCode {
    match page() {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&format!("manual page: {error}"));
            ExitCode::from(OWN_FAILURE)
        }
    }
}

/// One page for the command and its subcommands, each with a section of its own.
fn page() -> io::Result<Vec<u8>> {
    let mut command = cli::definition();
    command.build();
    let mut text = Vec::new();
    let man = Man::new(command.clone());
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        section(subcommand, &mut text)?;
    }
    man.render_version_section(&mut text)?;
    Ok(text)
}

/// What a page of its own would have, one level down.
fn section(subcommand: &Command, text: &mut Vec<u8>) -> io::Result<()> {
    let mut own = Vec::new();
    let man = Man::new(subcommand.clone());
    man.render_synopsis_section(&mut own)?;
    man.render_description_section(&mut own)?;
    man.render_options_section(&mut own)?;
    writeln!(text, ".SH \"{} {}\"", NAME.to_uppercase(), subcommand.get_name().to_uppercase())?;
    for line in String::from_utf8_lossy(&own).lines() {
        match line.strip_prefix(".SH ") {
            Some(title) => writeln!(text, ".SS {title}")?,
            None => writeln!(text, "{line}")?,
        }
    }
    let Some(examples) = subcommand.get_after_help().map(ToString::to_string) else { return Ok(()) };
    let mut lines = examples.lines();
    let title = lines.next().unwrap_or_default().trim_end_matches(':');
    writeln!(text, ".SS {}\n.nf", title.to_uppercase())?;
    for line in lines {
        writeln!(text, "{}", literal(line))?;
    }
    writeln!(text, ".fi")
}

/// A line that means nothing to the formatter.
fn literal(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
