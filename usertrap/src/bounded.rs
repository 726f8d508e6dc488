//! A map that forgets: hostile guests choose the keys, so there is a cap and an eviction.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

#[derive(Clone, Debug)]
struct Kept<V> {
    value: V,
    /// Tells this entry from an earlier one of the same key in the queue.
    serial: u64,
    used: bool,
}

/// At most `capacity` entries; the oldest that was not used since it was last looked at goes first (second chance).
#[derive(Clone, Debug)]
pub(crate) struct BoundedMap<K, V> {
    entries: HashMap<K, Kept<V>>,
    queue: VecDeque<(u64, K)>,
    capacity: usize,
    serial: u64,
}

impl<K: Hash + Eq + Clone, V> BoundedMap<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), queue: VecDeque::new(), capacity: capacity.max(1), serial: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get(&mut self, key: &K) -> Option<&V> {
        let kept = self.entries.get_mut(key)?;
        kept.used = true;
        Some(&kept.value)
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.entries.remove(&key);
        while self.entries.len() >= self.capacity {
            self.evict();
        }
        // Keys removed or replaced leave their queue entries behind; drop those before they outnumber the others.
        if self.queue.len() >= 2 * self.capacity {
            let entries = &self.entries;
            self.queue.retain(|(serial, key)| entries.get(key).is_some_and(|k| k.serial == *serial));
        }
        self.serial += 1;
        self.queue.push_back((self.serial, key.clone()));
        self.entries.insert(key, Kept { value, serial: self.serial, used: false });
    }

    fn evict(&mut self) {
        while let Some((serial, key)) = self.queue.pop_front() {
            let Some(kept) = self.entries.get_mut(&key).filter(|k| k.serial == serial) else { continue };
            if std::mem::take(&mut kept.used) {
                self.queue.push_back((serial, key));
            } else {
                self.entries.remove(&key);
                return;
            }
        }
    }

    pub fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|k, _| keep(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_its_capacity_and_the_used_stay() {
        let mut map = BoundedMap::new(8);
        map.insert(1_000_000, 'k');
        for i in 0..10_000 {
            assert_eq!(map.get(&1_000_000), Some(&'k'), "after {i}");
            map.insert(i, 'x');
            assert!(map.len() <= 8 && map.queue.len() <= 16);
        }
    }

    #[test]
    fn replaced_and_removed_entries_do_not_pile_up() {
        let mut map = BoundedMap::new(4);
        for i in 0..1000 {
            map.insert(1, i);
            map.insert(2, i);
            map.retain(|k| *k != 2);
            assert!(map.queue.len() <= 8);
        }
        assert_eq!(map.get(&1), Some(&999));
        assert_eq!(map.get(&2), None);
    }
}
