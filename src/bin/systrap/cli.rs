//! The command line's definition.

use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// 126 if it cannot be executed, 125 if systrap itself failed.
    Run(RunArguments),
    /// Show what patching makes of ELF files, without running them
    ///
    /// For each file: how many `syscall` instructions it has, which tier would patch them, which stay unpatched and why,
    /// and what gVisor's rule (the bytes `b8 imm32` in front of the `syscall`) would reach. Any ELF64 file for x86-64
    /// will do, stripped or not. The exit status is 1 if a file could not be scanned; the others are scanned all the
    /// same.
    Scan(ScanArguments),
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
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Options of `systrap run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// When to turn trapped calls into jumps
    #[arg(long, value_enum, default_value_t = Patching::Lazy)]
    pub patching: Patching,

    /// Print every system call, to standard error or to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub trace: Option<Option<PathBuf>>,

    /// Print a table of the calls made to standard error at the end
    #[arg(long)]
    pub stats: bool,

    /// Write the figures of --stats to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub stats_json: Option<PathBuf>,

    /// The program, looked up in PATH, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROGRAM ARGS")]
    pub program: Vec<OsString>,
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
