//! Compilers and what goes with them: gcc, make, Go, cargo and rustc, git.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

/// Runs a shell script in every mode; gives the native result.
fn compare_script(script: &str, prepare: &dyn Fn(&Path)) -> Output {
    let native =
        bounded::compare_in(cli::MODES.as_slice(), &cli::program("sh"), &["-ec", script], b"", prepare);
    let stderr = String::from_utf8_lossy(&native.stderr);
    assert_eq!(native.status.code(), Some(0), "{script}: {stderr}");
    native
}

fn write(path: std::path::PathBuf, text: &str) {
    std::fs::write(path, text).expect("the directory takes it");
}

#[test]
fn gcc_compiles_and_the_program_runs() {
    cli::program("gcc");
    let native = compare_script(
        "gcc -O2 -Wall hello.c -o hello && ./hello one && sha256sum hello",
        &|directory| {
            let text = "#include <stdio.h>\nint main(int c, char **v) { printf(\"hello %s of %d\\n\", v[1], c); return 0; }\n";
            write(directory.join("hello.c"), text);
        },
    );
    assert!(native.stdout.starts_with(b"hello one of 2\n"));
}

#[test]
fn gcc_reports_an_error() {
    let gcc = cli::program("gcc");
    let prepare: &dyn Fn(&Path) =
        &|directory| write(directory.join("bad.c"), "int main(void) { return nothing }\n");
    let native = bounded::compare_in(&["--patching=lazy"], &gcc, &["-c", "bad.c"], b"", prepare);
    assert_eq!(native.status.code(), Some(1));
}

/// A program of a few files, with a library, a generated header and a dependency between them.
fn project(directory: &Path) {
    let makefile = "CFLAGS = -O1\nOBJECTS = main.o a.o b.o c.o d.o\nall: program check\n\
        program: $(OBJECTS) libe.a\n\t$(CC) -o $@ $(OBJECTS) -L. -le\n\
        libe.a: e.o f.o\n\tar rcD $@ $^\n\
        header.h: make_header.sh\n\tsh make_header.sh > $@\n\
        %.o: %.c header.h\n\t$(CC) $(CFLAGS) -c -o $@ $<\n\
        check: program\n\t./program > output\n\
        sub:\n\t$(MAKE) -C sub\n.PHONY: all check sub\n";
    write(directory.join("Makefile"), makefile);
    write(
        directory.join("make_header.sh"),
        "echo '#include <stdio.h>'; echo \"#define ANSWER $((6 * 7))\"\n",
    );
    for name in ["a", "b", "c", "d", "e", "f"] {
        write(
            directory.join(format!("{name}.c")),
            &format!("#include \"header.h\"\nint {name}(int x) {{ return x + ANSWER; }}\n"),
        );
    }
    let main = "#include \"header.h\"\nint a(int), b(int), c(int), d(int), e(int), f(int);\n\
        int main(void) { printf(\"%d\\n\", a(b(c(d(e(f(0))))))); return 0; }\n";
    write(directory.join("main.c"), main);
}

#[test]
fn make_builds_a_project_with_two_jobs() {
    cli::program("make");
    let native = compare_script(
        "make -j2 >log; cat output; make -q program && echo current; make clean 2>/dev/null || echo $?; sort log",
        &project,
    );
    assert!(native.stdout.starts_with(b"252\n"), "{}", String::from_utf8_lossy(&native.stdout));
}

const GO: &str = r#"package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

func main() {
	var group sync.WaitGroup
	var mutex sync.Mutex
	results := make(chan int, 16)
	total := 0
	for i := 0; i < 200; i++ {
		group.Add(1)
		go func(n int) {
			defer group.Done()
			for j := 0; j < 200; j++ {
				mutex.Lock()
				total += n % 7
				mutex.Unlock()
				if file, err := os.Open("/dev/null"); err == nil {
					file.Close()
				}
			}
			results <- n
		}(i)
	}
	sum := 0
	for i := 0; i < 200; i++ {
		sum += <-results
	}
	group.Wait()
	fmt.Println("goroutines", sum, total)

	ticks := 0
	ticker := time.NewTicker(2 * time.Millisecond)
	timeout := time.After(10 * time.Second)
	for ticks < 50 {
		select {
		case <-ticker.C:
			ticks++
		case <-timeout:
			fmt.Println("the ticker is late")
			os.Exit(1)
		}
	}
	fmt.Println("ticks", ticks)

	// A loop without calls is preempted by signals.
	done := make(chan bool)
	stop := false
	go func() {
		for i := 0; i < 2000000000 && !stop; i++ {
		}
		done <- true
	}()
	time.Sleep(20 * time.Millisecond)
	stop = true
	<-done

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println("signal", <-signals)

	reader, writer, _ := os.Pipe()
	go func() {
		for i := 0; i < 1000; i++ {
			fmt.Fprintln(writer, i)
		}
		writer.Close()
	}()
	lines, n := 0, 0
	for {
		if _, err := fmt.Fscanln(reader, &n); err != nil {
			break
		}
		lines += n
	}
	fmt.Println("pipe", lines)

	for i := 0; i < 3; i++ {
		output, err := exec.Command("/bin/echo", "child", fmt.Sprint(i)).Output()
		fmt.Print(string(output), err, "\n")
	}
	err := exec.Command("/bin/sh", "-c", "exit 3").Run()
	fmt.Println(err)

	func() {
		defer func() { fmt.Println("recovered", recover()) }()
		var nothing *int
		fmt.Println(*nothing)
	}()
	os.Exit(4)
}
"#;

#[test]
fn a_go_program_with_goroutines_and_timers_runs_patched() {
    let go = cli::program("go");
    let directory = tempfile::tempdir_in(cli::scratch()).expect("a directory");
    let (source, program) = (directory.path().join("main.go"), directory.path().join("program"));
    write(source.clone(), GO);
    let mut build = Command::new(go);
    build.args(["build", "-o"]).args([&program, &source]).current_dir(directory.path());
    build.env("GOCACHE", directory.path().join("cache")).env("GO111MODULE", "off").env("CGO_ENABLED", "0");
    build.env("HOME", directory.path());
    let built = bounded::try_output(build, b"", Duration::from_secs(400)).expect("go ends");
    assert!(built.status.success(), "go: {}", String::from_utf8_lossy(&built.stderr));
    let native = bounded::compare(&program, &[""; 0], b"");
    assert_eq!(native.status.code(), Some(4), "{}", String::from_utf8_lossy(&native.stdout));

    let figures = directory.path().join("figures");
    let option = format!("--stats-json={}", figures.display());
    let guest = bounded::output(cli::systrap(&["--patch-after=1", &option], &program, &[""; 0]), b"");
    assert_eq!(guest.status.code(), Some(4));
    let figures: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&figures).expect("figures")).expect("JSON");
    let count = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("{name} in {figures}"));
    let without_entering = count("patched") + count("answered");
    let percent = without_entering * 100.0 / (count("calls") - count("sites")).max(1.0);
    println!(
        "go: {} calls, {} sites, {percent:.2} % patched after the first",
        figures["calls"], figures["sites"]
    );
    assert!(percent >= 99.0, "{percent:.2} % patched: {figures}");
}

/// The toolchain that these tests were built with: its own programs, not what a version manager puts in front of them.
fn rust_toolchain() -> Option<std::path::PathBuf> {
    let cargo = Path::new(env!("CARGO"));
    let directory = cargo.parent().expect("cargo lies somewhere");
    let executable = |name: &str| nix::unistd::access(&directory.join(name), nix::unistd::AccessFlags::X_OK);
    if let Err(error) = executable("cargo").and_then(|()| executable("rustc")) {
        eprintln!("**** NOT CHECKED: cargo and rustc of {}: {error}", directory.display());
        return None;
    }
    Some(directory.to_owned())
}

#[test]
fn cargo_builds_and_runs_offline() {
    let Some(toolchain) = rust_toolchain() else { return };
    cli::program("gcc");
    // Nothing of what cargo tells the tests is for the one inside.
    let script = format!(
        "exec env -i LC_ALL=C HOME=$PWD CARGO_HOME=$PWD/home PATH={}:$PATH sh -ec '\n\
         cargo new --offline --vcs none --lib -q part; cargo new --offline --vcs none -q hello; cd hello\n\
         echo \"part = {{ path = \\\"../part\\\" }}\" >>Cargo.toml\n\
         echo \"fn main() {{ println!(\\\"hello {{}}\\\", part::add(40, 2)); }}\" >src/main.rs\n\
         cargo build --offline -q; ./target/debug/hello; cargo run --offline -q --release\n\
         cargo test --offline -q -p part | grep -c \"1 passed\"; touch src/main.rs; cargo build --offline -q\n\
         echo \"fn main() {{ nothing() }}\" >src/main.rs; cargo build --offline -q 2>/dev/null || echo failed with $?'",
        toolchain.display()
    );
    let native = compare_script(&script, &|_| ());
    let text = String::from_utf8_lossy(&native.stdout);
    assert!(text.starts_with("hello 42\nhello 42\n") && text.ends_with("failed with 101\n"), "{text}");
}

#[test]
fn git_commits_logs_and_clones() {
    cli::program("git");
    let script = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org \
        GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@example.org GIT_AUTHOR_DATE='1700000000 +0000' \
        GIT_COMMITTER_DATE='1700000000 +0000' GIT_PAGER=cat\n\
        git init -q -b trunk repository; cd repository\n\
        for i in 1 2 3; do seq $i 400 >file$i; mkdir -p dir$i; echo $i >dir$i/f; git add .; git commit -q -m \"commit $i\"; done\n\
        git log --stat; git status --short; echo changed >file2; git diff --stat; git checkout -q -b side; git commit -qam side\n\
        git checkout -q trunk; git merge -q side; git rev-parse HEAD; git tag v1; git gc -q; git fsck; cd ..\n\
        git clone -q repository copy; git clone -q --bare \"file://$PWD/repository\" bare.git; cd copy; git log --oneline | cat; git log -p | git patch-id | wc -l\n\
        echo pushed >new; git add new; git commit -q -m new; git push -q ../bare.git HEAD:refs/heads/other; cd ../bare.git; git log --oneline other; git grep -c 1 other | sort";
    compare_script(script, &|_| ());
}
