//! The base patterns: identity, off-diagonals, waves and corner blocks, for every rectangular shape.

use super::computed::normalise;
use super::similarity::dot;
use crate::math::trigonometry::sin_turns;
use crate::matrix::TileShape;
use serde::{Deserialize, Serialize};

/// Where a pattern comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PatternKind {
    /// The main diagonal.
    Identity,
    /// A diagonal next to the main one.
    Diagonal,
    /// A block of ones.
    Block,
    /// A wave.
    Fourier,
    /// Drawn or computed at random.
    Random,
    /// Learned from tiles.
    Learned,
    /// The leading singular pair of a residual.
    Svd,
}

/// Patterns whose |cosine| lies above this are the same pattern.
pub(crate) const DUPLICATE_COSINE: f64 = 0.98;

/// The base patterns of a tile, each row-major with norm 1, in this order: the diagonal, the diagonals one above and
/// one below, `sin` and `cos` of `2πf(r/rows + c/cols)` for f = 1, 2, 4, the blocks of half and of a quarter of each
/// side in the four corners, and the full block. One that is zero or equals an earlier one up to sign (|cosine| > 0.98)
/// is skipped, so a tile of 1×1 has one base pattern.
///
/// The sines are computed with sums, products and quotients alone: their bits do not depend on a mathematics library.
///
/// # Example
/// ```
/// use pixel_core::{TileShape, patterns::{PatternKind, base_patterns}};
/// let base = base_patterns(TileShape { rows: 2, cols: 2 });
/// assert_eq!(base[0].0, PatternKind::Identity);
/// assert_eq!(base[0].1, [0.5f32.sqrt(), 0.0, 0.0, 0.5f32.sqrt()]);
/// ```
pub fn base_patterns(tile: TileShape) -> Vec<(PatternKind, Vec<f32>)> {
    let mut base: Vec<(PatternKind, Vec<f32>)> = Vec::new();
    for (kind, mut pattern) in candidates(tile) {
        normalise(&mut pattern);
        let is_new = |pattern: &[f32]| base.iter().all(|(_, other)| dot(other, pattern).abs() <= DUPLICATE_COSINE);
        if pattern.iter().any(|value| *value != 0.0) && is_new(&pattern) {
            base.push((kind, pattern));
        }
    }
    base
}

fn candidates(tile: TileShape) -> impl Iterator<Item = (PatternKind, Vec<f32>)> {
    let TileShape { rows, cols } = tile;
    let fill = move |value: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..rows).flat_map(|r| (0..cols).map(move |c| value(r, c))).collect()
    };
    let diagonals = [(PatternKind::Identity, 0, 0), (PatternKind::Diagonal, 0, 1), (PatternKind::Diagonal, 1, 0)]
        .map(move |(kind, below, above)| (kind, fill(&|r, c| f32::from(r + above == c + below))));
    // The phase in turns is f·(r·cols + c·rows) / (rows·cols); a quarter turn more makes the sine a cosine.
    let waves = [1, 2, 4].into_iter().flat_map(move |frequency| {
        [0, 1].map(|quarter| {
            let turns = tile.len() as u64;
            let phase = |r: usize, c: usize| 4 * frequency * (r * cols + c * rows) as u64 + quarter * turns;
            (PatternKind::Fourier, fill(&|r, c| sin_turns(phase(r, c), 4 * turns) as f32))
        })
    });
    let blocks = [(2, true), (4, true), (1, false)].into_iter().flat_map(move |(part, corners)| {
        let (height, width) = (rows.div_ceil(part), cols.div_ceil(part));
        [(false, false), (false, true), (true, false), (true, true)].into_iter().take(if corners { 4 } else { 1 }).map(
            move |(low, right)| {
                let (top, left) = (if low { rows - height } else { 0 }, if right { cols - width } else { 0 });
                let inside = |r, c| (top..top + height).contains(&r) && (left..left + width).contains(&c);
                (PatternKind::Block, fill(&|r, c| f32::from(inside(r, c))))
            },
        )
    });
    diagonals.into_iter().chain(waves).chain(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;

    #[test]
    fn a_square_tile_has_them_all() {
        let base = base_patterns(TileShape { rows: 8, cols: 8 });
        let count = |kind| base.iter().filter(|(k, _)| *k == kind).count();
        assert_eq!(count(PatternKind::Identity), 1);
        assert_eq!(count(PatternKind::Diagonal), 2);
        assert_eq!(count(PatternKind::Fourier), 6 - 1, "sin of frequency 4 is zero at eight samples");
        assert_eq!(count(PatternKind::Block), 9);
    }

    proptest! {
        #[test]
        fn every_shape_has_distinct_unit_patterns(rows in 1usize..12, cols in 1usize..12) {
            let base = base_patterns(TileShape { rows, cols });
            prop_assert!(!base.is_empty());
            for (i, (_, a)) in base.iter().enumerate() {
                prop_assert_eq!(a.len(), rows * cols);
                assert_abs_diff_eq!(dot(a, a), 1.0, epsilon = 1e-5);
                for (_, b) in &base[..i] {
                    prop_assert!(dot(a, b).abs() <= DUPLICATE_COSINE);
                }
            }
        }
    }
}
