//! `/proc/PID/limits`.

use crate::sentry::limits::Limits;
use std::fmt::Write as _;

/// Name and unit of each resource, in the order of their numbers.
const RESOURCES: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

pub(super) fn text(limits: &Limits) -> String {
    let mut text = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    let shown = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    for ((name, unit), which) in RESOURCES.iter().zip(0..) {
        let Ok(limit) = limits.get(which) else { continue };
        let _ = write!(text, "{name:<25} {:<20} {:<20} ", shown(limit.soft), shown(limit.hard));
        let _ = if unit.is_empty() { writeln!(text) } else { writeln!(text, "{unit:<10}") };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_limits_read_as_the_host_writes_them() {
        assert_eq!(text(&Limits::inherited()), std::fs::read_to_string("/proc/self/limits").unwrap());
    }
}
