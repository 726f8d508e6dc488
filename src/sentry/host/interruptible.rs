//! Host calls that may block, and the way to interrupt them without a lost wake-up.
//!
//! A task that waits in the host kernel has to come back when a signal arrives for its guest. Testing a flag and
//! then making the call leaves a gap between the two. Here the test and the call are one short piece of assembly;
//! the handler of the kick signal looks whether it interrupted that piece before the call was made, and if so
//! moves the instruction pointer to its end, as if the call had returned `EINTR`. (musl cancels threads this way.)

use super::{Argument, Errno, Words, check};
use std::sync::atomic::{AtomicU32, Ordering};

std::arch::global_asm!(
    ".pushsection .text.systrap_sentry_wait,\"ax\",@progbits",
    ".globl systrap_sentry_wait",
    ".globl systrap_sentry_wait_end",
    ".globl systrap_sentry_wait_interrupted",
    // (rdi: address of the flag, rsi: number, rdx: address of six words) -> rax, as the kernel returns it
    "systrap_sentry_wait:",
    "mov rcx, rdi",
    "mov rax, rsi",
    "mov r11, rdx",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "cmp dword ptr [rcx], 0",
    "jne systrap_sentry_wait_interrupted",
    "syscall",
    "systrap_sentry_wait_end:", // the address after the call: from here on it has been made
    "ret",
    "systrap_sentry_wait_interrupted:",
    "mov rax, -4", // -EINTR
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn systrap_sentry_wait(flag: *const u32, nr: usize, words: *const usize) -> isize;
    static systrap_sentry_wait_end: u8;
    static systrap_sentry_wait_interrupted: u8;
}

/// "There is something to look at before you block": set by whoever posts a signal, cleared by the task.
#[derive(Debug, Default)]
pub(crate) struct Attention(AtomicU32);

impl Attention {
    /// Asks the task to come back; a kick has to follow if it may be waiting.
    pub(crate) fn raise(&self) {
        self.0.store(1, Ordering::SeqCst);
    }

    /// Clears the request; what it stands for is looked at afterwards.
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0 && self.0.swap(0, Ordering::SeqCst) != 0
    }

    /// Whether somebody asks.
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }
}

/// Makes a call that may block; `EINTR` at once when `attention` is raised, before or during the call.
///
/// # Safety
///
/// As for [`super::raw`].
pub(super) unsafe fn wait(attention: &Attention, nr: libc::c_long, words: &Words) -> Result<usize, Errno> {
    // SAFETY: the flag and the words outlive the call; the words fit the call (caller).
    check(unsafe { systrap_sentry_wait(attention.0.as_ptr(), nr as usize, words.words.as_ptr()) })
}

/// The real-time signal with which one thread of the supervisor interrupts another's host call.
pub(crate) fn kick_signal() -> i32 {
    libc::SIGRTMAX() - 1
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let start = systrap_sentry_wait as *const () as usize;
    let end = &raw const systrap_sentry_wait_end as usize;
    let interrupted = &raw const systrap_sentry_wait_interrupted as usize;
    // SAFETY: with SA_SIGINFO the third argument is the ucontext of the interrupted thread, ours until we return.
    let rip = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    if (start..end).contains(&(*rip as usize)) {
        *rip = interrupted as i64;
    }
}

/// Installs the handler of the kick signal for the process. Idempotent.
pub(crate) fn install_kick_handler() -> Result<(), Errno> {
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe (it touches its own frame only).
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO; // no SA_RESTART: a blocked call has to return
        libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// Interrupts the host call, if any, of a thread of this process.
pub(crate) fn kick(tid: i32) {
    let mut words = Words::default();
    (std::process::id() as i32).push_to(&mut words);
    tid.push_to(&mut words);
    kick_signal().push_to(&mut words);
    // SAFETY: tgkill takes numbers only.
    let _ = unsafe { super::raw(libc::SYS_tgkill, &words) };
}

#[cfg(test)]
mod tests {
    use super::super::{self as host, Attention};
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    #[test]
    fn a_raised_flag_prevents_the_wait_and_a_kick_ends_it() {
        install_kick_handler().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let attention = Arc::new(Attention::default());
        attention.raise();
        let mut buf = [0_u8; 1];
        assert_eq!(host::wait_read(&attention, reader.as_fd(), &mut buf[..]), Err(Errno::EINTR));
        assert!(attention.take());

        for round in 0..2000_u32 {
            let tid = host::gettid();
            let other = Arc::clone(&attention);
            let kicker = std::thread::spawn(move || {
                for _ in 0..(round % 300) * 10 {
                    std::hint::spin_loop();
                }
                other.raise();
                kick(tid);
            });
            // However the two race, this returns: a lost wake-up would hang here.
            assert_eq!(host::wait_read(&attention, reader.as_fd(), &mut buf[..]), Err(Errno::EINTR));
            kicker.join().unwrap();
            attention.take();
        }
    }
}
