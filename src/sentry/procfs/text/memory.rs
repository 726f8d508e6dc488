//! What a process's files say of its memory: sizes from the sentry's own record, what is resident from the stub
//! process, whose own areas do not show.

use super::super::subject::Subject;
use super::number_field;
use crate::Vdso;
use crate::sentry::memory::{AreaSizes, Mm};
use std::fmt::Write as _;

/// The figures of one process; all zero for a zombie.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub(super) size_bytes: u64,
    pub(super) resident_bytes: u64,
    pub(super) heap_start: u64,
    sizes: AreaSizes,
    /// The stub process's own `status`.
    stub_status: String,
}

fn stub_file(subject: &Subject, name: &str) -> String {
    let pid = subject.process.stub_pid();
    std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default()
}

pub(super) fn figures(subject: &Subject) -> Figures {
    let Some(mm) = subject.mm() else { return Figures::default() };
    let executable = executable_path(subject);
    let stub_status = stub_file(subject, "status");
    let sizes = mm.area_sizes(&executable);
    let resident = number_field(&stub_status, "VmRSS").unwrap_or(0) << 10;
    Figures {
        size_bytes: sizes.total,
        resident_bytes: resident.min(sizes.total),
        heap_start: mm.heap_start(),
        sizes,
        stub_status,
    }
}

fn executable_path(subject: &Subject) -> String {
    subject.process.program().executable.to_string_lossy().into_owned()
}

impl Figures {
    /// A line of `status`, in KiB.
    pub(super) fn line(&self, name: &str) -> Option<u64> {
        let stub = |name| number_field(&self.stub_status, name);
        Some(match name {
            // What the stub process has had more than it has now, the guest has.
            "VmPeak" => {
                let more = stub("VmPeak")?.saturating_sub(stub("VmSize")?);
                (self.size_bytes >> 10) + more
            }
            "VmSize" => self.size_bytes >> 10,
            "VmRSS" => self.resident_bytes >> 10,
            "VmHWM" => stub("VmHWM")?.max(self.resident_bytes >> 10),
            "VmData" => self.sizes.data >> 10,
            "VmStk" => self.sizes.stack >> 10,
            "VmExe" => self.sizes.executable >> 10,
            "VmLib" => self.sizes.libraries >> 10,
            other => stub(other)?,
        })
    }
}

/// Resident pages, as the out-of-memory killer counts them.
pub(super) fn resident_pages(subject: &Subject) -> u64 {
    figures(subject).resident_bytes / crate::PAGE_SIZE
}

/// `statm`: size, resident, shared, text, library, data, dirty; in pages.
pub(super) fn statm(subject: &Subject) -> String {
    let figures = figures(subject);
    let pages = |bytes: u64| bytes / crate::PAGE_SIZE;
    let shared = ["RssFile", "RssShmem"]
        .iter()
        .filter_map(|name| number_field(&figures.stub_status, name))
        .sum::<u64>()
        << 10;
    let resident = figures.resident_bytes;
    format!(
        "{} {} {} {} 0 {} 0\n",
        pages(figures.size_bytes),
        pages(resident),
        pages(shared.min(resident)),
        pages(figures.sizes.executable),
        pages(figures.sizes.data + figures.sizes.stack),
    )
}

/// One mapping of `smaps`: its first line, and the lines that follow.
struct Mapping<'a> {
    start: u64,
    end: u64,
    head: &'a str,
    body: Vec<&'a str>,
}

fn parse(text: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in text.lines() {
        match range(line) {
            Some((start, end)) => mappings.push(Mapping { start, end, head: line, body: Vec::new() }),
            None => {
                if let Some(mapping) = mappings.last_mut() {
                    mapping.body.push(line);
                }
            }
        }
    }
    mappings
}

/// The addresses at the start of a mapping's first line.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Whether a mapping of the stub process is one of the guest's.
fn is_guests(mm: &Mm, vdso: Option<Vdso>, mapping: &Mapping<'_>) -> bool {
    let in_vdso = vdso.is_some_and(|vdso| {
        let start = vdso.start.raw();
        mapping.start >= start && mapping.end <= start + vdso.len_bytes
    });
    in_vdso || mm.has_part_of(mapping.start, mapping.end)
}

/// `smaps`: the stub process's, without what is not the guest's, under the guest's names.
pub(super) fn smaps(subject: &Subject, vdso: Option<Vdso>) -> String {
    let Some(mm) = subject.mm() else { return String::new() };
    let source = stub_file(subject, "smaps");
    let mut text = String::with_capacity(source.len());
    for mapping in parse(&source).iter().filter(|mapping| is_guests(&mm, vdso, mapping)) {
        text.push_str(&renamed(mapping.head, mm.area_name(mapping.start)));
        text.push('\n');
        for line in &mapping.body {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// The first line of a mapping, with the name that the sentry knows it by (`[heap]`, `[stack]`).
fn renamed(head: &str, name: Option<&'static str>) -> String {
    const NAME_COLUMN: usize = 73;
    let Some(name) = name else { return head.to_owned() };
    let fields: Vec<&str> = head.split_whitespace().take(5).collect();
    format!("{:<NAME_COLUMN$}{name}", format!("{} ", fields.join(" ")))
}

/// `smaps_rollup`: the sums of the guest's mappings.
pub(super) fn rollup(subject: &Subject, vdso: Option<Vdso>) -> String {
    let Some(mm) = subject.mm() else { return String::new() };
    let (source, template) = (stub_file(subject, "smaps"), stub_file(subject, "smaps_rollup"));
    let mappings: Vec<Mapping<'_>> =
        parse(&source).into_iter().filter(|mapping| is_guests(&mm, vdso, mapping)).collect();
    roll_up(&mappings, &template)
}

fn roll_up(mappings: &[Mapping<'_>], template: &str) -> String {
    let (Some(first), Some(last)) = (mappings.first(), mappings.last()) else { return String::new() };
    let mut text =
        format!("{:<73}[rollup]\n", format!("{:08x}-{:08x} ---p 00000000 00:00 0 ", first.start, last.end));
    let sum = |name: &str, of: fn(&Mapping<'_>) -> bool| -> u64 {
        mappings
            .iter()
            .filter(|mapping| of(mapping))
            .flat_map(|mapping| &mapping.body)
            .filter_map(|line| {
                line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse::<u64>().ok()
            })
            .sum()
    };
    for name in template.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name) {
        let kib = match name {
            "Pss_Anon" => sum("Pss", |mapping| !is_of_file(mapping)),
            "Pss_File" => sum("Pss", is_of_file),
            "Pss_Shmem" => 0,
            name => sum(name, |_| true),
        };
        let _ = writeln!(text, "{:<16}{kib:>8} kB", format!("{name}:"));
    }
    text
}

fn is_of_file(mapping: &Mapping<'_>) -> bool {
    mapping.head.split_whitespace().nth(4).is_some_and(|inode| inode != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00401000 r-xp 00000000 fe:00 12                         /bin/x y
Size:                  4 kB
Rss:                   4 kB
Pss:                   2 kB
VmFlags: rd ex 
7f0000000000-7f0000002000 rw-p 00000000 00:00 0 
Size:                  8 kB
Rss:                   8 kB
Pss:                   8 kB
VmFlags: rd wr 
";

    #[test]
    fn mappings_are_told_apart() {
        let mappings = parse(SMAPS);
        assert_eq!(mappings.len(), 2);
        assert_eq!((mappings[1].start, mappings[1].end), (0x7f00_0000_0000, 0x7f00_0000_2000));
        assert_eq!(mappings[0].body.len(), 4);
        assert!(is_of_file(&mappings[0]) && !is_of_file(&mappings[1]));
    }

    #[test]
    fn sums() {
        let template = "00-01 ---p 0 0 0 [rollup]\nRss:  1 kB\nPss: 1 kB\nPss_Anon: 1 kB\nPss_File: 1 kB\n";
        let text = roll_up(&parse(SMAPS), template);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("[rollup]"), Some(73));
        assert_eq!(
            lines[1..],
            [
                "Rss:                  12 kB",
                "Pss:                  10 kB",
                "Pss_Anon:              8 kB",
                "Pss_File:              2 kB"
            ]
        );
    }

    #[test]
    fn names_stand_in_their_column() {
        let head = renamed("7f0000000000-7f0000002000 rw-p 00000000 00:00 0 ", Some("[heap]"));
        assert_eq!(head.find("[heap]"), Some(73));
        assert_eq!(renamed("1-2 rw-p 0 0 0", None), "1-2 rw-p 0 0 0");
    }
}
