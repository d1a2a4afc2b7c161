//! The patterns and the scales that a tile's bits select.

use super::layout::Layout;
use super::universal::Universal;
use crate::math::transposed;
use crate::patterns::similarities;
use half::f16;
use std::sync::{Arc, OnceLock};

/// Gains and ladder of a layout.
///
/// ```text
/// gain(g)   = √tile_len · 2^(−4 + 8·g / 2^gain_bits)
/// ladder(k) = ((tile_len − η·b) / (tile_len + η·b))^k       b = index_bits + 1, η = 0.28, at least (1/4)^k
/// ```
///
/// The fraction is 2^(−0.81·b/tile_len) without a logarithm: the residual of a Gaussian tile after a pick of `b` bits,
/// 2^(−b/tile_len) by Shannon's bound, minus what a finite dictionary misses. η was measured: .27 to .31 differ by 1 %.
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

    /// The share of a Gaussian tile's norm that its first pattern explains, as the ratio of the ladder implies.
    pub(super) fn first_share(layout: &Layout) -> f64 {
        (1.0 - fall(layout) * fall(layout)).sqrt()
    }
}

/// The ratio of one scale of the ladder to the one before.
fn fall(layout: &Layout) -> f64 {
    let (tile_len, b) = (layout.grid.tile.len() as f64, ETA * f64::from(layout.index_bits + 1));
    ((tile_len - b) / (tile_len + b)).max(0.25)
}

/// All patterns of one weight: the universal ones, after whose base patterns the weight's learned ones stand in every
/// part.
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
    /// The patterns of a weight with those that it has `learned`, as they are stored.
    pub(super) fn new(universal: Arc<Universal>, layout: &Layout, learned: &[f16]) -> Self {
        let len = layout.grid.tile.len();
        let unit = 1.0 / (len as f64).sqrt();
        let learned: Vec<f32> = learned.iter().map(|value| (value.to_f64() * unit) as f32).collect();
        Self { universal, len, count: layout.patterns(), learned, learned_columns: OnceLock::new() }
    }

    /// Base patterns of each part.
    pub(super) fn base(&self) -> usize {
        self.universal.base()
    }

    /// The stored patterns, `[learned, tile_len]`.
    pub(super) fn learned(&self) -> &[f32] {
        &self.learned
    }

    /// Pattern `index` of the part that term `term` picks from.
    pub(super) fn pattern(&self, term: usize, index: usize) -> &[f32] {
        let learned = index.wrapping_sub(1 + self.base());
        if let Some(pattern) = self.learned.chunks_exact(self.len).nth(learned) {
            return pattern;
        }
        self.universal.pattern(term, index)
    }

    /// Inner products of `tiles` `[T, tile_len]` with every pattern of the term's part, `[T, patterns]`.
    pub(super) fn similarities(&self, term: usize, tiles: &[f32], scratch: &mut Vec<f32>, out: &mut [f32]) {
        similarities(tiles, self.len, self.universal.columns(term), out);
        let learned = self.learned.len() / self.len;
        if learned > 0 {
            scratch.resize(tiles.len() / self.len * learned, 0.0);
            let columns = self.learned_columns.get_or_init(|| transposed(&self.learned, self.len));
            similarities(tiles, self.len, columns, scratch);
            for (out, found) in out.chunks_exact_mut(self.count).zip(scratch.chunks_exact(learned)) {
                out[1 + self.base()..][..learned].copy_from_slice(found);
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
    use crate::patterns::{base_patterns, computed_pattern};
    use approx::assert_abs_diff_eq;

    fn layout(patterns: u32) -> Layout {
        let options: Options =
            [("tile", 8), ("patterns", patterns)].map(|(name, value)| (name.to_owned(), value)).into();
        Layout::new(&Parameters::new(2.0, &options).unwrap(), Shape::new(64, 64).unwrap())
    }

    #[test]
    fn gains_span_eight_octaves_around_the_norm_of_a_tile() {
        let gains = Tables::new(&layout(9)).gains;
        assert_eq!((gains.len(), gains[0], gains[128]), (256, 0.5, 8.0));
        assert_abs_diff_eq!(gains[32], 1.0, epsilon = 1e-6);
    }

    #[test]
    fn the_ladder_falls_by_its_formula() {
        let ladder = Tables::new(&layout(9)).ladder;
        assert_eq!((ladder.len(), ladder[0]), (12, 1.0));
        // (64 − 2.8) / (64 + 2.8)
        assert_abs_diff_eq!(ladder[1], 61.2 / 66.8, epsilon = 1e-6);
    }

    #[test]
    fn a_part_starts_with_nothing_then_base_then_learned_then_computed() {
        let layout = layout(9);
        let learned = vec![f16::ONE; 64];
        let patterns = Patterns::new(Universal::of(&layout), &layout, &learned);
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
        let (patterns, tables) = (Patterns::new(Universal::of(&layout), &layout, &[]), Tables::new(&layout));
        // Gain 128 is 8; term 0 is +identity, term 1 is −identity, the rest nothing.
        let mut terms = [0; 12];
        (terms[0], terms[1]) = (1, 1 | 1 << 9);
        let mut tile = [9.0; 64];
        patterns.synthesize(&layout, &tables, 128, &terms, &mut tile);
        let diagonal = 8.0 * 0.125f32.sqrt() * (1.0 - 61.2 / 66.8);
        let expected: [f32; 64] = std::array::from_fn(|i| if i / 8 == i % 8 { diagonal } else { 0.0 });
        assert_abs_diff_eq!(tile.as_slice(), expected.as_slice(), epsilon = 1e-5);
    }
}
