//! Signals that the host sends to the supervisor, passed on to the guest.

use super::SignalSet;
use crate::sentry::host::{self, HostSignals};
use crate::sentry::kernel::Kernel;
use std::sync::{Arc, Weak};

/// The signals of the supervisor that reach the guest. Terminal stop signals for background access are left out:
/// the host stops the supervisor, which is what would have happened to the guest.
pub(crate) const FORWARDED: [i32; 12] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGPWR,
];

/// Has the forwarded signals blocked in every thread and received by one.
pub(crate) struct Incoming {
    ignored: SignalSet,
}

impl Incoming {
    /// Blocks the signals in the calling thread. Call it before other threads are started: they inherit that.
    pub(crate) fn block() -> Self {
        let mut ignored = SignalSet::default();
        for signo in FORWARDED {
            if host::is_ignored(signo) {
                ignored = ignored.with(signo);
            }
        }
        host::block_signals(&FORWARDED);
        Self { ignored }
    }

    /// The signals that this process was started with as ignored, as `nohup` does it.
    pub(crate) fn ignored(&self) -> SignalSet {
        self.ignored
    }

    /// Starts the thread that passes signals on until the guest is gone.
    pub(crate) fn start(&self, kernel: &Arc<Kernel>) -> std::io::Result<()> {
        let kernel = Arc::downgrade(kernel);
        let signals = HostSignals::new(&FORWARDED)?;
        std::thread::Builder::new().name("systrap-signals".to_owned()).spawn(move || {
            while signals.wait().is_ok() {
                let Some(kernel) = Weak::upgrade(&kernel) else { return };
                kernel.take_in(&signals);
            }
        })?;
        Ok(())
    }
}
