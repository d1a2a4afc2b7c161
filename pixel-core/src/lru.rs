//! A cache that forgets what was used least recently, within a budget.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Values by key, whose costs add up to no more than the budget.
///
/// # Example
/// ```
/// use pixel_core::lru::Lru;
/// let mut weights = Lru::new(100);
/// weights.insert("first", 1, 60);
/// weights.insert("second", 2, 60);
/// assert_eq!((weights.get(&"first"), weights.get(&"second"), weights.used()), (None, Some(2), 60));
/// ```
#[derive(Debug)]
pub struct Lru<K, V> {
    budget: usize,
    used: usize,
    clock: u64,
    entries: HashMap<K, Entry<V>>,
    /// Keys by the time of their last use.
    order: BTreeMap<u64, K>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    cost: usize,
    time: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Lru<K, V> {
    /// An empty cache for costs of `budget` in all, bytes for instance.
    pub fn new(budget: usize) -> Self {
        Self { budget, used: 0, clock: 0, entries: HashMap::new(), order: BTreeMap::new() }
    }

    /// The total cost of the values.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The value of `key`, which becomes the most recently used.
    pub fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        self.clock += 1;
        self.order.remove(&entry.time);
        entry.time = self.clock;
        self.order.insert(self.clock, key.clone());
        Some(entry.value.clone())
    }

    /// Keeps a value; one that costs more than the whole budget is not kept.
    pub fn insert(&mut self, key: K, value: V, cost: usize) {
        self.remove(&key);
        if cost > self.budget {
            return;
        }
        while self.budget - self.used < cost {
            let Some((_, oldest)) = self.order.first_key_value() else { return };
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
        self.clock += 1;
        self.used += cost;
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { value, cost, time: self.clock });
    }

    /// Forgets the value of `key`.
    pub fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.used -= entry.cost;
            self.order.remove(&entry.time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_recently_used_value_goes_first() {
        let mut lru = Lru::new(2);
        lru.insert('a', 1, 1);
        lru.insert('b', 2, 1);
        assert_eq!(lru.get(&'a'), Some(1));
        lru.insert('c', 3, 1);
        assert_eq!((lru.get(&'a'), lru.get(&'b'), lru.get(&'c')), (Some(1), None, Some(3)));
    }

    proptest! {
        #[test]
        fn the_budget_is_obeyed(budget in 0usize..20, steps in prop::collection::vec((0u8..8, 0usize..12), 0..60)) {
            let mut lru = Lru::new(budget);
            for (key, cost) in steps {
                lru.insert(key, cost, cost);
                prop_assert!(lru.used() <= budget);
                prop_assert_eq!(lru.get(&key).is_some(), cost <= budget);
                let kept: usize = (0..8).filter_map(|key| lru.get(&key)).sum();
                prop_assert_eq!(kept, lru.used());
            }
        }
    }
}
