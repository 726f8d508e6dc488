//! Counts the calls of a program, by task and by name.
//!
//! ```sh
//! cargo run --release --example call_counter -- /bin/sh -c 'ls / | wc -l'
//! ```

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};
use systrap::sentry::{Call, ExitStatus, Guest, Hook, TaskId, Verdict};

/// How often each call was made.
type Counts = BTreeMap<String, u64>;

/// What all tasks have made together.
#[derive(Default)]
struct Counter {
    total: Mutex<Counts>,
}

impl Hook for Counter {
    // Each task counts for itself, without a lock.
    type TaskState = Counts;

    fn before(&self, counts: &mut Counts, call: &mut Call<'_>) -> Verdict {
        match counts.get_mut(call.name()) {
            Some(count) => *count += 1,
            None => _ = counts.insert(call.name().to_owned(), 1),
        }
        Verdict::Proceed
    }

    fn task_ended(&self, task: TaskId, counts: &mut Counts, status: ExitStatus) {
        eprintln!("task {} made {} calls, {status:?}", task.tid, counts.values().sum::<u64>());
        let mut total = self.total.lock().expect("no hook panics");
        for (name, count) in counts {
            *total.entry(name.clone()).or_default() += *count;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let program: Vec<CString> = std::env::args().skip(1).map(CString::new).collect::<Result<_, _>>()?;
    let path = program.first().ok_or("usage: call_counter PROGRAM [ARGUMENT]...")?.clone();

    let counter = Arc::new(Counter::default());
    Guest::new(path).args(program).hook(Arc::clone(&counter)).run()?;
    for (name, count) in &*counter.total.lock().expect("no hook panics") {
        eprintln!("{count:>8} {name}");
    }
    Ok(())
}
