//! What the files of a process say, written when they are read.

mod descriptor;
mod limits;
mod machine;
mod memory;
mod oom;
mod stat;
mod status;

use super::node::{Entry, Node, Text};
use super::subject::Subject;
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::kernel::tree::Usage;
use crate::sentry::task::Task;

impl Task {
    /// The text of a file; `ESRCH` if its process is gone.
    pub(super) fn node_text(&self, node: Node) -> Result<Vec<u8>, Errno> {
        if node == Node::MemoryInfo {
            return Ok(self.memory_info());
        }
        let Node::Owned(owner, entry) = node else { return Err(Errno::EINVAL) };
        let subject = self.subject(owner)?;
        match entry {
            Entry::Text(text) => Ok(self.subject_text(&subject, text)),
            Entry::DescriptorInfo(fd) => descriptor::info(&subject, fd),
            _ => Err(Errno::EINVAL),
        }
    }

    fn subject_text(&self, subject: &Subject, text: Text) -> Vec<u8> {
        let vdso = self.kernel().platform.vdso();
        let line = |text: String| [text.as_bytes(), b"\n"].concat();
        match text {
            Text::Auxv => {
                subject.mm().map(|_| subject.process.program().image.auxv.clone()).unwrap_or_default()
            }
            Text::Children => {
                subject.children.iter().flat_map(|pid| format!("{pid} ").into_bytes()).collect()
            }
            Text::CommandLine => image_text(subject, |image, memory| image.command_line(memory)),
            Text::Environ => image_text(subject, |image, memory| image.environ(memory)),
            Text::Comm => [&subject.name()[..], b"\n"].concat(),
            Text::CoredumpFilter if subject.is_alive() => b"00000033\n".to_vec(),
            Text::CoredumpFilter => Vec::new(),
            Text::Io => io_text(subject).into_bytes(),
            Text::Limits => limits::text(&subject.process.limits()).into_bytes(),
            Text::Maps => subject.mm().map(|mm| mm.proc_maps(vdso).into_bytes()).unwrap_or_default(),
            Text::OomAdj => line(oom::legacy(subject.process.oom_score_adj()).to_string()),
            Text::OomScore => line(oom::score(subject).to_string()),
            Text::OomScoreAdj => line(subject.process.oom_score_adj().to_string()),
            Text::Personality => b"00000000\n".to_vec(),
            Text::Sched => sched_text(subject),
            Text::SchedStat => subject.served_by("schedstat").into_bytes(),
            Text::Smaps => memory::smaps(subject, vdso).into_bytes(),
            Text::SmapsRollup => memory::rollup(subject, vdso).into_bytes(),
            Text::Stat => stat::text(subject),
            Text::Statm => memory::statm(subject).into_bytes(),
            Text::Status => status::text(subject),
            Text::Syscall => b"running\n".to_vec(),
            Text::TimerSlack => {
                let slack = subject.thread.as_ref().map_or(0, |thread| thread.attributes().timer_slack_ns);
                line(slack.to_string())
            }
            Text::WaitChannel => b"0".to_vec(),
        }
    }

    /// Takes what the guest writes to a file; the number of bytes taken.
    pub(crate) fn write_text(&mut self, node: Node, bytes: &[u8]) -> Result<usize, Errno> {
        let Node::Owned(owner, Entry::Text(text)) = node else { return Err(Errno::EINVAL) };
        let subject = self.subject(owner)?;
        let number = || {
            let text = std::str::from_utf8(bytes).map_err(|_| Errno::EINVAL)?;
            text.trim_end_matches('\0').trim().parse::<i64>().map_err(|_| Errno::EINVAL)
        };
        match text {
            Text::Comm => {
                // Only threads of the same process may.
                if subject.process.pid != self.process.pid {
                    return Err(Errno::EINVAL);
                }
                subject.thread.ok_or(Errno::ESRCH)?.set_name(bytes);
            }
            Text::OomScoreAdj => oom::set(&subject.process, number()?)?,
            Text::OomAdj => oom::set_legacy(&subject.process, number()?)?,
            Text::TimerSlack => {
                let slack = u64::try_from(number()?).map_err(|_| Errno::EINVAL)?;
                let thread = subject.thread.ok_or(Errno::ESRCH)?;
                let mut attributes = thread.attributes();
                attributes.timer_slack_ns = if slack == 0 { attributes.default_slack_ns } else { slack };
            }
            // The supervisor writes no core dumps: the filter is what it is.
            _ => return Err(Errno::EINVAL),
        }
        Ok(bytes.len())
    }
}

/// What lies in the memory of a process that its image knows of; nothing for a zombie.
fn image_text(
    subject: &Subject,
    read: impl FnOnce(&crate::sentry::loader::Image, &dyn GuestMemory) -> Vec<u8>,
) -> Vec<u8> {
    let Some(mm) = subject.mm() else { return Vec::new() };
    let image = subject.process.program().image.clone();
    read(&image, mm.space())
}

/// What the supervisor's threads have read and written for the process.
fn io_text(subject: &Subject) -> String {
    let whole = subject.owner.tid.is_none();
    let threads = subject.threads.iter().filter(|thread| whole || Some(thread.tid()) == subject.owner.tid);
    let texts: Vec<String> = threads
        .filter_map(|thread| {
            std::fs::read_to_string(format!("/proc/self/task/{}/io", thread.host_tid())).ok()
        })
        .collect();
    sum_io(&texts)
}

/// Adds up files of the form `name: number`.
fn sum_io(texts: &[String]) -> String {
    const NAMES: [&str; 7] =
        ["rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"];
    let value = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<u64>().ok())
    };
    NAMES
        .iter()
        .map(|name| {
            let sum: u64 = texts.iter().filter_map(|text| value(text, name)).sum();
            format!("{name}: {sum}\n")
        })
        .collect()
}

/// The scheduler's view of the supervisor's thread, under the guest's name and numbers.
fn sched_text(subject: &Subject) -> Vec<u8> {
    let served = subject.served_by("sched");
    let rest = served.split_once('\n').map_or("", |(_, rest)| rest);
    let numbers = format!(" ({}, #threads: {})\n", subject.id(), subject.threads.len().max(1));
    [&subject.name()[..], numbers.as_bytes(), rest.as_bytes()].concat()
}

/// Nanoseconds in the units of `times(2)`.
fn ticks(ns: u64) -> u64 {
    let per_second = crate::sentry::host::ticks_per_second().max(1);
    (u128::from(ns) * u128::from(per_second) / 1_000_000_000) as u64
}

/// User and system time in those units.
fn usage_ticks(usage: Usage) -> (u64, u64) {
    (ticks(usage.user_ns), ticks(usage.system_ns))
}

/// The value of a line `Name:\tvalue` of the host's.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The number in such a line, in KiB where the line says `kB`.
fn number_field(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmRSSx:\t1 kB\nVmRSS:\t   12 kB\nName:\ta b\n";
        assert_eq!(number_field(text, "VmRSS"), Some(12));
        assert_eq!(field(text, "Name"), Some("a b"));
        assert_eq!(field(text, "Vm"), None);
    }

    #[test]
    fn transfers_add_up() {
        let text = |number: u64| format!("rchar: {number}\nwchar: 2\nbad\n");
        let sum = sum_io(&[text(1), text(40)]);
        assert!(sum.starts_with("rchar: 41\nwchar: 4\nsyscr: 0\n"), "{sum}");
        assert_eq!(sum.lines().count(), 7);
    }
}
