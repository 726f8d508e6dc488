//! Tools that work with processes, sessions and terminals.

mod common {
    pub mod bounded;
    pub mod cli;
}

use common::{bounded, cli};
use std::process::Stdio;

fn compare_script(script: &str) {
    let native = bounded::compare(&cli::program("bash"), &["-c", script], b"");
    assert!(!native.stdout.is_empty(), "{script}: {}", String::from_utf8_lossy(&native.stderr));
}

#[test]
fn perl() {
    let script = r#"use strict; $| = 1; use POSIX ":sys_wait_h"; use Time::HiRes qw(sleep ualarm);
        my %seen; $SIG{$_} = sub { $seen{$_[0]}++ } for qw(USR1 USR2 CHLD);
        kill USR1 => $$; print "usr1 $seen{USR1}\n";
        my $pid = fork() // die; if (!$pid) { sleep 0.05; exit 7 } waitpid $pid, 0; print "child ", $? >> 8, "\n";
        print `echo backquotes`, $?, "\n"; print "system ", system("exit 3") >> 8, "\n";
        open my $in, "-|", "seq", "1", "5" or die; print map { $_ * 2 . " " } <$in>; close $in; print "\n";
        open my $out, "|-", "tr a-z A-Z" or die; print $out "to a pipe\n"; close $out;
        pipe my $r, my $w; if (!fork) { close $r; print $w "line $_\n" for 1 .. 1000; exit } close $w; my @lines = <$r>; print scalar(@lines), "\n"; wait;
        eval { local $SIG{ALRM} = sub { die "alarm\n" }; ualarm 50000; sleep 100 }; print $@;
        my @pids = map { my $n = $_; fork || exit $n } 1 .. 10; my $sum = 0; for (@pids) { waitpid $_, 0; $sum += $? >> 8 } print "$sum\n";
        print waitpid(-1, WNOHANG), " $!\n"; my $text = join ",", map { sprintf "%03d", $_ } grep { $_ % 7 == 0 } 1 .. 300; print length $text, "\n"; exec "sh", "-c", "exit 5""#;
    let native = bounded::compare(&cli::program("perl"), &["-e", script], b"");
    assert_eq!(native.status.code(), Some(5), "{}", String::from_utf8_lossy(&native.stderr));
}

#[test]
fn tar_and_a_compressor_with_threads() {
    cli::program("xz");
    // Enough for more than one block, so that both threads work.
    compare_script(
        "mkdir tree; for i in $(seq 40); do seq $i 20000 >tree/f$i; done\n\
         tar --sort=name --mtime=@0 --owner=0 --group=0 -cf - tree | xz -T2 -1 --block-size=500KiB >tree.tar.xz; echo ${PIPESTATUS[@]}\n\
         sha256sum <tree.tar.xz; xz -dc -T2 tree.tar.xz | tar -xf - --transform s/tree/copy/; diff -r tree copy && echo same\n\
         tar -C tree -czf - . | tar -tzf - | sort | head -n 3; XZ_OPT=-T2 tar -cJf again.tar.xz tree && tar -tf again.tar.xz | wc -l",
    );
}

#[test]
fn timeout_ends_what_takes_too_long() {
    compare_script(
        "timeout 0.1 sleep 1000; echo $?; timeout 60 sh -c 'exit 3'; echo $?; timeout -s KILL 0.1 sleep 1000; echo $?\n\
         timeout -k 0.1 0.1 sh -c 'trap \"\" TERM; while :; do sleep 0.05; done'; echo $?; timeout --preserve-status 0.1 sleep 1000; echo $?\n\
         timeout 0.2 sh -c 'sleep 1000 | cat'; echo $?; timeout 1 /no/such/program 2>/dev/null; echo $?; timeout --foreground 0.1 sleep 1000; echo $?",
    );
}

#[test]
fn nohup_and_setsid() {
    compare_script(
        "nohup sh -c 'kill -HUP $$; echo survived' 2>/dev/null; sh -c 'kill -HUP $$; echo not' ; echo $?\n\
         nohup sh -c 'echo to standard output' </dev/null 2>&1 | cat; setsid -w sh -c 'exit 4'; echo $?\n\
         setsid sh -c 'test $(ps -o sid= -p $$) = $$ && echo own session; echo done >mark' & while [ ! -s mark ]; do sleep 0.01; done; wait; cat mark\n\
         nice -n 5 nice; env -i A=1 sh -c 'echo $A'; stdbuf -oL echo buffered; printf 'a b\\nc d\\n' | xargs -n 1 -P 2 echo | sort",
    );
}

#[test]
fn tools_that_look_at_processes() {
    cli::program("ps");
    compare_script(
        "sleep 1000 & p=$!; while ! ps -o comm= -p $p | grep -q sleep; do sleep 0.01; done; ps -o ppid= -p $p | grep -qx \" *$$\" && echo child of mine\n\
         ps -o stat= -p $p | cut -c1; kill -STOP $p; while ! ps -o stat= -p $p | grep -q ^T; do sleep 0.01; done; echo stopped; kill -9 $p; wait $p 2>/dev/null; echo $?\n\
         ps -o args= -p $p | wc -l; pgrep -P $$ -x nothing_of_that_name; echo $?; (exec -a strange sleep 1000) & p=$!; while ! tr '\\0' ' ' </proc/$p/cmdline | grep -q '^strange 1000'; do sleep 0.01; done; echo renamed; kill $p; wait $p 2>/dev/null",
    );
}

/// `script` starts bash under a pty of its own; what is typed comes through its standard input.
#[test]
fn an_interactive_bash_under_script() {
    let typed = b"PS1='> '; bind 'set enable-bracketed-paste off' 2>/dev/null\ntty | sed 's,[0-9]*$,N,'\nsleep 1000 &\nkill %1\nwait\n\
        echo $((6*7)) | cat\njobs\nstty -echo\n[ -t 0 ] && echo terminal\n(exit 3)\necho status $?\nexit 5\n";
    let run = |mode| {
        let args = ["-qec", "bash --norc --noprofile -i", "/dev/null"];
        let mut command = bounded::command(mode, &cli::program("script"), &args);
        command.env("TERM", "dumb").env("HISTFILE", "").stderr(Stdio::piped());
        let output = bounded::output(command, typed);
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        // Only the answers: the echo of what is typed ahead comes where the timing puts it, and job numbers have pids.
        let wanted = ["42", "terminal", "status 3", "/dev/pts/N"];
        let answers: Vec<String> = wanted
            .iter()
            .map(|answer| {
                format!("{answer}: {}", text.lines().any(|line| line.trim_start_matches("> ") == *answer))
            })
            .collect();
        (answers, cli::shell_status(&output), text)
    };
    let (answers, status, text) = run(None);
    assert!(
        answers.iter().all(|answer| answer.ends_with("true")) && status == 5,
        "{status} {answers:?}\n{text}"
    );
    for mode in cli::MODES {
        let (guest_answers, guest_status, guest_text) = run(Some(mode));
        assert_eq!((guest_answers, guest_status), (answers.clone(), status), "{mode}\n{guest_text}");
    }
}
