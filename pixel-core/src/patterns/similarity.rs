//! Inner products of tiles with patterns: the one hot loop of matching.

/// Columns of one register block.
const LANES: usize = 8;

/// Inner products of tiles with patterns: `out[t][p] = Σᵢ tiles[t][i] · patterns_transposed[i][p]`.
///
/// Each sum runs over `i` in ascending order with a rounding after every product and every sum, so the result has the
/// same bits on every machine, whatever the compiler makes of the loop.
///
/// # Shapes
/// `tiles` `[T, tile_len]`, `patterns_transposed` `[tile_len, P]`, `out` `[T, P]`, all row-major.
///
/// # Panics
/// If `tile_len` is zero or the lengths do not belong together; all three come from the same validated shapes.
///
/// # Example
/// ```
/// use pixel_core::patterns::similarities;
/// let mut out = [0.0; 2];
/// similarities(&[1.0, 2.0], 2, &[1.0, 0.0, 0.0, 1.0], &mut out);
/// assert_eq!(out, [1.0, 2.0]);
/// ```
pub fn similarities(tiles: &[f32], tile_len: usize, patterns_transposed: &[f32], out: &mut [f32]) {
    let patterns = patterns_transposed.len() / tile_len;
    assert_eq!(patterns_transposed.len(), patterns * tile_len, "patterns of {tile_len} weights");
    assert_eq!(tiles.len() * patterns, out.len() * tile_len, "{patterns} patterns against tiles of {tile_len}");
    if patterns == 0 {
        return;
    }
    for (tiles, out) in tiles.chunks(4 * tile_len).zip(out.chunks_mut(4 * patterns)) {
        match tiles.len() / tile_len {
            4 => rows::<4>(tiles, tile_len, patterns_transposed, out),
            3 => rows::<3>(tiles, tile_len, patterns_transposed, out),
            2 => rows::<2>(tiles, tile_len, patterns_transposed, out),
            _ => rows::<1>(tiles, tile_len, patterns_transposed, out),
        }
    }
}

/// `ROWS` tiles at once: every pattern value that is loaded serves all of them.
fn rows<const ROWS: usize>(tiles: &[f32], tile_len: usize, patterns_transposed: &[f32], out: &mut [f32]) {
    let patterns = out.len() / ROWS;
    let whole = patterns - patterns % LANES;
    for column in (0..whole).step_by(LANES) {
        let mut sums = [[0.0f32; LANES]; ROWS];
        for (i, values) in patterns_transposed.chunks_exact(patterns).enumerate() {
            let values = &values[column..column + LANES];
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = tiles[row * tile_len + i];
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += weight * value;
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            out[row * patterns + column..][..LANES].copy_from_slice(sums);
        }
    }
    for column in whole..patterns {
        for (tile, out) in tiles.chunks_exact(tile_len).zip(out.chunks_exact_mut(patterns)) {
            let values = patterns_transposed[column..].iter().step_by(patterns);
            out[column] = tile.iter().zip(values).fold(0.0, |sum, (weight, value)| sum + weight * value);
        }
    }
}

/// Inner product in double precision, in ascending order.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Euclidean norm in double precision.
pub(crate) fn norm(values: &[f32]) -> f64 {
    dot(values, values).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_sum_in_the_same_order_as_one_loop(
            tiles in 1usize..7, tile_len in 1usize..9, patterns in 0usize..21, seed in any::<u32>()
        ) {
            let value = |i: usize| f32::sin((seed as usize % 1000 + i * 7) as f32);
            let rows: Vec<f32> = (0..tiles * tile_len).map(value).collect();
            let columns: Vec<f32> = (0..patterns * tile_len).map(|i| value(i + 500)).collect();
            let mut out = vec![9.0; tiles * patterns];
            similarities(&rows, tile_len, &columns, &mut out);
            for (t, p) in (0..tiles).flat_map(|t| (0..patterns).map(move |p| (t, p))) {
                let mut sum = 0.0f32;
                for i in 0..tile_len {
                    sum += rows[t * tile_len + i] * columns[i * patterns + p];
                }
                prop_assert_eq!(sum.to_bits(), out[t * patterns + p].to_bits());
            }
        }
    }
}
