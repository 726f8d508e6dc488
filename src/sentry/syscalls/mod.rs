//! System calls: one table from number to handler, one module per family of handlers.
//!
//! A line of the table names a call, its arguments with their types, and its handler. From that line come the
//! decoding for the handler and the text of `--trace`; an argument that points to input is read from the guest once.

pub(crate) mod args;
mod barrier;
mod clone;
mod credentials;
mod descriptor;
mod epoll;
mod file_limit;
mod futex;
mod identity;
mod inotify;
mod ioctl;
mod ipc;
mod kill;
mod locate;
mod memory;
mod mqueue;
mod names;
mod numa;
mod open;
mod path;
mod pidfd;
mod poll;
mod prctl;
mod process;
mod read_write;
mod record_lock;
mod refused;
mod scheduling;
mod signal;
mod signalfd;
mod socket;
mod stat;
mod stream;
mod support;
mod system;
mod table;
mod terminal;
mod time;
mod timer;
mod transfer;
mod usage;
mod wait;
mod xattr;

pub(crate) use epoll::Epoll;
pub(crate) use ipc::Ipc;
pub use support::{Support, call_support};

use super::errno::Errno;
use super::task::{AfterCall, Task};
use crate::{Arch, Syscall};

/// What a handler returns: the value for rax, or an error.
pub(crate) type SysResult = Result<i64, Errno>;

/// One more than the highest number in the table.
pub(crate) const TABLE_LEN: usize = 512;

/// An entry of the table.
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    run: fn(&mut Task, &[u64; 6]) -> SysResult,
    run_traced: fn(&mut Task, &[u64; 6], &'static str) -> SysResult,
}

/// The name of a call number, made up for one that has none.
pub(crate) fn call_name(nr: u32) -> String {
    names::lookup(nr).map_or_else(|| format!("syscall_{nr:#x}"), str::to_owned)
}

/// Makes a call for the guest.
pub(crate) fn dispatch(task: &mut Task, call: &Syscall) -> SysResult {
    let entry = match call.arch {
        Arch::X86_64 => table::TABLE.get(call.nr as usize).copied().flatten(),
        // Calls of 32-bit code are not offered, as on a kernel without IA32 emulation.
        Arch::I386 => None,
    };
    match entry {
        Some(entry) if task.observer.tracer.is_none() => (entry.run)(task, &call.args),
        Some(entry) => (entry.run_traced)(task, &call.args, entry.name),
        None => {
            let name = match call.arch {
                Arch::X86_64 => call_name(call.nr),
                Arch::I386 => format!("i386_{}", call.nr),
            };
            if let Some(tracer) = &mut task.observer.tracer {
                tracer.unknown(&name, &call.args);
            }
            match refused::lookup(call.nr) {
                Some(refusal) if call.arch == Arch::X86_64 => Err(refusal.errno),
                _ => {
                    task.observer.counts.record_unimplemented(&name);
                    Err(Errno::ENOSYS)
                }
            }
        }
    }
}

/// Makes a call with its trace line around it.
fn trace_call(
    task: &mut Task,
    name: &'static str,
    before: impl FnOnce(&mut Task, &mut super::observe::Tracer),
    run: impl FnOnce(&mut Task) -> SysResult,
    after: impl FnOnce(&mut Task, &mut super::observe::Tracer, SysResult),
) -> SysResult {
    let Some(mut tracer) = task.observer.tracer.take() else { return run(task) };
    tracer.begin(name);
    before(task, &mut tracer);
    let result = run(task);
    let returns = task.exit.is_none() && task.after_call != AfterCall::ReturnFromHandler;
    if returns {
        after(task, &mut tracer, result);
    }
    tracer.end(returns.then_some(result));
    task.observer.tracer = Some(tracer);
    result
}

/// Defines the table. Each line is `number name(argument: Type, …) => handler`.
macro_rules! syscall_table {
    ($($nr:literal $name:ident($($arg:ident: $ty:ty),* $(,)?) => $handler:path;)*) => {
        pub(super) const TABLE: [Option<$crate::sentry::syscalls::Call>; $crate::sentry::syscalls::TABLE_LEN] = {
            use $crate::sentry::syscalls::{Call, args::Arg, trace_call};
            let mut table: [Option<Call>; $crate::sentry::syscalls::TABLE_LEN] =
                [None; $crate::sentry::syscalls::TABLE_LEN];
            $(
                assert!(table[$nr].is_none(), "a number is listed twice");
                table[$nr] = Some(Call {
                    name: stringify!($name),
                    run: |task: &mut $crate::sentry::task::Task, args| {
                        let [$($arg,)* ..] = *args;
                        $(let $arg = <$ty as Arg>::decode($arg, task.memory())?;)*
                        let _ = args;
                        $handler(task, $($arg),*)
                    },
                    run_traced: |task, args, name| {
                        let [$($arg,)* ..] = *args;
                        $(let $arg = <$ty as Arg>::decode($arg, task.memory());)*
                        trace_call(
                            task,
                            name,
                            |task, tracer| {
                                let mut _index = 0;
                                $(tracer.before(_index, args, &$arg, task.memory()); _index += 1;)*
                                let _ = (task, tracer);
                            },
                            |task| $handler(task, $($arg.clone()?),*),
                            |task, tracer, result| {
                                let mut _index = 0;
                                $(tracer.after(_index, args, &$arg, task.memory(), result); _index += 1;)*
                                let _ = (task, tracer, result);
                            },
                        )
                    },
                });
            )*
            table
        };

        /// Name and number of each line, for the test that compares them with the kernel's.
        #[cfg(test)]
        const LINES: &[(u32, &str)] = &[$(($nr, stringify!($name))),*];
    };
}
use syscall_table;
