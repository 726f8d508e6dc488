//! A call as a hook sees it.

use super::{CallEnd, TaskId};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::socket_address::SocketAddress;
use crate::sentry::syscalls::Parameter;
use crate::sentry::syscalls::args::{Arg, CallView, MessageHeader, Replacement};
use crate::sentry::task::Task;
use crate::{CopyError, GuestAddr};
use std::borrow::Cow;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// A decoded argument, whatever its type: what the handler of the call will get.
pub(crate) trait Slot {
    fn is_output(&self) -> bool;
    fn show(&self, view: &CallView<'_>, out: &mut String);
    fn value<'a>(&'a self, view: &CallView<'a>) -> ArgValue<'a>;
    fn uses_next(&self) -> bool;
    fn decode_again(&mut self, args: &[u64; 6], index: usize, memory: &dyn GuestMemory);
    /// Says whether the argument is of that kind.
    fn replace(&mut self, by: Replacement) -> bool;
}

/// The arguments of a call.
pub(super) trait SlotList {
    fn at(&self, index: usize) -> Option<&dyn Slot>;
    fn at_mut(&mut self, index: usize) -> Option<&mut (dyn Slot + 'static)>;
}

pub(super) struct Slots<'s, 't>(pub(super) &'s mut [&'t mut (dyn Slot + 'static)]);

impl SlotList for Slots<'_, '_> {
    fn at(&self, index: usize) -> Option<&dyn Slot> {
        self.0.get(index).map(|slot| &**slot as &dyn Slot)
    }

    fn at_mut(&mut self, index: usize) -> Option<&mut (dyn Slot + 'static)> {
        self.0.get_mut(index).map(|slot| &mut **slot)
    }
}

/// An argument that could not be decoded makes the call fail; it is shown as it came.
impl<A: Arg + 'static> Slot for Result<A, Errno> {
    fn is_output(&self) -> bool {
        A::OUTPUT && self.is_ok()
    }

    fn show(&self, view: &CallView<'_>, out: &mut String) {
        match self {
            Ok(arg) => arg.show(view, out),
            Err(_) => {
                let raw = view.args.get(view.index).copied().unwrap_or_default();
                *out = format!("{raw:#x}");
            }
        }
    }

    fn value<'a>(&'a self, view: &CallView<'a>) -> ArgValue<'a> {
        match self {
            Ok(arg) => arg
                .value_in(view)
                .unwrap_or_else(|| ArgValue::Word(view.args.get(view.index).copied().unwrap_or_default())),
            Err(errno) => ArgValue::Unreadable(*errno),
        }
    }

    fn uses_next(&self) -> bool {
        A::USES_NEXT
    }

    fn decode_again(&mut self, args: &[u64; 6], index: usize, memory: &dyn GuestMemory) {
        *self = A::decode_at(args, index, memory);
    }

    fn replace(&mut self, by: Replacement) -> bool {
        match A::replaced(by) {
            Some(arg) => {
                *self = Ok(arg);
                true
            }
            None => false,
        }
    }
}

/// What an argument of a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArgValue<'a> {
    /// A number, a size, an identifier: sign-extended if the call takes it as signed (`value as i64`).
    Word(u64),
    /// A set of flags, or one of several choices; zero-extended.
    Flags(u64),
    /// A descriptor of the guest. In front of a path it is the directory that the path is relative to, maybe
    /// `AT_FDCWD`.
    Fd(i32),
    /// The path of a file, read from the guest once: the call uses these very bytes.
    Path(&'a CStr),
    /// Another string that was read from the guest once, such as the name of an extended attribute.
    Text(&'a CStr),
    /// The arguments or the environment of a program to execute, read from the guest once: the program gets these
    /// very strings.
    Strings(&'a [CString]),
    /// The address of a socket, read from the guest once: the call uses this very address. For a call that returns
    /// one (`accept`, `recvfrom`, …) it is there after the call, in full even if the guest had room for less.
    SocketAddress(&'a SocketAddress),
    /// What `sendmsg` or `sendmmsg` is to send, read from the guest once. Messages of `sendmmsg` behind one that
    /// cannot be read are not among them, and not sent.
    Messages(&'a [OutgoingMessage]),
    /// How `openat2` is to open a file, read from the guest once.
    OpenHow(OpenHow),
    /// An address in guest memory. What lies there can change until the call reads it, for other threads run.
    Address(GuestAddr),
    /// The argument points to memory that cannot be read, or is too long: the call fails with this unless the hook
    /// gives it another argument.
    Unreadable(Errno),
}

/// A message that a guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutgoingMessage {
    pub(crate) header: MessageHeader,
    pub(crate) address: Option<SocketAddress>,
}

impl OutgoingMessage {
    /// Where it is sent, if the guest says so: a socket that is connected needs no address.
    #[must_use]
    pub fn address(&self) -> Option<&SocketAddress> {
        self.address.as_ref()
    }
}

/// `struct open_how`, see openat2(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenHow {
    /// `O_*`.
    pub flags: u64,
    /// The permissions of a file that is created.
    pub mode: u64,
    /// `RESOLVE_*`.
    pub resolve: u64,
}

/// An argument cannot be changed like that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgError {
    /// The call has fewer arguments.
    #[error("the call has no such argument")]
    NoSuchArgument,
    /// It is no path.
    #[error("the argument is not a path")]
    NotAPath,
    /// It is no address of a socket.
    #[error("the argument is not the address of a socket")]
    NotASocketAddress,
    /// It is no list of strings.
    #[error("the argument is not a list of strings")]
    NotStrings,
    /// The call has been made.
    #[error("the call has been made")]
    TooLate,
}

/// The task that makes a call: a [`Task`], or a stand-in in tests.
pub(crate) trait Caller {
    fn id(&self) -> TaskId;
    fn memory(&self) -> &dyn GuestMemory;
    fn directory_path(&self, dirfd: i32) -> Option<PathBuf>;
    fn returned_address(&self) -> Option<&SocketAddress>;
}

impl Caller for Task {
    fn id(&self) -> TaskId {
        TaskId::of(self)
    }

    fn memory(&self) -> &dyn GuestMemory {
        Task::memory(self)
    }

    fn directory_path(&self, dirfd: i32) -> Option<PathBuf> {
        Task::directory_path(self, dirfd).ok()
    }

    fn returned_address(&self) -> Option<&SocketAddress> {
        self.observer.returned_address.as_ref()
    }
}

/// What is known of a call that hooks look at, apart from its arguments.
pub(super) struct Facts {
    pub(super) name: Cow<'static, str>,
    pub(super) number: u32,
    pub(super) args: [u64; 6],
    pub(super) parameters: &'static [Parameter],
    pub(super) end: Option<CallEnd>,
}

/// A system call of a guest task, before or after it is made.
///
/// Its arguments are decoded as the call's handler will use them: a path is read from the guest's memory once, and what
/// the hook sees, or puts in its place, is what is executed. Memory behind [`ArgValue::Address`] has no such protection.
///
/// [`Display`](fmt::Display) shows the call as strace does: `openat(AT_FDCWD, "/etc/passwd", O_RDONLY)`. What the call
/// is to write is left out before it has.
pub struct Call<'a> {
    pub(super) facts: &'a mut Facts,
    pub(super) slots: &'a mut (dyn SlotList + 'a),
    pub(super) caller: &'a (dyn Caller + 'a),
}

impl Call<'_> {
    /// The kernel's name of the call; made up for a number that has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// The call's number (`libc::SYS_*`).
    #[must_use]
    pub fn number(&self) -> i64 {
        self.facts.number.into()
    }

    /// Who makes it.
    #[must_use]
    pub fn task(&self) -> TaskId {
        self.caller.id()
    }

    /// The argument at a position from 0; `None` if the call has fewer.
    #[must_use]
    pub fn arg(&self, index: usize) -> Option<Argument<'_>> {
        let parameter = self.facts.parameters.get(index)?;
        let slot = self.slots.at(index)?;
        Some(Argument { slot, parameter, facts: self.facts, index, caller: self.caller })
    }

    /// All arguments in order.
    pub fn args(&self) -> impl Iterator<Item = Argument<'_>> {
        (0..self.facts.parameters.len()).filter_map(|index| self.arg(index))
    }

    /// Replaces an argument by what the guest could have put into the register; one that points to what the call reads
    /// is read from there. What a length belongs to is read again with a new one.
    ///
    /// # Errors
    ///
    /// When there is no such argument, or the call has been made.
    pub fn set_raw(&mut self, index: usize, raw: u64) -> Result<(), ArgError> {
        if self.facts.end.is_some() {
            return Err(ArgError::TooLate);
        }
        let slot = self.slots.at_mut(index).ok_or(ArgError::NoSuchArgument)?;
        if let Some(arg) = self.facts.args.get_mut(index) {
            *arg = raw;
        }
        slot.decode_again(&self.facts.args, index, self.caller.memory());
        if let Some(before) = index.checked_sub(1)
            && let Some(slot) = self.slots.at_mut(before).filter(|slot| slot.uses_next())
        {
            slot.decode_again(&self.facts.args, before, self.caller.memory());
        }
        Ok(())
    }

    fn replace(&mut self, index: usize, by: Replacement, otherwise: ArgError) -> Result<(), ArgError> {
        if self.facts.end.is_some() {
            return Err(ArgError::TooLate);
        }
        let slot = self.slots.at_mut(index).ok_or(ArgError::NoSuchArgument)?;
        if slot.replace(by) { Ok(()) } else { Err(otherwise) }
    }

    /// Replaces a path. The guest's memory stays as it is.
    ///
    /// # Errors
    ///
    /// When the argument is no path, there is none at this position, or the call has been made.
    pub fn set_path(&mut self, index: usize, path: impl Into<CString>) -> Result<(), ArgError> {
        self.replace(index, Replacement::Path(path.into()), ArgError::NotAPath)
    }

    /// Replaces the address of a socket, with its length. The guest's memory stays as it is.
    ///
    /// # Errors
    ///
    /// When the argument is no address that the call reads ([`ArgValue::Messages`] are none), there is none at this
    /// position, or the call has been made.
    pub fn set_socket_address(
        &mut self,
        index: usize,
        address: impl Into<SocketAddress>,
    ) -> Result<(), ArgError> {
        self.replace(index, Replacement::SocketAddress(address.into()), ArgError::NotASocketAddress)
    }

    /// Replaces the arguments or the environment of a program to execute. The guest's memory stays as it is.
    ///
    /// # Errors
    ///
    /// When the argument is no list of strings, there is none at this position, or the call has been made.
    pub fn set_strings<S: Into<CString>>(
        &mut self,
        index: usize,
        strings: impl IntoIterator<Item = S>,
    ) -> Result<(), ArgError> {
        let strings = strings.into_iter().map(Into::into).collect();
        self.replace(index, Replacement::Strings(strings), ArgError::NotStrings)
    }

    /// After the call, the address of a socket that it returned: of the other end (`accept`, `accept4`, `getpeername`),
    /// of the sender (`recvfrom`, `recvmsg`, the last of `recvmmsg`), or the socket's own (`getsockname`). `None` if
    /// the guest did not ask for it.
    #[must_use]
    pub fn returned_address(&self) -> Option<&SocketAddress> {
        self.facts.end.and_then(|_| self.caller.returned_address())
    }

    /// The path at this position made absolute: joined to the task's working directory, or to the directory of the
    /// descriptor in front of it. Neither `..` nor symbolic links are resolved. `None` if there is no such path or
    /// directory.
    ///
    /// Another thread of the guest may change the working directory, or what a descriptor stands for, before the call
    /// is made: who judges the absolute path puts it in place with [`Call::set_path`].
    #[must_use]
    pub fn absolute_path(&self, index: usize) -> Option<PathBuf> {
        let ArgValue::Path(path) = self.arg(index)?.value() else { return None };
        let path = OsStr::from_bytes(path.to_bytes());
        if path.as_bytes().starts_with(b"/") {
            return Some(path.into());
        }
        let directory = index.checked_sub(1).and_then(|before| self.arg(before));
        let dirfd = match directory.map(|directory| directory.value()) {
            Some(ArgValue::Fd(fd)) => fd,
            _ => libc::AT_FDCWD,
        };
        Some(self.caller.directory_path(dirfd)?.join(path))
    }

    /// How the call ended; `None` before it is made.
    #[must_use]
    pub fn end(&self) -> Option<CallEnd> {
        self.facts.end
    }

    /// Replaces the result of a call that has returned. What the call did stays done.
    ///
    /// Without effect before the call, and on one whose [`CallEnd`] is not [`CallEnd::Returned`].
    pub fn set_result(&mut self, result: Result<i64, Errno>) {
        if let Some(CallEnd::Returned(old)) = &mut self.facts.end {
            *old = result;
        }
    }

    /// Copies guest memory in.
    ///
    /// # Errors
    ///
    /// When part of it cannot be read; the error says how far the copy got.
    pub fn read_memory(&self, addr: GuestAddr, bytes: &mut [u8]) -> Result<(), CopyError> {
        self.caller.memory().read(addr, bytes)
    }

    /// Copies bytes out to the guest, for example what a call that the hook answers returns in memory.
    ///
    /// # Errors
    ///
    /// When part of it cannot be written; the error says how far the copy got. A call answers that with `EFAULT`.
    pub fn write_memory(&self, addr: GuestAddr, bytes: &[u8]) -> Result<(), CopyError> {
        self.caller.memory().write(addr, bytes)
    }
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        for (index, arg) in self.args().enumerate() {
            write!(f, "{}{arg}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("task", &self.task())
            .field("call", &format_args!("{self}"))
            .field("end", &self.facts.end)
            .finish()
    }
}

/// An argument of a [`Call`]. [`Display`](fmt::Display) shows it as strace does.
#[derive(Clone, Copy)]
pub struct Argument<'a> {
    slot: &'a dyn Slot,
    parameter: &'static Parameter,
    facts: &'a Facts,
    index: usize,
    caller: &'a dyn Caller,
}

impl<'a> Argument<'a> {
    fn view(&self) -> CallView<'a> {
        let result = match self.facts.end {
            Some(CallEnd::Returned(result)) => Some(result),
            _ => None,
        };
        CallView {
            args: &self.facts.args,
            index: self.index,
            memory: self.caller.memory(),
            result,
            returned_address: self.facts.end.and_then(|_| self.caller.returned_address()),
        }
    }

    /// Its name, for example `flags`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.parameter.name
    }

    /// What is in the register.
    #[must_use]
    pub fn raw(&self) -> u64 {
        self.facts.args.get(self.index).copied().unwrap_or_default()
    }

    /// What it means.
    #[must_use]
    pub fn value(&self) -> ArgValue<'a> {
        self.slot.value(&self.view())
    }

    /// Whether it points to what the call writes: shown after the call only.
    #[must_use]
    pub fn is_output(&self) -> bool {
        self.slot.is_output()
    }
}

impl fmt::Display for Argument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.facts.end.is_none() && self.is_output() {
            return Ok(());
        }
        let mut text = String::new();
        self.slot.show(&self.view(), &mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for Argument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={:?}", self.name(), self.value())
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! Calls of a task that does not exist.

    use super::*;
    use crate::sentry::guest_memory::fake::FakeMemory;
    use crate::sentry::hook::{Hook, Verdict};
    use crate::sentry::syscalls::parameters_of;

    /// A task with some memory, in the directory `/srv`.
    pub(crate) struct FakeCaller {
        pub(crate) id: TaskId,
        pub(crate) memory: FakeMemory,
        pub(crate) returned_address: Option<SocketAddress>,
    }

    impl Caller for FakeCaller {
        fn id(&self) -> TaskId {
            self.id
        }

        fn memory(&self) -> &dyn GuestMemory {
            &self.memory
        }

        fn directory_path(&self, dirfd: i32) -> Option<PathBuf> {
            (dirfd == libc::AT_FDCWD).then(|| PathBuf::from("/srv"))
        }

        fn returned_address(&self) -> Option<&SocketAddress> {
            self.returned_address.as_ref()
        }
    }

    /// Leads a call of these arguments past a hook, as made with this end, and returns what the hook left of it.
    pub(crate) fn pass<H: Hook>(
        hook: &H,
        state: &mut H::TaskState,
        caller: &FakeCaller,
        name: &'static str,
        slots: &mut [&mut (dyn Slot + 'static)],
        (args, end): ([u64; 6], CallEnd),
    ) -> (Verdict, Option<CallEnd>) {
        let (number, parameters) = parameters_of(name, slots.len());
        let mut facts = Facts { name: Cow::Borrowed(name), number, args, parameters, end: None };
        let mut slots = Slots(slots);
        let verdict = hook.before(state, &mut Call { facts: &mut facts, slots: &mut slots, caller });
        facts.end = Some(end);
        hook.after(state, &mut Call { facts: &mut facts, slots: &mut slots, caller });
        (verdict, facts.end)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{FakeCaller, pass};
    use super::*;
    use crate::sentry::guest_memory::fake::FakeMemory;
    use crate::sentry::hook::{Hook, Verdict};
    use crate::sentry::syscalls::args::{DirFd, Mode, OpenFlags, Path};

    /// Looks at everything and redirects `openat`.
    struct Redirect;

    impl Hook for Redirect {
        type TaskState = ();

        fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
            assert_eq!(call.arg(1).unwrap().value(), ArgValue::Path(c"etc/passwd"));
            assert_eq!(call.absolute_path(1).unwrap().to_str(), Some("/srv/etc/passwd"));
            assert_eq!(call.absolute_path(0), None);
            assert_eq!(call.arg(2).unwrap().value(), ArgValue::Flags(libc::O_CLOEXEC as u64));
            assert_eq!((call.arg(2).unwrap().name(), call.arg(4).is_none()), ("flags", true));
            assert_eq!(call.set_path(0, c"/x"), Err(ArgError::NotAPath));
            assert_eq!(call.set_path(9, c"/x"), Err(ArgError::NoSuchArgument));
            call.set_result(Ok(1));
            assert_eq!(call.set_path(1, c"/dev/null"), Ok(()));
            assert_eq!(call.set_raw(2, libc::O_WRONLY as u64), Ok(()));
            Verdict::Proceed
        }

        fn after(&self, (): &mut (), call: &mut Call<'_>) {
            assert_eq!(call.to_string(), r#"openat(AT_FDCWD, "/dev/null", O_WRONLY, 000)"#);
            assert_eq!(call.set_raw(2, 0), Err(ArgError::TooLate));
            assert_eq!(call.end(), Some(CallEnd::Returned(Ok(3))));
            call.set_result(Err(Errno::EPERM));
        }
    }

    #[test]
    fn what_a_hook_puts_in_place_is_what_the_handler_gets() {
        let memory = FakeMemory::new(0x1000, 64);
        let caller = FakeCaller { id: TaskId { pid: 7, tid: 7 }, memory, returned_address: None };
        caller.memory.write(GuestAddr::new(0x1000), b"etc/passwd\0").unwrap();
        let args = [libc::AT_FDCWD as u32 as u64, 0x1000, libc::O_CLOEXEC as u64, 0, 0, 0];
        let mut dir = DirFd::decode(args[0], &caller.memory);
        let mut path = Path::decode(args[1], &caller.memory);
        let mut flags = OpenFlags::decode(args[2], &caller.memory);
        let mut mode = Mode::decode(args[3], &caller.memory);
        // Another thread of the guest changes its mind after the string was read.
        caller.memory.write(GuestAddr::new(0x1000), b"/etc/shadow").unwrap();
        let slots: &mut [&mut (dyn Slot + 'static)] = &mut [&mut dir, &mut path, &mut flags, &mut mode];
        let made = (args, CallEnd::Returned(Ok(3)));
        let left = pass(&Redirect, &mut (), &caller, "openat", slots, made);
        assert_eq!(left, (Verdict::Proceed, Some(CallEnd::Returned(Err(Errno::EPERM)))));
        assert_eq!(path.unwrap().as_c_str(), c"/dev/null");
        assert_eq!(flags.unwrap().0, libc::O_WRONLY);
    }
}
