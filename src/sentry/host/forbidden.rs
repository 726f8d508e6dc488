//! What is said when the supervisor makes a host call that its own filter forbids.

use super::{Argument, Errno, Words, raw};
use crate::sentry::syscalls;

/// The kernel's `struct siginfo` of SIGSYS has the call's number here.
const NUMBER_AT: usize = 24;

/// Says the call's name and has the process die of the signal. Async-signal-safe: it makes raw calls and touches only
/// its own stack and constants.
extern "C" fn on_forbidden_call(signo: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the second argument is a siginfo_t of 128 bytes.
    let nr = unsafe { info.cast::<u8>().add(NUMBER_AT).cast::<i32>().read_unaligned() };
    let say = |text: &[u8]| {
        let mut words = Words::default();
        libc::STDERR_FILENO.push_to(&mut words);
        text.push_to(&mut words);
        // SAFETY: write reads the slice.
        let _ = unsafe { raw(libc::SYS_write, &words) };
    };
    say(b"systrap: the supervisor's own filter forbids a host call that it has made: ");
    say(syscalls::known_name(nr as u32).map_or(&b"unknown"[..], str::as_bytes));
    say(b" (--no-supervisor-filter turns the filter off; please report this)\n");
    // SAFETY: SIG_DFL runs no code. The signal is delivered when this returns, or with the next call that is forbidden.
    unsafe {
        libc::signal(signo, libc::SIG_DFL);
        libc::raise(signo);
    }
}

/// Installs the handler, unless the program has one of its own for SIGSYS.
pub(crate) fn report_forbidden_calls() -> Result<(), Errno> {
    // SAFETY: an all-zero sigaction is valid, and so is a null one; the handler is async-signal-safe.
    let result = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGSYS, std::ptr::null(), &mut old) == 0 && old.sa_sigaction != libc::SIG_DFL
        {
            return Ok(());
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_forbidden_call as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
