//! The dictionary: patterns by shape, their use, and who refers to them.

use super::error::{DictionaryError, check_finite};
use super::pattern::{PatternId, PatternMetadata};
use super::stack::Stack;
use crate::lru::Lru;
use crate::matrix::{Matrix, MatrixRef, Shape};
use crate::patterns::{DUPLICATE_COSINE, PatternKind, norm, normalise, strongest};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The default limit of a dictionary in bytes: 100 MB.
const DEFAULT_MAX_BYTES: usize = 100 << 20;

/// Patterns of any rectangular shape, each of norm 1, and what is known about them.
///
/// Patterns of one shape form one matrix, kept in half precision and matched against a target by one matrix product.
/// [`get`](Self::get) widens a pattern and remembers the last `cache_size` it widened. An id names its pattern for
/// ever: it is never used again, and a pattern that is [retained](Self::retain) is not evicted.
///
/// # Example
/// ```
/// use pixel_core::{Matrix, Shape, dictionary::PatternDictionary, patterns::PatternKind};
/// let mut dictionary = PatternDictionary::new(1024, 256);
/// let shape = Shape::new(4, 4)?;
/// dictionary.generate_base_patterns(shape)?;
/// let mut target = Matrix::zeros(shape);
/// target.as_mut_slice().iter_mut().step_by(5).for_each(|value| *value = -3.0);
/// let best = dictionary.find_best_matches(target.as_ref(), 5, 0.1)?;
/// assert_eq!(dictionary.metadata(best[0].id)?.kind, PatternKind::Identity);
/// assert!((best[0].cosine + 1.0).abs() < 1e-3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PatternDictionary {
    pub(super) max_patterns: usize,
    pub(super) cache_size: usize,
    pub(super) max_bytes: usize,
    pub(super) next_id: u64,
    instance: u64,
    pub(super) entries: BTreeMap<PatternId, Entry>,
    pub(super) stacks: BTreeMap<Shape, Stack>,
    cache: Mutex<Lru<PatternId, Arc<Matrix>>>,
}

/// What is kept in addition to a pattern's values.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shape: Shape,
    pub(super) kind: PatternKind,
    pub(super) usage: AtomicU64,
    pub(super) importance: f32,
    pub(super) references: u64,
    pub(super) layers: BTreeMap<String, u64>,
}

impl Entry {
    fn bytes(&self) -> usize {
        2 * self.shape.num_weights()
    }

    /// Evicted first: what is used least, then what matters least, then what came first.
    fn rank(&self, id: PatternId) -> impl Ord + use<> {
        // The order of these bits is the order of the numbers, which are not negative.
        (self.usage.load(Ordering::Relaxed), self.importance.to_bits(), id)
    }
}

impl Default for PatternDictionary {
    fn default() -> Self {
        Self::new(1024, 256)
    }
}

impl PatternDictionary {
    /// An empty dictionary of at most `max_patterns` patterns that remembers `cache_size` widened ones. The usual
    /// values, those of [`Default`], are 1024 and 256.
    pub fn new(max_patterns: usize, cache_size: usize) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        Self {
            max_patterns,
            cache_size,
            max_bytes: DEFAULT_MAX_BYTES,
            next_id: 0,
            instance: INSTANCES.fetch_add(1, Ordering::Relaxed),
            entries: BTreeMap::new(),
            stacks: BTreeMap::new(),
            cache: Mutex::new(Lru::new(cache_size)),
        }
    }

    /// Limits the bytes of the patterns (two a value); the default is 100 MB.
    pub fn with_max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// The number of patterns.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the patterns.
    pub fn num_bytes(&self) -> usize {
        self.entries.values().map(Entry::bytes).sum()
    }

    /// The patterns of `shape`, by ascending id.
    pub fn ids(&self, shape: Shape) -> &[PatternId] {
        self.stacks.get(&shape).map_or(&[], |stack| &stack.ids)
    }

    /// A number that no other dictionary of this process has: an id means nothing without it.
    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    /// Adds a pattern, divided by its norm, and returns its id; or the id of a pattern of the same shape whose
    /// |cosine| with it is above 0.98. That one may have the opposite sign: fit scales to what [`get`](Self::get)
    /// returns.
    ///
    /// In a full dictionary the least-used pattern that nothing refers to makes room.
    ///
    /// # Errors
    /// [`DictionaryError::ZeroPattern`], [`DictionaryError::NotFinite`]; [`DictionaryError::Full`] if the referenced
    /// patterns leave no room.
    pub fn add(&mut self, pattern: MatrixRef<'_>, kind: PatternKind) -> Result<PatternId, DictionaryError> {
        let shape = pattern.shape();
        check_finite("the pattern", pattern.as_slice())?;
        let mut unit = pattern.as_slice().to_vec();
        normalise(&mut unit);
        // Twice: values near the least f32 lose their precision in the first division.
        normalise(&mut unit);
        if norm(&unit) == 0.0 {
            return Err(DictionaryError::ZeroPattern { shape });
        }
        if let Some(duplicate) = self.duplicate(shape, &unit) {
            return Ok(duplicate);
        }
        self.make_room(2 * shape.num_weights())?;
        let id = PatternId(self.next_id);
        self.next_id += 1;
        let entry =
            Entry { shape, kind, usage: AtomicU64::new(0), importance: 0.0, references: 0, layers: BTreeMap::new() };
        self.insert(id, entry, &Stack::rounded(&unit));
        Ok(id)
    }

    pub(super) fn insert(&mut self, id: PatternId, entry: Entry, rounded: &[half::f16]) {
        let shape = entry.shape;
        self.stacks.entry(shape).or_insert_with(|| Stack::new(shape.num_weights())).push(id, rounded);
        self.entries.insert(id, entry);
    }

    fn duplicate(&self, shape: Shape, unit: &[f32]) -> Option<PatternId> {
        let stack = self.stacks.get(&shape)?;
        let products = stack.products(unit);
        let best = strongest(&products);
        (f64::from(products[best].abs()) > DUPLICATE_COSINE).then(|| stack.ids[best])
    }

    /// Evicts until one more pattern of `bytes` fits; evicts nothing if it never would.
    fn make_room(&mut self, bytes: usize) -> Result<(), DictionaryError> {
        let held = self.entries.values().filter(|entry| entry.references > 0);
        let (count, held_bytes) = held.fold((0, 0), |(count, sum), entry| (count + 1, sum + entry.bytes()));
        if count >= self.max_patterns || held_bytes.saturating_add(bytes) > self.max_bytes {
            return Err(DictionaryError::Full {
                max_patterns: self.max_patterns,
                max_bytes: self.max_bytes,
                referenced: count,
                bytes,
            });
        }
        while self.entries.len() >= self.max_patterns || self.num_bytes() + bytes > self.max_bytes {
            let free = self.entries.iter().filter(|(_, entry)| entry.references == 0);
            let Some((id, _)) = free.min_by_key(|(id, entry)| entry.rank(**id)) else { break };
            self.remove(*id);
        }
        Ok(())
    }

    fn remove(&mut self, id: PatternId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        if let Some(stack) = self.stacks.get_mut(&entry.shape) {
            stack.remove(id);
            if stack.ids.is_empty() {
                self.stacks.remove(&entry.shape);
            }
        }
        self.cache().remove(&id);
    }

    /// Removes the patterns used less than `min_usage` times that nothing refers to, and returns their ids.
    pub fn prune(&mut self, min_usage: u64) -> Vec<PatternId> {
        let is_idle = |entry: &Entry| entry.references == 0 && entry.usage.load(Ordering::Relaxed) < min_usage;
        let idle: Vec<_> = self.entries.iter().filter(|(_, entry)| is_idle(entry)).map(|(id, _)| *id).collect();
        idle.iter().for_each(|id| self.remove(*id));
        idle
    }

    /// The shape of a pattern.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`].
    pub fn shape(&self, id: PatternId) -> Result<Shape, DictionaryError> {
        self.entry(id).map(|entry| entry.shape)
    }

    /// What is known about a pattern.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`].
    pub fn metadata(&self, id: PatternId) -> Result<PatternMetadata, DictionaryError> {
        self.entry(id).map(|entry| PatternMetadata {
            kind: entry.kind,
            shape: entry.shape,
            usage: entry.usage.load(Ordering::Relaxed),
            importance: entry.importance,
            references: entry.references,
            layers: entry.layers.clone(),
        })
    }

    /// Sets the weight that decides between equally used patterns; negative values and NaN count as zero.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`].
    pub fn set_importance(&mut self, id: PatternId, importance: f32) -> Result<(), DictionaryError> {
        // Not `max`: it may keep a negative zero, whose bits are greater than all others.
        self.entry_mut(id)?.importance = if importance > 0.0 { importance } else { 0.0 };
        Ok(())
    }

    /// Counts a use of the pattern by a layer.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`].
    pub fn record_use(&mut self, id: PatternId, layer: &str) -> Result<(), DictionaryError> {
        let entry = self.entry_mut(id)?;
        let uses = entry.layers.entry(layer.to_owned()).or_default();
        *uses = uses.saturating_add(1);
        let usage = entry.usage.get_mut();
        *usage = usage.saturating_add(1);
        Ok(())
    }

    /// Adds a reference: the pattern stays until it is [released](Self::release) as often.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`].
    pub fn retain(&mut self, id: PatternId) -> Result<(), DictionaryError> {
        let entry = self.entry_mut(id)?;
        entry.references = entry.references.saturating_add(1);
        Ok(())
    }

    /// Releases a reference.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`]; [`DictionaryError::NotRetained`] if there is no reference.
    pub fn release(&mut self, id: PatternId) -> Result<(), DictionaryError> {
        let entry = self.entry_mut(id)?;
        entry.references = entry.references.checked_sub(1).ok_or(DictionaryError::NotRetained { id })?;
        Ok(())
    }

    /// The stored values of a pattern, norm √len.
    pub(super) fn stored(&self, id: PatternId) -> Option<&[half::f16]> {
        self.stacks.get(&self.entries.get(&id)?.shape)?.stored(id)
    }

    pub(super) fn entry(&self, id: PatternId) -> Result<&Entry, DictionaryError> {
        self.entries.get(&id).ok_or(DictionaryError::Absent { id })
    }

    fn entry_mut(&mut self, id: PatternId) -> Result<&mut Entry, DictionaryError> {
        self.entries.get_mut(&id).ok_or(DictionaryError::Absent { id })
    }

    pub(super) fn cache(&self) -> std::sync::MutexGuard<'_, Lru<PatternId, Arc<Matrix>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
