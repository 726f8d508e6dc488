//! The host calls that the supervisor makes while a guest runs, beside the platform's.

use crate::sentry::credentials::Credentials;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use std::collections::{BTreeMap, BTreeSet};

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name),)*] };
}

/// Admitted with all arguments: what of them matters lies in memory, or is the guest's own business. These cost next to
/// nothing, for the kernel keeps a bitmap of calls that a filter admits whatever their arguments (Linux 5.11).
const FREE: &[(&str, i64)] = calls! {
    // Open files.
    SYS_read SYS_write SYS_pread64 SYS_pwrite64 SYS_preadv2 SYS_pwritev2 SYS_readv SYS_writev SYS_lseek SYS_close
    SYS_fstat SYS_fstatfs SYS_getdents64 SYS_getdents SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_fsync
    SYS_fdatasync SYS_syncfs SYS_sync_file_range SYS_sync SYS_fchmod SYS_fchown SYS_fcntl SYS_flock SYS_fgetxattr
    SYS_fsetxattr SYS_flistxattr SYS_fremovexattr SYS_pipe2 SYS_eventfd2 SYS_memfd_create SYS_sendfile SYS_splice SYS_tee
    SYS_copy_file_range SYS_close_range
    // Paths.
    SYS_openat SYS_openat2 SYS_newfstatat SYS_statx SYS_statfs SYS_readlink SYS_readlinkat SYS_faccessat SYS_faccessat2 SYS_mkdirat
    SYS_mknodat SYS_unlinkat SYS_renameat2 SYS_linkat SYS_symlinkat SYS_fchmodat SYS_fchmodat2 SYS_fchownat SYS_utimensat
    SYS_truncate SYS_getxattr SYS_lgetxattr SYS_setxattr SYS_lsetxattr SYS_listxattr SYS_llistxattr SYS_removexattr
    SYS_lremovexattr SYS_umask SYS_fchdir SYS_getcwd
    // Waiting.
    SYS_poll SYS_ppoll SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_wait SYS_epoll_pwait SYS_epoll_pwait2 SYS_futex
    SYS_futex_waitv SYS_sched_yield SYS_restart_syscall SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    // Time.
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_times SYS_timerfd_create
    SYS_timerfd_settime SYS_timerfd_gettime SYS_timer_create SYS_timer_settime SYS_timer_delete
    // Sockets, whose families are fixed when they are made.
    SYS_bind SYS_connect SYS_listen SYS_accept4 SYS_shutdown SYS_getsockname SYS_getpeername SYS_getsockopt
    SYS_setsockopt SYS_sendto SYS_sendmsg SYS_recvfrom SYS_recvmsg
    // Message queues.
    SYS_mq_open SYS_mq_unlink SYS_mq_getsetattr SYS_mq_timedsend SYS_mq_timedreceive
    // Who and what is there.
    SYS_getpid SYS_gettid SYS_getppid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
    SYS_getgroups SYS_getpgid SYS_getsid SYS_getpriority SYS_getrusage SYS_getcpu SYS_uname SYS_sysinfo SYS_getrandom
    SYS_sched_getaffinity SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_kcmp
    SYS_capget
    // Threads that act as somebody else for their guests' file calls; the session and group of a job.
    SYS_setfsuid SYS_setfsgid SYS_setgroups SYS_capset SYS_setpgid SYS_setsid
    // Guest memory. Whose it is no filter can say; the other arguments are not worth what looking at them costs: calls with
    // conditions run the filter, the others are looked up in a bitmap of the kernel's.
    SYS_process_vm_readv SYS_process_vm_writev
    // The C library: memory, threads, signals, the end.
    SYS_brk SYS_munmap SYS_mremap SYS_madvise SYS_set_robust_list SYS_rseq SYS_sigaltstack SYS_rt_sigprocmask
    SYS_rt_sigaction SYS_rt_sigreturn SYS_rt_sigtimedwait SYS_rt_sigpending SYS_exit SYS_exit_group
};

/// Admitted with some arguments; see [`rules`].
const NARROWED: &[(&str, i64)] = calls! {
    SYS_mmap SYS_mprotect SYS_clone SYS_clone3 SYS_unshare SYS_prctl SYS_kill SYS_tgkill SYS_prlimit64 SYS_socket
    SYS_socketpair SYS_ioctl SYS_setresuid SYS_setresgid
};

/// The names of all calls of the list.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FREE.iter().chain(NARROWED).map(|(name, _)| name.strip_prefix("SYS_").unwrap_or(name))
}

/// Conditions on one argument.
enum Test {
    Is(u64),
    IsNot(u64),
    /// None of these bits.
    Without(u64),
    /// Of the first bits exactly the second.
    Has(u64, u64),
}

/// A rule: all conditions have to hold. Everything compared is an `int` to the kernel, but for pointers.
fn rule<const N: usize>(tests: [(u8, Test); N]) -> Vec<SeccompRule> {
    let condition = |(arg, test): (u8, Test)| {
        let (operator, value) = match test {
            Test::Is(value) => (SeccompCmpOp::Eq, value),
            Test::IsNot(value) => (SeccompCmpOp::Ne, value),
            Test::Without(mask) => (SeccompCmpOp::MaskedEq(mask), 0),
            Test::Has(mask, value) => (SeccompCmpOp::MaskedEq(mask), value),
        };
        SeccompCondition::new(arg, SeccompCmpArgLen::Dword, operator, value)
    };
    // Six arguments and eight conditions are what seccompiler takes; none is left out.
    let conditions: Result<Vec<_>, _> = tests.into_iter().map(condition).collect();
    conditions.and_then(SeccompRule::new).into_iter().collect()
}

const fn bits(flags: i32) -> u64 {
    flags as u32 as u64
}

/// What a thread shares with the one that makes it.
const THREAD: u64 = bits(
    libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM,
);
/// `CLONE_NEW*`, and the process that is traced with its maker.
const NAMESPACES: u64 = bits(
    libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_PTRACE,
);
/// A session's keeper (`host/keeper.rs`).
const KEEPER: u64 = bits(libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_PIDFD);
/// What threads are asked and told by prctl(2).
const PRCTL: [i32; 8] = [
    libc::PR_SET_NAME,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_DUMPABLE,
    libc::PR_GET_PDEATHSIG,
    libc::PR_SET_PDEATHSIG,
    libc::PR_CAPBSET_READ,
    libc::PR_GET_SECUREBITS,
    libc::PR_GET_NO_NEW_PRIVS,
];
const NETLINK_SOCK_DIAG: u64 = 4;
const TIOCLINUX: u64 = 0x541c;

/// All rules; no rule for a call admits all arguments.
pub(super) fn rules(with_network: bool) -> BTreeMap<i64, Vec<SeccompRule>> {
    use Test::{Has, Is, IsNot, Without};
    let own = u64::from(std::process::id());
    let executable = bits(libc::PROT_EXEC);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FREE.iter().map(|(_, nr)| (*nr, Vec::new())).collect();
    let mut add = |nr: i64, more: Vec<SeccompRule>| rules.entry(nr).or_default().extend(more);
    add(libc::SYS_mmap, rule([(2, Without(executable))]));
    add(libc::SYS_mprotect, rule([(2, Without(executable))]));
    add(libc::SYS_clone, rule([(0, Has(THREAD | NAMESPACES, THREAD))]));
    add(libc::SYS_clone, rule([(0, Is(KEEPER))]));
    // Where a thread has a working directory and mask of its own.
    add(libc::SYS_unshare, rule([(0, Is(bits(libc::CLONE_FS)))]));
    for option in PRCTL {
        add(libc::SYS_prctl, rule([(0, Is(bits(option)))]));
    }
    let ambient = bits(libc::PR_CAP_AMBIENT_IS_SET);
    add(libc::SYS_prctl, rule([(0, Is(bits(libc::PR_CAP_AMBIENT))), (1, Is(ambient))]));
    // Whether there is a process of some id, and signals to itself: to die of, or to stop by.
    add(libc::SYS_kill, rule([(1, Is(0))]));
    add(libc::SYS_kill, rule([(0, Is(own))]));
    add(libc::SYS_tgkill, rule([(0, Is(own))]));
    // Limits are looked at; a core dump is kept from being made.
    add(libc::SYS_prlimit64, rule([(2, Is(0))]));
    add(libc::SYS_prlimit64, rule([(0, Is(0)), (1, Is(u64::from(libc::RLIMIT_CORE)))]));
    // Threads that are seen as somebody else through a socket: only such that there is a way back.
    let supervisor = Credentials::of_supervisor();
    for (nr, ids) in [(libc::SYS_setresuid, supervisor.user), (libc::SYS_setresgid, supervisor.group)] {
        for saved in BTreeSet::from([ids.effective, ids.saved]) {
            add(nr, rule([(2, Is(saved.into()))]));
        }
    }
    let diagnosis = [(0, Is(bits(libc::AF_NETLINK))), (2, Is(NETLINK_SOCK_DIAG))];
    add(libc::SYS_socket, rule(diagnosis));
    let others = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK];
    for family in [libc::AF_UNIX].into_iter().chain(others.into_iter().filter(|_| with_network)) {
        add(libc::SYS_socket, rule([(0, Is(bits(family)))]));
        add(libc::SYS_socketpair, rule([(0, Is(bits(family)))]));
    }
    // Typing for somebody else, and the console.
    add(libc::SYS_ioctl, rule([(1, IsNot(libc::TIOCSTI)), (1, IsNot(TIOCLINUX))]));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Names of calls in a source file.
    fn named_in(path: &Path) -> BTreeSet<String> {
        let source = std::fs::read_to_string(path).unwrap();
        let pieces = source.split("SYS_").skip(1);
        let end =
            |piece: &str| piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len());
        pieces.map(|piece| piece[..end(piece)].to_owned()).filter(|name| !name.is_empty()).collect()
    }

    #[test]
    fn every_host_call_that_the_sentry_and_the_platform_can_make_is_on_a_list() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let platform = crate::Systrap::new(crate::Options::new()).unwrap();
        let rows = crate::seccomp::supervisor_rows(&platform);
        let known: BTreeSet<&str> = names().chain(rows.iter().map(|row| row.name)).collect();
        let mut files: Vec<_> = std::fs::read_dir(source.join("sentry/host"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.push(source.join("sys.rs"));
        let mut calls = 0;
        for file in files {
            for name in named_in(&file) {
                calls += 1;
                assert!(
                    known.contains(name.as_str()),
                    "{}: {name} is on no list: {}",
                    file.display(),
                    file!()
                );
            }
        }
        assert!(calls > 150, "only {calls} calls were found");
    }

    #[test]
    fn what_would_make_the_list_worthless_is_not_on_it() {
        let rules = rules(true);
        for nr in [
            libc::SYS_ptrace,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsmount,
            libc::SYS_open_tree,
            libc::SYS_mount_setattr,
            libc::SYS_setns,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_reboot,
            libc::SYS_acct,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_adjtimex,
            libc::SYS_iopl,
            libc::SYS_ioperm,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_quotactl,
            libc::SYS_syslog,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_seccomp,
            libc::SYS_personality,
            libc::SYS_setuid,
            libc::SYS_setreuid,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_madvise,
            libc::SYS_pkey_mprotect,
            libc::SYS_modify_ldt,
            libc::SYS_tkill,
            libc::SYS_rt_sigqueueinfo,
        ] {
            assert!(!rules.contains_key(&nr), "call {nr}");
        }
        // And these only with arguments.
        for (name, nr) in NARROWED.iter().filter(|(_, nr)| *nr != libc::SYS_clone3) {
            assert!(rules.get(nr).is_some_and(|rules| !rules.is_empty()), "{name}");
        }
    }
}
