//! Guests change users, groups and capabilities as programs do natively: as root and as an ordinary user.

#[path = "common/cli.rs"]
mod cli;

use cli::{MODES, SYSTRAP, assert_same, fixture, output, program};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// A fresh directory that anybody may use, whoever made what was there before.
fn fresh(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir(directory).unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(cli::scratch(), PermissionsExt::from_mode(0o755)).unwrap();
}

/// The command, where everybody may execute it. Another process copies it: a descriptor of this one, open for writing,
/// would be inherited by what other threads start, and the copy could not be executed meanwhile.
fn copy_of_the_command() -> PathBuf {
    static COPY: LazyLock<PathBuf> = LazyLock::new(|| {
        let copy = cli::scratch().join("systrap");
        let status = Command::new(program("cp")).arg(SYSTRAP).arg(&copy).status().unwrap();
        assert!(status.success(), "cp: {status}");
        copy
    });
    COPY.clone()
}

/// Compares the program's runs, natively and as a guest, each started behind `before`.
fn compare_behind(before: &[&str], name: &str) {
    let program_path = fixture("changing_credentials", &["-pthread"]);
    let directory = cli::scratch().join(name);
    // The user must be able to execute the command: it may lie where only root may go.
    let systrap = copy_of_the_command();
    let run = |words: &[&str]| {
        fresh(&directory);
        let words: Vec<&str> = before.iter().chain(words).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&program_path).arg(&directory);
        output(command, b"")
    };
    let native = run(&["env"]);
    assert_eq!(native.status.code(), Some(0), "{}", String::from_utf8_lossy(&native.stderr));
    assert!(String::from_utf8_lossy(&native.stdout).contains("afterwards ends with 0"));
    for mode in MODES {
        let guest = run(&[systrap.to_str().unwrap(), "run", mode, "--"]);
        assert_same(&format!("{mode}, {name}"), &native, &guest);
    }
}

#[test]
fn whoever_runs_the_tests() {
    compare_behind(&[], "own");
}

#[test]
fn an_ordinary_user() {
    // Who is no root is tested above.
    if is_root() {
        let setpriv = program("setpriv");
        let words = [setpriv.to_str().unwrap(), "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        compare_behind(&words, "user");
    }
}

#[test]
fn root_with_groups_and_fewer_capabilities() {
    if is_root() {
        let setpriv = program("setpriv");
        let words = [
            setpriv.to_str().unwrap(),
            "--groups=5,3,1000",
            "--bounding-set=-sys_admin",
            "--inh-caps=+net_raw",
            "--",
        ];
        compare_behind(&words, "fewer");
    }
}

/// Root who may not become anybody: the guest is told so, and nothing happens as somebody else.
#[test]
fn root_that_cannot_change() {
    if is_root() {
        let setpriv = program("setpriv");
        let words = [setpriv.to_str().unwrap(), "--bounding-set=-setuid,-setgid", "--"];
        compare_behind(&words, "fixed");
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Tells who is at the other end of its sockets, by every way there is.
const WITNESS: &str = r#"
import os, signal, socket, struct, sys
signal.alarm(100)
os.chdir(sys.argv[1])
listening = socket.socket(socket.AF_UNIX)
listening.bind("stream")
listening.listen()
messages = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
messages.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
messages.bind("messages")
for name in ("stream", "messages"):
    os.chmod(name, 0o777)
print("ready", flush=True)
def ids(ucred):
    return struct.unpack("3i", ucred)[1:]
def peer(connection):
    return ids(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
connection, _ = listening.accept()
connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
print("connects as", peer(connection))
for sent in range(int(sys.argv[2])):
    connection.send(b"k")
    data, control, _, _ = connection.recvmsg(100, 100)
    print(data, "from", [ids(data) for _, kind, data in control])
while True:
    data, control, _, _ = messages.recvmsg(100, 100)
    if data == b"end":
        break
    print(data, "from", [ids(data) for _, kind, data in control])
back = socket.socket(socket.AF_UNIX)
back.connect("back")
print("listens as", peer(back))
"#;

const SUSPECT: &str = r#"
import os, signal, socket, struct, sys
signal.alarm(100)
os.chdir(sys.argv[1])
stream = socket.socket(socket.AF_UNIX)
stream.connect("stream")
def go():
    stream.recv(1)
go(); stream.send(b"send")
go(); os.write(stream.fileno(), b"write")
with open("data", "wb") as file:
    file.write(b"sendfile")
go(); os.sendfile(stream.fileno(), os.open("data", os.O_RDONLY), 0, 8)
reader, writer = os.pipe()
os.write(writer, b"splice")
go(); os.splice(reader, stream.fileno(), 6)
messages = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
messages.sendto(b"sendto", "messages")
messages.connect("messages")
messages.send(b"connected")
own = os.getuid()
for user, group in ((0, 0), (own, 0), (0, own), (own, own), (1, 1)):
    try:
        messages.sendmsg([b"named"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("3i", os.getpid(), user, group))])
    except PermissionError:
        print("not", user, group)
back = socket.socket(socket.AF_UNIX)
os.umask(0)
back.bind("back")
back.listen()
messages.send(b"end")
back.accept()
first, second = socket.socketpair()
print("pair of", struct.unpack("3i", first.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:])
# What the thread may do is as before.
for path in ("data", "/etc/shadow"):
    print(path, os.access(path, os.R_OK), os.stat(path).st_uid)
    try:
        open(path).close()
    except OSError as error:
        print(error)
"#;

/// What servers outside decide by the user at the other end: a guest that is somebody else than the supervisor is seen as
/// that, and never as the supervisor.
#[test]
fn servers_outside_see_the_guests_user() {
    use std::io::{BufRead as _, BufReader, Read as _};
    if !is_root() {
        return;
    }
    let directory = cli::scratch().join("seen");
    let setpriv = program("setpriv");
    // One that everybody may execute.
    let python = Path::new("/usr/bin/python3");
    assert!(python.exists(), "this needs {}", python.display());
    let systrap = copy_of_the_command();
    let who = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let native: Vec<&str> = [setpriv.to_str().unwrap()].into_iter().chain(who).collect();
    let seen = |before: &[&str]| {
        fresh(&directory);
        let mut witness = Command::new(python)
            .args(["-c", WITNESS])
            .arg(&directory)
            .arg("4")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(witness.stdout.take().unwrap());
        let mut text = String::new();
        lines.read_line(&mut text).unwrap();
        let mut command = Command::new(before[0]);
        command.args(&before[1..]).arg(python).args(["-c", SUSPECT]).arg(&directory);
        let suspect = output(command, b"");
        assert!(suspect.status.success(), "{before:?}: {}", String::from_utf8_lossy(&suspect.stderr));
        lines.read_to_string(&mut text).unwrap();
        assert!(witness.wait().unwrap().success(), "{before:?}: {text}");
        text + &String::from_utf8_lossy(&suspect.stdout)
    };
    let expected = seen(&native);
    assert!(expected.contains("connects as (65534, 65534)") && !expected.contains("(0, 0)"), "{expected}");
    for mode in MODES {
        let guest = [systrap.to_str().unwrap(), "run", mode, "--user=65534:65534", "--"];
        assert_eq!(seen(&guest), expected, "{mode}");
    }
}
