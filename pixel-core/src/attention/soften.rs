//! The softmax of rows of scores that come in blocks.
//!
//! A row keeps its largest score so far, the sum of its weights and the weighted sum of values, both relative to that
//! largest score; when a block brings a larger one, they shrink by the factor between the two.
//!
//! # Sources
//! Milakov and Gimelshein (2018), <https://arxiv.org/abs/1805.02867>; Dao et al. (2022),
//! <https://arxiv.org/abs/2205.14135>.

use crate::math::exp::exp2;
use crate::math::simd::for_every_level;

/// Keys of a block.
pub(super) const BLOCK: usize = 64;

/// Rows that are multiplied together: six times four registers of sums leave eight for operands.
pub(super) const ROWS: usize = 6;

/// Scores that are taken together.
pub(super) const LANES: usize = 16;

/// The largest score of a row that has seen none: finite, so that its difference to any other score is a number.
pub(super) const NO_SCORE: f32 = f32::MIN;

/// The keys of a block that a row sees: those from the first on, up to but not including the second.
pub(super) type Seen = (usize, usize);

/// What a row has summed up so far, for up to [`ROWS`] rows.
pub(super) struct Sums<'a> {
    /// The largest score.
    pub(super) max: &'a mut [f32],
    /// The sum of the weights.
    pub(super) sum: &'a mut [f32],
}

for_every_level! {
    /// Replaces the scores of rows, `[rows, BLOCK]` in powers of two, by weights relative to the largest score so far;
    /// keys that a row does not see get 0. What the row summed up before is to be multiplied by its factor.
    ///
    /// The first `columns` scores of each row are read and written, a multiple of [`LANES`].
    pub(super) fn soften(
        tile: &mut [f32],
        columns: usize,
        seen: &[Seen],
        sums: &mut Sums<'_>,
        factors: &mut [f32],
    ) -> () {
        for (r, (row, &(from, to))) in tile.chunks_exact_mut(BLOCK).zip(seen).enumerate() {
            let (chunks, _) = row[..columns].as_chunks_mut::<LANES>();
            let old = sums.max[r];
            let mut peaks = [old; LANES];
            for (first, chunk) in (0..).step_by(LANES).zip(chunks.iter_mut()) {
                if first < from || first + LANES > to {
                    for (key, score) in (first..).zip(chunk.iter_mut()) {
                        *score = if key >= from && key < to { *score } else { f32::NEG_INFINITY };
                    }
                }
                for (peak, score) in peaks.iter_mut().zip(chunk) {
                    *peak = if *score > *peak { *score } else { *peak };
                }
            }
            let max = largest(peaks);
            let mut totals = [0.0; LANES];
            for chunk in chunks {
                for (score, total) in chunk.iter_mut().zip(&mut totals) {
                    *score = exp2(*score - max);
                    *total += *score;
                }
            }
            factors[r] = exp2(old - max);
            sums.max[r] = max;
            sums.sum[r] = sums.sum[r] * factors[r] + total(totals);
        }
    }
}

#[inline(always)]
fn largest(values: [f32; LANES]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let eight: [f32; 8] = std::array::from_fn(|i| larger(values[i], values[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| larger(eight[i], eight[i + 4]));
    larger(larger(four[0], four[2]), larger(four[1], four[3]))
}

/// The sum in the order of a tree.
#[inline(always)]
pub(super) fn total(values: [f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| values[i] + values[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::simd::Simd;

    #[test]
    fn two_blocks_are_as_good_as_one() {
        for simd in Simd::available() {
            let score = |key: usize| (key * 37 % 19) as f32 - 9.0;
            let mut tile: Vec<f32> = (0..BLOCK).map(score).collect();
            let (mut max, mut sum, mut factor) = ([NO_SCORE], [0.0], [0.0]);
            let mut sums = Sums { max: &mut max, sum: &mut sum };
            // Keys 3 to 19, then 20 to 40, of which the second has the largest score.
            soften(simd, &mut tile.clone(), 32, &[(3, 20)], &mut sums, &mut factor);
            assert_eq!(factor, [0.0]);
            soften(simd, &mut tile, 48, &[(20, 41)], &mut sums, &mut factor);
            let largest = (3..41).map(score).fold(f32::MIN, f32::max);
            let expected: f64 = (3..41).map(|key| f64::from(score(key) - largest).exp2()).sum();
            assert_eq!(max, [largest]);
            assert!((f64::from(sum[0]) / expected - 1.0).abs() < 1e-6, "{simd:?}");
            assert!(tile[..20].iter().chain(&tile[41..48]).all(|weight| *weight == 0.0));
        }
    }
}
