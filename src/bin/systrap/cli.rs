//! The command line's definition.

use crate::limits::LimitArguments;
use crate::mounts::MountArguments;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;

/// Run unmodified Linux programs with every system call in your own hands
#[derive(Debug, Parser)]
#[command(name = "systrap", version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program
    ///
    /// The exit status is the program's; 128 and the signal's number if a signal killed it; 127 if it was not found,
    /// 126 if it cannot be executed, 125 if systrap itself failed, 124 if its time was up (--timeout).
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArguments>),
    /// Show what patching makes of ELF files, without running them
    ///
    /// For each file: how many `syscall` instructions it has, which tier would patch them, which stay unpatched and why,
    /// and what gVisor's rule (the bytes `b8 imm32` in front of the `syscall`) would reach. Any ELF64 file for x86-64
    /// will do, stripped or not. The exit status is 1 if a file could not be scanned; the others are scanned all the
    /// same.
    Scan(ScanArguments),
    /// Print the manual page, to be read by: systrap man | man -l -
    Man,
    /// Print a completion script for a shell
    ///
    /// For bash: systrap completions bash > ~/.local/share/bash-completion/completions/systrap. For zsh, a file _systrap in
    /// a directory of $fpath; for fish, ~/.config/fish/completions/systrap.fish.
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What `systrap run --help` and the manual page end with.
const RUN_EXAMPLES: &str = "\
Examples:
  systrap run -- ls -l /usr                              a program, every call in systrap's hands
  systrap run --trace=calls -- make                      every call with its arguments, to a file
  systrap run --stats -- find /usr/share/doc             how many calls of which kind
  systrap run --timeout 10s --memory 512M --processes 50 --no-net -- ./untrusted
                                                         a program that may not go far";

/// The name of this command and of its manual page.
pub fn definition() -> clap::Command {
    use clap::CommandFactory as _;
    Arguments::command()
}

/// Options of `systrap scan`.
#[derive(Debug, Args)]
pub struct ScanArguments {
    /// List every site: bytes and disassembly before, the plan, the trampoline, and after
    #[arg(long)]
    pub sites: bool,

    /// Write one JSON document: an array with an object for each file
    #[arg(long)]
    pub json: bool,

    /// The ELF files
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
}

/// The call of a site after which it is patched: when the traps have cost what the patch costs, which is then never more
/// than twice the best.
const PATCH_AFTER: u32 = 64;

/// Options of `systrap run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// When to turn trapped calls into jumps
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Patching::Lazy)]
    pub patching: Patching,

    /// With --patching=lazy: patch a site at its N-th call
    ///
    /// A patch takes as long as some 60 calls that trap, and most sites of a short-lived program make fewer.
    #[arg(long, value_name = "N", default_value_t = PATCH_AFTER, value_parser = clap::value_parser!(u32).range(1..))]
    pub patch_after: u32,

    /// Print every system call, to standard error or to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, value_hint = ValueHint::FilePath, help_heading = "Observation")]
    pub trace: Option<Option<PathBuf>>,

    /// Print a table of the calls made to standard error at the end
    #[arg(long, help_heading = "Observation")]
    pub stats: bool,

    /// Write the figures of --stats to FILE as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Observation")]
    pub stats_json: Option<PathBuf>,

    /// What the guest is given and how far it may go.
    #[command(flatten)]
    pub limits: LimitArguments,

    /// The program, looked up in PATH, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM ARGS", value_hint = ValueHint::CommandWithArguments)]
    pub program: Vec<OsString>,

    /// The guest's file system. Its heading in the help holds for all that follows.
    #[command(flatten)]
    pub mounts: MountArguments,
}

/// The values of `--patching`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Patching {
    /// Every call is trapped
    Off,
    /// A site is patched when it has made a few calls
    Lazy,
    /// Sites are patched when code is mapped
    Eager,
}

impl From<Patching> for systrap::Patching {
    fn from(patching: Patching) -> Self {
        match patching {
            Patching::Off => systrap::Patching::Off,
            Patching::Lazy => systrap::Patching::Lazy,
            Patching::Eager => systrap::Patching::Eager,
        }
    }
}
