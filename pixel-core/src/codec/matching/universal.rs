//! The patterns that belong to no weight, shared by all that use them.

use super::layout::Layout;
use crate::math::transposed;
use crate::matrix::TileShape;
use crate::patterns::{base_patterns, computed_pattern, computed_values};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Bytes of patterns that are cached without a holder: one set for each rate, or tile of small weights.
pub(super) const KEPT_BYTES: usize = 32 << 20;

/// What distinguishes sets of patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    tile: TileShape,
    index_bits: u32,
    parts: usize,
}

impl Key {
    const fn patterns(&self) -> usize {
        1 << self.index_bits
    }

    /// Bytes of the patterns and their transpose.
    const fn bytes(&self) -> usize {
        8 * self.parts * self.patterns() * self.tile.len()
    }
}

/// Patterns of one tile and size. Part p holds, by index: nothing; the base patterns, as many as fit into a quarter of
/// it; and computed patterns of part p. Each form is made when it is first asked for.
#[derive(Debug)]
pub(crate) struct Universal {
    key: Key,
    rows: OnceLock<Rows>,
    /// `[parts, tile_len, patterns]`.
    columns: OnceLock<Vec<f32>>,
    /// The computed patterns before the division by their norm, `[parts, patterns, tile_len]`, at every index. Only
    /// decoders need them.
    integers: OnceLock<Vec<i8>>,
}

#[derive(Debug)]
struct Rows {
    /// Base patterns of each part.
    base: usize,
    /// `[parts, patterns, tile_len]`, each of norm 1.
    values: Vec<f32>,
}

/// A set of patterns that a caller holds or that is cached.
struct Known {
    universal: Weak<Universal>,
    kept: Option<Arc<Universal>>,
}

impl Universal {
    /// The patterns of a layout, shared with all weights that have the same ones.
    ///
    /// They live as long as a caller holds them; beyond that, up to [`KEPT_BYTES`] are cached. No pattern is made under
    /// the lock.
    pub(super) fn of(layout: &Layout) -> Arc<Self> {
        static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
        let key = Key { tile: layout.grid.tile, index_bits: layout.index_bits, parts: layout.parts };
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|entry| entry.universal.strong_count() > 0);
        let found = known.iter().position(|entry| entry.universal.upgrade().is_some_and(|found| found.key == key));
        let found = match found.and_then(|place| known.remove(place).universal.upgrade()) {
            Some(found) => found,
            None => Arc::new(Self { key, rows: OnceLock::new(), columns: OnceLock::new(), integers: OnceLock::new() }),
        };
        known.insert(0, Known { universal: Arc::downgrade(&found), kept: Some(Arc::clone(&found)) });
        let mut bytes = 0;
        for (place, entry) in known.iter_mut().enumerate() {
            bytes += entry.kept.as_ref().map_or(0, |kept| kept.key.bytes());
            // The newest stays whatever its size.
            if place > 0 && bytes > KEPT_BYTES {
                entry.kept = None;
            }
        }
        found
    }

    fn rows(&self) -> &Rows {
        self.rows.get_or_init(|| {
            let Key { tile, parts, .. } = self.key;
            let (len, patterns) = (tile.len(), self.key.patterns());
            let mut base = base_patterns(tile);
            base.truncate(patterns / 4);
            let mut values = vec![0.0; parts * patterns * len];
            for (part, rows) in values.chunks_exact_mut(patterns * len).enumerate() {
                for (index, row) in rows.chunks_exact_mut(len).enumerate().skip(1) {
                    match base.get(index - 1) {
                        Some((_, pattern)) => row.copy_from_slice(pattern),
                        None => computed_pattern(part as u16, index as u16, row),
                    }
                }
            }
            Rows { base: base.len(), values }
        })
    }

    /// Base patterns of each part.
    pub(super) fn base(&self) -> usize {
        self.rows().base
    }

    /// The place of pattern `index` of the part that term `term` picks from.
    const fn place(&self, term: usize, index: usize) -> usize {
        (term % self.key.parts * self.key.patterns() + index) * self.key.tile.len()
    }

    /// Pattern `index` of the part that term `term` picks from.
    pub(super) fn pattern(&self, term: usize, index: usize) -> &[f32] {
        &self.rows().values[self.place(term, index)..][..self.key.tile.len()]
    }

    /// All patterns of the part that term `term` picks from, `[tile_len, patterns]`.
    pub(super) fn columns(&self, term: usize) -> &[f32] {
        let (len, part_len) = (self.key.tile.len(), self.key.patterns() * self.key.tile.len());
        let columns = self
            .columns
            .get_or_init(|| self.rows().values.chunks_exact(part_len).flat_map(|part| transposed(part, len)).collect());
        &columns[self.place(term, 0)..][..part_len]
    }

    /// Computed pattern `index` of the part that term `term` picks from, before the division by its norm.
    pub(super) fn integers(&self, term: usize, index: usize) -> &[i8] {
        let integers = self.integers.get_or_init(|| {
            let (len, patterns) = (self.key.tile.len(), self.key.patterns());
            let mut values = vec![0.0; len];
            let mut integers = Vec::with_capacity(self.key.parts * patterns * len);
            for at in 0..self.key.parts * patterns {
                computed_values((at / patterns) as u16, (at % patterns) as u16, &mut values);
                integers.extend(values.iter().map(|value| *value as i8));
            }
            integers
        });
        &integers[self.place(term, index)..][..self.key.tile.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::matching::layout::Parameters;
    use crate::matrix::Shape;

    /// A layout whose patterns take half of what is kept or more.
    fn large(side: u32, patterns: u32) -> Layout {
        let options = [("tile", side), ("patterns", patterns)].map(|(name, value)| (name.to_owned(), value)).into();
        Layout::new(&Parameters::new(2.0, &options).unwrap(), Shape::new(128, 128).unwrap())
    }

    #[test]
    fn patterns_that_are_held_are_never_made_again() {
        let layouts = [large(33, 10), large(34, 10), large(35, 10)];
        let bytes = layouts.iter().map(|layout| 8 * layout.parts * (layout.grid.tile.len() << 10));
        assert!(bytes.sum::<usize>() > KEPT_BYTES);
        let held = layouts.each_ref().map(Universal::of);
        for _ in 0..3 {
            for (layout, held) in layouts.iter().zip(&held) {
                assert!(Arc::ptr_eq(held, &Universal::of(layout)), "{:?}", layout.grid.tile);
            }
        }
    }

    #[test]
    fn what_nobody_holds_is_given_up_for_what_is_newer() {
        let first = Arc::downgrade(&Universal::of(&large(29, 11)));
        let second = Universal::of(&large(31, 12));
        assert!(second.key.bytes() > KEPT_BYTES);
        assert_eq!(first.strong_count(), 0);
    }

    #[test]
    fn making_patterns_does_not_hold_up_those_who_look_for_others() {
        let slow = Universal::of(&large(37, 9));
        let (started, start) = std::sync::mpsc::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let maker = std::thread::spawn(move || {
            slow.integers.get_or_init(|| {
                started.send(()).unwrap();
                finished.recv().unwrap();
                Vec::new()
            });
        });
        start.recv().unwrap();
        // While the other thread is in the middle of it.
        assert!(Universal::of(&large(38, 8)).base() > 0);
        finish.send(()).unwrap();
        maker.join().unwrap();
    }
}
