//! Sets of calls: what a hook wants to see.

use crate::sentry::syscalls::{self, TABLE_LEN};
use crate::{Arch, Syscall};
use std::fmt;

const WORDS: usize = TABLE_LEN / 64;

/// A set of system calls, by number or by name.
///
/// ```
/// use systrap::sentry::CallSet;
///
/// let writes = CallSet::named(["write", "writev", "pwrite64"])?;
/// assert_eq!(writes, CallSet::numbered([libc::SYS_write, libc::SYS_writev, libc::SYS_pwrite64]));
/// assert!(writes.contains(libc::SYS_write) && !writes.contains(libc::SYS_read));
/// # Ok::<(), systrap::sentry::UnknownCall>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CallSet {
    bits: [u64; WORDS],
    /// Whatever has no bit: higher numbers, and calls by the 32-bit interface.
    others: bool,
}

/// There is no x86-64 system call of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no system call named {name:?}")]
#[non_exhaustive]
pub struct UnknownCall {
    /// The name.
    pub name: String,
}

impl CallSet {
    /// No call.
    pub const NONE: Self = Self { bits: [0; WORDS], others: false };
    /// Every call, those that no kernel has included.
    pub const ALL: Self = Self { bits: [u64::MAX; WORDS], others: true };

    /// The calls of these numbers (`libc::SYS_*`). A number of 512 or more, or below 0, stands for all such numbers.
    #[must_use]
    pub fn numbered(numbers: impl IntoIterator<Item = i64>) -> Self {
        let mut set = Self::NONE;
        for number in numbers {
            match Self::place(number) {
                Some((word, bit)) => set.bits[word] |= bit,
                None => set.others = true,
            }
        }
        set
    }

    /// The calls of these names, as in the kernel's table: `newfstatat`, not `fstatat`.
    ///
    /// # Errors
    ///
    /// [`UnknownCall`] for a name that no x86-64 call has.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownCall> {
        let mut set = Self::NONE;
        for name in names {
            let number = (0..TABLE_LEN as u32).find(|nr| syscalls::known_name(*nr) == Some(name));
            let number = number.ok_or_else(|| UnknownCall { name: name.to_owned() })?;
            set = set.union(Self::numbered([i64::from(number)]));
        }
        Ok(set)
    }

    /// All calls that take the path of a file: what a file policy has to look at, together with the paths of Unix
    /// sockets ([`CallSet::taking_socket_addresses`]).
    #[must_use]
    pub fn taking_paths() -> Self {
        Self::numbered(syscalls::calls_taking(|parameter| parameter.is_path).map(i64::from))
    }

    /// All calls that take the address of a socket, to bind one, connect it or send to it: what a network policy has to
    /// look at. Each has it in an argument that is [`ArgValue::SocketAddress`](super::ArgValue::SocketAddress) or
    /// [`ArgValue::Messages`](super::ArgValue::Messages).
    #[must_use]
    pub fn taking_socket_addresses() -> Self {
        Self::numbered(syscalls::calls_taking(|parameter| parameter.is_socket_address).map(i64::from))
    }

    /// The calls that are in this set or in the other.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        for (word, more) in self.bits.iter_mut().zip(other.bits) {
            *word |= more;
        }
        self.others |= other.others;
        self
    }

    /// The calls that are in this set and not in the other.
    #[must_use]
    pub fn without(mut self, other: Self) -> Self {
        for (word, less) in self.bits.iter_mut().zip(other.bits) {
            *word &= !less;
        }
        self.others &= !other.others;
        self
    }

    /// Whether the call of that number is in the set.
    #[must_use]
    pub fn contains(&self, number: i64) -> bool {
        match Self::place(number) {
            Some((word, bit)) => self.bits[word] & bit != 0,
            None => self.others,
        }
    }

    /// Whether a call that has arrived is in the set.
    #[inline]
    pub(crate) fn covers(&self, call: &Syscall) -> bool {
        match (call.arch, self.bits.get(call.nr as usize / 64)) {
            (Arch::X86_64, Some(word)) => word >> (call.nr % 64) & 1 != 0,
            _ => self.others,
        }
    }

    fn place(number: i64) -> Option<(usize, u64)> {
        let number = usize::try_from(number).ok().filter(|number| *number < TABLE_LEN)?;
        Some((number / 64, 1 << (number % 64)))
    }
}

impl fmt::Debug for CallSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = f.debug_set();
        for number in (0..TABLE_LEN as u32).filter(|number| self.contains(i64::from(*number))) {
            set.entry(&syscalls::call_name(number));
        }
        if self.others {
            set.entry(&"(others)");
        }
        set.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Entry, GuestAddr};

    fn call(arch: Arch, nr: u32) -> Syscall {
        Syscall { nr, args: [0; 6], ip: GuestAddr::NULL, arch, entry: Entry::Trapped }
    }

    #[test]
    fn numbers_beyond_the_table_and_other_interfaces_are_one_member() {
        let write = CallSet::numbered([libc::SYS_write]);
        assert!(write.covers(&call(Arch::X86_64, 1)));
        assert!(!write.covers(&call(Arch::X86_64, 0)) && !write.covers(&call(Arch::X86_64, 65)));
        assert!(!write.covers(&call(Arch::I386, 1)) && !write.covers(&call(Arch::X86_64, u32::MAX)));
        let others = CallSet::numbered([5000]);
        assert!(others.covers(&call(Arch::I386, 1)) && others.covers(&call(Arch::X86_64, u32::MAX)));
        assert!(!others.covers(&call(Arch::X86_64, 1)) && others.contains(-1));
        assert!(CallSet::ALL.without(write).contains(0) && !CallSet::ALL.without(write).contains(1));
        assert_eq!(format!("{:?}", write.union(others)), r#"{"write", "(others)"}"#);
    }

    #[test]
    fn names_are_the_kernels() {
        assert_eq!(CallSet::named(["openat"]), Ok(CallSet::numbered([libc::SYS_openat])));
        assert_eq!(CallSet::named(["fstatat"]).unwrap_err().name, "fstatat");
    }

    #[test]
    fn calls_that_take_paths_are_found_in_the_table() {
        let set = CallSet::taking_paths();
        for number in
            [libc::SYS_open, libc::SYS_openat2, libc::SYS_execve, libc::SYS_renameat2, libc::SYS_utimensat]
        {
            assert!(set.contains(number), "{number}");
        }
        for number in [libc::SYS_read, libc::SYS_memfd_create, libc::SYS_fgetxattr, libc::SYS_getcwd] {
            assert!(!set.contains(number), "{number}");
        }
    }

    #[test]
    fn calls_that_take_addresses_of_sockets_are_found_in_the_table() {
        let names = ["bind", "connect", "sendmmsg", "sendmsg", "sendto"];
        assert_eq!(CallSet::taking_socket_addresses(), CallSet::named(names).unwrap());
    }
}
