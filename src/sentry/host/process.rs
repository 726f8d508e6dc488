//! What the sentry asks of its own process: inherited descriptors, signal masks and dispositions, the auxiliary vector.

use super::{Errno, dup_cloexec};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

/// A close-on-exec duplicate of a descriptor that this process was started with; `None` if there is none of that
/// number.
pub(crate) fn duplicate_inherited(number: i32) -> Option<OwnedFd> {
    if number < 0 {
        return None;
    }
    // SAFETY: borrowed for the one call; if the number is not open, the call says EBADF.
    dup_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, libc::F_DUPFD_CLOEXEC, 0).ok()
}

/// The descriptors that this process would hand to a program it executes: open and not close-on-exec.
pub(crate) fn inheritable_descriptors() -> Vec<i32> {
    let Ok(dir) = std::fs::read_dir("/proc/self/fd") else { return vec![0, 1, 2] };
    let mut numbers: Vec<i32> =
        dir.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.retain(|&number| {
        // SAFETY: F_GETFD takes and changes nothing; a number that is no longer open gives an error.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        flags >= 0 && flags & libc::FD_CLOEXEC == 0
    });
    numbers.sort_unstable();
    numbers
}

/// One entry of the supervisor's own auxiliary vector (getauxval(3)), 0 when absent.
pub(crate) fn auxiliary_value(kind: u64) -> u64 {
    // SAFETY: getauxval has no preconditions.
    unsafe { libc::getauxval(kind) }
}

/// Clock ticks a second, as `times(2)` counts them.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// The first page of a small file of `/proc/PID`, which is all of it; empty if there is no such process.
///
/// In one read: the end of every process waits for this.
fn proc_file(pid: i32, name: &str) -> String {
    let mut text = [0; 4096];
    let read = std::fs::File::open(format!("/proc/{pid}/{name}")).and_then(|mut file| file.read(&mut text));
    let read = text.get(..read.unwrap_or(0)).unwrap_or_default();
    String::from_utf8_lossy(read).into_owned()
}

/// Page faults of a process that were served from memory, and from a disk; 0 if there is none of that id.
pub(crate) fn process_faults(pid: i32) -> (u64, u64) {
    let stat = proc_file(pid, "stat");
    // The name is in parentheses and may hold anything; minflt and majflt are the eighth and tenth field behind it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field = |index| fields.split_whitespace().nth(index).and_then(|text| text.parse().ok()).unwrap_or(0);
    (field(7), field(9))
}

/// The largest amount of memory, in KiB, that a process has had resident.
pub(crate) fn process_peak_memory_kib(pid: i32) -> u64 {
    let status = proc_file(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Whether this process ignores the signal (an inherited disposition that a program it runs inherits too).
pub(crate) fn is_ignored(signo: i32) -> bool {
    // SAFETY: with a null new action sigaction only writes the old one, for which zeroes are valid.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signo, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}

/// Ignores signals that the kernel sends the supervisor for what it does on the guest's behalf: the guest gets its own.
pub(crate) fn ignore_signals_of_files() {
    for signo in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(signo, libc::SIG_IGN) };
    }
}

/// Ends this process by a signal, as if its default action had been taken, without a core dump. Returns if the
/// signal does not end a process.
pub(crate) fn die_of(signo: i32) {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let set = signal_set(&[signo]);
    // SAFETY: SIG_DFL runs no code of this process; the sets and the limit are valid for the calls.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none);
        libc::signal(signo, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signo);
    }
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set; sigaddset refuses numbers that are not signals.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signo in signals {
            libc::sigaddset(&mut set, signo);
        }
        set
    }
}

/// Blocks the signals in the calling thread; threads made later inherit that.
pub(crate) fn block_signals(signals: &[i32]) {
    let set = signal_set(signals);
    // SAFETY: both sets are valid or null.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
}

/// The signals of a set, blocked in every thread, that are sent to this process.
pub(crate) struct HostSignals {
    set: libc::sigset_t,
    arrivals: OwnedFd,
}

impl HostSignals {
    pub(crate) fn new(signals: &[i32]) -> std::io::Result<Self> {
        let set = signal_set(signals);
        // SAFETY: the set is valid; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { set, arrivals: super::owned(fd as usize) })
    }

    /// Waits until one is there, and leaves it there.
    pub(crate) fn wait(&self) -> Result<(), Errno> {
        let mut fds = [libc::pollfd { fd: self.arrivals.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        loop {
            match super::poll_now(&mut fds, -1) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// Takes the next one, as the bytes of the kernel's `siginfo_t`; `EAGAIN` if there is none.
    pub(crate) fn take(&self) -> Result<[u8; 128], Errno> {
        let mut info = [0_u64; 16];
        const _: () = assert!(size_of::<libc::siginfo_t>() == 128, "the array holds a siginfo_t");
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the array is aligned for and as large as a siginfo_t.
        let signo = unsafe { libc::sigtimedwait(&self.set, info.as_mut_ptr().cast(), &at_once) };
        if signo < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let mut bytes = [0; 128];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(info) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(bytes)
    }
}

/// Whether a signal, blocked in the calling thread, has been sent to it or to this process and not been taken.
pub(crate) fn is_pending(signo: i32) -> bool {
    let mut set = signal_set(&[]);
    // SAFETY: the set is valid for the call; sigismember only reads it.
    unsafe { libc::sigpending(&mut set) == 0 && libc::sigismember(&set, signo) == 1 }
}

/// The features that the CPU and the kernel have enabled for user programs (XCR0).
pub(crate) fn enabled_xfeatures() -> u64 {
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 3;
    }
    // SAFETY: XSAVE is there and enabled by the kernel (that is what the detection says), so XGETBV is.
    unsafe { xgetbv() }
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register 0 exists wherever XGETBV does.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}
