//! The trace in strace's style: a hook that looks at every call and changes none.

use super::errno::Errno;
use super::hook::{Call, CallEnd, DeliveredSignal, Hook, TaskId, Verdict};
use super::process::lock;
use super::signals::signal_name;
use super::task::ExitStatus;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes one line for each call, signal and end.
pub(crate) struct Trace {
    writer: Mutex<Box<dyn Write + Send>>,
    /// Lines name their thread from the first line of a second thread on.
    first_tid: i32,
    has_others: AtomicBool,
}

/// The line of the call that is being made.
#[derive(Default)]
pub(crate) struct TraceLine {
    shown: Vec<String>,
}

impl Trace {
    pub(crate) fn new(writer: Box<dyn Write + Send>, first_tid: i32) -> Self {
        Self { writer: Mutex::new(writer), first_tid, has_others: AtomicBool::new(false) }
    }

    fn write_line(&self, task: TaskId, line: &str) {
        let line = if self.has_others.load(Ordering::Relaxed) {
            format!("[pid {:>5}] {line}\n", task.tid)
        } else {
            format!("{line}\n")
        };
        // A trace that cannot be written must not change what the guest does.
        let _ = lock(&self.writer).write_all(line.as_bytes());
    }
}

impl Hook for Trace {
    type TaskState = TraceLine;

    fn task_started(&self, task: TaskId, _: &mut TraceLine, _: Option<&TraceLine>) {
        if task.tid != self.first_tid {
            self.has_others.store(true, Ordering::Relaxed);
        }
    }

    /// What a call reads is shown as it is before the call.
    fn before(&self, line: &mut TraceLine, call: &mut Call<'_>) -> Verdict {
        line.shown.clear();
        line.shown.extend(call.args().map(|arg| arg.to_string()));
        Verdict::Proceed
    }

    fn after(&self, line: &mut TraceLine, call: &mut Call<'_>) {
        let returns = call.end() != Some(CallEnd::NoReturn);
        for (arg, shown) in call.args().zip(&mut line.shown).filter(|(arg, _)| returns && arg.is_output()) {
            *shown = arg.to_string();
        }
        let result = match call.end() {
            None | Some(CallEnd::NoReturn) => "?".to_owned(),
            // The guest goes on as if it had made the call itself.
            Some(CallEnd::InGuest) => "0".to_owned(),
            Some(CallEnd::Returned(result)) => show_result(result),
        };
        let shown = format!("{}({})", call.name(), line.shown.join(", "));
        self.write_line(call.task(), &format!("{shown:<39} = {result}"));
    }

    fn signal(&self, task: TaskId, _: &mut TraceLine, signal: &DeliveredSignal) {
        let name = signal_name(signal.signo);
        let detail = match (signal.code, signal.address) {
            // Codes above zero are the kernel's own; those of faults come with an address.
            (code @ 1..0x80, Some(addr)) => format!("si_code={code}, si_addr={addr:#x}"),
            (code, _) => format!("si_code={code}"),
        };
        self.write_line(task, &format!("--- {name} {{si_signo={name}, {detail}}} ---"));
    }

    fn task_ended(&self, task: TaskId, _: &mut TraceLine, status: ExitStatus) {
        let line = match status {
            ExitStatus::Exited(status) => format!("+++ exited with {status} +++"),
            ExitStatus::Signaled(signo) => format!("+++ killed by {} +++", signal_name(signo)),
        };
        self.write_line(task, &line);
        let _ = lock(&self.writer).flush();
    }
}

fn show_result(result: Result<i64, Errno>) -> String {
    match result {
        Ok(value) if !(-4095..=0xffff_ffff).contains(&value) => format!("{value:#x}"),
        Ok(value) => value.to_string(),
        Err(errno) if errno.is_restart() => format!("? {errno:?} (to be restarted if SA_RESTART is set)"),
        Err(errno) => format!("-1 {errno:?} ({})", errno.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::errno::Errno;
    use super::super::guest_memory::GuestMemory as _;
    use super::super::guest_memory::fake::FakeMemory;
    use super::super::hook::Slot;
    use super::super::hook::fake::{FakeCaller, pass};
    use super::super::syscalls::args::{Arg, DirFd, Fd, Hex, Mode, OpenFlags, OutBytes, Path};
    use super::*;
    use crate::GuestAddr;
    use std::sync::Arc;

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

    fn decode<A: Arg>(raw: u64, caller: &FakeCaller) -> Result<A, Errno> {
        A::decode(raw, &caller.memory)
    }

    #[test]
    fn lines_look_like_those_of_strace() {
        let caller = FakeCaller {
            id: TaskId { pid: 7, tid: 7 },
            memory: FakeMemory::new(0x1000, 4096),
            returned_address: None,
        };
        caller.memory.write(GuestAddr::new(0x1000), b"/etc/passwd\0").unwrap();
        let sink = Sink::default();
        let trace = Trace::new(Box::new(sink.clone()), 7);
        let mut line = TraceLine::default();
        trace.task_started(caller.id, &mut line, None);
        let mut show = |caller: &FakeCaller, name, slots: &mut [&mut (dyn Slot + 'static)], args, end| {
            pass(&trace, &mut line, caller, name, slots, (args, end));
        };
        let ok = |value| CallEnd::Returned(Ok(value));

        let args = [libc::AT_FDCWD as u32 as u64, 0x1000, 0x8_0000, 0, 0, 0];
        let (mut dir, mut path) = (decode::<DirFd>(args[0], &caller), decode::<Path>(args[1], &caller));
        let (mut flags, mut mode) = (decode::<OpenFlags>(args[2], &caller), decode::<Mode>(args[3], &caller));
        show(&caller, "openat", &mut [&mut dir, &mut path, &mut flags, &mut mode], args, ok(3));

        let args = [3, 0x1000, 4, 0, 0, 0];
        let (mut fd, mut buffer) = (decode::<Fd>(3, &caller), decode::<OutBytes>(0x1000, &caller));
        show(&caller, "read", &mut [&mut fd, &mut buffer, &mut decode::<usize>(4, &caller)], args, ok(4));

        let failed = CallEnd::Returned(Err(Errno::EFAULT));
        show(&caller, "unlink", &mut [&mut Err::<Path, _>(Errno::EFAULT)], [9, 0, 0, 0, 0, 0], failed);
        let args = [1, 2, 3, 4, 5, 0xffff];
        let mut words = args.map(|arg| Ok::<_, Errno>(Hex(arg)));
        let mut slots = words.each_mut().map(|word| word as &mut (dyn Slot + 'static));
        show(&caller, "syscall_999", &mut slots, args, CallEnd::Returned(Err(Errno::ENOSYS)));
        show(&caller, "exit_group", &mut [&mut Ok::<_, Errno>(1_i32)], [1, 0, 0, 0, 0, 0], CallEnd::NoReturn);
        let signal = DeliveredSignal { signo: libc::SIGUSR1, code: libc::SI_TKILL, address: None };
        trace.signal(caller.id, &mut TraceLine::default(), &signal);
        let other = FakeCaller {
            id: TaskId { pid: 7, tid: 8 },
            memory: FakeMemory::new(0, 0),
            returned_address: None,
        };
        let mut line = TraceLine::default();
        trace.task_started(other.id, &mut line, None);
        pass(&trace, &mut line, &other, "getpid", &mut [], ([0; 6], ok(7)));
        trace.task_ended(caller.id, &mut line, ExitStatus::Exited(1));
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
