//! Plans by file, so that a shell loop of short processes does not plan libc again.

use std::hash::Hash;
use std::sync::Arc;

use crate::bounded::BoundedMap;
use crate::plan::{Plan, Refusal};

/// A site as its file knows it: the identity of the file's content, and the offset of the `syscall` in the file.
///
/// The values are the caller's business (see stat(2)); here they are only compared. A file that is rewritten within
/// the granularity of its times keeps its identity: a plan is checked against the bytes when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSite {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// File size in bytes.
    pub size_bytes: u64,
    /// Modification time in nanoseconds.
    pub mtime_ns: i128,
    /// Offset of the `syscall` in the file.
    pub offset: u64,
}

/// A bounded cache of planning results, refusals included. One serves all address spaces.
#[derive(Clone, Debug)]
pub struct PlanCache<K = FileSite> {
    plans: BoundedMap<K, Result<Arc<Plan>, Refusal>>,
}

impl<K: Hash + Eq + Clone> PlanCache<K> {
    /// A cache of at most `capacity` results (at least one).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { plans: BoundedMap::new(capacity) }
    }

    /// What was planned for `key`.
    pub fn get(&mut self, key: &K) -> Option<Result<Arc<Plan>, Refusal>> {
        self.plans.get(key).cloned()
    }

    /// Remembers a result. Do not put results here that depend on more than the file, such as
    /// [`Hints::occupied`](crate::Hints::occupied).
    pub fn insert(&mut self, key: K, result: Result<Arc<Plan>, Refusal>) {
        self.plans.insert(key, result);
    }

    /// Results held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plans.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
