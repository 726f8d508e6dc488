//! The errors of the platform. What a guest does is an [`Event`](crate::Event), not an error.

use std::io;

use crate::GuestAddr;

use systrap_stub::code::leader::exit_code;

/// A failure to set up or to reach the platform's own resources.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host lacks something that the platform cannot do without.
    #[error("this host lacks {what}: {remedy}")]
    Unsupported {
        /// What is missing.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A host call of the supervisor failed.
    #[error("{what}: {source}{remedy}")]
    Host {
        /// What was tried, on what.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
        /// What to do about it, or empty.
        remedy: &'static str,
    },
    /// The stub process ended; its address space is gone.
    #[error("the stub process ended ({how})")]
    StubDied {
        /// How it ended, as far as known.
        how: StubExit,
    },
    /// The template stub process ended: existing address spaces go on and can be forked.
    #[error("the template stub process ended ({how}): new address spaces need a new Systrap")]
    TemplateDied {
        /// How it ended, as far as known.
        how: StubExit,
    },
    /// The stub process did not answer within the stated time and was killed.
    #[error("the stub process did not answer within {seconds} s and was killed")]
    StubSilent {
        /// The time that it had, in seconds.
        seconds: u64,
    },
    /// A host call that the stub process made for the supervisor failed.
    #[error("{what} in the stub process: {source}{remedy}")]
    Stub {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
        /// What to do about it, or empty.
        remedy: &'static str,
    },
    /// A limit of the platform is reached.
    #[error("too many {what}: the limit is {limit}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there can be.
        limit: u64,
    },
    /// A call number that the stub cannot answer by itself.
    #[error("call number {nr} cannot be answered in the stub: its table ends at {limit}")]
    NotAnswerable {
        /// The number.
        nr: u32,
        /// The first number that is too large.
        limit: u32,
    },
    /// The stub's code is not where it should be: the program was linked in a way the platform cannot work with.
    #[error(
        "the stub's code was dropped or moved by the linker; do not strip or reorder the section systrap_stub"
    )]
    StubCodeMissing,
    /// An address space and a context of different platforms were used together.
    #[error("the address space belongs to another Systrap")]
    ForeignAddressSpace,
}

impl Error {
    /// Says what the host lacks if the template gave up while it set itself up.
    pub(crate) fn of_template(self) -> Self {
        let Self::StubDied { how } = self else { return self };
        let code = match how {
            StubExit::Code(code) => code,
            StubExit::Signal(libc::SIGSYS) => {
                return Self::Unsupported {
                    what: "a call that sets up a stub process: a seccomp filter killed it",
                    remedy: "install the program's own filter after Systrap::new, or permit the calls of ARCHITECTURE.md",
                };
            }
            _ => return self,
        };
        let (what, remedy) = match code {
            exit_code::SECCOMP => (
                "seccomp filters for unprivileged processes (no_new_privs, capset, seccomp)",
                "use a kernel with CONFIG_SECCOMP_FILTER; in a container, a profile that permits these calls",
            ),
            exit_code::MAP => (
                "room for a stub process's mappings (about 300 MiB of addresses, no memory)",
                "raise the limit of address space: `ulimit -v`",
            ),
            exit_code::PDEATHSIG => {
                ("prctl(PR_SET_PDEATHSIG)", "permit it in the container's seccomp profile")
            }
            exit_code::DONTFORK => ("madvise(MADV_DONTFORK)", "permit it in the container's seccomp profile"),
            exit_code::CPUID => {
                ("CPUID faulting", "use a CPU that has it (cpuid_fault in /proc/cpuinfo), or do without")
            }
            exit_code::UNMAP => ("munmap or rseq", "permit them in the container's seccomp profile"),
            _ => return self,
        };
        Self::Unsupported { what, remedy }
    }

    pub(crate) fn last_host(what: &'static str) -> Self {
        Self::host(what, io::Error::last_os_error())
    }

    pub(crate) fn host(what: &'static str, source: io::Error) -> Self {
        let remedy = remedy_for(&source);
        Self::Host { what, source, remedy }
    }

    pub(crate) fn stub(what: &'static str, errno: i32) -> Self {
        let source = io::Error::from_raw_os_error(errno);
        let remedy = remedy_for(&source);
        Self::Stub { what, source, remedy }
    }
}

/// What a person can do about an errno of resource exhaustion or refusal.
fn remedy_for(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            " (is a process limit reached? see `ulimit -u` and the pids limit of the cgroup)"
        }
        Some(libc::EMFILE) => " (raise the limit of open files: `ulimit -n`)",
        Some(libc::ENFILE) => " (the host's table of open files is full: see fs.file-max)",
        Some(libc::ENOMEM) => {
            " (memory or address space is short: see `ulimit -v` and the cgroup's memory limit)"
        }
        Some(libc::ENOSYS) => {
            " (the kernel is too old or a seccomp filter denies the call; Linux 5.16 is needed)"
        }
        Some(libc::EPERM | libc::EACCES) => {
            " (denied: does a container's seccomp profile or security module forbid it?)"
        }
        _ => "",
    }
}

/// How a stub process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StubExit {
    /// It has not been reaped yet, or somebody else reaped it.
    Unknown,
    /// It exited with this code (see `systrap_stub::code::leader::exit_code`).
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl std::fmt::Display for StubExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("cause unknown"),
            Self::Code(code) => match code_meaning(*code) {
                Some(meaning) => write!(f, "exit code {code}: {meaning}"),
                None => write!(f, "exit code {code}"),
            },
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// What a stub process says with its exit code when it gives up.
fn code_meaning(code: i32) -> Option<&'static str> {
    Some(match code {
        exit_code::ORPHAN => "its supervisor was gone",
        exit_code::PDEATHSIG => "prctl(PR_SET_PDEATHSIG) failed",
        exit_code::MAP => "a shared area could not be mapped; see `ulimit -v`",
        exit_code::DONTFORK => "madvise(MADV_DONTFORK) failed",
        exit_code::SECCOMP => "a seccomp filter could not be installed",
        exit_code::UNMAP => "the supervisor's memory could not be unmapped",
        exit_code::THREAD => "a stub thread could not set its signal stack or mask",
        exit_code::CPUID => "there is no CPUID faulting",
        exit_code::BAD_REPLY => "a stub thread found a reply that no supervisor writes",
        _ => return None,
    })
}

/// Why [`Context::switch`](crate::Context::switch) could not run the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The stub process is gone. The address space is lost; so is the context's state unless it was pulled
    /// since the last event.
    #[error("the stub process ended ({how})")]
    StubDied {
        /// How it ended, as far as known.
        how: StubExit,
    },
    /// The stub process broke the protocol (only a hostile guest can do that) and was killed.
    #[error("the stub process broke the protocol and was killed: {what}")]
    StubCorrupted {
        /// What it did.
        what: &'static str,
    },
    /// The state to run is not one that the host can load (a non-canonical address, for example).
    #[error("the guest's state cannot be loaded: {what}")]
    BadState {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The platform failed.
    #[error(transparent)]
    Platform(Error),
}

impl From<Error> for SwitchError {
    fn from(error: Error) -> Self {
        match error {
            // One cause, one variant, wherever in a switch it was noticed.
            Error::StubDied { how } => Self::StubDied { how },
            error => Self::Platform(error),
        }
    }
}

/// Why a change of a guest's mappings failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The range is not page-aligned, empty, or reaches beyond what a guest may map.
    #[error("{addr:#x}+{len_bytes:#x} is not a page-aligned range below {limit:#x}")]
    BadRange {
        /// Its first address.
        addr: GuestAddr,
        /// Its length in bytes.
        len_bytes: u64,
        /// The first address that a guest cannot map.
        limit: GuestAddr,
    },
    /// The host refused.
    #[error("{what} at {addr:#x}+{len_bytes:#x}: {source}")]
    Refused {
        /// The call.
        what: &'static str,
        /// First address of the range.
        addr: GuestAddr,
        /// Length of the range in bytes.
        len_bytes: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// The platform failed.
    #[error(transparent)]
    Platform(#[from] Error),
}

impl MapError {
    /// The errno that a guest should see: `EINVAL`, the host's own, or `ENOMEM` if the stub process is gone.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::BadRange { .. } => libc::EINVAL,
            Self::Refused { source, .. } => source.raw_os_error().unwrap_or(libc::ENOMEM),
            Self::Platform(_) => libc::ENOMEM,
        }
    }
}

/// A copy to or from guest memory stopped at an address that cannot be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the copy stopped after {copied} bytes")]
pub struct CopyError {
    /// How many bytes were copied before that.
    pub copied: usize,
}
