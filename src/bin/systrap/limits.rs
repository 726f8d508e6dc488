//! Options of `systrap run` that say what the guest is given and how far it may go.

use crate::values::{self, User, Variable};
use clap::{Args, ValueHint};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;
use systrap::sentry::{Guest, Network, SupervisorFilter};

/// Options of `systrap run` that say what the guest is given and how far it may go.
#[derive(Debug, Args)]
pub struct LimitArguments {
    /// Set an environment variable, or with NAME alone pass the value that it has here
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = values::variable(), help_heading = "Environment")]
    pub env: Vec<Variable>,

    /// Start with an empty environment instead of this one; --env adds to it
    #[arg(long, help_heading = "Environment")]
    pub clear_env: bool,

    /// Start the program in DIR; a relative PROGRAM is looked up there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Environment")]
    pub chdir: Option<PathBuf>,

    /// Run as this user and group, by number, without other groups
    ///
    /// Files are opened with these ids. GID is the same number as UID unless given. Only root can be somebody else.
    #[arg(long, value_name = "UID[:GID]", value_parser = values::user, help_heading = "Environment")]
    pub user: Option<User>,

    /// End the guest after DURATION: 10, 500ms, 2s, 5m, 1h
    ///
    /// All its processes are sent SIGTERM and SIGCONT, and killed if they are still there after --kill-after. The exit
    /// status is 124.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, help_heading = "Limits")]
    pub timeout: Option<Duration>,

    /// How long processes may take to end when the time is up
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "5s", help_heading = "Limits")]
    pub kill_after: Duration,

    /// Memory that each process may map: bytes, or with K, M, G, T (1024s)
    ///
    /// Calls that would map more fail with ENOMEM. It is RLIMIT_AS, which the guest cannot raise, and shows in
    /// /proc/meminfo. Files in memory (memfd_create, /dev/shm) count where they are mapped only.
    #[arg(long, value_name = "SIZE", value_parser = values::size, help_heading = "Limits")]
    pub memory: Option<u64>,

    /// Processes and threads that the guest may have at a time; more fail with EAGAIN
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub processes: Option<u32>,

    /// No network: only Unix sockets between processes of the guest
    ///
    /// Other sockets fail with EAFNOSUPPORT, as on a kernel built without them. Unix sockets of the host refuse
    /// connections (ECONNREFUSED); what the guest binds cannot be reached from outside. Sockets that it is started with,
    /// as standard input for example, can be read and written, and are otherwise refused (EACCES).
    #[arg(long, help_heading = "Limits")]
    pub no_net: bool,

    /// Do not confine systrap itself by a seccomp filter
    ///
    /// While a guest runs, systrap admits itself the host calls that serving it needs and no others; one that is not on
    /// the list ends it with a message. This turns that off.
    #[arg(long, help_heading = "Limits")]
    pub no_supervisor_filter: bool,
}

impl LimitArguments {
    /// The guest's environment.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut variables: Vec<(OsString, OsString)> = match self.clear_env {
            true => Vec::new(),
            false => std::env::vars_os().collect(),
        };
        for Variable { name, value } in &self.env {
            let Some(value) = value.clone().or_else(|| std::env::var_os(name)) else { continue };
            match variables.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = value,
                None => variables.push((name.clone(), value)),
            }
        }
        variables
    }

    /// Applies the options to a guest.
    pub fn apply(&self, mut guest: Guest) -> Result<Guest, String> {
        let variables = self.environment().into_iter().map(|(name, value)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
                .map_err(|_| format!("zero byte in the variable {}", name.to_string_lossy()))
        });
        guest = guest.env(variables.collect::<Result<Vec<_>, _>>()?).kill_after(self.kill_after);
        if let Some(directory) = &self.chdir {
            let path = CString::new(directory.clone().into_os_string().into_vec());
            guest = guest.working_directory(path.map_err(|_| "zero byte in a directory's name".to_owned())?);
        }
        if let Some(limit) = self.timeout {
            guest = guest.timeout(limit);
        }
        if let Some(bytes) = self.memory {
            guest = guest.memory_limit(bytes);
        }
        if let Some(tasks) = self.processes {
            guest = guest.process_limit(tasks as usize);
        }
        if let Some(User { uid, gid }) = self.user {
            guest = guest.user(uid, gid);
        }
        if self.no_net {
            guest = guest.network(Network::None);
        }
        if !self.no_supervisor_filter {
            guest = guest.supervisor_filter(SupervisorFilter::default());
        }
        Ok(guest)
    }
}
