//! What `--stats` and `--stats-json` say.

use std::fmt::Write as _;
use systrap::sentry::Outcome;

/// The figures of one run.
pub struct Figures<'a> {
    outcome: &'a Outcome,
}

impl<'a> Figures<'a> {
    /// The figures of a guest that has ended.
    pub fn new(outcome: &'a Outcome) -> Self {
        Self { outcome }
    }

    fn calls(&self) -> u64 {
        self.outcome.counts.trapped + self.outcome.counts.patched + self.outcome.platform.answered
    }

    /// One JSON object.
    pub fn json(&self) -> serde_json::Value {
        let counts = &self.outcome.counts;
        let by_name: serde_json::Map<String, serde_json::Value> =
            counts.by_name.iter().map(|(name, count)| (name.clone(), (*count).into())).collect();
        serde_json::json!({
            "calls": self.calls(),
            "trapped": counts.trapped,
            "patched": counts.patched,
            "answered": self.outcome.platform.answered,
            "sites": counts.sites,
            "sites_patched": counts.sites_patched,
            "eager": self.eager_json(),
            "unimplemented": counts.unimplemented,
            "by_name": by_name,
            "wall_time_seconds": self.outcome.wall_time.as_secs_f64(),
        })
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let counts = &self.outcome.counts;
        let mut text = format!("{:>12}  call\n", "count");
        for (name, count) in &counts.by_name {
            let note = if counts.unimplemented.contains_key(name) { "  (not implemented)" } else { "" };
            let _ = writeln!(text, "{count:>12}  {name}{note}");
        }
        let platform = &self.outcome.platform;
        let _ = writeln!(
            text,
            "{:>12}  in all: {} trapped, {} patched, {} answered in the stub (the guest's claim)",
            self.calls(),
            counts.trapped,
            counts.patched,
            platform.answered,
        );
        let _ = writeln!(
            text,
            "{:>12}  sites, {} of them patched; {:.3} s",
            counts.sites,
            counts.sites_patched,
            self.outcome.wall_time.as_secs_f64(),
        );
        let eager = &platform.eager;
        if eager.files_scanned + eager.mappings_left != 0 {
            let _ = writeln!(
                text,
                "{:>12}  sites patched when mapped, of {} planned in {} files ({:.3} s, and {:.3} s to patch); {} mappings \
                 left to lazy patching",
                eager.sites_patched,
                eager.sites_planned,
                eager.files_scanned,
                eager.scan_time.as_secs_f64(),
                eager.patch_time.as_secs_f64(),
                eager.mappings_left,
            );
        }
        text
    }

    fn eager_json(&self) -> serde_json::Value {
        let eager = &self.outcome.platform.eager;
        serde_json::json!({
            "files_scanned": eager.files_scanned,
            "mappings_left": eager.mappings_left,
            "sites_planned": eager.sites_planned,
            "sites_patched": eager.sites_patched,
            "scan_seconds": eager.scan_time.as_secs_f64(),
            "patch_seconds": eager.patch_time.as_secs_f64(),
        })
    }
}
