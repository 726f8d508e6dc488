//! Guests with a file system of their own: `--root`, `--bind` and `--read-only` as they are meant to be used.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `systrap run` with these options, in a working directory.
fn systrap(directory: &Path, options: &[&str], program: &[&str]) -> Output {
    let mut command = Command::new(cli::SYSTRAP);
    command.arg("run").args(options).arg("--").args(program).current_dir(directory);
    bounded::output(command, b"")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").expect("this process").uid() == 0
}

/// What a guest prints that ends well and quietly, the same in every mode.
fn printed(directory: &Path, options: &[&str], program: &[&str]) -> String {
    let [off, lazy] = cli::MODES.map(|mode| {
        let output = systrap(directory, &[&[mode], options].concat(), program);
        assert!(output.status.success() && output.stderr.is_empty(), "{mode}: {output:?}");
        text(&output.stdout)
    });
    assert_eq!(off, lazy);
    off
}

/// An unpacked system of one program: busybox under its names.
fn busybox_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for name in ["bin", "dev", "etc", "tmp", "workshop"] {
        std::fs::create_dir(root.path().join(name)).expect("a directory");
    }
    std::fs::copy(cli::program("busybox"), root.path().join("bin/busybox")).expect("a copy");
    for name in
        ["sh", "ls", "cat", "ln", "find", "sort", "tar", "mkdir", "rm", "mv", "readlink", "chmod", "stat"]
    {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name)).expect("a link");
    }
    std::fs::write(root.path().join("etc/name"), "a root of its own\n").expect("a file");
    root
}

/// What a script has to print, and would under chroot(8).
const SCRIPT: &str = r#"
cd /tmp && rm -rf a z t.tar && mkdir -p a/b/c && cd a/b/c && pwd
cat /etc/name ../../../../../../etc/name
echo one > one; ln one two; ln -s /etc/name three; ln -s ../../../../etc four; ln -s nowhere five
cat three four/name; cat five 2>/dev/null || echo nowhere
mv one ../ && cat ../one two; chmod 640 two; stat -c '%a %h %s' two
cd .. ; cd ..; pwd; (cd / && find tmp -name 't*' | sort)
tar cf /tmp/t.tar b && mkdir /tmp/z && cd /tmp/z && tar xf ../t.tar && find . | sort && readlink b/c/three
for i in 1 2 3; do echo $i; done | sort -r | while read line; do echo "line $line"; done
cat <<END
$(ls / | sort | tr '\n' ' ' 2>/dev/null || ls / | sort)
END
"#;

#[test]
fn a_shell_script_runs_in_an_unpacked_root() {
    let root = busybox_root();
    std::os::unix::fs::symlink("busybox", root.path().join("bin/tr")).expect("a link");
    std::fs::create_dir(root.path().join("proc")).expect("a directory");
    let option = format!("--root={}", root.path().display());
    let got = printed(Path::new("/"), &[&option], &["/bin/sh", "-c", SCRIPT]);
    assert!(
        got.contains("a root of its own\na root of its own\n") && got.contains("line 3\nline 2\nline 1\n"),
        "{got}"
    );
    assert!(got.ends_with("bin dev etc proc tmp workshop \n"), "{got}");
    // What it has made is where the host has it.
    let made = root.path().join("tmp/z/b/one");
    assert_eq!(std::fs::read_to_string(made).expect("the script's file"), "one\n");
    if is_root() {
        let mut chroot = Command::new(cli::program("chroot"));
        chroot.arg(root.path()).args(["/bin/sh", "-c", SCRIPT]);
        assert_eq!(got, text(&bounded::output(chroot, b"").stdout));
    } else {
        eprintln!(
            "not root: chroot(8), which the output is compared with, is not allowed; only the text is checked"
        );
    }
}

#[test]
fn the_root_has_proc_and_devices() {
    let root = busybox_root();
    let option = format!("--root={}", root.path().display());
    let script = r#"
echo gone > /dev/null; cat /dev/null; echo shown > /dev/stdout; echo read | cat /dev/stdin
cat /proc/self/comm; readlink /proc/self/exe; readlink /proc/self/cwd; readlink /dev/fd
ls -d /proc /dev/pts /dev/ptmx
while read _ at _; do case $at in /dev/*) ;; *) echo $at; esac; done < /proc/self/mounts
test -e /proc/1 || echo alone
ls /proc | while read name; do test $name = $$ && echo myself; done
true
"#;
    let got = printed(root.path(), &[&option], &["sh", "-c", script]);
    let wanted = "shown\nread\ncat\n/bin/busybox\n/\n/proc/self/fd\n/dev/ptmx\n/dev/pts\n/proc\n/\n/proc\nalone\nmyself\n";
    assert_eq!(got, wanted);
    // Nothing of that has been made on the host.
    assert!(
        !root.path().join("proc").exists()
            && std::fs::read_dir(root.path().join("dev")).expect("it").next().is_none()
    );
}

/// The directories that programs of this machine need, read-only.
fn system_binds() -> Vec<String> {
    let directories = ["/usr", "/lib", "/lib64", "/bin", "/etc"].into_iter();
    directories
        .filter(|path| Path::new(path).is_dir())
        .map(|path| format!("--bind={path}:{path}:ro"))
        .collect()
}

/// A Python that is installed somewhere else needs its own directory.
fn prefix_bind(python: &Path, root: &Path) -> Vec<String> {
    let asked = Command::new(python).args(["-c", "import sys; print(sys.base_prefix)"]).output();
    let prefix = text(&asked.expect("python3 starts").stdout).trim().to_owned();
    if prefix.starts_with("/usr") {
        return Vec::new();
    }
    std::fs::create_dir_all(root.join(prefix.trim_start_matches('/'))).expect("a directory");
    vec![format!("--bind={prefix}:{prefix}:ro")]
}

fn system_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for name in ["usr", "lib", "lib64", "bin", "etc", "dev", "tmp", "workshop"] {
        std::fs::create_dir(root.path().join(name)).expect("a directory");
    }
    root
}

#[test]
fn python_runs_with_the_systems_directories_bound() {
    let (root, work) = (system_root(), tempfile::tempdir().expect("a directory"));
    let script = r#"
import errno, os, socket, subprocess, tempfile, threading
print(os.getcwd(), {"proc", "usr", "workshop"} <= set(os.listdir("/")))
os.chdir("/workshop")
open("made", "w").write("by the guest")
os.chmod("made", 0o640)
for path in ["/usr/made", "/etc/made", "/bin/made"]:
    try: open(path, "w")
    except OSError as error: print(errno.errorcode[error.errno])
try: os.rename("made", "/tmp/made")
except OSError as error: print(errno.errorcode[error.errno])
print(subprocess.run(["sh", "-c", "pwd; cd ..; pwd; cat workshop/made"], capture_output=True, text=True))
with tempfile.TemporaryDirectory() as directory: print(directory.startswith("/tmp/"), os.listdir(directory))
server = socket.socket(socket.AF_UNIX); server.bind("socket"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("/workshop/socket")
print(server.getsockname(), client.getpeername()); os.unlink("socket")
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); one.bind("/workshop/d")
os.mkdir("sub"); two = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); two.bind("/workshop/sub/d")
two.sendto(b"there", "d"); message, sender = one.recvfrom(10); one.sendto(b"and back", sender)
print(message, sender, two.recvfrom(10))
for path in ["d", "sub/d"]: os.unlink(path)
os.rmdir("sub")
print(os.path.exists(os.path.realpath("/proc/self/exe")), os.readlink("/proc/self/cwd"))
print(any("/workshop" == line.split()[4] for line in open("/proc/self/mountinfo")), os.statvfs("/usr").f_flag & 1, os.statvfs("/workshop").f_flag & 1)
master, terminal = os.openpty(); print(os.ttyname(terminal).startswith("/dev/pts/"))
walked = [os.path.join(top, name) for top, _, names in os.walk("/workshop") for name in names]; print(walked)
"#;
    let python = cli::python();
    let options = [
        vec![
            format!("--root={}", root.path().display()),
            format!("--bind={}:/workshop", work.path().display()),
        ],
        system_binds(),
        prefix_bind(&python, root.path()),
    ]
    .concat();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let got = printed(Path::new("/"), &options, &[python.to_str().expect("a plain path"), "-c", script]);
    insta::assert_snapshot!(got);
    assert_eq!(std::fs::read_to_string(work.path().join("made")).expect("the guest's file"), "by the guest");
    let names = |path: &Path| std::fs::read_dir(path).expect("a directory").count();
    assert_eq!(
        (names(work.path()), names(&root.path().join("tmp")), names(&root.path().join("workshop"))),
        (1, 0, 0)
    );
}

#[test]
fn the_host_can_be_shown_read_only() {
    let work = tempfile::tempdir().expect("a directory");
    let bind = format!("--bind={0}:{0}", work.path().display());
    std::fs::write(work.path().join("there"), "before").expect("a file");
    let script = "pwd; touch there 2>&1; echo new > new; cat new; rm new; touch /usr/x; touch /dev/null && echo device";
    let inside = ["sh", "-c", script];
    let output = systrap(work.path(), &["--read-only"], &inside);
    let complaints = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(complaints.matches("Read-only file system").count(), 4, "{complaints}");
    let output = systrap(work.path(), &["--read-only", &bind], &inside);
    let at = work.path().display().to_string();
    assert_eq!(text(&output.stdout), format!("{at}\nnew\n"));
    assert_eq!(text(&output.stderr).matches("Read-only file system").count(), 2, "{output:?}");
    assert_eq!(std::fs::read_dir(work.path()).expect("a directory").count(), 1);
}

#[test]
fn a_guest_starts_where_it_can_see_the_directory() {
    let root = busybox_root();
    let option = format!("--root={}", root.path().display());
    let pwd = |directory: PathBuf| printed(&directory, &[&option], &["sh", "-c", "pwd"]);
    assert_eq!(pwd(root.path().join("workshop")), "/workshop\n");
    assert_eq!(pwd("/usr".into()), "/\n");
    // A directory that a bind covers is not it.
    let bind = format!("--bind={}:/workshop", root.path().join("etc").display());
    let got = printed(&root.path().join("workshop"), &[&option, &bind], &["sh", "-c", "pwd; ls"]);
    assert_eq!(got, "/workshop\nname\n");
}

#[test]
fn bad_options_are_named_in_one_line() {
    let root = busybox_root();
    let option = format!("--root={}", root.path().display());
    let complaint = |options: &[&str], program: &str| {
        let output = systrap(Path::new("/"), options, &[program]);
        let complaint = text(&output.stderr);
        assert!(output.stdout.is_empty() && complaint.trim_end().lines().count() >= 1, "{output:?}");
        (output.status.code(), complaint.replace(&root.path().display().to_string(), "[ROOT]"))
    };
    let own = |text: &str| (Some(125), format!("systrap: {text}\n"));
    assert_eq!(
        complaint(&["--root=/none"], "true"),
        own("root /none: No such file or directory: name a directory that is there and that you may search")
    );
    assert_eq!(
        complaint(&[&option, "--bind=/none:/workshop"], "sh"),
        own("bind /none: No such file or directory: name a directory or file that is there")
    );
    assert_eq!(
        complaint(&[&option, "--bind=/usr:/none/usr"], "sh"),
        own("bind at /none/usr: No such file or directory: make its parent directory in the root")
    );
    assert_eq!(
        complaint(&[&option, "--bind=/usr:/etc/name"], "sh"),
        own("bind at /etc/name: a directory goes on a directory, a file on a file")
    );
    assert_eq!(
        complaint(&[&option, "--bind=/proc:/workshop"], "sh"),
        own("/proc: a proc file system would show the supervisor: the guest has its own /proc")
    );
    assert_eq!(
        complaint(&[&option], "nonesuch"),
        (Some(127), "systrap: nonesuch: command not found\n".to_owned())
    );
    let (code, text) = complaint(&[&option, "--bind=/usr"], "sh");
    assert!(code == Some(125) && text.contains("write SRC:DST or SRC:DST:ro"), "{text}");
}

/// The host's root as a root of its own: every path is resolved by the sentry, and has to end where the host ends.
fn in_the_hosts_root(program: &Path, args: &[&str], directory: &Path) -> Output {
    systrap(directory, &["--root=/"], &[&[program.to_str().expect("a plain path")], args].concat())
}

fn sorted_lines(output: &Output) -> (Vec<String>, Option<i32>) {
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    (lines, output.status.code())
}

#[test]
fn calls_end_in_the_hosts_root_as_on_the_host() {
    for name in ["sockets", "proc_files", "exec_details", "event_descriptors", "file_locks"] {
        let program = cli::fixture(name, &[]);
        let list = bounded::output(Command::new(&program), b"");
        for part in text(&list.stdout).lines() {
            let run = |is_guest: bool| {
                let directory = tempfile::tempdir().expect("a directory");
                let args = [part, directory.path().to_str().expect("a plain path")];
                if is_guest {
                    return in_the_hosts_root(&program, &args, directory.path());
                }
                let mut native = Command::new(&program);
                native.args(args).current_dir(directory.path());
                bounded::output(native, b"")
            };
            let (native, guest) = (run(false), run(true));
            assert!(!native.stdout.is_empty(), "{name} {part} says nothing");
            assert_eq!(sorted_lines(&guest), sorted_lines(&native), "{name} {part}");
        }
    }
}

#[test]
fn path_calls_end_in_the_hosts_root_as_on_the_host() {
    let script = r#"
import errno, os
def t(name, call):
    try: print(name, call())
    except OSError as error: print(name, errno.errorcode[error.errno])
flags = os.O_CREAT | os.O_WRONLY
here = os.open(".", os.O_RDONLY)
t("own", lambda: open("g", "w").write("y"))
t("symlink", lambda: os.symlink("g", "s"))
t("link, following", lambda: os.link("s", "h", src_dir_fd=here, follow_symlinks=True))
t("link of a link", lambda: os.link("s", "h2", follow_symlinks=False))
t("they are", lambda: (os.lstat("h").st_ino == os.stat("g").st_ino, os.path.islink("h2")))
def temporary():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR); os.write(fd, b"t")
    os.link(f"/proc/self/fd/{fd}", "h3", src_dir_fd=here, follow_symlinks=True)
    return open("h3").read()
t("named later", temporary)
t("times of a link", lambda: os.utime("s", (1, 1), follow_symlinks=False))
t("file/", lambda: os.stat("g/")); t("mkdir d/", lambda: os.mkdir("d/")); t("rename d/ e/", lambda: os.rename("d/", "e/"))
t("rmdir e/", lambda: os.rmdir("e/")); t("creat z/", lambda: os.open("z/", flags)); t("creat g/", lambda: os.open("g/", flags)); t("creat no/z/", lambda: os.open("no/z/", flags)); t("device/", lambda: os.stat("/dev/null/"))
t("unlink s/", lambda: os.unlink("s/")); t("rmdir .", lambda: os.rmdir(".")); t("mkdir ..", lambda: os.mkdir(".."))
t("rmdir ..", lambda: os.rmdir("..")); t("rename .", lambda: os.rename(".", "x")); t("symlink q/", lambda: os.symlink("a", "q/"))
t("exclusive link", lambda: os.open("s", flags | os.O_EXCL)); t("no link", lambda: os.open("s", os.O_NOFOLLOW))
t("directory to write", lambda: os.open("..", os.O_WRONLY)); t("directory to make", lambda: os.open("..", os.O_CREAT))
t("exclusive directory/", lambda: os.open("../", flags | os.O_EXCL)); t("nothing", lambda: os.stat(""))
t("long", lambda: os.stat("x" * 300)); t("below a file", lambda: os.stat("g/x")); t("access", lambda: os.access("g", os.X_OK))
t("link itself", lambda: oct(os.fstat(os.open("s", os.O_PATH | os.O_NOFOLLOW)).st_mode)); t("chdir", lambda: os.chdir("g"))
t("no directory", lambda: open("no/x", "w")); t("link of a directory", lambda: os.link("..", "l"))
t("into itself", lambda: (os.mkdir("d"), os.rename("d", "d/e"))); t("not empty", lambda: (os.mkdir("d/e"), os.rmdir("d")))
t("exchange", lambda: os.rename("d", "g")); t("other way", lambda: os.rename("g", "d")); t("root", lambda: os.readlink("/proc/self/root"))
t("attributes", lambda: (os.setxattr("g", "user.a", b"b"), os.getxattr("s", "user.a"), os.listxattr("s", follow_symlinks=False)))
t("dangling", lambda: (os.symlink("new", "n"), os.close(os.open("n", flags)), os.path.exists("new")))
t("relative to it", lambda: os.stat("../" + os.path.basename(os.getcwd()) + "/g").st_size)
print(sorted(os.listdir()))
"#;
    let python = cli::python();
    let run = |is_guest: bool| {
        let directory = tempfile::tempdir().expect("a directory");
        if is_guest {
            return in_the_hosts_root(&python, &["-c", script], directory.path());
        }
        let mut native = Command::new(&python);
        native.args(["-c", script]).current_dir(directory.path());
        bounded::output(native, b"")
    };
    let (native, guest) = (run(false), run(true));
    assert_eq!(text(&native.stdout).lines().count(), 43, "{native:?}");
    assert_eq!(text(&guest.stdout), text(&native.stdout));
    assert_eq!(text(&guest.stderr), text(&native.stderr));
}
