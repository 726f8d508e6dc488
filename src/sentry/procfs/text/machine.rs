//! What files of `/proc` say of the machine, where the guest's share of it is smaller.

use crate::sentry::task::Task;

impl Task {
    /// Memory in bytes for a guest whose processes are limited: all there is, and what the caller may still map.
    pub(crate) fn memory_share(&self) -> Option<(u64, u64)> {
        let all = self.kernel().bounds.memory_bytes?;
        Some((all, all.saturating_sub(self.mm.counted_bytes())))
    }

    /// `/proc/meminfo`: the host's, as far as the guest may have it. What the host caches is not the guest's.
    pub(in crate::sentry::procfs) fn memory_info(&self) -> Vec<u8> {
        let host = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let Some((all, left)) = self.memory_share() else { return host.into_bytes() };
        limited(&host, all >> 10, left >> 10).into_bytes()
    }
}

fn limited(host: &str, all_kib: u64, left_kib: u64) -> String {
    let line = |line: &str| {
        let Some((name, value)) = line.split_once(':') else { return line.to_owned() };
        let Some(kib) = value.trim().strip_suffix(" kB").and_then(|text| text.parse::<u64>().ok()) else {
            return line.to_owned();
        };
        let most = match name {
            "MemTotal" => all_kib,
            "MemFree" | "MemAvailable" => left_kib,
            "Buffers" | "Cached" | "SReclaimable" | "SwapCached" | "SwapTotal" | "SwapFree" => 0,
            _ => u64::MAX,
        };
        format!("{:<15} {:>8} kB", format!("{name}:"), kib.min(most))
    };
    host.lines().map(|text| line(text) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_a_guest_is_shown_and_never_more_than_the_host_has() {
        let host = "MemTotal:        4000000 kB\nMemFree:          100000 kB\nCached:           900000 kB\n\
                    Shmem:              1234 kB\nHugePages_Total:       0\n";
        let expected = "MemTotal:        2000000 kB\nMemFree:          100000 kB\nCached:                0 kB\n\
                        Shmem:              1234 kB\nHugePages_Total:       0\n";
        assert_eq!(limited(host, 2_000_000, 1_500_000), expected);
        assert!(
            limited(host, 50_000, 40_000)
                .starts_with("MemTotal:          50000 kB\nMemFree:           40000 kB\n")
        );
    }
}
