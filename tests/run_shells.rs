//! Shell scripts: pipelines, subshells, traps, here-documents, background jobs; by bash and by busybox's static sh.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::path::Path;

/// Scripts for any shell.
const PLAIN: &[(&str, &str)] = &[
    (
        "pipelines",
        "seq 1 2000 | grep 7 | sed s/7/x/ | sort -r | head -n 5 | tr x y\n\
         echo a b c | while read x y z; do echo \"$z $y $x\"; done\n\
         yes | head -n 3 | wc -l; true | false; echo $?; ! false; echo $?\n\
         cat /etc/passwd | cat | cat | cat | cat | cat | md5sum",
    ),
    (
        "subshells and substitutions",
        "x=outer; (x=inner; echo $x; cd /usr; pwd; exit 3); echo $x $?; test \"$(pwd)\" = /usr || echo elsewhere\n\
         y=$(echo one; (echo two; echo three >&2) 2>&1); echo \"$y\" | wc -l\n\
         echo $(echo $(echo $(echo deep))); z=`echo old style`; echo $z; $(exit 9); echo $?",
    ),
    (
        "here-documents",
        "name=world\ncat <<END\nhello $name\n$(echo computed) \\$kept\nEND\ncat <<'END' | tr a-z A-Z\nliteral $name\nEND\n\
         while read line; do echo \"[$line]\"; done <<END\none\ntwo\nEND\nwc -c <<END\n$(seq 1 30000)\nEND",
    ),
    (
        "background jobs and wait",
        "for i in 1 2 3; do (sleep 0.0$i; exit $i) & eval p$i=$!; done\n\
         wait $p2; echo $?; wait $p3; echo $?; wait $p1; echo $?\n\
         sleep 1000 & kill $!; wait $!; echo killed $?\n\
         (exit 5) & wait $!; echo $?; wait; echo all $?\n\
         { sleep 0.05; echo late; } & echo early; wait\n\
         for i in $(seq 20); do true & done; wait; echo done",
    ),
    (
        "traps",
        "trap 'echo exit trap $?' EXIT\ntrap 'echo usr1' USR1; kill -USR1 $$; echo after\n\
         trap 'echo term; stop=1' TERM; (sleep 0.1; kill -TERM $$) &\n\
         stop=; while [ -z \"$stop\" ]; do sleep 0.02; done; wait\n\
         trap '' INT; kill -INT $$; echo still here; trap - INT\n\
         (trap 'echo sub; exit 4' HUP; kill -HUP $(exec sh -c 'echo $PPID'); sleep 5); echo $?\n\
         sh -c 'trap \"exit 6\" TERM; kill $$; sleep 5'; echo $?; exit 7",
    ),
    (
        "descriptors",
        "exec 3>out; echo to three >&3; exec 3>&-; cat out; echo err 2>&1 >/dev/null; echo x >&2 2>/dev/null\n\
         { echo a; echo b >&2; } 2>both >>both; wc -l <both; exec 4<out; read line <&4; echo \"$line\"; exec 4<&-\n\
         echo more >>out; wc -l <out; : >out; test -s out || echo empty; (echo x >&9) 2>/dev/null || echo bad descriptor",
    ),
    (
        "statuses",
        "no_such_command_at_all 2>/dev/null; echo $?; /etc/passwd 2>/dev/null; echo $?; sh -c 'kill -9 $$'; echo $?\n\
         sh -c 'kill -TERM $$'; echo $?; set -e; (false; echo unreachable) || echo caught; false; echo unreachable",
    ),
    (
        "files",
        "mkdir -p a/b/c; touch a/b/c/f 'a/b/with space'; ln -s ../b a/b/link; find a | sort; ls a/b/*; rm -r a; ls -a\n\
         umask 027; touch g; ls -l g | cut -c1-10; mkfifo p; (echo through fifo >p) & cat p; wait; rm p\n\
         for f in /etc/pass*d; do echo $f; done; case abc in a*) echo matched;; esac; test -d /usr -a ! -e /nope && echo tests",
    ),
    (
        "loops of short programs",
        "i=0; while [ $i -lt 60 ]; do /bin/true; i=$((i+1)); done; echo $i; n=0; for f in $(ls /usr/bin | head -n 30); do n=$((n+$(echo $f | wc -l))); done; echo $n",
    ),
];

/// Scripts of bash's own.
const BASH: &[(&str, &str)] = &[
    (
        "process substitution and coprocesses",
        "diff <(seq 5) <(seq 2 6); tee >(wc -l >lines) < <(seq 9) >/dev/null; while [ ! -s lines ]; do sleep 0.01; done; cat lines\n\
         coproc CAT { cat; }; echo through >&${CAT[1]}; read line <&${CAT[0]}; echo $line; exec {fd}>&${CAT[1]}-; eval \"exec $fd>&-\"; wait",
    ),
    (
        "job control",
        "set -m; sleep 1000 & jobs -r | wc -l; kill -STOP %1; while ! jobs -s | grep -q Stopped; do sleep 0.01; done; echo stopped\n\
         kill -CONT %1; kill %1; wait %1; echo $?; (exit 3) & wait -n; echo $?; { sleep 0.01; exit 2; } & wait $!; echo $?",
    ),
    (
        "pipestatus and arrays",
        "false | true | (exit 3); echo ${PIPESTATUS[@]}; set -o pipefail; false | true; echo $?; a=(x y z); echo ${a[@]:1} ${#a[@]}; \
         mapfile -t m < <(seq 4); echo ${m[3]}; [[ abc =~ b(.) ]] && echo ${BASH_REMATCH[1]}; printf '%s\\n' {1..3}{a,b}; shopt -s lastpipe; echo q | read v; echo $v",
    ),
    (
        "time-outs and traps",
        "read -t 0.05 x </dev/zero; echo $((  $? > 0 )); trap 'echo child' CHLD; set -m; sleep 0.01 & wait; trap - CHLD; trap 'echo debug' DEBUG; :; trap - DEBUG; \
         trap 'echo error' ERR; false; timeout 0.1 sleep 1000; echo $?; ulimit -n 50; ulimit -n; (ulimit -c 0; kill -SEGV $BASHPID); echo $?; exec -a renamed sh -c 'echo $0'",
    ),
];

fn run(shell: &Path, prefix: &[&str], scripts: &[(&str, &str)]) {
    for (name, script) in scripts {
        let args: Vec<&str> =
            prefix.iter().copied().chain(["-c", script, "arg0", "first", "second"]).collect();
        let native = bounded::compare(shell, &args, b"standard input\n");
        assert!(!native.stdout.is_empty(), "{name}: {}", String::from_utf8_lossy(&native.stderr));
    }
}

#[test]
fn bash_runs_what_every_shell_runs() {
    run(&cli::program("bash"), &[], PLAIN);
}

#[test]
fn bash_runs_its_own() {
    run(&cli::program("bash"), &["--norc"], BASH);
}

#[test]
fn busybox_runs_what_every_shell_runs() {
    run(&cli::program("busybox"), &["sh"], PLAIN);
}

#[test]
fn scripts_run_as_files_and_from_standard_input() {
    let script = b"#!/bin/sh\necho \"$0 has $# arguments\" | sed 's,.*/,,'; exec sh -c 'exit 9'\n";
    let path = cli::input("script.sh", || script.to_vec());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    assert_eq!(bounded::compare(&path, &["a", "b"], b"").status.code(), Some(9));
    assert_eq!(bounded::compare(&cli::program("bash"), &["-s", "x"], script).status.code(), Some(9));
    assert_eq!(bounded::compare(&cli::program("busybox"), &["sh"], script).status.code(), Some(9));
}
