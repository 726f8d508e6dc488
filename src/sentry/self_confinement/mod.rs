//! The supervisor under a filter of its own.
//!
//! What a guest can make the supervisor do is decided by the sentry's code. The filter is for the day on which that code
//! has a defect: the process that a hostile guest might then steer cannot start programs, load code, trace others, mount,
//! change namespaces, load modules or BPF, and so on. [`list`] has what it can do.
//!
//! A call that is not on the list raises SIGSYS and is not made (`SECCOMP_RET_TRAP`). An error instead of that could
//! turn a call that somebody forgot into wrong results for a guest; killing at once would leave nobody to say which call
//! it was. A handler says so, and the process dies of the signal; its stub processes die with it.
//!
//! `clone3` says `ENOSYS`, so that the C library makes threads by `clone`, whose flags a filter can see.

mod list;

use crate::Systrap;
use crate::seccomp::{Ruling, assemble_by_number};
use crate::sentry::host;
use std::collections::BTreeMap;

/// A seccomp filter for the process that runs a guest ([`Guest::supervisor_filter`](super::Guest::supervisor_filter)).
///
/// It admits the host calls of the platform and the sentry, and what the standard library and the C library need for
/// memory, threads, files and errors. [`calls`](Self::calls) lists them.
/// Arguments are fixed where that means something: no memory that can be executed, threads but no processes, no
/// namespaces, signals to this process and to stub processes only, families of sockets (with [`Network::None`] Unix
/// sockets and the host's socket diagnosis only). Not to be narrowed by a filter, which sees no memory: which files are
/// opened and for what, and whose memory process_vm_readv(2) and process_vm_writev(2) name; the latter are what the
/// host's ptrace rules allow.
///
/// What else the embedding program does from then on, in hooks, in other threads, after the guest has ended, has to be
/// added by [`allow`](Self::allow). It needs its [`Systrap`] before: a process under this filter makes no further one,
/// and so runs no further guest. Any other call is SIGSYS: unless the program has a handler for it, one is installed that
/// says the call's name on standard error before the process dies.
///
/// [`Network::None`]: super::Network::None
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SupervisorFilter {
    more: Vec<i64>,
}

impl SupervisorFilter {
    /// The filter with nothing added.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Admits one more host call (`libc::SYS_…`), with all arguments.
    #[must_use]
    pub fn allow(mut self, nr: i64) -> Self {
        self.more.push(nr);
        self
    }

    /// Whether a call was added, with all arguments.
    pub(super) fn admits(&self, nr: i64) -> bool {
        self.more.contains(&nr)
    }

    /// The names of the host calls that the sentry has on its list; the platform's are
    /// [`supervisor_rows`](crate::seccomp::supervisor_rows).
    pub fn calls() -> impl Iterator<Item = &'static str> {
        list::names()
    }

    /// Confines all threads of this process, for good.
    pub(super) fn install(&self, platform: &Systrap, with_network: bool) -> Result<(), String> {
        host::report_forbidden_calls().map_err(|errno| errno.message().to_owned())?;
        let mut rules = platform.syscall_filters();
        for (nr, mut more) in list::rules(with_network) {
            match rules.get_mut(&nr) {
                // No rules at all admit all arguments.
                Some(known) if known.is_empty() => {}
                Some(known) if more.is_empty() => known.clear(),
                Some(known) => known.append(&mut more),
                None => drop(rules.insert(nr, more)),
            }
        }
        for nr in &self.more {
            rules.insert(*nr, Vec::new());
        }
        let mut rulings: BTreeMap<_, _> =
            rules.into_iter().map(|(nr, rules)| (nr, Ruling::Admit(rules))).collect();
        rulings.insert(libc::SYS_clone3, Ruling::Fail(libc::ENOSYS as u16));
        let program = assemble_by_number(rulings).map_err(|error| error.to_string())?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
    }
}
