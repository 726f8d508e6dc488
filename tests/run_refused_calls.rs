//! What becomes of each system call: implemented, refused on purpose, or missing. A gap shows in review.

#[path = "common/cli.rs"]
mod cli;

use cli::{MODES, fixture, output, systrap};
use std::fmt::Write as _;
use systrap::sentry::{Support, call_support};

/// The last number of the kernels that this was compared with.
const LAST: u32 = 470;

#[test]
fn every_call_number_and_what_becomes_of_it() {
    let mut text = String::new();
    for (nr, name, support) in call_support().filter(|(nr, ..)| *nr <= LAST) {
        if name.is_none() && support == Support::Missing {
            continue; // the kernel has no such call
        }
        let name = name.unwrap_or("(newer)");
        let _ = match support {
            Support::Refused { errno, why } => writeln!(text, "{nr:3} {name}: {errno:?}, {why}"),
            Support::Implemented => writeln!(text, "{nr:3} {name}"),
            _ => writeln!(text, "{nr:3} {name}: MISSING"),
        };
    }
    insta::assert_snapshot!("every_call", text);
}

#[test]
fn refused_calls_say_so_whatever_their_arguments_are() {
    let refused: Vec<(u32, i32)> = call_support()
        .filter_map(|(nr, _, support)| match support {
            Support::Refused { errno, .. } => Some((nr, errno.raw())),
            _ => None,
        })
        .collect();
    assert!(refused.len() > 50);
    let numbers: Vec<String> = refused.iter().map(|(nr, _)| nr.to_string()).collect();
    let expected: String = refused.iter().map(|(nr, errno)| format!("{nr} {errno}\n")).collect();
    let program = fixture("calls_by_number", &[]);
    for mode in MODES {
        let guest = output(systrap(&[mode], &program, &numbers), b"");
        assert_eq!(String::from_utf8_lossy(&guest.stdout), expected, "{mode}");
        assert_eq!(guest.status.code(), Some(0));
    }
}
