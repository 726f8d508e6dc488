//! The guest's `/proc`: its own processes as Linux shows them, the host's beside them, the supervisor nowhere.

#[path = "common/cli.rs"]
mod cli;

use cli::{MODES, compare, fixture, output, program, python, systrap};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Output, Stdio};

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Runs a script of the guest's bash; it has to end well and quietly.
fn bash(script: &str) -> Vec<String> {
    bash_in("--patching=lazy", script)
}

fn bash_in(mode: &str, script: &str) -> Vec<String> {
    let result = output(systrap(&[mode], &program("bash"), &["-c", script]), b"");
    let complaints = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success() && complaints.is_empty(), "{script}: {}: {complaints}", result.status);
    lines(&result)
}

#[test]
fn what_programs_read_is_as_natively() {
    let native = compare(&fixture("procfs", &["-pthread"]), &[""; 0]);
    assert_eq!(native.status.code(), Some(0));
    assert!(lines(&native).len() > 100, "{native:?}");
}

#[test]
fn ps_shows_the_guests_processes_and_no_stub_process() {
    for mode in MODES {
        // The stub processes are children of the host's process $$.
        let script = "sleep 100 & ps --no-headers -o ppid=,comm= --ppid $$ | sort -k2; \
                      ps -ef | grep -c \"^[^ ]*  *$! .* sleep 100$\"; echo $$; kill $!";
        let found = bash_in(mode, script);
        let pid = &found[found.len() - 1];
        let expected: Vec<String> =
            ["ps", "sleep", "sort"].iter().map(|name| format!("{pid} {name}")).collect();
        let children: Vec<String> =
            found[..found.len() - 2].iter().map(|line| line.trim().to_owned()).collect();
        assert_eq!(children, expected, "{mode}");
        assert_eq!(found[found.len() - 2], "1", "{mode}: {found:?}");
    }
}

#[test]
fn ps_tells_states_threads_and_times() {
    let script = "sleep 100 & until grep -qx sleep /proc/$!/comm; do :; done; kill -STOP $!; ps --no-headers -o stat=,nlwp=,comm= -p $! -p $$; kill -KILL $!";
    let found: Vec<String> =
        bash(script).iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|line| line.starts_with('T') && line.ends_with(" 1 sleep")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with(['S', 'R']) && line.ends_with(" 1 bash")), "{found:?}");
}

#[test]
fn pgrep_and_pidof_find_guests_by_name() {
    let found = bash(
        "cp /bin/sleep /tmp/guest-$$; /tmp/guest-$$ 100 & \
         pgrep -x guest-$$; pgrep -P $$ guest; pidof guest-$$; pgrep -f \"guest-$$ 100\" -P $$; \
         echo $!; kill $!; rm /tmp/guest-$$",
    );
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(found.iter().all(|pid| *pid == found[4]), "{found:?}");
}

#[test]
fn top_lists_the_guest() {
    let found = bash("TERM=dumb top -b -n1 -p $$ -w 200; echo $$");
    let pid = found.last().expect("a process id");
    let row = found.iter().find(|line| line.split_whitespace().next() == Some(pid)).expect("a row of top");
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns.last(), Some(&"bash"), "{row}");
    let resident: u64 = columns[5].parse().expect("RES in KiB");
    assert!((500..100_000).contains(&resident), "{row}");
}

#[test]
fn lsof_lists_files_of_the_guest_and_not_of_the_supervisor() {
    let _ = program("lsof");
    let found = bash("exec 7</etc/passwd; cd /usr; lsof -a -p $$ -d cwd,txt,7 -Ffn 2>/dev/null; echo $$");
    for expected in ["fcwd", "n/usr", "ftxt", "f7", "n/etc/passwd"] {
        assert!(found.iter().any(|line| line == expected), "{expected} in {found:?}");
    }
    assert!(found.iter().any(|line| line.ends_with("/bash")), "{found:?}");
    assert!(!found.iter().any(|line| line.contains("systrap")), "{found:?}");
}

#[test]
fn every_process_of_proc_can_be_read_as_monitoring_programs_do() {
    let script = r#"
import os
own = 0
for pid in [name for name in os.listdir('/proc') if name.isdigit()]:
    base = '/proc/' + pid
    try:
        stat = open(base + '/stat', 'rb').read()
        fields = stat[stat.rindex(b')') + 2:].split()
        assert len(fields) == 50, (pid, stat)
        assert int(stat.split()[0]) == int(pid)
        status = dict(line.split(':\t', 1) for line in open(base + '/status', errors='replace').read().splitlines())
        assert status['Pid'].strip() == pid and status['State'][0] in 'RSDZTIt', status
        cmdline = open(base + '/cmdline', 'rb').read()
        for tid in os.listdir(base + '/task'):
            open(base + '/task/' + tid + '/stat').read()
        if int(pid) == os.getpid():
            own += 1
            assert b'listdir' in cmdline
            assert len(open(base + '/statm').read().split()) == 7
            assert os.path.samefile(base + '/exe', '/proc/self/exe')
            assert os.readlink(base + '/cwd') == os.getcwd()
            assert set(os.listdir(base + '/fd')) >= {'0', '1', '2'}
            assert b'PATH=' in open(base + '/environ', 'rb').read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        assert int(pid) != os.getpid()
print(own)
"#;
    let result = output(systrap(&["--patching=lazy"], &python(), &["-c", script]), b"");
    assert_eq!(lines(&result), ["1"], "{}", String::from_utf8_lossy(&result.stderr));
}

#[test]
fn descriptors_by_path_are_the_guests() {
    let found = bash(
        "cat <(echo substituted); exec 9<<<here; cat /dev/fd/9; echo piped | cat /dev/stdin; \
         echo out >/dev/stdout; readlink /proc/self/fd/9 >/dev/null && echo link; [ -e /dev/fd/8 ] || echo none; \
         [ -p /dev/fd/9 -o -f /dev/fd/9 ] && echo file",
    );
    assert_eq!(found, ["substituted", "here", "piped", "out", "link", "none", "file"]);
}

#[test]
fn symbolic_links_into_proc_do_not_lead_to_the_supervisor() {
    let found = bash(
        "cd $(mktemp -d); ln -s /proc/self/comm c; ln -s /proc/self p; ln -s /proc/self/task t; \
         cat c; cat p/comm; [ $(basename $(ls t)) -ne $$ ] && echo own; rm c p t",
    );
    assert_eq!(found, ["cat", "cat", "own"]);
}

#[test]
fn stub_processes_and_the_supervisors_threads_are_hidden() {
    // The guest's own processes may have the same numbers: it is the names that tell.
    let script = "echo $$; sleep 100 & \
                  look() { read name 2>/dev/null <\"$1/comm\" && [[ $name = systrap* ]] && echo \"$2 $1 $name\"; }; \
                  while read id; do [ \"$id\" = end ] && break; look /proc/$id seen; \
                  for entry in /proc/[0-9]*; do [ \"$entry\" = /proc/$id ] && look $entry listed; done; done; \
                  kill $!; echo done";
    let mut command = systrap(&["--patching=lazy"], &program("bash"), &["-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("systrap starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    let supervisor = child.id();
    assert_eq!(line.trim(), supervisor.to_string());
    let mut ids = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{supervisor}/task")).expect("threads").flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        ids.extend(children.split_whitespace().map(str::to_owned));
        ids.push(thread.file_name().to_string_lossy().into_owned());
    }
    ids.retain(|id| *id != supervisor.to_string());
    ids.retain(|id| match std::fs::read_to_string(format!("/proc/{id}/comm")) {
        Ok(name) => {
            assert!(name.starts_with("systrap"), "{id} is called {name}");
            true
        }
        // It has ended.
        Err(_) => false,
    });
    assert!(ids.len() >= 3, "stub processes and threads: {ids:?}");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(format!("{}\nend\n", ids.join("\n")).as_bytes()).expect("written");
    let rest: Vec<String> = stdout.lines().map_while(Result::ok).collect();
    assert!(child.wait().expect("ends").success());
    assert_eq!(rest, ["done"], "of {ids:?}");
}

#[test]
fn the_program_stays_reachable_when_its_file_is_gone() {
    let copy = cli::scratch().join("vanishing");
    std::fs::copy(program("bash"), &copy).expect("a copy of bash");
    let script = "rm \"$0\"; readlink /proc/$$/exe; cmp /proc/$$/exe /bin/bash && echo same";
    let path = copy.to_str().expect("a path of text");
    let result = output(systrap(&["--patching=lazy"], &copy, &["-c", script, path]), b"");
    assert_eq!(lines(&result), [format!("{path} (deleted)"), "same".to_owned()], "{result:?}");
}

#[test]
fn programs_are_executed_by_descriptor_and_by_its_path() {
    let found = bash("exec 5</bin/echo; (exec /proc/self/fd/5 by path); (exec /dev/fd/5 by device)");
    assert_eq!(found, ["by path", "by device"]);
    let script = "import os; os.execve(os.open('/bin/echo', os.O_RDONLY), ['echo', 'by', 'number'], {})";
    let result = output(systrap(&["--patching=lazy"], &python(), &["-c", script]), b"");
    assert_eq!(lines(&result), ["by number"], "{}", String::from_utf8_lossy(&result.stderr));
}
