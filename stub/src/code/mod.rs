//! The code that a stub process runs.
//!
//! # Safety
//!
//! Everything here runs in a stub process, in an address space that holds nothing but the stub region
//! ([`crate::layout`]) and the guest. The functions are naked, position-independent, free of calls out
//! of their link section and of stack use except where a comment says so. They are never called in the
//! supervisor: it copies the whole section into a sealed memfd and enters the copy.
//!
//! * [`leader`]: template set-up, the leader's loop, the first steps of a fork child.
//! * [`thread`]: a new stub thread's first steps.
//! * [`sighandler`]: the signal handler and all ways back to the guest.
//! * [`syshandler`]: the fast entry, reached from trampolines.
//!
//! Each `syscall` instruction is labelled (the label names the address *after* it, which is what seccomp
//! calls the instruction pointer); [`SyscallSite`] lists them for the filters.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "the safety chapter above holds for all of them")]

pub mod leader;
pub mod sighandler;
pub mod syshandler;
pub mod thread;

/// One `syscall` instruction of the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named after what the instruction is for; see the filter tables")]
pub enum SyscallSite {
    TemplateUnmap,
    TemplateSeccomp,
    ForkPdeathsig,
    ForkGetppid,
    ForkMap,
    ForkDontfork,
    ForkSeal,
    LeaderWait,
    LeaderOp,
    LeaderAnswer,
    LeaderWake,
    ExitGroup,
    ThreadSigaltstack,
    ThreadSeccomp,
    ThreadSigmask,
    ThreadWait,
    ThreadWake,
    ThreadExecute,
    FastWait,
    FastWake,
    FastExecute,
    FastPass,
}

macro_rules! sites {
    ($($site:ident = $symbol:ident),* $(,)?) => {
        unsafe extern "C" { $(static $symbol: u8;)* }
        impl SyscallSite {
            /// All sites.
            pub const ALL: &'static [SyscallSite] = &[$(SyscallSite::$site),*];

            /// The instruction pointer that seccomp sees at this site, as an offset in the text.
            #[must_use]
            pub fn ip_offset(self) -> usize {
                let label = match self { $(SyscallSite::$site => (&raw const $symbol).addr()),* };
                label - text_start()
            }
        }
    };
}

sites! {
    TemplateUnmap = systrap_ip_template_unmap,
    TemplateSeccomp = systrap_ip_template_seccomp,
    ForkPdeathsig = systrap_ip_fork_pdeathsig,
    ForkGetppid = systrap_ip_fork_getppid,
    ForkMap = systrap_ip_fork_map,
    ForkDontfork = systrap_ip_fork_dontfork,
    ForkSeal = systrap_ip_fork_seal,
    LeaderWait = systrap_ip_leader_wait,
    LeaderOp = systrap_ip_leader_op,
    LeaderAnswer = systrap_ip_leader_answer,
    LeaderWake = systrap_ip_leader_wake,
    ExitGroup = systrap_ip_exit_group,
    ThreadSigaltstack = systrap_ip_thread_sigaltstack,
    ThreadSeccomp = systrap_ip_thread_seccomp,
    ThreadSigmask = systrap_ip_thread_sigmask,
    ThreadWait = systrap_ip_thread_wait,
    ThreadWake = systrap_ip_thread_wake,
    ThreadExecute = systrap_ip_thread_execute,
    FastWait = systrap_ip_fast_wait,
    FastWake = systrap_ip_fast_wake,
    FastExecute = systrap_ip_fast_execute,
    FastPass = systrap_ip_fast_pass,
}

unsafe extern "C" {
    #[link_name = "__start_systrap_stub"]
    static START: u8;
    #[link_name = "__stop_systrap_stub"]
    static STOP: u8;
}

/// Offset in the text of the word that has to hold the address of the slots before the text is used: the
/// syshandler compares %gs with it.
#[must_use]
pub fn slots_word_offset() -> usize {
    unsafe extern "C" {
        static systrap_slots_word: u8;
    }
    (&raw const systrap_slots_word).addr() - text_start()
}

/// Names every function of the section: one that nothing refers to would vanish in debug builds.
pub static ENTRIES: [(&str, unsafe extern "C" fn()); 9] = [
    ("template_entry", leader::template_entry),
    ("leader_entry", leader::leader_entry),
    ("thread_entry", thread::thread_entry),
    ("thread_wait", thread::thread_wait),
    ("sighandler", sighandler::sighandler),
    ("syshandler", syshandler::syshandler),
    ("resume", sighandler::resume),
    ("resume_all", sighandler::resume_all),
    ("restore", sighandler::restore),
];

fn text_start() -> usize {
    (&raw const START).addr()
}

/// Where the code lies in the supervisor, to be copied: start address and length in bytes.
#[must_use]
pub fn text() -> (*const u8, usize) {
    let start = &raw const START;
    (start, (&raw const STOP).addr() - start.addr())
}

/// The offset in the text of an entry of [`ENTRIES`].
#[must_use]
pub fn offset_of_entry(entry: unsafe extern "C" fn()) -> usize {
    (entry as *const u8).addr() - text_start()
}

/// Whether every entry lies within the section: false means the linker dropped or moved code.
#[must_use]
pub fn entries_lie_in_text() -> bool {
    let (start, len) = text();
    ENTRIES.iter().all(|(_, entry)| {
        let addr = (*entry as *const u8).addr();
        addr >= start.addr() && addr < start.addr() + len
    })
}
