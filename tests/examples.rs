//! The examples do what they say.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Once;

/// The command of an example, built as this test is.
fn example(name: &str) -> Command {
    // Whoever runs this test for a user that has no cargo has built them.
    if let Some(built) = std::env::var_os("SYSTRAP_EXAMPLES") {
        return Command::new(PathBuf::from(built).join(name));
    }
    // target/PROFILE/deps/THIS-TEST
    let own = std::env::current_exe().expect("this test has a path");
    let profile = own.ancestors().nth(2).expect("it lies in a build directory");
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        // `cargo test --test examples` alone does not build them.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--examples", "--manifest-path"]);
        build.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.env("CARGO_TARGET_DIR", profile.parent().expect("a target directory"));
        assert!(build.status().expect("cargo starts").success(), "the examples cannot be built");
    });
    Command::new(profile.join("examples").join(name))
}

fn run(command: &mut Command) -> (String, String, Option<i32>) {
    let Output { status, stdout, stderr } = command.output().expect("the example starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(stdout), text(stderr), status.code())
}

#[test]
fn call_counter_counts_what_each_task_does() {
    let script = "(:); (:); echo done";
    let (stdout, stderr, code) = run(example("call_counter").args(["/bin/sh", "-c", script]));
    assert_eq!((stdout.as_str(), code), ("done\n", Some(0)), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("task ")).count(), 3, "{stderr}");
    let count = |name: &str| stderr.lines().find_map(|line| line.trim().strip_suffix(&format!(" {name}")));
    assert_eq!((count("write"), count("execve")), (Some("1"), None), "{stderr}");
    assert_eq!(count("exit_group"), Some("3"), "{stderr}");
}

#[test]
fn fault_injector_fails_every_third_write() {
    let script = "for i in 1 2 3 4 5 6 7; do echo $i; done; exit 5";
    let (stdout, stderr, code) = run(example("fault_injector").args(["3", "/bin/sh", "-c", script]));
    assert_eq!((stdout.as_str(), code), ("1\n2\n4\n5\n7\n", Some(5)), "{stderr}");
    assert!(stderr.contains(r#"write(1, "3\n", 2) shall fail"#), "{stderr}");
    assert_eq!(stderr.matches("I/O error").count(), 2, "{stderr}");
}

#[test]
fn file_policy_keeps_a_program_below_its_directory() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let (inside, outside) = (scratch.path().join("inside"), scratch.path().join("outside"));
    for directory in [&inside, &outside] {
        std::fs::create_dir(directory).expect("a directory");
        std::fs::write(directory.join("file"), "content\n").expect("a file");
    }
    let attempts = [
        ("echo new > file2 && cat file2 && rm file2", true),
        ("mkdir deep && cat deep/../file && rmdir deep", true),
        ("mv file other && mv other file", true),
        ("/usr/bin/env true", true),
        ("cat ../outside/file", false),
        ("cat $PWD/../outside/file", false),
        ("cat /etc/passwd", false),
        ("cat /proc/self/environ", false),
        ("echo new > ../outside/new", false),
        ("echo new > ../outside/file", false),
        ("rm ../outside/file", false),
        ("mv ../outside/file stolen", false),
        ("mv file ../outside/gift", false),
        ("mkdir ../outside/directory", false),
        ("ln ../outside/file link", false),
        ("ln -s ../outside/file link", false),
        ("chmod 777 ../outside/file", false),
        ("touch ../outside/file", false),
        ("cd ../outside", false),
        ("truncate -s 0 ../outside/file", false),
        ("touch /usr/bin/new-program", false),
        ("ls ../outside", false),
    ];
    for (script, may) in attempts {
        let mut command = example("file_policy");
        let (stdout, stderr, code) =
            run(command.arg(&inside).args(["/bin/sh", "-c", script]).current_dir(&inside));
        assert_eq!(code == Some(0), may, "{script}: {code:?} {stdout} {stderr}");
        assert!(may || stdout.is_empty(), "{script}: {stdout}");
        assert!(may || stderr.contains("ermi") || stderr.contains("can't cd"), "{script}: {stderr}");
        for directory in [&inside, &outside] {
            let names: Vec<_> = std::fs::read_dir(directory)
                .expect("it lists")
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, ["file"], "after {script}");
            assert_eq!(
                std::fs::read_to_string(directory.join("file")).unwrap(),
                "content\n",
                "after {script}"
            );
        }
    }
}

#[test]
fn network_policy_lets_a_program_reach_this_machine_only() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
    let port = server.local_addr().expect("it has an address").port();
    for (host, may) in [("127.0.0.1", true), ("192.0.2.1", false)] {
        let script = format!("echo > /dev/tcp/{host}/{port}");
        let (stdout, stderr, code) = run(example("network_policy").args(["/bin/bash", "-c", &script]));
        assert_eq!(code == Some(0), may, "{host}: {code:?} {stdout} {stderr}");
        assert_eq!(stderr.contains("is not permitted"), !may, "{host}: {stderr}");
    }
}

#[test]
fn virtual_time_starts_when_it_says_and_sleeps_at_once() {
    let began = std::time::Instant::now();
    let script = "date -u +%F; sleep 86400; date -u +%F; sleep 864000; date -u +%F";
    let (stdout, stderr, code) = run(example("virtual_time").args(["/bin/sh", "-c", script]));
    assert_eq!((stdout.as_str(), code), ("2000-01-01\n2000-01-02\n2000-01-12\n", Some(0)), "{stderr}");
    assert!(began.elapsed().as_secs() < 600, "days were slept through");
}

#[test]
fn bare_platform_answers_the_calls_of_its_guest() {
    let (stdout, stderr, code) = run(&mut example("bare_platform"));
    let lines = "call 4242 from 0x100007, 3 more\ncall 4242 from 0x100007, 2 more\n\
                 call 4242 from 0x100007, 1 more\ncall 4242 from 0x100007, 0 more\nsignal 4 at 0x10000c\n";
    assert_eq!((stdout.as_str(), code), (lines, Some(0)), "{stderr}");
}
