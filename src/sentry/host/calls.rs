//! The list of host calls.

use super::{
    AddressBuffer, Argument, Attention, EPOLL_EVENT, Errno, Events, OptionBuffer, Words, owned, raw,
};
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

type Fd<'a> = BorrowedFd<'a>;

macro_rules! host_calls {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) = $nr:ident;)*) => {$(
        #[doc = concat!("`", stringify!($nr), "`, see its manual page.")]
        #[inline]
        pub(crate) fn $name($($arg: $ty),*) -> Result<usize, Errno> {
            #[allow(unused_mut, reason = "a call may have no arguments")]
            let mut words = Words::default();
            $($arg.push_to(&mut words);)*
            // SAFETY: the argument types of this line fit the call, see the module's chapter.
            unsafe { raw(libc::$nr, &words) }
        }
    )*};
}

/// The same for calls that may block and that a signal for the guest interrupts.
macro_rules! waiting_calls {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) = $nr:ident;)*) => {$(
        #[doc = concat!("`", stringify!($nr), "`, interruptible through `attention`.")]
        #[inline]
        pub(crate) fn $name(attention: &Attention, $($arg: $ty),*) -> Result<usize, Errno> {
            let mut words = Words::default();
            $($arg.push_to(&mut words);)*
            // SAFETY: the argument types of this line fit the call, see the module's chapter.
            unsafe { super::interruptible::wait(attention, libc::$nr, &words) }
        }
    )*};
}

host_calls! {
    // Files that are open.
    read(fd: Fd<'_>, buf: &mut [u8]) = SYS_read;
    write(fd: Fd<'_>, buf: &[u8]) = SYS_write;
    pread64(fd: Fd<'_>, buf: &mut [u8], offset: i64) = SYS_pread64;
    pwrite64(fd: Fd<'_>, buf: &[u8], offset: i64) = SYS_pwrite64;
    lseek(fd: Fd<'_>, offset: i64, whence: i32) = SYS_lseek;
    fstat(fd: Fd<'_>, stat: &mut [u8; 144]) = SYS_fstat;
    fstatfs(fd: Fd<'_>, statfs: &mut [u8; 120]) = SYS_fstatfs;
    getdents64(fd: Fd<'_>, buf: &mut [u8]) = SYS_getdents64;
    getdents(fd: Fd<'_>, buf: &mut [u8]) = SYS_getdents;
    ftruncate(fd: Fd<'_>, length: i64) = SYS_ftruncate;
    fallocate(fd: Fd<'_>, mode: i32, offset: i64, length: i64) = SYS_fallocate;
    fadvise64(fd: Fd<'_>, offset: i64, length: i64, advice: i32) = SYS_fadvise64;
    readahead(fd: Fd<'_>, offset: i64, count: usize) = SYS_readahead;
    fsync(fd: Fd<'_>) = SYS_fsync;
    fdatasync(fd: Fd<'_>) = SYS_fdatasync;
    syncfs(fd: Fd<'_>) = SYS_syncfs;
    sync_file_range(fd: Fd<'_>, offset: i64, length: i64, flags: u32) = SYS_sync_file_range;
    sync() = SYS_sync;
    fchmod(fd: Fd<'_>, mode: u32) = SYS_fchmod;
    fchown(fd: Fd<'_>, uid: u32, gid: u32) = SYS_fchown;
    fcntl(fd: Fd<'_>, command: i32, number: u64) = SYS_fcntl;
    fcntl_lock(fd: Fd<'_>, command: i32, lock: &mut [u8; 32]) = SYS_fcntl;
    flock(fd: Fd<'_>, operation: i32) = SYS_flock;
    ioctl_number(fd: Fd<'_>, command: u32, number: u64) = SYS_ioctl;
    ioctl_bytes(fd: Fd<'_>, command: u32, bytes: &mut [u8; 256]) = SYS_ioctl;
    fgetxattr(fd: Fd<'_>, name: &CStr, value: &mut [u8]) = SYS_fgetxattr;
    fsetxattr(fd: Fd<'_>, name: &CStr, value: &[u8], flags: i32) = SYS_fsetxattr;
    flistxattr(fd: Fd<'_>, list: &mut [u8]) = SYS_flistxattr;
    fremovexattr(fd: Fd<'_>, name: &CStr) = SYS_fremovexattr;

    // Paths.
    newfstatat(dir: Fd<'_>, path: &CStr, stat: &mut [u8; 144], flags: i32) = SYS_newfstatat;
    statx(dir: Fd<'_>, path: &CStr, flags: i32, mask: u32, statx: &mut [u8; 256]) = SYS_statx;
    statfs(path: &CStr, statfs: &mut [u8; 120]) = SYS_statfs;
    readlinkat(dir: Fd<'_>, path: &CStr, buf: &mut [u8]) = SYS_readlinkat;
    faccessat(dir: Fd<'_>, path: &CStr, mode: u32) = SYS_faccessat;
    faccessat2(dir: Fd<'_>, path: &CStr, mode: u32, flags: i32) = SYS_faccessat2;
    mkdirat(dir: Fd<'_>, path: &CStr, mode: u32) = SYS_mkdirat;
    mknodat(dir: Fd<'_>, path: &CStr, mode: u32, device: u32) = SYS_mknodat;
    unlinkat(dir: Fd<'_>, path: &CStr, flags: i32) = SYS_unlinkat;
    renameat2(old: Fd<'_>, from: &CStr, new: Fd<'_>, to: &CStr, flags: u32) = SYS_renameat2;
    linkat(old: Fd<'_>, from: &CStr, new: Fd<'_>, to: &CStr, flags: i32) = SYS_linkat;
    symlinkat(target: &CStr, dir: Fd<'_>, path: &CStr) = SYS_symlinkat;
    fchmodat(dir: Fd<'_>, path: &CStr, mode: u32) = SYS_fchmodat;
    fchmodat2(dir: Fd<'_>, path: &CStr, mode: u32, flags: i32) = SYS_fchmodat2;
    fchownat(dir: Fd<'_>, path: &CStr, uid: u32, gid: u32, flags: i32) = SYS_fchownat;
    utimensat(dir: Fd<'_>, path: Option<&CStr>, times: Option<&[u8; 32]>, flags: i32) = SYS_utimensat;
    truncate(path: &CStr, length: i64) = SYS_truncate;
    getxattr(path: &CStr, name: &CStr, value: &mut [u8]) = SYS_getxattr;
    lgetxattr(path: &CStr, name: &CStr, value: &mut [u8]) = SYS_lgetxattr;
    setxattr(path: &CStr, name: &CStr, value: &[u8], flags: i32) = SYS_setxattr;
    lsetxattr(path: &CStr, name: &CStr, value: &[u8], flags: i32) = SYS_lsetxattr;
    listxattr(path: &CStr, list: &mut [u8]) = SYS_listxattr;
    llistxattr(path: &CStr, list: &mut [u8]) = SYS_llistxattr;
    removexattr(path: &CStr, name: &CStr) = SYS_removexattr;
    lremovexattr(path: &CStr, name: &CStr) = SYS_lremovexattr;

    // Time.
    clock_gettime(clock: i32, time: &mut [u8; 16]) = SYS_clock_gettime;
    clock_getres(clock: i32, time: Option<&mut [u8; 16]>) = SYS_clock_getres;
    timerfd_settime(fd: Fd<'_>, flags: i32, new: &[u8; 32], old: Option<&mut [u8; 32]>) = SYS_timerfd_settime;
    timerfd_gettime(fd: Fd<'_>, value: &mut [u8; 32]) = SYS_timerfd_gettime;
    times(tms: &mut [u8; 32]) = SYS_times;

    // The process and the machine.
    gettid_word() = SYS_gettid;
    getppid() = SYS_getppid;
    getresuid(real: &mut [u32; 1], effective: &mut [u32; 1], saved: &mut [u32; 1]) = SYS_getresuid;
    getresgid(real: &mut [u32; 1], effective: &mut [u32; 1], saved: &mut [u32; 1]) = SYS_getresgid;
    getpgid(pid: i32) = SYS_getpgid;
    getsid(pid: i32) = SYS_getsid;
    setpgid(pid: i32, group: i32) = SYS_setpgid;
    kill(pid: i32, signo: i32) = SYS_kill;
    uname(utsname: &mut [u8; 390]) = SYS_uname;
    sysinfo(info: &mut [u8; 112]) = SYS_sysinfo;
    getrandom(buf: &mut [u8], flags: u32) = SYS_getrandom;
    prlimit64(pid: i32, which: u32, new: Option<&[u8; 16]>, old: Option<&mut [u8; 16]>) = SYS_prlimit64;
    sched_getaffinity(pid: i32, size: usize, mask: &mut [u8; 1024]) = SYS_sched_getaffinity;
    sched_get_priority_max(policy: i32) = SYS_sched_get_priority_max;
    sched_get_priority_min(policy: i32) = SYS_sched_get_priority_min;
    sched_rr_get_interval(pid: i32, time: &mut [u8; 16]) = SYS_sched_rr_get_interval;
    sched_yield() = SYS_sched_yield;
    getpriority(which: i32, who: i32) = SYS_getpriority;
    getcpu(cpu: &mut [u32; 1], node: &mut [u32; 1]) = SYS_getcpu;
    geteuid() = SYS_geteuid;
    getegid() = SYS_getegid;
    umask(mask: u32) = SYS_umask;
    fchdir(dir: Fd<'_>) = SYS_fchdir;
    unshare(flags: i32) = SYS_unshare;
    epoll_ctl(epoll: Fd<'_>, operation: i32, fd: Fd<'_>, event: &mut [u8; EPOLL_EVENT]) = SYS_epoll_ctl;
    epoll_pwait2(epoll: Fd<'_>, events: Events<'_>, timeout: Option<&[u8; 16]>, mask: usize) = SYS_epoll_pwait2;
    poll_now(fds: &mut [libc::pollfd], timeout_ms: i32) = SYS_poll;

    // Sockets. A `sockaddr` passes as bytes; the values of options are such as hold no addresses.
    bind(fd: Fd<'_>, address: &[u8]) = SYS_bind;
    connect_now(fd: Fd<'_>, address: &[u8]) = SYS_connect;
    listen(fd: Fd<'_>, backlog: i32) = SYS_listen;
    shutdown(fd: Fd<'_>, how: i32) = SYS_shutdown;
    getsockname(fd: Fd<'_>, address: &mut AddressBuffer) = SYS_getsockname;
    getpeername(fd: Fd<'_>, address: &mut AddressBuffer) = SYS_getpeername;
    getsockopt(fd: Fd<'_>, level: i32, name: i32, value: &mut OptionBuffer) = SYS_getsockopt;
    setsockopt(fd: Fd<'_>, level: i32, name: i32, value: &[u8]) = SYS_setsockopt;
    sendto(fd: Fd<'_>, data: &[u8], flags: i32, address: Option<&[u8]>) = SYS_sendto;
    recvfrom(fd: Fd<'_>, data: &mut [u8], flags: i32, address: Option<&mut AddressBuffer>) = SYS_recvfrom;

    // Message queues.
    mq_unlink(name: &CStr) = SYS_mq_unlink;
    mq_getsetattr(fd: Fd<'_>, new: Option<&[u8; 64]>, old: Option<&mut [u8; 64]>) = SYS_mq_getsetattr;

    // Watches of files.
    inotify_add_watch(fd: Fd<'_>, path: &CStr, mask: u32) = SYS_inotify_add_watch;
    inotify_rm_watch(fd: Fd<'_>, watch: i32) = SYS_inotify_rm_watch;
}

waiting_calls! {
    wait_read(fd: Fd<'_>, buf: &mut [u8]) = SYS_read;
    wait_write(fd: Fd<'_>, buf: &[u8]) = SYS_write;
    wait_sendto(fd: Fd<'_>, data: &[u8], flags: i32, address: Option<&[u8]>) = SYS_sendto;
    wait_recvfrom(fd: Fd<'_>, data: &mut [u8], flags: i32, address: Option<&mut AddressBuffer>) = SYS_recvfrom;
    wait_connect(fd: Fd<'_>, address: &[u8]) = SYS_connect;
    wait_mq_timedsend(fd: Fd<'_>, message: &[u8], priority: u32, timeout: Option<&[u8; 16]>) = SYS_mq_timedsend;
    wait_mq_timedreceive(
        fd: Fd<'_>, message: &mut [u8], priority: &mut [u32; 1], timeout: Option<&[u8; 16]>,
    ) = SYS_mq_timedreceive;
    wait_accept4_number(fd: Fd<'_>, address: Option<&mut AddressBuffer>, flags: i32) = SYS_accept4;
    wait_ppoll(fds: &mut [libc::pollfd], timeout: Option<&mut [u8; 16]>, mask: usize) = SYS_ppoll;
    wait_epoll(epoll: Fd<'_>, events: Events<'_>, timeout: Option<&[u8; 16]>, mask: usize) = SYS_epoll_pwait2;
    wait_nanosleep(clock: i32, flags: i32, request: &[u8; 16], remaining: Option<&mut [u8; 16]>) = SYS_clock_nanosleep;
    wait_ioctl_number(fd: Fd<'_>, command: u32, number: u64) = SYS_ioctl;
    wait_ioctl_bytes(fd: Fd<'_>, command: u32, bytes: &mut [u8; 256]) = SYS_ioctl;
    wait_flock(fd: Fd<'_>, operation: i32) = SYS_flock;
    wait_fcntl_lock(fd: Fd<'_>, command: i32, lock: &mut [u8; 32]) = SYS_fcntl;
    wait_openat(dir: Fd<'_>, path: &CStr, flags: i32, mode: u32) = SYS_openat;
    wait_sendfile(out: Fd<'_>, input: Fd<'_>, offset: Option<&mut [u8; 8]>, count: usize) = SYS_sendfile;
    wait_splice(
        input: Fd<'_>, from: Option<&mut [u8; 8]>, out: Fd<'_>, to: Option<&mut [u8; 8]>, length: usize, flags: u32,
    ) = SYS_splice;
    wait_tee(input: Fd<'_>, out: Fd<'_>, length: usize, flags: u32) = SYS_tee;
    wait_copy_file_range(
        input: Fd<'_>, from: Option<&mut [u8; 8]>, out: Fd<'_>, to: Option<&mut [u8; 8]>, length: usize, flags: u32,
    ) = SYS_copy_file_range;
}

/// The processor time that the calling thread has used, in nanoseconds.
pub(crate) fn thread_time_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds since the host started.
pub(crate) fn boot_time_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// The processor time that a thread of this process has used, in nanoseconds; 0 if there is none of that id.
pub(crate) fn thread_time_ns_of(tid: i32) -> u64 {
    const CPUCLOCK_PERTHREAD_SCHED: i32 = 4 | 2;
    clock_ns(!tid << 3 | CPUCLOCK_PERTHREAD_SCHED)
}

/// The processor time that a process has used, in nanoseconds; 0 if there is none of that id.
///
/// The clock of another process: `MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)`, include/linux/posix-timers.h.
pub(crate) fn process_time_ns(pid: i32) -> u64 {
    const CPUCLOCK_SCHED: i32 = 2;
    clock_ns(!pid << 3 | CPUCLOCK_SCHED)
}

fn clock_ns(clock: i32) -> u64 {
    let mut time = [0; 16];
    if clock_gettime(clock, &mut time).is_err() {
        return 0;
    }
    let time = crate::sentry::abi::Timespec::from_array(time);
    (time.sec as u64).saturating_mul(1_000_000_000).saturating_add(time.nsec as u64)
}

/// The caller's thread id.
pub(crate) fn gettid() -> i32 {
    gettid_word().unwrap_or_default() as i32
}

macro_rules! opening_calls {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) = $nr:ident;)*) => {$(
        #[doc = concat!("`", stringify!($nr), "`, see its manual page.")]
        pub(crate) fn $name($($arg: $ty),*) -> Result<OwnedFd, Errno> {
            let mut words = Words::default();
            $($arg.push_to(&mut words);)*
            // SAFETY: the argument types of this line fit the call, see the module's chapter.
            unsafe { raw(libc::$nr, &words) }.map(owned)
        }
    )*};
}

opening_calls! {
    openat(dir: Fd<'_>, path: &CStr, flags: i32, mode: u32) = SYS_openat;
    dup_cloexec(fd: Fd<'_>, command: i32, minimum: i32) = SYS_fcntl;
    open_by_ioctl(fd: Fd<'_>, command: u32, flags: i32) = SYS_ioctl;
    eventfd2(initial: u32, flags: i32) = SYS_eventfd2;
    epoll_create1(flags: i32) = SYS_epoll_create1;
    memfd_create(name: &CStr, flags: u32) = SYS_memfd_create;
    socket(domain: i32, kind: i32, protocol: i32) = SYS_socket;
    mq_open(name: &CStr, flags: i32, mode: u32, attributes: Option<&[u8; 64]>) = SYS_mq_open;
    inotify_init1(flags: i32) = SYS_inotify_init1;
    timerfd_create(clock: i32, flags: i32) = SYS_timerfd_create;
}

/// `openat` that a signal for the guest interrupts: opening a FIFO waits for the other end.
pub(crate) fn wait_open(
    attention: &Attention,
    dir: Fd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    wait_openat(attention, dir, path, flags, mode).map(owned)
}

/// `accept4`, interruptible through `attention`.
pub(crate) fn wait_accept4(
    attention: &Attention,
    fd: Fd<'_>,
    address: Option<&mut AddressBuffer>,
    flags: i32,
) -> Result<OwnedFd, Errno> {
    wait_accept4_number(attention, fd, address, flags).map(owned)
}

/// `pipe2`, both ends owned.
pub(crate) fn pipe2(flags: i32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [0_i32; 2];
    let mut words = Words::default();
    (&mut fds).push_to(&mut words);
    flags.push_to(&mut words);
    // SAFETY: pipe2 writes two ints into the array.
    unsafe { raw(libc::SYS_pipe2, &words) }?;
    Ok((owned(fds[0] as usize), owned(fds[1] as usize)))
}
