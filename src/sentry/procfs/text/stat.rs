//! `/proc/PID/stat`: 52 numbers and a name (proc_pid_stat(5)).

use super::super::subject::Subject;
use super::{memory, ticks, usage_ticks};
use crate::sentry::kernel::Life;
use crate::sentry::task::ExitStatus;

/// `PF_RANDOMIZE`, and `PF_FORKNOEXEC` until a program has been executed is not kept.
const FLAGS: u64 = 0x40_0000;

pub(super) fn text(subject: &Subject) -> Vec<u8> {
    let host = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let terminal = Terminal::of_supervisor(&host);
    let (tty, foreground) = terminal.seen_by(subject.session);
    let usage = usage_ticks(subject.usage());
    let children = usage_ticks(subject.children_usage);
    let (nice, priority) = (terminal.nice, terminal.priority);
    let figures = memory::figures(subject);
    let image = subject.is_alive().then(|| subject.process.program().image.clone());
    let area = |pick: fn(&crate::sentry::loader::Image) -> (crate::GuestAddr, u64)| {
        image.as_ref().map(pick).map_or((0, 0), |(start, len)| (start.raw(), start.raw() + len))
    };
    let (arguments, environment) = (area(|image| image.arguments), area(|image| image.environment));
    let stack = image.as_ref().map_or(0, |image| image.stack_pointer.raw());
    let signals = Signals::of(subject);
    let resident_limit = subject.process.limits().get(libc::RLIMIT_RSS).map_or(u64::MAX, |limit| limit.soft);
    let exit_code = match subject.life {
        Life::Zombie { status: ExitStatus::Exited(status), .. } => (status & 0xff) << 8,
        Life::Zombie { status: ExitStatus::Signaled(signo), .. } => signo & 0x7f,
        _ => 0,
    };
    let exit_signal =
        if subject.owner.tid.is_some_and(|tid| tid != subject.owner.pid) { -1 } else { subject.exit_signal };
    let signed = |value: i32| i64::from(value);
    // Each line of the list is a few of the fields, in their order from the fourth on.
    let fields: Vec<i128> = [
        [signed(subject.parent), signed(subject.group), signed(subject.session), tty, foreground]
            .map(i128::from)
            .to_vec(),
        // Flags; page faults, which the host does not tell apart.
        vec![FLAGS.into(), 0, 0, 0, 0],
        [usage.0, usage.1, children.0, children.1].map(i128::from).to_vec(),
        vec![priority.into(), nice.into(), subject.threads.len().max(1) as i128, 0],
        [
            ticks(subject.started_ns()),
            figures.size_bytes,
            figures.resident_bytes / crate::PAGE_SIZE,
            resident_limit,
        ]
        .map(i128::from)
        .to_vec(),
        // Code, stack, registers.
        [0, 0, stack, 0, 0].map(i128::from).to_vec(),
        [signals.pending, signals.blocked, signals.ignored, signals.caught].map(i128::from).to_vec(),
        // Wait channel, swapped pages.
        vec![0, 0, 0],
        // Processor, scheduling.
        vec![exit_signal.into(), terminal.processor.into(), 0, 0, 0, 0, 0],
        // Data.
        [0, 0, figures.heap_start, arguments.0, arguments.1, environment.0, environment.1]
            .map(i128::from)
            .to_vec(),
        vec![exit_code.into()],
    ]
    .concat();
    let mut text = format!("{} (", subject.id()).into_bytes();
    text.extend_from_slice(&subject.name());
    text.extend_from_slice(format!(") {}", subject.state()).as_bytes());
    for field in fields {
        text.extend_from_slice(format!(" {field}").as_bytes());
    }
    text.push(b'\n');
    text
}

/// The low 31 signals of each set: more does not fit the old format.
struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

impl Signals {
    fn of(subject: &Subject) -> Self {
        const OLD: u64 = 0x7fff_ffff;
        let (ignored, caught) = super::status::dispositions(subject);
        let own = subject.thread.as_ref().map_or(0, |thread| thread.pending().set().0);
        let blocked = subject.thread.as_ref().map_or(0, |thread| thread.mask().0);
        Self { pending: own & OLD, blocked: blocked & OLD, ignored: ignored & OLD, caught: caught & OLD }
    }
}

/// What the supervisor's own line says of its terminal and scheduling, which are the guest's too.
struct Terminal {
    session: i32,
    tty: i64,
    foreground: i64,
    priority: i64,
    nice: i64,
    processor: i64,
}

impl Terminal {
    fn of_supervisor(line: &str) -> Self {
        // The name may hold anything: the fields begin after its last parenthesis.
        let rest = line.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Counted as in the manual page, where the state is the third.
        let field =
            |number: usize| fields.get(number - 3).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        Self {
            session: field(6) as i32,
            tty: field(7),
            foreground: field(8),
            priority: field(18),
            nice: field(19),
            processor: field(39),
        }
    }

    /// The terminal belongs to the session in which the supervisor was started.
    fn seen_by(&self, session: i32) -> (i64, i64) {
        if session == self.session { (self.tty, self.foreground) } else { (0, -1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_line_is_read_behind_the_name() {
        let numbers: Vec<String> = (4..=52).map(|number| number.to_string()).collect();
        let line = format!("12 (a) 1 (b) S {}\n", numbers.join(" "));
        let terminal = Terminal::of_supervisor(&line);
        assert_eq!((terminal.session, terminal.tty, terminal.foreground), (6, 7, 8));
        assert_eq!((terminal.priority, terminal.nice, terminal.processor), (18, 19, 39));
        assert_eq!(terminal.seen_by(6), (7, 8));
        assert_eq!(terminal.seen_by(60), (0, -1));
        assert_eq!(Terminal::of_supervisor("nonsense").session, 0);
    }
}
