//! System calls: one table from number to handler, one module per family of handlers.
//!
//! A line of the table names a call, its arguments with their types, and its handler. From that line come the
//! decoding for the handler, what hooks see of the call, and the text of `--trace`; a string is read from the guest once.

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
mod open_within;
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

pub(crate) use ipc::Ipc;
pub use support::{Support, call_support};

use super::errno::Errno;
use super::hook::{HookedCall, Slot};
use super::task::Task;
use crate::{Arch, SentArguments, Syscall};
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

/// What a handler returns: the value for rax, or an error.
pub(crate) type SysResult = Result<i64, Errno>;

/// One more than the highest number in the table.
pub(crate) const TABLE_LEN: usize = 512;

/// A line of the table.
struct Line {
    name: &'static str,
    parameters: &'static [Parameter],
    run: fn(&mut Task, &[u64; 6]) -> SysResult,
    run_hooked: fn(&mut Task, &Syscall, HookedCall<'_>) -> SysResult,
}

/// What the table says of an argument.
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) is_path: bool,
    pub(crate) is_socket_address: bool,
}

impl Parameter {
    const fn word(name: &'static str) -> Self {
        Self { name, is_path: false, is_socket_address: false }
    }
}

/// The arguments of a call that is not in the table.
static WORDS: [Parameter; 6] = [
    Parameter::word("arg0"),
    Parameter::word("arg1"),
    Parameter::word("arg2"),
    Parameter::word("arg3"),
    Parameter::word("arg4"),
    Parameter::word("arg5"),
];

/// The name of a call number, made up for one that has none.
pub(crate) fn call_name(nr: u32) -> String {
    names::lookup(nr).map_or_else(|| format!("syscall_{nr:#x}"), str::to_owned)
}

/// The name of a call number that has one.
pub(crate) fn known_name(nr: u32) -> Option<&'static str> {
    names::lookup(nr)
}

/// The numbers of the calls that have such a parameter.
pub(crate) fn calls_taking(wanted: fn(&Parameter) -> bool) -> impl Iterator<Item = u32> {
    table::TABLE
        .iter()
        .zip(0..)
        .filter(move |(line, _)| line.as_ref().is_some_and(|line| line.parameters.iter().any(wanted)))
        .map(|(_, nr)| nr)
}

/// What calls are to bring along: the path that one of their first two arguments is, or what those in the list have there.
pub(crate) fn arguments_to_send() -> Arc<SentArguments> {
    static SENT: LazyLock<Arc<SentArguments>> = LazyLock::new(|| Arc::new(choose_arguments_to_send()));
    Arc::clone(&SENT)
}

fn choose_arguments_to_send() -> SentArguments {
    const SECOND: [i64; 7] = [
        libc::SYS_write,
        libc::SYS_pwrite64,
        libc::SYS_writev,
        libc::SYS_sendto,
        libc::SYS_connect,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
    ];
    let mut calls = SentArguments::default();
    for (line, nr) in table::TABLE.iter().zip(0..) {
        let Some(line) = line else { continue };
        let with = match line.parameters {
            [first, ..] if first.is_path || i64::from(nr) == libc::SYS_poll => SentArguments::first,
            _ if i64::from(nr) == libc::SYS_epoll_ctl => SentArguments::fourth,
            [_, second, ..] if second.is_path || SECOND.contains(&i64::from(nr)) => SentArguments::second,
            _ => continue,
        };
        if let Ok(more) = with(calls.clone(), nr) {
            calls = more;
        }
    }
    calls
}

/// Number and arguments of a call in the table, or of a made-up one of `count` words.
#[cfg(test)]
pub(crate) fn parameters_of(name: &str, count: usize) -> (u32, &'static [Parameter]) {
    let lines = table::TABLE.iter().zip(0..).filter_map(|(line, nr)| Some((line.as_ref()?, nr)));
    let found = lines.into_iter().find(|(line, _)| line.name == name);
    found.map_or((999, &WORDS[..count]), |(line, nr)| (nr, line.parameters))
}

/// Makes a call for the guest.
pub(crate) fn dispatch(task: &mut Task, call: &Syscall) -> SysResult {
    let line = match call.arch {
        Arch::X86_64 => table::TABLE.get(call.nr as usize).and_then(Option::as_ref),
        // Calls of 32-bit code are not offered, as on a kernel without IA32 emulation.
        Arch::I386 => None,
    };
    match line {
        Some(line) if !task.observer.hooks.want(call) => (line.run)(task, &call.args),
        Some(line) => {
            let hooked = HookedCall::new(call, Cow::Borrowed(line.name), line.parameters);
            (line.run_hooked)(task, call, hooked)
        }
        None => make_unlisted(task, call),
    }
}

/// Makes a call that is not in the table.
fn make_unlisted(task: &mut Task, call: &Syscall) -> SysResult {
    let name = match call.arch {
        Arch::X86_64 => call_name(call.nr),
        Arch::I386 => format!("i386_{}", call.nr),
    };
    if !task.observer.hooks.want(call) {
        return refuse(task, call, &name);
    }
    let mut args = call.args.map(|arg| Ok::<_, Errno>(args::Hex(arg)));
    let mut slots = args.each_mut().map(|arg| arg as &mut (dyn Slot + 'static));
    let mut hooked = HookedCall::new(call, Cow::Owned(name.clone()), &WORDS);
    let result = match hooked.before(task, &mut slots) {
        Some(result) => result,
        None => refuse(task, call, &name),
    };
    hooked.after(task, &mut slots, result)
}

/// A call that is refused on purpose, or that nobody implements.
fn refuse(task: &mut Task, call: &Syscall, name: &str) -> SysResult {
    match refused::lookup(call.nr) {
        Some(refusal) if call.arch == Arch::X86_64 => Err(refusal.errno),
        _ => {
            task.observer.counts.record_unimplemented(name);
            Err(Errno::ENOSYS)
        }
    }
}

/// Defines the table. Each line is `number name(argument: Type, …) => handler`.
macro_rules! syscall_table {
    ($($nr:literal $name:ident($($arg:ident: $ty:ty),* $(,)?) => $handler:path;)*) => {
        pub(super) static TABLE: [Option<$crate::sentry::syscalls::Line>; $crate::sentry::syscalls::TABLE_LEN] = {
            use $crate::sentry::syscalls::{Line, Parameter, args::Arg};
            let mut table = [const { None }; $crate::sentry::syscalls::TABLE_LEN];
            $(
                assert!(table[$nr].is_none(), "a number is listed twice");
                table[$nr] = Some(Line {
                    name: stringify!($name),
                    parameters: &[$(Parameter {
                        name: stringify!($arg),
                        is_path: <$ty as Arg>::IS_PATH,
                        is_socket_address: <$ty as Arg>::IS_SOCKET_ADDRESS,
                    }),*],
                    run: |task: &mut $crate::sentry::task::Task, args| {
                        let [$($arg,)* ..] = [0_usize, 1, 2, 3, 4, 5];
                        $(let $arg = <$ty as Arg>::decode_at(args, $arg, &task.call_memory())?;)*
                        let _ = args;
                        $handler(task, $($arg),*)
                    },
                    // The hooks see, and may change, what the handler then gets.
                    run_hooked: |task, call, mut hooked| {
                        let [$($arg,)* ..] = [0_usize, 1, 2, 3, 4, 5];
                        $(let mut $arg = <$ty as Arg>::decode_at(&call.args, $arg, &task.call_memory());)*
                        let _ = call;
                        let decided = hooked.before(task, &mut [$(&mut $arg),*]);
                        let result = decided.unwrap_or_else(|| {
                            // What only `after` looks at is what was used as well.
                            $($arg.as_ref().iter().for_each(|arg| arg.settle(task.memory()));)*
                            $handler(task, $($arg.clone()?),*)
                        });
                        hooked.after(task, &mut [$(&mut $arg),*], result)
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
