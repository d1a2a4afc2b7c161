//! Patterns learned from tiles: k-means on directions, up to sign.

use super::computed::{mix, normalise};
use super::similarity::{dot, similarities};
use crate::math::transposed;

/// Rounds of assignment and update; the energy captured changes by less than 1 % after the tenth.
const ROUNDS: usize = 12;
/// Tiles that are used; more change the patterns little and cost time in proportion.
const MAX_TILES: usize = 1 << 14;

/// Learns `count` patterns from tiles: spherical k-means up to sign and scale.
///
/// Each tile joins the pattern with the greatest |⟨tile, pattern⟩|; each pattern becomes the normalised sum of its
/// tiles, `Σ ⟨t, p⟩ · t`, one power-iteration step towards the leading direction of the cluster, which weights a tile
/// by its energy. A pattern that no tile joins restarts at the tile that is matched worst.
///
/// The outcome depends on the input and `seed` alone. Zero tiles take no part; with fewer other tiles than patterns the
/// outcome holds one pattern a tile, so there may be fewer than `count`.
///
/// # Shapes
/// `tiles` `[T, tile_len]` finite, outcome `[≤ count, tile_len]`, every pattern of norm 1.
///
/// # Panics
/// If `tile_len` is zero or does not divide the number of values.
///
/// # Sources
/// Dhillon & Modha 2001 (spherical k-means); Aharon, Elad & Bruckstein 2006 (K-SVD, the rank-1 update).
///
/// # Example
/// ```
/// use pixel_core::patterns::learn_patterns;
/// let tiles = [3.0, 0.0, 0.0, -2.0, -1.0, 0.0];
/// let patterns = learn_patterns(&tiles, 2, 2, 0);
/// assert_eq!(patterns.len(), 4);
/// assert!(patterns.iter().all(|x| x.abs() == 1.0 || *x == 0.0));
/// ```
pub fn learn_patterns(tiles: &[f32], tile_len: usize, count: usize, seed: u64) -> Vec<f32> {
    assert!(tiles.len().is_multiple_of(tile_len), "tiles of {tile_len}");
    let tiles = sample(tiles, tile_len, seed);
    let num_tiles = tiles.len() / tile_len;
    let count = count.min(num_tiles);
    if count == 0 {
        return Vec::new();
    }
    let mut patterns = tiles[..count * tile_len].to_vec();
    patterns.chunks_exact_mut(tile_len).for_each(normalise);
    let mut matches = vec![0.0; num_tiles * count];
    for _ in 0..ROUNDS {
        similarities(&tiles, tile_len, &transposed(&patterns, tile_len), &mut matches);
        update(&tiles, tile_len, &matches, &mut patterns);
    }
    patterns
}

/// The non-zero tiles in a seeded order, at most [`MAX_TILES`] of them.
fn sample(tiles: &[f32], tile_len: usize, seed: u64) -> Vec<f32> {
    let (low, high) = (seed as u32, (seed >> 32) as u32);
    let mut order: Vec<(u32, &[f32])> = (0u32..)
        .zip(tiles.chunks_exact(tile_len))
        .filter(|(_, tile)| tile.iter().any(|value| *value != 0.0))
        .map(|(i, tile)| (mix(mix(i ^ low).wrapping_add(high)), tile))
        .collect();
    order.sort_by_key(|(key, _)| *key);
    order.truncate(MAX_TILES);
    order.into_iter().flat_map(|(_, tile)| tile).copied().collect()
}

/// One round: assigns every tile by `matches`, `[T, P]`, and moves every pattern.
fn update(tiles: &[f32], tile_len: usize, matches: &[f32], patterns: &mut [f32]) {
    let count = patterns.len() / tile_len;
    let mut sums = vec![0.0f32; patterns.len()];
    let mut leftovers: Vec<(f64, usize)> = Vec::with_capacity(tiles.len() / tile_len);
    for (t, (tile, matches)) in tiles.chunks_exact(tile_len).zip(matches.chunks_exact(count)).enumerate() {
        let best = strongest(matches);
        let sum = &mut sums[best * tile_len..][..tile_len];
        sum.iter_mut().zip(tile).for_each(|(sum, value)| *sum += matches[best] * value);
        leftovers.push((dot(tile, tile) - f64::from(matches[best]) * f64::from(matches[best]), t));
    }
    // Worst matched last; ties by position.
    leftovers.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    for (pattern, sum) in patterns.chunks_exact_mut(tile_len).zip(sums.chunks_exact_mut(tile_len)) {
        if sum.iter().all(|value| *value == 0.0) {
            let Some((_, worst)) = leftovers.pop() else { continue };
            sum.copy_from_slice(&tiles[worst * tile_len..][..tile_len]);
        }
        normalise(sum);
        pattern.copy_from_slice(sum);
    }
}

/// The place of the greatest magnitude, the first of equals.
pub(crate) fn strongest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if value.abs() > values[best].abs() {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;

    #[test]
    fn two_directions_are_found_whatever_their_sign_and_scale() {
        let (a, b) = ([0.6f32, 0.8, 0.0], [0.0f32, -0.8, 0.6]);
        let tiles: Vec<f32> = (1..=20)
            .flat_map(|i| {
                let scale = if i % 3 == 0 { -(i as f32) } else { i as f32 };
                (if i % 2 == 0 { a } else { b }).map(|x| scale * x)
            })
            .collect();
        let patterns = learn_patterns(&tiles, 3, 2, 7);
        for direction in [a, b] {
            assert!(patterns.chunks_exact(3).any(|p| dot(p, &direction).abs() > 0.9999), "{patterns:?}");
        }
    }

    proptest! {
        #[test]
        fn learning_is_deterministic_and_gives_unit_patterns(
            tiles in prop::collection::vec(-2.0f32..2.0, 0..40), count in 0usize..6, seed in any::<u64>()
        ) {
            let tiles = &tiles[..tiles.len() / 4 * 4];
            let patterns = learn_patterns(tiles, 4, count, seed);
            prop_assert!(patterns.len() <= count * 4);
            prop_assert_eq!(&patterns, &learn_patterns(tiles, 4, count, seed));
            for pattern in patterns.chunks_exact(4) {
                assert_abs_diff_eq!(dot(pattern, pattern), 1.0, epsilon = 1e-5);
            }
        }
    }
}
