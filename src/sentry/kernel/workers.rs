//! The supervisor's threads that run tasks: one each, reused.

use crate::sentry::host;
use crate::sentry::process::lock;
use crate::subprocess;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};

type Job = Box<dyn FnOnce() + Send>;

/// A job, and the way back into the list of idle threads: an idle thread holds none, so that it ends with the list.
struct Order {
    job: Job,
    way_back: Idle,
}

/// An idle thread.
#[derive(Clone)]
struct Idle {
    orders: Sender<Order>,
    /// The host's id of the thread.
    tid: i32,
}

/// Threads that wait for a task to run.
#[derive(Default)]
pub(crate) struct Workers {
    idle: Arc<Mutex<Vec<Idle>>>,
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
        // It begins where the caller is: the next thing that the caller does is to wait.
        let confined = subprocess::confined();
        let mut job: Job = Box::new(move || {
            subprocess::adopt(confined);
            job();
        });
        loop {
            let Some(worker) = lock(&self.idle).pop() else { break };
            if let Some((cpu, _)) = confined {
                subprocess::confine(worker.tid, cpu);
            }
            match worker.orders.send(Order { job, way_back: worker.clone() }) {
                Ok(()) => return Ok(()),
                Err(refused) => job = refused.0.job,
            }
        }
        let (sender, receiver) = channel();
        let idle = Arc::downgrade(&self.idle);
        std::thread::Builder::new().name("systrap-task".to_owned()).spawn(move || serve(&receiver, &idle))?;
        // The thread has just been made and waits.
        let _ = sender.send(Order { job, way_back: Idle { orders: sender.clone(), tid: 0 } });
        Ok(())
    }
}

fn serve(orders: &Receiver<Order>, idle: &Weak<Mutex<Vec<Idle>>>) {
    let tid = host::gettid();
    while let Ok(Order { job, way_back }) = orders.recv() {
        job();
        let Some(idle) = idle.upgrade() else { return };
        subprocess::roam();
        let way_back = Idle { tid, ..way_back };
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
