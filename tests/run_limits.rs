//! Resource limits and what processes have used.

#[path = "common/cli.rs"]
mod cli;

use cli::{compare_with, fixture, scratch};

#[test]
fn limits_are_enforced_and_usage_is_counted() {
    let directory = scratch().join("limits.d");
    let fresh = || {
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
    };
    let native = compare_with(&fixture("limits", &[]), &[directory.to_str().unwrap()], b"", fresh);
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
}

/// Forks are limited for users, not for root; the limit is the guest's own, whatever else runs on the machine.
#[test]
fn the_number_of_processes_is_limited_for_users() {
    let script =
        "ulimit -u 3; (true) && echo first; sleep 5 & sleep 5 & sleep 5 & sleep 5 & kill %1 %2; wait";
    let is_root = {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
    };
    for mode in cli::MODES {
        let shell = cli::program("bash");
        let guest = match is_root {
            true => {
                let change =
                    "import os,sys; os.setgid(65534); os.setuid(65534); os.execv(sys.argv[1], sys.argv[1:])";
                let words = ["-c", change, shell.to_str().unwrap(), "-c", script];
                cli::output(cli::systrap(&[mode], &cli::python(), &words), b"")
            }
            false => cli::output(cli::systrap(&[mode], &shell, &["-c", script]), b""),
        };
        let errors = String::from_utf8_lossy(&guest.stderr);
        assert!(String::from_utf8_lossy(&guest.stdout).contains("first"), "{mode}: {errors}");
        assert!(errors.contains("fork: retry: Resource temporarily unavailable"), "{mode}: {errors}");
    }
}
