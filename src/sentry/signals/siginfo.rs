//! `siginfo_t`, 128 bytes whose layout depends on the signal.

use crate::sentry::kernel::tree::Usage;
use crate::{GuestAddr, Signal};

/// A signal with what is known of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SigInfo(pub(crate) [u8; 128]);

/// `si_sys_private`: no process sees it.
const SYS_PRIVATE: usize = 32;
/// `SI_KERNEL`: sent by the kernel.
const SI_KERNEL: i32 = 0x80;

impl SigInfo {
    fn with(signo: i32, code: i32) -> Self {
        let mut info = Self([0; 128]);
        info.put(0, &signo.to_ne_bytes());
        info.put(8, &code.to_ne_bytes());
        info
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn int(&self, at: usize) -> i32 {
        i32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub(crate) fn signo(&self) -> i32 {
        self.int(0)
    }

    pub(crate) fn code(&self) -> i32 {
        self.int(8)
    }

    pub(crate) fn is_from_kernel(&self) -> bool {
        self.code() == SI_KERNEL
    }

    /// Who sent it, if that was a process.
    pub(crate) fn sender(&self) -> Option<i32> {
        (self.code() <= 0).then(|| self.int(16))
    }

    /// Sent by `kill` (`SI_USER`), `tgkill` (`SI_TKILL`) and the like.
    pub(crate) fn from_user(signo: i32, code: i32, pid: i32, uid: u32) -> Self {
        let mut info = Self::with(signo, code);
        info.put(16, &pid.to_ne_bytes());
        info.put(20, &uid.to_ne_bytes());
        info
    }

    /// A child, by its process id and real user id, has ended, stopped or gone on.
    pub(crate) fn from_child(signo: i32, code: i32, child: (i32, u32), status: i32, usage: Usage) -> Self {
        // In clock ticks of USER_HZ.
        const TICK_NS: u64 = 10_000_000;
        let mut info = Self::with(signo, code);
        info.put(16, &child.0.to_ne_bytes());
        info.put(20, &child.1.to_ne_bytes());
        info.put(24, &status.to_ne_bytes());
        info.put(32, &(usage.user_ns / TICK_NS).to_ne_bytes());
        info.put(40, &(usage.system_ns / TICK_NS).to_ne_bytes());
        info
    }

    /// A POSIX timer has expired.
    pub(crate) fn from_timer(signo: i32, timer: i32, value: u64) -> Self {
        let mut info = Self::with(signo, libc::SI_TIMER);
        info.put(16, &timer.to_ne_bytes());
        info.put(24, &value.to_ne_bytes());
        info.put(SYS_PRIVATE, &1_i32.to_ne_bytes());
        info
    }

    /// Whether a timer of the sentry sent it, and not a process that says so.
    pub(crate) fn is_from_timer(&self) -> bool {
        self.code() == libc::SI_TIMER && self.int(SYS_PRIVATE) != 0
    }

    /// `si_timerid`.
    pub(crate) fn timer_id(&self) -> i32 {
        self.int(16)
    }

    /// The signal is about to be seen: sets `si_overrun`, and takes the sentry's mark off.
    pub(crate) fn finish_timer(&mut self, overrun: i32) {
        self.put(20, &overrun.to_ne_bytes());
        self.put(SYS_PRIVATE, &0_i32.to_ne_bytes());
    }

    /// What a process sends is not taken for a timer's signal.
    pub(crate) fn claimed_by_process(mut self) -> Self {
        if self.code() == libc::SI_TIMER {
            self.put(SYS_PRIVATE, &0_i32.to_ne_bytes());
        }
        self
    }

    /// The 32-bit word at an offset.
    pub(crate) fn word(&self, at: usize) -> u32 {
        self.int(at) as u32
    }

    /// Sent by the kernel without further facts.
    pub(crate) fn from_kernel(signo: i32) -> Self {
        Self::with(signo, SI_KERNEL)
    }

    /// A fault of the guest.
    pub(crate) fn from_fault(signal: &Signal) -> Self {
        let mut info = Self::with(signal.signo, signal.code);
        info.put(16, &signal.addr.raw().to_ne_bytes());
        info
    }

    /// `si_addr`, for the signals that have one.
    pub(crate) fn address(&self) -> Option<GuestAddr> {
        let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
        let (low, high) = (self.int(16) as u32, self.int(20) as u32);
        faults.contains(&self.signo()).then(|| GuestAddr::new(u64::from(high) << 32 | u64::from(low)))
    }
}
