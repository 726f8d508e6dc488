//! What an address space costs: making one, and forking it beside a native fork.

use std::time::{Duration, Instant};

use criterion::Criterion;
use systrap::{GuestAddr, Options, Protection, Systrap};

use crate::record::{Record, timed};
use crate::{FORK, NATIVE_FORK, NEW_SPACE};

/// Memory that is touched in whatever is forked.
const FORKED_MEMORY: usize = 8 << 20;

pub fn new_address_space(record: &mut Record, criterion: &mut Criterion) {
    let platform = Systrap::new(Options::new()).expect("a platform");
    record.bench(criterion, NEW_SPACE, 1, |iterations| {
        timed(iterations, || {
            platform.new_address_space().expect("an address space").release().expect("its end");
        })
    });
}

pub fn forks(record: &mut Record, criterion: &mut Criterion) {
    let touched = vec![1_u8; FORKED_MEMORY];
    record.bench(criterion, NATIVE_FORK, 1, |iterations| {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            let started = Instant::now();
            // SAFETY: the child ends at once.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            total += started.elapsed();
            assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
            // SAFETY: our own child.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        total
    });
    let platform = Systrap::new(Options::new()).expect("a platform");
    let space = platform.new_address_space().expect("an address space");
    let place = GuestAddr::new(0x2000_0000);
    space.map_anonymous(place, FORKED_MEMORY as u64, Protection::READ_WRITE).expect("free memory");
    space.write(place, &touched).expect("writable memory");
    record.bench(criterion, FORK, 1, |iterations| {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            let started = Instant::now();
            let child = space.fork().expect("a fork");
            total += started.elapsed();
            child.release().expect("its end");
        }
        total
    });
}
