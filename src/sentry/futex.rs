//! Futexes that are not private: who waits on which word (kernel/futex/). Private ones are the host kernel's, which
//! stub threads call for their guests.
//!
//! A waiter enters the queue first and looks at the word afterwards; whoever wakes has changed the word before. So
//! either the waiter sees the change or the waker sees the waiter, and no lock is held over a copy from the guest.

use super::errno::Errno;
use super::guest_memory::GuestMemoryExt as _;
use super::process::lock;
use super::task::{Parked, Task, TaskHandle};
use crate::GuestAddr;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What makes two words the same futex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A word of memory that one address space has for itself.
    Own { mm: usize, addr: u64 },
    /// A word of a shared mapping: device, inode and offset.
    Shared { device: u64, inode: u64, offset: u64 },
}

struct Waiter {
    task: Arc<TaskHandle>,
    bitset: u32,
    woken: AtomicBool,
    /// Where it is queued: a requeue moves it.
    key: Mutex<Key>,
}

/// All waiters of a guest.
#[derive(Default)]
pub(crate) struct FutexTable {
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    by_key: HashMap<Key, VecDeque<Arc<Waiter>>>,
    /// Counts entries: a requeue that compared a word looks whether somebody came in between.
    entries: u64,
}

impl Queues {
    fn take(&mut self, key: Key, most: usize, bitset: u32) -> Vec<Arc<Waiter>> {
        let Some(queue) = self.by_key.get_mut(&key) else { return Vec::new() };
        let mut taken = Vec::new();
        queue.retain(|waiter| {
            let takes = taken.len() < most && waiter.bitset & bitset != 0;
            if takes {
                taken.push(Arc::clone(waiter));
            }
            !takes
        });
        if queue.is_empty() {
            self.by_key.remove(&key);
        }
        taken
    }
}

fn wake_all(waiters: &[Arc<Waiter>]) {
    for waiter in waiters {
        waiter.woken.store(true, Ordering::SeqCst);
        waiter.task.ring();
    }
}

impl FutexTable {
    fn enter(&self, key: Key, waiter: &Arc<Waiter>) {
        let mut queues = lock(&self.queues);
        queues.entries += 1;
        queues.by_key.entry(key).or_default().push_back(Arc::clone(waiter));
    }

    /// Leaves the queue; `true` if the waiter had been woken already.
    fn leave(&self, waiter: &Arc<Waiter>) -> bool {
        let mut queues = lock(&self.queues);
        let key = *lock(&waiter.key);
        if let Some(queue) = queues.by_key.get_mut(&key) {
            queue.retain(|other| !Arc::ptr_eq(other, waiter));
            if queue.is_empty() {
                queues.by_key.remove(&key);
            }
        }
        drop(queues);
        waiter.woken.load(Ordering::SeqCst)
    }

    /// Wakes at most so many of the waiters whose bits match, the oldest first; returns how many.
    pub(crate) fn wake(&self, key: Key, most: usize, bitset: u32) -> usize {
        // Still in the lock: a waiter that finds itself gone from the queue must also find itself woken.
        let mut queues = lock(&self.queues);
        let woken = queues.take(key, most, bitset);
        wake_all(&woken);
        woken.len()
    }

    fn entries(&self) -> u64 {
        lock(&self.queues).entries
    }

    /// Wakes some and moves others to another word; `None` if somebody entered since `entries` was read.
    fn requeue(
        &self,
        from: Key,
        to: Key,
        most_woken: usize,
        most_moved: usize,
        entries: Option<u64>,
    ) -> Option<(usize, usize)> {
        let mut queues = lock(&self.queues);
        if entries.is_some_and(|entries| entries != queues.entries) {
            return None;
        }
        let woken = queues.take(from, most_woken, u32::MAX);
        wake_all(&woken);
        let moved = queues.take(from, most_moved, u32::MAX);
        let count = moved.len();
        if count != 0 {
            for waiter in &moved {
                *lock(&waiter.key) = to;
            }
            queues.by_key.entry(to).or_default().extend(moved);
        }
        Some((woken.len(), count))
    }
}

impl Task {
    /// The futex of a word.
    pub(crate) fn futex_key(&self, addr: GuestAddr) -> Result<Key, Errno> {
        if !addr.raw().is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        let mm = Arc::as_ptr(&self.mm).addr();
        match self.mm.shared_word(addr) {
            Some((device, inode, offset)) => Ok(Key::Shared { device, inode, offset }),
            None => Ok(Key::Own { mm, addr: addr.raw() }),
        }
    }

    /// A shared word has to be there; another only within the user's range.
    pub(crate) fn check_futex_word(&self, addr: GuestAddr) -> Result<(), Errno> {
        if self.mm.is_mapped(addr.page_down(), 1).unwrap_or(false) { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Sleeps while the word is `expected`.
    pub(crate) fn futex_wait(
        &mut self,
        addr: GuestAddr,
        key: Key,
        expected: u32,
        deadline: Option<Instant>,
        bitset: u32,
    ) -> Result<(), Errno> {
        let kernel = Arc::clone(self.kernel());
        let waiter = Arc::new(Waiter {
            task: Arc::clone(&self.handle),
            bitset,
            woken: AtomicBool::new(false),
            key: Mutex::new(key),
        });
        let mut seen = self.handle.bell();
        kernel.futexes.enter(key, &waiter);
        let outcome = match self.memory().read_object::<u32>(addr) {
            Err(errno) => Err(errno),
            Ok(found) if found != expected => Err(Errno::EAGAIN),
            Ok(_) => loop {
                if waiter.woken.load(Ordering::SeqCst) {
                    return Ok(());
                }
                match self.park(seen, deadline) {
                    Parked::Rang => seen = self.handle.bell(),
                    Parked::Interrupted => break Err(Errno::ERESTARTSYS),
                    Parked::TimedOut => break Err(Errno::ETIMEDOUT),
                }
            },
        };
        // A wake that was counted for this waiter must not be lost.
        if kernel.futexes.leave(&waiter) { Ok(()) } else { outcome }
    }

    /// `FUTEX_REQUEUE`, and `FUTEX_CMP_REQUEUE` if a value is expected. Returns how many were woken and moved.
    pub(crate) fn futex_requeue(
        &self,
        from: (GuestAddr, Key),
        to: Key,
        most: (usize, usize),
        expected: Option<u32>,
    ) -> Result<(usize, usize), Errno> {
        let table = &self.kernel().futexes;
        let Some(expected) = expected else {
            return Ok(table.requeue(from.1, to, most.0, most.1, None).unwrap_or_default());
        };
        loop {
            let entries = table.entries();
            if self.memory().read_object::<u32>(from.0)? != expected {
                return Err(Errno::EAGAIN);
            }
            if let Some(counts) = table.requeue(from.1, to, most.0, most.1, Some(entries)) {
                return Ok(counts);
            }
            if self.is_wanted() {
                return Err(Errno::ERESTARTNOINTR);
            }
        }
    }

    /// Wakes waiters on a word as the kernel does when a thread ends: without `FUTEX_PRIVATE_FLAG`.
    pub(crate) fn wake_shared(&self, addr: GuestAddr, most: usize) {
        if let Ok(key) = self.futex_key(addr) {
            self.kernel().futexes.wake(key, most, u32::MAX);
        }
    }

    /// Marks the robust mutexes that the thread still holds as left by a dead owner (kernel/futex/core.c
    /// `exit_robust_list`).
    pub(crate) fn release_robust_mutexes(&mut self) {
        const OWNER_DIED: u32 = 0x4000_0000;
        const TID_MASK: u32 = 0x3fff_ffff;
        const MOST: usize = 2048;
        let head = std::mem::take(&mut self.robust_list);
        if head == 0 {
            return;
        }
        // { next, futex_offset, list_op_pending }
        let Ok([mut entry, offset, pending]) = self.memory().read_object::<[u64; 3]>(GuestAddr::new(head))
        else {
            return;
        };
        let tid = self.tid() as u32;
        let release = |entry: u64| {
            let word = GuestAddr::new((entry & !1).wrapping_add(offset));
            if let Ok(value) = self.memory().read_object::<u32>(word)
                && value & TID_MASK == tid
            {
                // Not atomic: a waiter that marks the word in between sleeps on a value that is gone, or is woken.
                let _ = self.memory().write_object(word, &OWNER_DIED);
                self.wake_shared(word, 1);
            }
        };
        for _ in 0..MOST {
            if entry & !1 == head {
                break;
            }
            let next = self.memory().read_object::<u64>(GuestAddr::new(entry & !1));
            if entry & !1 != pending & !1 {
                release(entry);
            }
            let Ok(next) = next else { break };
            entry = next;
        }
        if pending & !1 != 0 {
            release(pending);
        }
    }
}
