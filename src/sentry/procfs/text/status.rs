//! `/proc/PID/status`: the lines of the host's own kernel, with what is the guest's in them.

use super::super::subject::Subject;
use super::memory;
use crate::sentry::abi::NSIG;
use crate::sentry::credentials::{Credentials, Ids};
use crate::sentry::process::lock;
use crate::sentry::signals::{Disposition, SignalSet};

pub(super) fn text(subject: &Subject) -> Vec<u8> {
    // Which lines there are, and what they say of the thread's processors, is the host's: the thread of the supervisor
    // has them on the guest's behalf.
    let template = subject.served_by("status");
    let figures = memory::figures(subject);
    render(&template, |name| value(subject, &figures, name))
}

/// What becomes of a line.
enum Line {
    Keep,
    Drop,
    Say(Vec<u8>),
}

fn render(template: &str, mut line: impl FnMut(&str) -> Line) -> Vec<u8> {
    let mut text = Vec::with_capacity(template.len());
    for original in template.split_inclusive('\n') {
        let Some((name, _)) = original.split_once(':') else { continue };
        match line(name) {
            Line::Keep => text.extend_from_slice(original.as_bytes()),
            Line::Drop => {}
            Line::Say(value) => {
                text.extend_from_slice(name.as_bytes());
                text.extend_from_slice(b":\t");
                text.extend_from_slice(&value);
                text.push(b'\n');
            }
        }
    }
    text
}

fn value(subject: &Subject, figures: &memory::Figures, name: &str) -> Line {
    let say = |text: String| Line::Say(text.into_bytes());
    let set = |bits: u64| say(format!("{bits:016x}"));
    let alive = subject.is_alive();
    match name {
        "Name" => Line::Say(escaped(&subject.name())),
        "Umask" => match subject.fs() {
            Some(fs) => {
                let umask = lock(&fs).umask;
                say(format!("{umask:04o}"))
            }
            None => Line::Drop,
        },
        "State" => say(match subject.state() {
            'R' => "R (running)".to_owned(),
            'S' => "S (sleeping)".to_owned(),
            'T' => "T (stopped)".to_owned(),
            _ => "Z (zombie)".to_owned(),
        }),
        "Tgid" | "NStgid" => say(subject.owner.pid.to_string()),
        "Pid" | "NSpid" => say(subject.id().to_string()),
        "PPid" => say(subject.parent.to_string()),
        "TracerPid" => say("0".to_owned()),
        "NSpgid" => say(subject.group.to_string()),
        "NSsid" => say(subject.session.to_string()),
        "Uid" | "Gid" | "Groups" | "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => {
            let credentials = match &subject.thread {
                Some(thread) => thread.credentials(),
                None => subject.process.credentials(),
            };
            say(identity(&credentials, name))
        }
        "FDSize" => {
            let room = subject.files().map_or(0, |files| lock(&files).room());
            say(room.to_string())
        }
        "Threads" => say(subject.threads.len().max(1).to_string()),
        "SigQ" => say(signal_queue(subject)),
        "SigPnd" => set(subject.thread.as_ref().map_or(0, |thread| thread.pending().set().0)),
        "ShdPnd" => set(subject.process.pending().set().0),
        "SigBlk" => set(subject.thread.as_ref().map_or(0, |thread| thread.mask().0)),
        "SigIgn" => set(dispositions(subject).0),
        "SigCgt" => set(dispositions(subject).1),
        // What prctl says.
        "NoNewPrivs" => say("1".to_owned()),
        "Seccomp" | "Seccomp_filters" => say("0".to_owned()),
        // Of the stub process, or made up of what is mapped; a zombie has no memory.
        name if name.starts_with("Vm") || name.starts_with("Rss") || name == "HugetlbPages" => {
            match figures.line(name).filter(|_| alive) {
                Some(kib) => say(format!("{kib:>8} kB")),
                None => Line::Drop,
            }
        }
        "CoreDumping" | "THP_enabled" | "untag_mask" if !alive => Line::Drop,
        _ => Line::Keep,
    }
}

/// A line about who somebody is.
fn identity(credentials: &Credentials, name: &str) -> String {
    let ids = |ids: Ids| format!("{}\t{}\t{}\t{}", ids.real, ids.effective, ids.saved, ids.fs);
    let sets = credentials.caps;
    let set = match name {
        "Uid" => return ids(credentials.user),
        "Gid" => return ids(credentials.group),
        "Groups" => return credentials.groups.iter().map(|group| format!("{group} ")).collect(),
        "CapInh" => sets.inheritable,
        "CapPrm" => sets.permitted,
        "CapEff" => sets.effective,
        "CapBnd" => sets.bounding,
        _ => sets.ambient,
    };
    format!("{set:016x}")
}

/// How many signals are queued, and how many may be.
fn signal_queue(subject: &Subject) -> String {
    let queued = |set: SignalSet| set.0.count_ones();
    let own: u32 = subject.threads.iter().map(|thread| queued(thread.pending().set())).sum();
    let shared = queued(subject.process.pending().set());
    let limit = subject.process.limits().get(libc::RLIMIT_SIGPENDING).map_or(0, |limit| limit.soft);
    format!("{}/{limit}", own + shared)
}

/// The signals that the process ignores, and those for which it has handlers.
pub(super) fn dispositions(subject: &Subject) -> (u64, u64) {
    let actions = subject.process.actions();
    let (mut ignored, mut caught) = (SignalSet::default(), SignalSet::default());
    for signo in 1..=NSIG {
        match actions.disposition(signo) {
            Disposition::Ignore => ignored = ignored.with(signo),
            Disposition::Handler(_) => caught = caught.with(signo),
            Disposition::Default(_) => {}
        }
    }
    (ignored.0, caught.0)
}

/// A name as this file writes it: new lines and backslashes escaped.
fn escaped(name: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'\n' => shown.extend_from_slice(b"\\n"),
            b'\\' => shown.extend_from_slice(b"\\\\"),
            other => shown.push(*other),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_dropped_and_replaced() {
        let template = "Name:\tx\nVmRSS:\t 1 kB\nGroups:\t1 2 \nodd\n";
        let text = render(template, |name| match name {
            "Name" => Line::Say(b"y".to_vec()),
            "VmRSS" => Line::Drop,
            _ => Line::Keep,
        });
        assert_eq!(String::from_utf8(text).unwrap(), "Name:\ty\nGroups:\t1 2 \n");
    }

    #[test]
    fn names_cannot_forge_lines() {
        assert_eq!(escaped(b"a\nPid:\t1\\"), b"a\\nPid:\t1\\\\");
    }
}
