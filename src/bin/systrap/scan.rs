//! `systrap scan`.

use crate::cli::ScanArguments;
use crate::run::{OWN_FAILURE, complain};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use systrap::sentry::Errno;
use usertrap::{GvisorRule, Plan, Refusal, Scan, ScannedSite, SyshandlerAddr, TrampolineAddr};

/// Exit status: a file could not be scanned.
const BAD_FILE: u8 = 1;
/// Files of more bytes are refused: they are read into memory.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Where trampolines are shown: so far behind the page of their site.
const TRAMPOLINE_DISTANCE: u64 = 0x4000_0000;
/// Where the syshandler is shown; it is at a random address when a program runs.
const SYSHANDLER: SyshandlerAddr = SyshandlerAddr::new(0x7000_0000_0000);

/// Scans the files and returns what the command ends with.
pub fn run(arguments: &ScanArguments) -> ExitCode {
    let mut documents = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for path in &arguments.files {
        let name = path.to_string_lossy();
        let data = read(path);
        let result = data
            .as_deref()
            .map_err(Clone::clone)
            .and_then(|data| usertrap::scan(data).map(Report).map_err(|error| error.to_string()));
        let text = match &result {
            Err(reason) => {
                complain(&format!("{name}: {reason}"));
                code = ExitCode::from(BAD_FILE);
                documents.push(serde_json::json!({ "file": name, "error": reason }));
                continue;
            }
            Ok(report) if arguments.json => {
                documents.push(report.json(&name, arguments.sites));
                continue;
            }
            Ok(report) => report.text(&name, arguments.sites),
        };
        if print(&text).is_err() {
            return ExitCode::from(OWN_FAILURE);
        }
    }
    if arguments.json && print(&format!("{:#}\n", serde_json::Value::Array(documents))).is_err() {
        return ExitCode::from(OWN_FAILURE);
    }
    code
}

/// Prints; says so if that fails, unless the reader has just had enough.
fn print(text: &str) -> std::io::Result<()> {
    let result = std::io::stdout().write_all(text.as_bytes());
    result.inspect_err(|error| {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            complain(&format!("standard output: {error}"));
        }
    })
}

/// The contents of a regular file.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let message = |error: std::io::Error| Errno::from(error).message().to_owned();
    // Opening a FIFO would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(message)?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut data = Vec::new();
    let file = File::open(path).map_err(message)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut data).map_err(message)?;
    if data.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("longer than {MAX_FILE_BYTES} bytes"));
    }
    Ok(data)
}

/// What is said of one file.
struct Report<'a>(Scan<'a>);

impl Report<'_> {
    fn unpatched(&self) -> impl Iterator<Item = (&ScannedSite, &Refusal)> {
        self.0.sites.iter().filter_map(|site| Some((site, site.result.as_ref().err()?)))
    }

    fn false_matches(&self) -> usize {
        self.0.sites.iter().filter(|site| site.gvisor == GvisorRule::FalseMatch).count()
    }

    fn describe(&self, site: &ScannedSite) -> String {
        let at = (site.site.raw() & !0xfff).wrapping_add(TRAMPOLINE_DISTANCE);
        self.0.describe(site, TrampolineAddr::new(at), SYSHANDLER)
    }

    fn text(&self, name: &str, sites: bool) -> String {
        let scan = &self.0;
        let all = scan.sites.len();
        let mut text = format!("{name}\n");
        // Writing to a String cannot fail.
        let mut row = |what: &str, count: usize, note: &str| {
            let share = if all == 0 { String::new() } else { format!("{:6.1} %", percent(count, all)) };
            let _ = writeln!(text, "{}", format!("  {what:<26} {count:>6} {share}{note}").trim_end());
        };
        row("sites", all, if scan.truncated { ", and more that were not looked at" } else { "" });
        row("tier 1, one instruction", scan.count(1), "");
        row("tier 2, padding", scan.count(2), "");
        row("tier 3, relocated window", scan.count(3), "");
        row("unpatched", scan.count(4), "");
        let falsely = match self.false_matches() {
            0 => String::new(),
            count => format!(", and {count} instructions that only look like it"),
        };
        row("gVisor's rule", scan.gvisor_count(), &falsely);
        let _ = writeln!(text, "  {:<26} {:>6}", "bytes 0f 05 in others", scan.not_instructions.len());
        for (site, refusal) in self.unpatched() {
            let function = site.function.as_deref().unwrap_or("?");
            let _ = writeln!(text, "  unpatched {} <{function}>: {refusal}", site.site);
        }
        if sites {
            for site in &scan.sites {
                let _ = write!(text, "\n{}", self.describe(site));
            }
        }
        text.push('\n');
        text
    }

    fn json(&self, name: &str, sites: bool) -> serde_json::Value {
        let scan = &self.0;
        let unpatched: Vec<_> =
            self.unpatched().map(|(site, refusal)| unpatched_json(site, refusal)).collect();
        let mut document = serde_json::json!({
            "file": name,
            "sites": scan.sites.len(),
            "truncated": scan.truncated,
            "tiers": { "1": scan.count(1), "2": scan.count(2), "3": scan.count(3), "4": scan.count(4) },
            "unpatched": unpatched,
            "gvisor": { "patches": scan.gvisor_count(), "false_matches": self.false_matches() },
            "not_instructions": scan.not_instructions.len(),
        });
        if sites {
            document["site_list"] = scan.sites.iter().map(|site| self.site_json(site)).collect();
        }
        document
    }

    fn site_json(&self, site: &ScannedSite) -> serde_json::Value {
        let (tier, plan) = match &site.result {
            Ok(plan) => (plan.tier().number(), plan.tier().to_string()),
            Err(refusal) => (4, refusal.to_string()),
        };
        serde_json::json!({
            "address": site.site.to_string(),
            "file_offset": site.file_offset,
            "function": site.function,
            "tier": tier,
            "plan": plan,
            "head": site.result.as_ref().ok().map(Plan::head),
            "late_entry": site.result.as_ref().ok().and_then(Plan::late_entry),
            "gvisor": match site.gvisor {
                GvisorRule::NoMatch => "no match",
                GvisorRule::Patches => "patches",
                GvisorRule::FalseMatch => "false match",
            },
            "listing": self.describe(site).lines().collect::<Vec<_>>(),
        })
    }
}

fn unpatched_json(site: &ScannedSite, refusal: &Refusal) -> serde_json::Value {
    serde_json::json!({
        "address": site.site.to_string(),
        "function": site.function,
        "reason": refusal.to_string(),
    })
}

fn percent(count: usize, all: usize) -> f64 {
    count as f64 * 100.0 / all as f64
}
