//! The supervisor's threads that run tasks: one each, reused.

use crate::sentry::process::lock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};

type Job = Box<dyn FnOnce() + Send>;

/// A job, and the way back into the list of idle threads: an idle thread holds none, so that it ends with the list.
struct Order {
    job: Job,
    way_back: Sender<Order>,
}

/// Threads that wait for a task to run.
#[derive(Default)]
pub(crate) struct Workers {
    idle: Arc<Mutex<Vec<Sender<Order>>>>,
}

/// More idle threads than this are not kept.
const MOST_IDLE: usize = 64;

impl Workers {
    /// Runs a job on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the host refuses another thread.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let mut job: Job = Box::new(job);
        loop {
            let Some(worker) = lock(&self.idle).pop() else { break };
            match worker.send(Order { job, way_back: worker.clone() }) {
                Ok(()) => return Ok(()),
                Err(refused) => job = refused.0.job,
            }
        }
        let (sender, receiver) = channel();
        let idle = Arc::downgrade(&self.idle);
        std::thread::Builder::new().name("systrap-task".to_owned()).spawn(move || serve(&receiver, &idle))?;
        // The thread has just been made and waits.
        let _ = sender.send(Order { job, way_back: sender.clone() });
        Ok(())
    }
}

fn serve(orders: &Receiver<Order>, idle: &Weak<Mutex<Vec<Sender<Order>>>>) {
    while let Ok(Order { job, way_back }) = orders.recv() {
        job();
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        if idle.len() >= MOST_IDLE {
            return;
        }
        idle.push(way_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn jobs_run_at_once_and_threads_are_reused() {
        let workers = Workers::default();
        let running = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let barrier = Arc::new(std::sync::Barrier::new(5));
            for _ in 0..4 {
                let (barrier, running) = (Arc::clone(&barrier), Arc::clone(&running));
                // All four have to run at the same time for this to end.
                let job = move || {
                    running.fetch_add(1, Ordering::SeqCst);
                    barrier.wait();
                };
                workers.run(job).unwrap();
            }
            barrier.wait();
        }
        assert_eq!(running.load(Ordering::SeqCst), 12);
    }
}
