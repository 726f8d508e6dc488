//! Runs a program on a disk that is full now and then: every n-th `write` fails with `ENOSPC`.
//!
//! ```sh
//! cargo run --release --example fault_injector -- 3 /bin/sh -c 'for i in 1 2 3 4 5; do echo $i; done'
//! ```

use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use systrap::sentry::{ArgValue, Call, CallSet, Errno, Guest, Hook, Verdict};

struct FullDisk {
    every: u64,
    writes: AtomicU64,
}

impl Hook for FullDisk {
    type TaskState = ();

    // All other calls go their way as if there were no hook.
    fn calls(&self) -> CallSet {
        CallSet::numbered([libc::SYS_write])
    }

    fn before(&self, (): &mut (), call: &mut Call<'_>) -> Verdict {
        // What is said about the error should arrive.
        if call.arg(0).map(|fd| fd.value()) == Some(ArgValue::Fd(libc::STDERR_FILENO)) {
            return Verdict::Proceed;
        }
        // Tasks write at the same time.
        let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(self.every) {
            eprintln!("task {}: {call} shall fail", call.task().tid);
            return Verdict::Deny(Errno::ENOSPC);
        }
        Verdict::Proceed
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const USAGE: &str = "usage: fault_injector N PROGRAM [ARGUMENT]...";
    let mut args = std::env::args().skip(1);
    let every = args.next().ok_or(USAGE)?.parse::<u64>()?.max(1);
    let program: Vec<CString> = args.map(CString::new).collect::<Result<_, _>>()?;
    let path = program.first().ok_or(USAGE)?.clone();

    let disk = FullDisk { every, writes: AtomicU64::new(0) };
    let outcome = Guest::new(path).args(program).hook(disk).run()?;
    outcome.status.end_this_process()
}
