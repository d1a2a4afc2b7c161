//! The patterns and the scales that a tile's bits stand for.

use super::layout::Layout;
use crate::dictionary::{base_patterns, computed_pattern, computed_values, similarities, transposed};
use crate::matrix::TileShape;
use half::f16;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Gains and ladder of a layout.
///
/// ```text
/// gain(g)   = √tile_len · 2^(−4 + 8·g / 2^gain_bits)
/// ladder(k) = ((tile_len − η·b) / (tile_len + η·b))^k       b = index_bits + 1, η = 0.28, at least (1/4)^k
/// ```
///
/// The fraction is 2^(−0.81·b/tile_len) without a logarithm: what a pick of `b` bits leaves of a Gaussian tile, 2^(−b/tile_len)
/// by Shannon's bound, less what a finite dictionary misses. η was measured: .27 to .31 differ by 1 %.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) gains: Vec<f32>,
    pub(super) ladder: Vec<f32>,
}

/// See [`Tables`].
const ETA: f64 = 0.28;

impl Tables {
    pub(super) fn new(layout: &Layout) -> Self {
        let unit = (layout.grid.tile.len() as f64).sqrt() / 16.0;
        // 2^(8 / 2^gain_bits) by square roots alone, which every machine rounds alike.
        let step = (3..layout.gain_bits).fold(2.0f64, |step, _| step.sqrt());
        let powers = |first: f64, ratio: f64| std::iter::successors(Some(first), move |x| Some(x * ratio));
        Self {
            gains: powers(unit, step).take(1 << layout.gain_bits).map(|x| x as f32).collect(),
            ladder: powers(1.0, fall(layout)).take(layout.terms).map(|x| x as f32).collect(),
        }
    }

    /// The scale of term `k` in a tile of gain code `gain`.
    pub(super) fn scale(&self, layout: &Layout, gain: u32, k: usize, term: u32) -> f32 {
        let code = term >> layout.index_bits;
        let magnitude = self.gains[gain as usize] * self.ladder[k] * halvings(code >> 1);
        if code & 1 == 0 { magnitude } else { -magnitude }
    }

    /// The share of a Gaussian tile's norm that its first pattern explains: what the ladder's fall leaves.
    pub(super) fn first_share(layout: &Layout) -> f64 {
        (1.0 - fall(layout) * fall(layout)).sqrt()
    }
}

/// The ratio of one scale of the ladder to the one before.
fn fall(layout: &Layout) -> f64 {
    let (tile_len, b) = (layout.grid.tile.len() as f64, ETA * f64::from(layout.index_bits + 1));
    ((tile_len - b) / (tile_len + b)).max(0.25)
}

/// What dictionaries that are not in use may take: one for each rate, or tile of small weights, in use at a time.
pub(super) const KEPT_BYTES: usize = 32 << 20;

/// Which dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    tile: TileShape,
    index_bits: u32,
    parts: usize,
}

/// The patterns that belong to no weight. Part p holds, by index: nothing; the base patterns, as many as fit into a
/// quarter of it; and computed patterns of part p.
#[derive(Debug)]
struct Universal {
    key: Key,
    /// `[parts, patterns, tile_len]`.
    rows: Vec<f32>,
    /// `[parts, tile_len, patterns]`.
    columns: OnceLock<Vec<f32>>,
    /// The computed patterns before the division by their norm, `[parts, patterns, tile_len]`, at every index. Only kernels
    /// need them.
    integers: OnceLock<Vec<i8>>,
    /// Base patterns of each part.
    base: usize,
}

impl Universal {
    fn new(key: Key) -> Self {
        let (len, patterns) = (key.tile.len(), 1usize << key.index_bits);
        let mut base = base_patterns(key.tile);
        base.truncate(patterns / 4);
        let mut rows = vec![0.0; key.parts * patterns * len];
        for (part, rows) in rows.chunks_exact_mut(patterns * len).enumerate() {
            for (index, row) in rows.chunks_exact_mut(len).enumerate().skip(1) {
                match base.get(index - 1) {
                    Some((_, pattern)) => row.copy_from_slice(pattern),
                    None => computed_pattern(part as u16, index as u16, row),
                }
            }
        }
        Self { key, rows, columns: OnceLock::new(), integers: OnceLock::new(), base: base.len() }
    }

    /// The dictionary, shared by all weights that have the same one; the last few are kept.
    fn shared(key: Key) -> Arc<Self> {
        static KNOWN: Mutex<Vec<Arc<Universal>>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match known.iter().position(|entry| entry.key == key) {
            Some(place) => known.remove(place),
            None => Arc::new(Self::new(key)),
        };
        known.insert(0, Arc::clone(&found));
        let mut kept = 0;
        known.retain(|entry| {
            // With the transpose. The newest stays whatever its size.
            let fits = kept == 0 || kept + 8 * entry.rows.len() <= KEPT_BYTES;
            kept += 8 * entry.rows.len();
            fits
        });
        found
    }

    fn integers(&self) -> &[i8] {
        self.integers.get_or_init(|| {
            let (len, patterns) = (self.key.tile.len(), 1usize << self.key.index_bits);
            let mut values = vec![0.0; len];
            let mut integers = Vec::with_capacity(self.rows.len());
            for at in 0..self.key.parts * patterns {
                computed_values((at / patterns) as u16, (at % patterns) as u16, &mut values);
                integers.extend(values.iter().map(|value| *value as i8));
            }
            integers
        })
    }

    fn columns(&self) -> &[f32] {
        let (len, patterns) = (self.key.tile.len(), 1usize << self.key.index_bits);
        self.columns.get_or_init(|| self.rows.chunks_exact(patterns * len).flat_map(|p| transposed(p, len)).collect())
    }
}

/// All patterns of one weight: the universal ones, after whose base patterns the weight's learned ones stand in every part.
#[derive(Debug)]
pub(super) struct Patterns {
    universal: Arc<Universal>,
    len: usize,
    count: usize,
    /// `[learned, tile_len]`.
    learned: Vec<f32>,
    /// Its transpose, which only a search needs.
    learned_columns: OnceLock<Vec<f32>>,
}

impl Patterns {
    pub(super) fn of(layout: &Layout, learned: &[f16]) -> Self {
        let (tile, index_bits, parts) = (layout.grid.tile, layout.index_bits, layout.parts);
        let (len, unit) = (tile.len(), 1.0 / (tile.len() as f64).sqrt());
        let learned: Vec<f32> = learned.iter().map(|value| (value.to_f64() * unit) as f32).collect();
        let universal = Universal::shared(Key { tile, index_bits, parts });
        Self { universal, len, count: layout.patterns(), learned, learned_columns: OnceLock::new() }
    }

    /// Base patterns of each part.
    pub(super) fn base(&self) -> usize {
        self.universal.base
    }

    /// The stored patterns, `[learned, tile_len]`.
    pub(super) fn learned(&self) -> &[f32] {
        &self.learned
    }

    /// Computed pattern `index` of the part that term `term` picks from, before the division by its norm.
    pub(super) fn integers(&self, term: usize, index: usize) -> &[i8] {
        let part = term % self.universal.key.parts;
        &self.universal.integers()[(part * self.count + index) * self.len..][..self.len]
    }

    /// Pattern `index` of the part that term `term` picks from.
    pub(super) fn pattern(&self, term: usize, index: usize) -> &[f32] {
        let learned = index.wrapping_sub(1 + self.universal.base);
        if let Some(pattern) = self.learned.chunks_exact(self.len).nth(learned) {
            return pattern;
        }
        let part = term % self.universal.key.parts;
        &self.universal.rows[(part * self.count + index) * self.len..][..self.len]
    }

    /// Inner products of `tiles` `[T, tile_len]` with every pattern of the term's part, `[T, patterns]`.
    pub(super) fn similarities(&self, term: usize, tiles: &[f32], scratch: &mut Vec<f32>, out: &mut [f32]) {
        let part = term % self.universal.key.parts;
        let part_len = self.count * self.len;
        similarities(tiles, self.len, &self.universal.columns()[part * part_len..][..part_len], out);
        let learned = self.learned.len() / self.len;
        if learned > 0 {
            scratch.resize(tiles.len() / self.len * learned, 0.0);
            let columns = self.learned_columns.get_or_init(|| transposed(&self.learned, self.len));
            similarities(tiles, self.len, columns, scratch);
            for (out, found) in out.chunks_exact_mut(self.count).zip(scratch.chunks_exact(learned)) {
                out[1 + self.universal.base..][..learned].copy_from_slice(found);
            }
        }
    }

    /// Writes the tile that `gain` and `terms` stand for.
    pub(super) fn synthesize(&self, layout: &Layout, tables: &Tables, gain: u32, terms: &[u32], tile: &mut [f32]) {
        tile.fill(0.0);
        for (k, term) in terms.iter().enumerate() {
            let index = layout.index(*term);
            if index > 0 {
                let scale = tables.scale(layout, gain, k, *term);
                tile.iter_mut().zip(self.pattern(k, index)).for_each(|(out, value)| *out += scale * value);
            }
        }
    }
}

/// `2^−m` for m < 32.
pub(super) fn halvings(m: u32) -> f32 {
    1.0 / (1u32 << m) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Options;
    use crate::codec::matching::layout::Parameters;
    use crate::matrix::Shape;

    fn layout(patterns: u32) -> Layout {
        let options: Options =
            [("tile", 8), ("patterns", patterns)].map(|(name, value)| (name.to_owned(), value)).into();
        Layout::new(&Parameters::new(2.0, &options).unwrap(), Shape::new(64, 64).unwrap())
    }

    #[test]
    fn gains_span_eight_octaves_around_the_norm_of_a_tile() {
        let gains = Tables::new(&layout(9)).gains;
        assert_eq!((gains.len(), gains[0], gains[128]), (256, 0.5, 8.0));
        assert!((gains[32] - 1.0).abs() < 1e-6, "{}", gains[32]);
    }

    #[test]
    fn the_ladder_falls_by_its_formula() {
        let ladder = Tables::new(&layout(9)).ladder;
        assert_eq!((ladder.len(), ladder[0]), (12, 1.0));
        // (64 − 2.8) / (64 + 2.8)
        assert!((ladder[1] - 61.2 / 66.8).abs() < 1e-6);
    }

    #[test]
    fn a_part_starts_with_nothing_then_base_then_learned_then_computed() {
        let layout = layout(9);
        let learned = vec![f16::ONE; 64];
        let patterns = Patterns::of(&layout, &learned);
        let base = base_patterns(layout.grid.tile);
        assert_eq!(patterns.pattern(3, 0), [0.0; 64]);
        assert_eq!(patterns.pattern(3, 1), base[0].1);
        assert_eq!(patterns.pattern(3, base.len()), base[base.len() - 1].1);
        assert_eq!(patterns.pattern(3, base.len() + 1), [0.125; 64]);
        let mut computed = [0.0; 64];
        computed_pattern(3, base.len() as u16 + 2, &mut computed);
        assert_eq!(patterns.pattern(3, base.len() + 2), computed);
    }

    #[test]
    fn a_tile_is_the_sum_of_its_scaled_patterns() {
        let layout = layout(9);
        let (patterns, tables) = (Patterns::of(&layout, &[]), Tables::new(&layout));
        // Gain 128 is 8; term 0 is +identity, term 1 is −identity, the rest nothing.
        let mut terms = [0; 12];
        (terms[0], terms[1]) = (1, 1 | 1 << 9);
        let mut tile = [9.0; 64];
        patterns.synthesize(&layout, &tables, 128, &terms, &mut tile);
        let diagonal = 8.0 * 0.125f32.sqrt() * (1.0 - 61.2 / 66.8);
        for (i, value) in tile.iter().enumerate() {
            let expected = if i / 8 == i % 8 { diagonal } else { 0.0 };
            assert!((value - expected).abs() < 1e-5, "{i}: {value}");
        }
    }
}
