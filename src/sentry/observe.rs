//! What is recorded of a guest's calls: counts, and a trace in strace's style.

use super::errno::Errno;
use super::guest_memory::GuestMemory;
use super::kernel::Kernel;
use super::process::lock;
use super::signals::{SigInfo, signal_name};
use super::syscalls::args::{Arg, CallView};
use super::syscalls::{TABLE_LEN, call_name};
use crate::{Arch, Entry, Syscall};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Records the calls of one task as they are made.
pub(crate) struct Observer {
    pub(crate) counts: Counts,
    pub(crate) tracer: Option<Tracer>,
}

impl Observer {
    /// For the task of that thread id.
    pub(crate) fn new(kernel: &Kernel, tid: i32) -> Self {
        Self {
            counts: Counts::default(),
            tracer: kernel.trace.as_ref().map(|output| Tracer::new(Arc::clone(output), tid)),
        }
    }
}

/// Counters of one guest.
pub(crate) struct Counts {
    by_number: Box<[u64; TABLE_LEN]>,
    out_of_range: u64,
    unimplemented: BTreeMap<String, u64>,
    trapped: u64,
    patched: u64,
    /// By address behind the site: whether a call arrived through it as a patched one.
    sites: HashMap<u64, bool>,
    recent_sites: [u64; RECENT],
}

const RECENT: usize = 64;
/// A guest chooses its sites: beyond so many they are not told apart any more.
const MOST_SITES: usize = 1 << 16;
/// Made-up call numbers have made-up names: so many are told apart.
const MOST_UNIMPLEMENTED: usize = 1024;

impl Default for Counts {
    fn default() -> Self {
        Self {
            by_number: Box::new([0; TABLE_LEN]),
            out_of_range: 0,
            unimplemented: BTreeMap::new(),
            trapped: 0,
            patched: 0,
            sites: HashMap::new(),
            recent_sites: [0; RECENT],
        }
    }
}

impl Counts {
    /// Counts a call that arrived.
    pub(crate) fn record(&mut self, call: &Syscall) {
        match self.by_number.get_mut(call.nr as usize) {
            Some(count) if call.arch == Arch::X86_64 => *count += 1,
            _ => self.out_of_range += 1,
        }
        match call.entry {
            Entry::Patched => self.patched += 1,
            Entry::Trapped | Entry::Vsyscall => self.trapped += 1,
        }
        // Most calls come from few sites: a small table in front spares the set.
        let site = call.ip.raw();
        let patched = call.entry == Entry::Patched;
        let entry = site << 1 | u64::from(patched);
        let slot = &mut self.recent_sites[(site ^ site >> 6) as usize % RECENT];
        if *slot != entry {
            *slot = entry;
            if let Some(seen) = self.sites.get_mut(&site) {
                *seen |= patched;
            } else if self.sites.len() < MOST_SITES {
                self.sites.insert(site, patched);
            }
        }
    }

    /// Counts a call that nobody implements.
    pub(crate) fn record_unimplemented(&mut self, name: &str) {
        if let Some(count) = self.unimplemented.get_mut(name) {
            *count += 1;
        } else if self.unimplemented.len() < MOST_UNIMPLEMENTED {
            self.unimplemented.insert(name.to_owned(), 1);
        }
    }

    /// Adds the counts of a task that has ended.
    pub(crate) fn absorb(&mut self, task: &Counts) {
        for (sum, count) in self.by_number.iter_mut().zip(task.by_number.iter()) {
            *sum += count;
        }
        self.out_of_range += task.out_of_range;
        self.trapped += task.trapped;
        self.patched += task.patched;
        for (name, count) in &task.unimplemented {
            if let Some(sum) = self.unimplemented.get_mut(name) {
                *sum += count;
            } else if self.unimplemented.len() < MOST_UNIMPLEMENTED {
                self.unimplemented.insert(name.clone(), *count);
            }
        }
        for (site, patched) in &task.sites {
            if let Some(seen) = self.sites.get_mut(site) {
                *seen |= patched;
            } else if self.sites.len() < MOST_SITES {
                self.sites.insert(*site, *patched);
            }
        }
    }

    /// The counts in the form in which they are reported.
    pub(crate) fn report(self) -> CallCounts {
        let mut by_name: Vec<(String, u64)> = self
            .by_number
            .iter()
            .zip(0..)
            .filter(|(count, _)| **count != 0)
            .map(|(count, number)| (call_name(number), *count))
            .collect();
        if self.out_of_range != 0 {
            by_name.push(("(no such number)".to_owned(), self.out_of_range));
        }
        by_name.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        CallCounts {
            by_name,
            trapped: self.trapped,
            patched: self.patched,
            sites: self.sites.len() as u64,
            sites_patched: self.sites.values().filter(|patched| **patched).count() as u64,
            unimplemented: self.unimplemented,
        }
    }
}

/// How often a guest made which call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallCounts {
    /// Calls by name, the most frequent first. Calls that the stub answered itself are not among them.
    pub by_name: Vec<(String, u64)>,
    /// Calls that came through seccomp.
    pub trapped: u64,
    /// Calls that came through a patched site.
    pub patched: u64,
    /// Distinct instruction addresses that calls came from.
    pub sites: u64,
    /// Those of them through which a call arrived as a patched one: a site that is patched and never called again is
    /// not among them.
    pub sites_patched: u64,
    /// Calls that ended with `ENOSYS` because nobody implements them.
    pub unimplemented: BTreeMap<String, u64>,
}

/// Where the lines of all tasks go.
pub(crate) struct TraceOutput {
    writer: Mutex<Box<dyn Write + Send>>,
    /// Lines name their thread from the first line of a second thread on.
    first_tid: i32,
    has_others: AtomicBool,
}

impl TraceOutput {
    pub(crate) fn new(writer: Box<dyn Write + Send>, first_tid: i32) -> Self {
        Self { writer: Mutex::new(writer), first_tid, has_others: AtomicBool::new(false) }
    }
}

/// Writes one line for each call of a task.
pub(crate) struct Tracer {
    output: Arc<TraceOutput>,
    tid: i32,
    line: TraceLine,
}

/// The line of the call that is being made.
#[derive(Default)]
pub(crate) struct TraceLine {
    name: String,
    shown: Vec<String>,
}

impl Tracer {
    pub(crate) fn new(output: Arc<TraceOutput>, tid: i32) -> Self {
        if tid != output.first_tid {
            output.has_others.store(true, Ordering::Relaxed);
        }
        Self { output, tid, line: TraceLine::default() }
    }

    /// Starts the line of a call.
    pub(crate) fn begin(&mut self, name: &str) {
        self.line.shown.clear();
        name.clone_into(&mut self.line.name);
    }

    /// Shows an argument before the call; one that could not be decoded is shown as it is.
    pub(crate) fn before<A: Arg>(
        &mut self,
        index: usize,
        args: &[u64; 6],
        arg: &Result<A, Errno>,
        memory: &dyn GuestMemory,
    ) {
        let mut text = String::new();
        match arg {
            Ok(_) if A::OUTPUT => {}
            Ok(arg) => arg.show(&CallView { args, index, memory, result: None }, &mut text),
            Err(_) => text = format!("{:#x}", args[index]),
        }
        self.line.shown.push(text);
    }

    /// Shows an argument that the call has written.
    pub(crate) fn after<A: Arg>(
        &mut self,
        index: usize,
        args: &[u64; 6],
        arg: &Result<A, Errno>,
        memory: &dyn GuestMemory,
        result: Result<i64, Errno>,
    ) {
        if let (true, Ok(arg), Some(text)) = (A::OUTPUT, arg, self.line.shown.get_mut(index)) {
            arg.show(&CallView { args, index, memory, result: Some(result) }, text);
        }
    }

    /// Ends the line with the result; `None` for a call that does not return.
    pub(crate) fn end(&mut self, result: Option<Result<i64, Errno>>) {
        let result = match result {
            None => "?".to_owned(),
            Some(Ok(value)) if !(-4095..=0xffff_ffff).contains(&value) => format!("{value:#x}"),
            Some(Ok(value)) => value.to_string(),
            Some(Err(errno)) if errno.is_restart() => {
                format!("? {errno:?} (to be restarted if SA_RESTART is set)")
            }
            Some(Err(errno)) => format!("-1 {errno:?} ({})", errno.message()),
        };
        let call = format!("{}({})", self.line.name, self.line.shown.join(", "));
        self.write_line(&format!("{call:<39} = {result}"));
    }

    /// A call that is not in the table.
    pub(crate) fn unknown(&mut self, name: &str, args: &[u64; 6]) {
        self.begin(name);
        self.line.shown.extend(args.iter().map(|arg| format!("{arg:#x}")));
        self.end(Some(Err(Errno::ENOSYS)));
    }

    /// A signal that is about to take effect.
    pub(crate) fn signal(&mut self, info: &SigInfo) {
        let name = signal_name(info.signo());
        let detail = match (info.code(), info.address()) {
            // Codes above zero are the kernel's own; those of faults come with an address.
            (code @ 1..0x80, Some(addr)) => format!("si_code={code}, si_addr={addr:#x}"),
            (code, _) => format!("si_code={code}"),
        };
        self.write_line(&format!("--- {name} {{si_signo={name}, {detail}}} ---"));
    }

    /// A line that is not a call: the end.
    pub(crate) fn note(&mut self, text: &str) {
        self.write_line(text);
    }

    fn write_line(&mut self, line: &str) {
        let line = if self.output.has_others.load(Ordering::Relaxed) {
            format!("[pid {:>5}] {line}\n", self.tid)
        } else {
            format!("{line}\n")
        };
        // A trace that cannot be written must not change what the guest does.
        let _ = lock(&self.output.writer).write_all(line.as_bytes());
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = lock(&self.output.writer).flush();
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest_memory::fake::FakeMemory;
    use super::super::syscalls::args::{DirFd, Fd, Mode, OpenFlags, OutBytes, Path};
    use super::*;
    use crate::GuestAddr;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_look_like_those_of_strace() {
        let memory = FakeMemory::new(0x1000, 4096);
        memory.write(GuestAddr::new(0x1000), b"/etc/passwd\0").unwrap();
        let sink = Sink::default();
        let output = Arc::new(TraceOutput::new(Box::new(sink.clone()), 7));
        let mut tracer = Tracer::new(Arc::clone(&output), 7);

        let args = [libc::AT_FDCWD as u32 as u64, 0x1000, 0x8_0000, 0, 0, 0];
        tracer.begin("openat");
        tracer.before::<DirFd>(0, &args, &DirFd::decode(args[0], &memory), &memory);
        tracer.before::<Path>(1, &args, &Path::decode(args[1], &memory), &memory);
        tracer.before::<OpenFlags>(2, &args, &OpenFlags::decode(args[2], &memory), &memory);
        tracer.before::<Mode>(3, &args, &Mode::decode(args[3], &memory), &memory);
        tracer.end(Some(Ok(3)));

        let args = [3, 0x1000, 4, 0, 0, 0];
        tracer.begin("read");
        tracer.before::<Fd>(0, &args, &Fd::decode(3, &memory), &memory);
        let buffer = OutBytes::decode(0x1000, &memory);
        tracer.before::<OutBytes>(1, &args, &buffer, &memory);
        tracer.before::<usize>(2, &args, &usize::decode(4, &memory), &memory);
        tracer.after::<OutBytes>(1, &args, &buffer, &memory, Ok(4));
        tracer.end(Some(Ok(4)));

        tracer.begin("unlink");
        tracer.before::<Path>(0, &[9, 0, 0, 0, 0, 0], &Err(Errno::EFAULT), &memory);
        tracer.end(Some(Err(Errno::EFAULT)));
        tracer.unknown("syscall_999", &[1, 2, 3, 4, 5, 0xffff]);
        tracer.begin("exit_group");
        tracer.before::<i32>(0, &[1, 0, 0, 0, 0, 0], &Ok(1), &memory);
        tracer.end(None);
        tracer.signal(&SigInfo::from_user(libc::SIGUSR1, libc::SI_TKILL, 1, 0));
        let mut other = Tracer::new(output, 8);
        other.begin("getpid");
        other.end(Some(Ok(7)));
        tracer.note("+++ exited with 1 +++");
        drop((tracer, other));
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        insta::assert_snapshot!(text, @r#"
        openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC, 000) = 3
        read(3, "/etc", 4)                      = 4
        unlink(0x9)                             = -1 EFAULT (Bad address)
        syscall_999(0x1, 0x2, 0x3, 0x4, 0x5, 0xffff) = -1 ENOSYS (Function not implemented)
        exit_group(1)                           = ?
        --- SIGUSR1 {si_signo=SIGUSR1, si_code=-6} ---
        [pid     8] getpid()                                = 7
        [pid     7] +++ exited with 1 +++
        "#);
    }
}
