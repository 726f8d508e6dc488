//! Ways out of a guest's own file system: every one ends as the kernel would have it end below a root, and nothing outside
//! has been read or changed.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Never printed by a guest.
const SECRET: &str = "the-secret-outside";
/// Stands for the directory of a test in what a guest prints.
const BASE: &str = "[BASE]";

/// A root with what is outside of it, all in one directory of the host.
struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    /// Makes the scene, with a program of the fixtures in the root.
    fn new(program: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let scene = Self { directory };
        let make = |path: &str| std::fs::create_dir_all(scene.path(path)).expect("a directory");
        for path in [
            "root/bin",
            "root/dev",
            "root/tmp",
            "root/inner/deep",
            "root/shared",
            "root/sealed",
            "root/nested",
        ] {
            make(path);
        }
        for path in ["root/everything", "shared", "sealed", "outside/sub", "given"] {
            make(path);
        }
        scene.write("root/secret", "inside\n");
        scene.write("root/inner/file", "inside\n");
        scene.write("shared/given", "inside\n");
        scene.write("sealed/file", "inside\n");
        for file in ["secret", "sub/file"] {
            scene.write(&format!("outside/{file}"), &format!("{SECRET}\n"));
        }
        // What the guest is given descriptors of.
        scene.write("given/to-read", "given\n");
        scene.write("given/to-write", "given\n");
        scene.write("outside/program", "#!/bin/sh\n");
        for (path, mode) in [("outside/program", 0o755), ("outside/secret", 0o644), ("given/to-read", 0o644)]
        {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(scene.path(path), mode).expect("a mode");
        }
        symlink("secret", scene.path("outside/link")).expect("a link");
        symlink("/", scene.path("shared/to-root")).expect("a link");
        let made = Command::new(cli::program("mkfifo")).arg(scene.path("root/inner/fifo")).status();
        assert!(made.expect("mkfifo starts").success());
        let flags = if program == "escapes_by_race" { &["-static", "-pthread"][..] } else { &["-static"] };
        std::fs::copy(cli::fixture(program, flags), scene.path("root/bin/escape")).expect("a copy");
        scene.make_foreign();
        scene
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).expect("a file");
    }

    /// A program whose interpreter lies outside.
    fn make_foreign(&self) {
        let (source, target) = (self.path("foreign.c"), self.path("root/bin/foreign"));
        std::fs::write(&source, "int main(void) { return 0; }\n").expect("a file");
        std::fs::copy("/lib64/ld-linux-x86-64.so.2", self.path("outside/loader"))
            .expect("the C library's loader");
        let interpreter = format!("-Wl,--dynamic-linker={}", self.path("outside/loader").display());
        let built =
            Command::new(cli::program("gcc")).arg(interpreter).arg("-o").arg(target).arg(source).status();
        assert!(built.expect("gcc starts").success());
    }

    /// Everything outside: type, mode, owner, links, size, times of changes, attributes, content.
    fn outside(&self) -> String {
        let script = r#"
import os, sys
for path in ["/proc", "/proc/self", "/proc/thread-self", "/proc/meminfo", "/proc/cpuinfo", "/proc/sys/kernel/ostype"]:
    s = os.lstat(path)
    print(path, oct(s.st_mode), s.st_uid, s.st_gid)
for top in sys.argv[1:]:
    paths = [top]
    while paths:
        path = paths.pop()
        s = os.lstat(path)
        names = os.listxattr(path, follow_symlinks=False)
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        content = open(path, "rb").read(100) if os.path.isfile(path) else os.path.islink(path) and os.readlink(path)
        print(path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns, attributes, content)
        if os.path.isdir(path) and not os.path.islink(path):
            paths += sorted(os.path.join(path, name) for name in os.listdir(path))
"#;
        let mut command = Command::new(cli::python());
        command.args(["-c", script]).arg(self.path("outside")).arg(self.path("sealed"));
        let listed = bounded::output(command, b"");
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).expect("text")
    }

    fn bind(&self, source: &str, target: &str) -> String {
        format!("--bind={}:{target}", self.path(source).display())
    }

    /// Runs the program in the root; what it printed, with nothing outside read or changed.
    fn run(&self, mode: &str, options: &[&str]) -> String {
        let before = self.outside();
        let base = self.directory.path().to_str().expect("a plain path");
        let root = format!("--root={base}/root");
        let (shared, sealed) = (self.bind("shared", "/shared"), self.bind("sealed", "/sealed:ro"));
        let nested = self.bind("root/inner", "/nested");
        let mut all = vec![mode, root.as_str(), shared.as_str(), sealed.as_str(), nested.as_str()];
        all.extend(options);
        // Two descriptors of what is outside, for the guest to find.
        let script = "exec 20<\"$1/outside\" 21<\"$1/given/to-read\"; shift; exec \"$@\"";
        let mut command = Command::new(cli::program("bash"));
        command.args(["-c", script, "bash", base, cli::SYSTRAP, "run"]).args(all);
        command.args(["--", "/bin/escape", base]).current_dir("/");
        let output = bounded::output(command, b"");
        let (text, complaints) =
            (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success() && complaints.is_empty(),
            "{mode}: {}: {complaints}{text}",
            output.status
        );
        assert!(!text.contains(SECRET), "{mode}: the guest has read what is outside:\n{text}");
        assert_eq!(self.outside(), before, "{mode}: something outside has changed");
        assert!(!text.contains("FAIL"), "{mode}: {text}");
        text.replace(base, BASE)
    }
}

/// Runs in both modes; what is printed is the same, and is returned.
fn in_both_modes(program: &str, options: &[&str]) -> String {
    let [off, lazy] = cli::MODES.map(|mode| Scene::new(program).run(mode, options));
    assert_eq!(off, lazy);
    off
}

#[test]
fn paths_lead_nowhere_outside() {
    insta::assert_snapshot!(in_both_modes("escapes_by_path", &["--bind=/:/everything:ro", "--memory=8G"]));
}

#[test]
fn calls_reach_nothing_outside() {
    insta::assert_snapshot!(in_both_modes("escapes_by_call", &[]));
}

#[test]
fn a_read_only_file_system_is_not_changed() {
    insta::assert_snapshot!(in_both_modes("escapes_read_only", &["--read-only"]));
}

#[test]
fn races_do_not_lead_outside() {
    insta::assert_snapshot!(in_both_modes("escapes_by_race", &[]));
}

/// Passes descriptors of what is outside through a socket that it binds in the shared directory.
const ACCOMPLICE: &str = r#"
import os, socket, sys
base = sys.argv[1]
listening = socket.socket(socket.AF_UNIX)
listening.bind(base + "/shared/accomplice")
listening.listen()
print("ready", flush=True)
guest, _ = listening.accept()
directory = os.O_RDONLY | os.O_DIRECTORY
for sent in [
    [(base + "/outside", directory)],
    [(base + "/outside", os.O_PATH | os.O_DIRECTORY)],
    [("/", directory)],
    [("/proc", directory)],
    [(base + "/outside/secret", os.O_PATH)],
    [(base + "/given/to-read", os.O_RDONLY)],
    [(base + "/given/to-write", os.O_WRONLY)],
    [(base + "/outside/link", os.O_PATH | os.O_NOFOLLOW)],
    [(base + "/root/inner", directory)],
    [("/dev/null", os.O_RDONLY), (base + "/outside", directory), ("/dev/null", os.O_RDONLY)],
]:
    fds = [os.open(path, flags) for path, flags in sent]
    socket.send_fds(guest, [b"x"], fds)
    for fd in fds:
        os.close(fd)
    if guest.recv(1) != b"k":
        sys.exit(1)
"#;

#[test]
fn passed_descriptors_lead_nowhere_outside() {
    let texts = cli::MODES.map(|mode| {
        let scene = Scene::new("escapes_by_descriptor");
        let mut accomplice = Command::new(cli::python())
            .args(["-c", ACCOMPLICE])
            .arg(scene.directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut ready = String::new();
        let stdout = accomplice.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("a line");
        assert_eq!(ready, "ready\n");
        let text = scene.run(mode, &[]);
        // The gift is the content, not the mode, and of one of them not even that.
        let mode = |name| scene.path(name).metadata().expect("a file").mode() & 0o777;
        assert_eq!((mode("given/to-read"), mode("given/to-write") & 0o111), (0o644, 0));
        assert_eq!(std::fs::read(scene.path("given/to-read")).expect("a file"), b"given\n");
        assert!(accomplice.wait().expect("it ends").success(), "{text}");
        text
    });
    assert_eq!(texts[0], texts[1]);
    // What may be read was given.
    insta::assert_snapshot!(texts[0]);
}

/// Has a terminal, and runs a command with the terminal's number as one more argument.
const OPERATOR: &str = r#"
import os, subprocess, sys
master, terminal = os.openpty()
number = os.ttyname(terminal).split("/")[-1]
code = subprocess.run(sys.argv[1:] + [number], timeout=100).returncode
os.set_blocking(master, False)
try:
    print("the terminal shows", os.read(master, 100))
except BlockingIOError:
    print("the terminal shows nothing")
sys.exit(code)
"#;

#[test]
fn terminals_of_others_are_not_opened() {
    let texts = cli::MODES.map(|mode| {
        let scene = Scene::new("escapes_by_terminal");
        let mut command = Command::new(cli::python());
        command.args(["-c", OPERATOR, cli::SYSTRAP, "run", mode]);
        command.arg(format!("--root={}", scene.path("root").display())).args(["--", "/bin/escape"]);
        let output = bounded::output(command, b"");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{mode}: {output:?}");
        assert!(!text.contains("FAIL") && text.contains("the terminal shows nothing"), "{mode}: {text}");
        text
    });
    assert_eq!(texts[0], texts[1]);
    insta::assert_snapshot!(texts[0]);
}
