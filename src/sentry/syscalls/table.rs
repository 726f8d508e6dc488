//! The table of system calls (arch/x86/entry/syscalls/syscall_64.tbl).

use super::args::*;
use super::{
    barrier, clone, credentials, descriptor, epoll, futex, identity, ioctl, kill, memory, numa, open, path,
    pidfd, poll, prctl, process, read_write, scheduling, signal, signalfd, stat, syscall_table, system,
    terminal, time, timer, usage, wait, xattr,
};
use crate::GuestAddr;

syscall_table! {
    0 read(fd: Fd, buf: OutBytes, count: usize) => read_write::read;
    1 write(fd: Fd, buf: InBytes, count: usize) => read_write::write;
    2 open(path: Path, flags: OpenFlags, mode: Mode) => open::open;
    3 close(fd: Fd) => open::close;
    4 stat(path: Path, buf: OutStat) => stat::stat;
    5 fstat(fd: Fd, buf: OutStat) => stat::fstat;
    6 lstat(path: Path, buf: OutStat) => stat::lstat;
    7 poll(fds: GuestAddr, count: u32, timeout: i32) => poll::poll;
    8 lseek(fd: Fd, offset: i64, whence: Whence) => read_write::lseek;
    9 mmap(addr: GuestAddr, len: u64, prot: Protections, flags: MapFlags, fd: Fd, offset: Hex) => memory::mmap;
    10 mprotect(addr: GuestAddr, len: u64, prot: Protections) => memory::mprotect;
    11 munmap(addr: GuestAddr, len: u64) => memory::munmap;
    12 brk(addr: GuestAddr) => memory::brk;
    13 rt_sigaction(signo: Signo, new: GuestAddr, old: GuestAddr, size: usize) => signal::rt_sigaction;
    14 rt_sigprocmask(how: MaskHow, new: GuestAddr, old: GuestAddr, size: usize) => signal::rt_sigprocmask;
    15 rt_sigreturn() => signal::rt_sigreturn;
    16 ioctl(fd: Fd, request: IoctlRequest, arg: Hex) => ioctl::ioctl;
    17 pread64(fd: Fd, buf: OutBytes, count: usize, offset: i64) => read_write::pread64;
    18 pwrite64(fd: Fd, buf: InBytes, count: usize, offset: i64) => read_write::pwrite64;
    19 readv(fd: Fd, iov: OutIovecs, count: usize) => read_write::readv;
    20 writev(fd: Fd, iov: InIovecs, count: usize) => read_write::writev;
    21 access(path: Path, mode: AccessMode) => path::access;
    22 pipe(fds: OutFdPair) => open::pipe;
    23 select(count: i32, reads: GuestAddr, writes: GuestAddr, excepts: GuestAddr, timeout: GuestAddr) => poll::select;
    24 sched_yield() => system::sched_yield;
    25 mremap(addr: GuestAddr, old_len: u64, new_len: u64, flags: RemapFlags, new_addr: GuestAddr) => memory::mremap;
    26 msync(addr: GuestAddr, len: u64, flags: SyncFlags) => memory::msync;
    27 mincore(addr: GuestAddr, len: u64, residency: GuestAddr) => memory::mincore;
    28 madvise(addr: GuestAddr, len: u64, advice: MemoryAdvice) => memory::madvise;
    32 dup(fd: Fd) => descriptor::dup;
    33 dup2(old: Fd, new: Fd) => descriptor::dup2;
    34 pause() => signal::pause;
    35 nanosleep(request: InTimespec, remaining: GuestAddr) => time::nanosleep;
    36 getitimer(which: i32, value: GuestAddr) => timer::getitimer;
    37 alarm(seconds: u32) => timer::alarm;
    38 setitimer(which: i32, new: GuestAddr, old: GuestAddr) => timer::setitimer;
    39 getpid() => identity::getpid;
    40 sendfile(out: Fd, input: Fd, offset: GuestAddr, count: usize) => read_write::sendfile;
    59 execve(path: Path, argv: GuestAddr, envp: GuestAddr) => process::execve;
    56 clone(flags: Hex, stack: GuestAddr, parent_tid: GuestAddr, child_tid: GuestAddr, tls: Hex) => clone::clone;
    57 fork() => clone::fork;
    58 vfork() => clone::vfork;
    60 exit(status: i32) => process::exit;
    61 wait4(pid: i32, status: GuestAddr, options: WaitOptions, usage: GuestAddr) => wait::wait4;
    62 kill(pid: i32, signo: Signo) => kill::kill;
    63 uname(buf: GuestAddr) => system::uname;
    72 fcntl(fd: Fd, command: FcntlCommand, arg: Hex) => descriptor::fcntl;
    73 flock(fd: Fd, operation: i32) => descriptor::flock;
    74 fsync(fd: Fd) => descriptor::fsync;
    75 fdatasync(fd: Fd) => descriptor::fdatasync;
    76 truncate(path: Path, length: i64) => path::truncate;
    77 ftruncate(fd: Fd, length: i64) => descriptor::ftruncate;
    78 getdents(fd: Fd, buf: GuestAddr, size: u32) => stat::getdents;
    79 getcwd(buf: OutBytes, size: usize) => open::getcwd;
    80 chdir(path: Path) => open::chdir;
    81 fchdir(fd: Fd) => open::fchdir;
    82 rename(from: Path, to: Path) => path::rename;
    83 mkdir(path: Path, mode: Mode) => path::mkdir;
    84 rmdir(path: Path) => path::rmdir;
    85 creat(path: Path, mode: Mode) => open::creat;
    86 link(from: Path, to: Path) => path::link;
    87 unlink(path: Path) => path::unlink;
    88 symlink(target: Text, path: Path) => path::symlink;
    89 readlink(path: Path, buf: OutBytes, size: i32) => path::readlink;
    90 chmod(path: Path, mode: Mode) => path::chmod;
    91 fchmod(fd: Fd, mode: Mode) => path::fchmod;
    92 chown(path: Path, uid: u32, gid: u32) => path::chown;
    93 fchown(fd: Fd, uid: u32, gid: u32) => path::fchown;
    94 lchown(path: Path, uid: u32, gid: u32) => path::lchown;
    95 umask(mask: Mode) => open::umask;
    96 gettimeofday(time: GuestAddr, zone: GuestAddr) => time::gettimeofday;
    97 getrlimit(which: Resource, limit: GuestAddr) => system::getrlimit;
    98 getrusage(who: i32, usage: GuestAddr) => usage::getrusage;
    99 sysinfo(buf: GuestAddr) => system::sysinfo;
    100 times(buf: GuestAddr) => usage::times;
    102 getuid() => credentials::getuid;
    104 getgid() => credentials::getgid;
    105 setuid(uid: u32) => credentials::setuid;
    106 setgid(gid: u32) => credentials::setgid;
    107 geteuid() => credentials::geteuid;
    108 getegid() => credentials::getegid;
    109 setpgid(pid: i32, pgid: i32) => identity::setpgid;
    110 getppid() => identity::getppid;
    111 getpgrp() => identity::getpgrp;
    112 setsid() => identity::setsid;
    113 setreuid(real: u32, effective: u32) => credentials::setreuid;
    114 setregid(real: u32, effective: u32) => credentials::setregid;
    115 getgroups(size: i32, list: GuestAddr) => credentials::getgroups;
    116 setgroups(size: i32, list: GuestAddr) => credentials::setgroups;
    117 setresuid(real: u32, effective: u32, saved: u32) => credentials::setresuid;
    118 getresuid(real: GuestAddr, effective: GuestAddr, saved: GuestAddr) => credentials::getresuid;
    119 setresgid(real: u32, effective: u32, saved: u32) => credentials::setresgid;
    120 getresgid(real: GuestAddr, effective: GuestAddr, saved: GuestAddr) => credentials::getresgid;
    121 getpgid(pid: i32) => identity::getpgid;
    122 setfsuid(uid: u32) => credentials::setfsuid;
    123 setfsgid(gid: u32) => credentials::setfsgid;
    124 getsid(pid: i32) => identity::getsid;
    125 capget(header: GuestAddr, data: GuestAddr) => credentials::capget;
    126 capset(header: GuestAddr, data: GuestAddr) => credentials::capset;
    127 rt_sigpending(set: GuestAddr, size: usize) => signal::rt_sigpending;
    128 rt_sigtimedwait(set: GuestAddr, info: GuestAddr, timeout: GuestAddr, size: usize) => signal::rt_sigtimedwait;
    129 rt_sigqueueinfo(pid: i32, signo: Signo, info: GuestAddr) => kill::rt_sigqueueinfo;
    130 rt_sigsuspend(mask: GuestAddr, size: usize) => signal::rt_sigsuspend;
    131 sigaltstack(new: GuestAddr, old: GuestAddr) => signal::sigaltstack;
    132 utime(path: Path, times: GuestAddr) => path::utime;
    133 mknod(path: Path, mode: Mode, device: u32) => path::mknod;
    135 personality(persona: u32) => scheduling::personality;
    137 statfs(path: Path, buf: Hex) => path::statfs;
    138 fstatfs(fd: Fd, buf: Hex) => stat::fstatfs;
    140 getpriority(which: i32, who: i32) => scheduling::getpriority;
    141 setpriority(which: i32, who: i32, nice: i32) => scheduling::setpriority;
    142 sched_setparam(pid: i32, param: GuestAddr) => scheduling::sched_setparam;
    143 sched_getparam(pid: i32, param: GuestAddr) => scheduling::sched_getparam;
    144 sched_setscheduler(pid: i32, policy: i32, param: GuestAddr) => scheduling::sched_setscheduler;
    145 sched_getscheduler(pid: i32) => scheduling::sched_getscheduler;
    146 sched_get_priority_max(policy: i32) => system::sched_get_priority_max;
    147 sched_get_priority_min(policy: i32) => system::sched_get_priority_min;
    148 sched_rr_get_interval(pid: i32, time: GuestAddr) => system::sched_rr_get_interval;
    149 mlock(addr: GuestAddr, len: u64) => memory::mlock;
    150 munlock(addr: GuestAddr, len: u64) => memory::munlock;
    151 mlockall(flags: i32) => memory::mlockall;
    152 munlockall() => memory::munlockall;
    153 vhangup() => terminal::vhangup;
    157 prctl(option: i32, arg2: Hex, arg3: Hex, arg4: Hex, arg5: Hex) => prctl::prctl;
    158 arch_prctl(code: ArchPrctl, addr: GuestAddr) => process::arch_prctl;
    160 setrlimit(which: Resource, limit: GuestAddr) => system::setrlimit;
    162 sync() => descriptor::sync;
    186 gettid() => identity::gettid;
    187 readahead(fd: Fd, offset: i64, count: usize) => descriptor::readahead;
    188 setxattr(path: Path, name: Text, value: InBytes, size: usize, flags: i32) => xattr::setxattr;
    189 lsetxattr(path: Path, name: Text, value: InBytes, size: usize, flags: i32) => xattr::lsetxattr;
    190 fsetxattr(fd: Fd, name: Text, value: InBytes, size: usize, flags: i32) => xattr::fsetxattr;
    191 getxattr(path: Path, name: Text, value: OutBytes, size: usize) => xattr::getxattr;
    192 lgetxattr(path: Path, name: Text, value: OutBytes, size: usize) => xattr::lgetxattr;
    193 fgetxattr(fd: Fd, name: Text, value: OutBytes, size: usize) => xattr::fgetxattr;
    194 listxattr(path: Path, names: OutBytes, size: usize) => xattr::listxattr;
    195 llistxattr(path: Path, names: OutBytes, size: usize) => xattr::llistxattr;
    196 flistxattr(fd: Fd, names: OutBytes, size: usize) => xattr::flistxattr;
    197 removexattr(path: Path, name: Text) => xattr::removexattr;
    198 lremovexattr(path: Path, name: Text) => xattr::lremovexattr;
    199 fremovexattr(fd: Fd, name: Text) => xattr::fremovexattr;
    200 tkill(tid: i32, signo: Signo) => kill::tkill;
    201 time(result: GuestAddr) => time::time;
    202 futex(addr: GuestAddr, operation: i32, value: u32, timeout: GuestAddr, addr2: GuestAddr, value3: u32)
        => futex::futex;
    203 sched_setaffinity(pid: i32, size: usize, mask: GuestAddr) => scheduling::sched_setaffinity;
    204 sched_getaffinity(pid: i32, size: usize, mask: GuestAddr) => scheduling::sched_getaffinity;
    213 epoll_create(size: i32) => epoll::epoll_create;
    217 getdents64(fd: Fd, buf: GuestAddr, size: u32) => stat::getdents64;
    218 set_tid_address(addr: GuestAddr) => process::set_tid_address;
    219 restart_syscall() => time::restart_syscall;
    221 fadvise64(fd: Fd, offset: i64, length: i64, advice: i32) => descriptor::fadvise64;
    222 timer_create(clock: ClockId, event: GuestAddr, timer: GuestAddr) => timer::timer_create;
    223 timer_settime(timer: i32, flags: i32, new: GuestAddr, old: GuestAddr) => timer::timer_settime;
    224 timer_gettime(timer: i32, value: GuestAddr) => timer::timer_gettime;
    225 timer_getoverrun(timer: i32) => timer::timer_getoverrun;
    226 timer_delete(timer: i32) => timer::timer_delete;
    227 clock_settime(clock: ClockId, time: InTimespec) => time::clock_settime;
    228 clock_gettime(clock: ClockId, time: OutTimespec) => time::clock_gettime;
    229 clock_getres(clock: ClockId, time: OutTimespec) => time::clock_getres;
    230 clock_nanosleep(clock: ClockId, flags: i32, request: InTimespec, remaining: GuestAddr) => time::clock_nanosleep;
    231 exit_group(status: i32) => process::exit_group;
    232 epoll_wait(epoll: Fd, events: GuestAddr, most: i32, timeout: i32) => epoll::epoll_wait;
    233 epoll_ctl(epoll: Fd, operation: i32, fd: Fd, event: GuestAddr) => epoll::epoll_ctl;
    234 tgkill(tgid: i32, tid: i32, signo: Signo) => kill::tgkill;
    235 utimes(path: Path, times: GuestAddr) => path::utimes;
    237 mbind(addr: GuestAddr, len: u64, mode: i32, nodes: GuestAddr, bits: u64, flags: u32) => numa::mbind;
    238 set_mempolicy(mode: i32, nodes: GuestAddr, bits: u64) => numa::set_mempolicy;
    239 get_mempolicy(mode: GuestAddr, nodes: GuestAddr, bits: u64, addr: GuestAddr, flags: u64) => numa::get_mempolicy;
    247 waitid(kind: i32, id: i32, info: GuestAddr, options: WaitOptions, usage: GuestAddr) => wait::waitid;
    251 ioprio_set(which: i32, who: i32, priority: i32) => scheduling::ioprio_set;
    252 ioprio_get(which: i32, who: i32) => scheduling::ioprio_get;
    256 migrate_pages(pid: i32, bits: u64, from: GuestAddr, to: GuestAddr) => numa::migrate_pages;
    257 openat(dir: DirFd, path: Path, flags: OpenFlags, mode: Mode) => open::openat;
    258 mkdirat(dir: DirFd, path: Path, mode: Mode) => path::mkdirat;
    259 mknodat(dir: DirFd, path: Path, mode: Mode, device: u32) => path::mknodat;
    260 fchownat(dir: DirFd, path: Path, uid: u32, gid: u32, flags: AtFlags) => path::fchownat;
    261 futimesat(dir: DirFd, path: OptionalPath, times: GuestAddr) => path::futimesat;
    262 newfstatat(dir: DirFd, path: Path, buf: OutStat, flags: AtFlags) => stat::newfstatat;
    263 unlinkat(dir: DirFd, path: Path, flags: AtFlags) => path::unlinkat;
    264 renameat(old: DirFd, from: Path, new: DirFd, to: Path) => path::renameat;
    265 linkat(old: DirFd, from: Path, new: DirFd, to: Path, flags: AtFlags) => path::linkat;
    266 symlinkat(target: Text, dir: DirFd, path: Path) => path::symlinkat;
    267 readlinkat(dir: DirFd, path: Path, buf: OutBytes, size: i32) => path::readlinkat;
    268 fchmodat(dir: DirFd, path: Path, mode: Mode) => path::fchmodat;
    269 faccessat(dir: DirFd, path: Path, mode: AccessMode) => path::faccessat;
    270 pselect6(
        count: i32, reads: GuestAddr, writes: GuestAddr, excepts: GuestAddr, timeout: InTimespec, mask: GuestAddr,
    ) => poll::pselect6;
    271 ppoll(fds: GuestAddr, count: u32, timeout: InTimespec, mask: GuestAddr, size: usize) => poll::ppoll;
    272 unshare(flags: Hex) => clone::unshare;
    273 set_robust_list(head: GuestAddr, len: usize) => process::set_robust_list;
    274 get_robust_list(tid: i32, head: GuestAddr, len: GuestAddr) => process::get_robust_list;
    275 splice(input: Fd, from: GuestAddr, out: Fd, to: GuestAddr, len: usize, flags: u32) => read_write::splice;
    276 tee(input: Fd, out: Fd, len: usize, flags: u32) => read_write::tee;
    277 sync_file_range(fd: Fd, offset: i64, length: i64, flags: u32) => descriptor::sync_file_range;
    279 move_pages(
        pid: i32, count: u64, pages: GuestAddr, nodes: GuestAddr, status: GuestAddr, flags: u32,
    ) => numa::move_pages;
    280 utimensat(dir: DirFd, path: OptionalPath, times: GuestAddr, flags: AtFlags) => path::utimensat;
    281 epoll_pwait(epoll: Fd, events: GuestAddr, most: i32, timeout: i32, mask: GuestAddr, size: usize)
        => epoll::epoll_pwait;
    282 signalfd(fd: Fd, mask: GuestAddr, size: usize) => signalfd::signalfd;
    283 timerfd_create(clock: ClockId, flags: i32) => timer::timerfd_create;
    284 eventfd(initial: u32) => open::eventfd;
    285 fallocate(fd: Fd, mode: i32, offset: i64, length: i64) => descriptor::fallocate;
    286 timerfd_settime(fd: Fd, flags: i32, new: GuestAddr, old: GuestAddr) => timer::timerfd_settime;
    287 timerfd_gettime(fd: Fd, value: GuestAddr) => timer::timerfd_gettime;
    289 signalfd4(fd: Fd, mask: GuestAddr, size: usize, flags: i32) => signalfd::signalfd4;
    290 eventfd2(initial: u32, flags: i32) => open::eventfd2;
    291 epoll_create1(flags: OpenFlags) => epoll::epoll_create1;
    292 dup3(old: Fd, new: Fd, flags: OpenFlags) => descriptor::dup3;
    293 pipe2(fds: OutFdPair, flags: OpenFlags) => open::pipe2;
    295 preadv(fd: Fd, iov: OutIovecs, count: usize, offset: i64) => read_write::preadv;
    296 pwritev(fd: Fd, iov: InIovecs, count: usize, offset: i64) => read_write::pwritev;
    297 rt_tgsigqueueinfo(tgid: i32, tid: i32, signo: Signo, info: GuestAddr) => kill::rt_tgsigqueueinfo;
    302 prlimit64(pid: i32, which: Resource, new: GuestAddr, old: GuestAddr) => system::prlimit64;
    306 syncfs(fd: Fd) => descriptor::syncfs;
    309 getcpu(cpu: GuestAddr, node: GuestAddr, cache: GuestAddr) => system::getcpu;
    314 sched_setattr(pid: i32, attr: GuestAddr, flags: u32) => scheduling::sched_setattr;
    315 sched_getattr(pid: i32, attr: GuestAddr, size: u32, flags: u32) => scheduling::sched_getattr;
    316 renameat2(old: DirFd, from: Path, new: DirFd, to: Path, flags: u32) => path::renameat2;
    318 getrandom(buf: OutBytes, count: usize, flags: RandomFlags) => system::getrandom;
    319 memfd_create(name: Text, flags: Hex) => open::memfd_create;
    322 execveat(dir: DirFd, path: Path, argv: GuestAddr, envp: GuestAddr, flags: AtFlags) => process::execveat;
    324 membarrier(command: i32, flags: u32, cpu: i32) => barrier::membarrier;
    325 mlock2(addr: GuestAddr, len: u64, flags: i32) => memory::mlock2;
    326 copy_file_range(input: Fd, from: GuestAddr, out: Fd, to: GuestAddr, len: usize, flags: u32)
        => read_write::copy_file_range;
    327 preadv2(fd: Fd, iov: OutIovecs, count: usize, offset: i64, high: u64, flags: i32) => read_write::preadv2;
    328 pwritev2(fd: Fd, iov: InIovecs, count: usize, offset: i64, high: u64, flags: i32) => read_write::pwritev2;
    332 statx(dir: DirFd, path: Path, flags: AtFlags, mask: Hex, buf: GuestAddr) => stat::statx;
    334 rseq(area: GuestAddr, len: u32, flags: i32, signature: Hex) => process::rseq;
    424 pidfd_send_signal(fd: Fd, signo: Signo, info: GuestAddr, flags: u32) => pidfd::pidfd_send_signal;
    434 pidfd_open(pid: i32, flags: i32) => pidfd::pidfd_open;
    435 clone3(args: GuestAddr, size: usize) => clone::clone3;
    436 close_range(first: u32, last: u32, flags: u32) => open::close_range;
    437 openat2(dir: DirFd, path: Path, how: GuestAddr, size: usize) => open::openat2;
    438 pidfd_getfd(pidfd: Fd, fd: Fd, flags: u32) => pidfd::pidfd_getfd;
    439 faccessat2(dir: DirFd, path: Path, mode: AccessMode, flags: AtFlags) => path::faccessat2;
    441 epoll_pwait2(epoll: Fd, events: GuestAddr, most: i32, timeout: GuestAddr, mask: GuestAddr, size: usize)
        => epoll::epoll_pwait2;
    452 fchmodat2(dir: DirFd, path: Path, mode: Mode, flags: AtFlags) => path::fchmodat2;
}

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::*;

    #[test]
    fn every_line_has_the_kernels_number() {
        for (nr, name) in LINES {
            assert_eq!(names::lookup(*nr), Some(*name));
        }
    }
}
