//! A call as a hook sees it.

use super::slot::SlotList;
use super::{ArgError, ArgValue, Argument, CallEnd, TaskId};
use crate::sentry::errno::Errno;
use crate::sentry::guest_memory::GuestMemory;
use crate::sentry::socket_address::SocketAddress;
use crate::sentry::syscalls::Parameter;
use crate::sentry::syscalls::args::Replacement;
use crate::sentry::task::Task;
use crate::{CopyError, GuestAddr};
use std::borrow::Cow;
use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

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

#[cfg(test)]
pub(crate) mod fake {
    //! Calls of a task that does not exist.

    use super::*;
    use crate::sentry::guest_memory::fake::FakeMemory;
    use crate::sentry::hook::slot::{Slot, Slots};
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
    use crate::sentry::hook::{Hook, Slot, Verdict};
    use crate::sentry::syscalls::args::{Arg as _, DirFd, Mode, OpenFlags, Path};

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
