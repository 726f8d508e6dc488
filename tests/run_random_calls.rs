//! Guests without a plan, and one with: the supervisor lives, ends with its guest, and keeps its memory to itself.

#[path = "common/cli.rs"]
mod cli;

use cli::{MODES, fixture, systrap};
use std::path::Path;
use std::process::Command;

/// A root directory with the program, which is for guests only.
fn root(name: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().expect("a directory");
    for directory in ["dev", "tmp", "bin"] {
        std::fs::create_dir(root.path().join(directory)).expect("a directory");
    }
    for directory in ["", "tmp"] {
        let everybody = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(root.path().join(directory), everybody).expect("a mode");
    }
    std::fs::write(root.path().join("inside"), "").expect("a file");
    std::fs::copy(fixture(name, &["-static", "-pthread"]), root.path().join("bin/program")).expect("a copy");
    root
}

#[test]
fn calls_at_random_end_nobody_but_the_guest() {
    let is_root = {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
    };
    for (number, mode) in (0..).zip(MODES) {
        for user in [None, Some("--user=65534:65534")].into_iter().take(1 + usize::from(is_root)) {
            // One each: a guest may change the modes of all that is in it.
            let root = root("random_calls");
            let base = format!("--root={}", root.path().display());
            // The time is for a guest that waits for nothing: how long it takes otherwise is some seconds.
            let mut options = vec![mode, base.as_str(), "--no-net", "--memory=512M", "--processes=60"];
            options.extend(["--timeout=100s"]);
            options.extend(user);
            let seed = (100 * (1 + number)).to_string();
            let command: Command =
                systrap(&options, Path::new("/bin/program"), &[seed.as_str(), "16", "300"]);
            let output = cli::output(command, b"");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{options:?}, seed {seed}: {}: {complaints}", output.status);
            assert_eq!((text.as_str(), complaints.as_str()), ("made\n", ""), "{options:?}, seed {seed}");
        }
    }
}

/// In the file system of the host, where the supervisor's own directory in `/proc` is a link away.
#[test]
fn a_link_that_is_exchanged_meanwhile_does_not_lead_to_the_supervisors_memory() {
    let program = fixture("swapped_links", &["-pthread"]);
    for mode in MODES {
        let directory = tempfile::tempdir().expect("a directory");
        let arguments = [directory.path().to_str().expect("a plain path")];
        let output = cli::output(systrap(&[mode], &program, &arguments), b"");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text == "nothing strayed\n", "{mode}: {}: {text}", output.status);
    }
}
