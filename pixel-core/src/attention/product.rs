//! Products of a few rows with a block of keys or values.

use super::soften::{LANES, ROWS};
use crate::math::simd::{Simd, SimdLevel, for_every_level};
use bytemuck::Pod;

/// The numbers of a right-hand side.
pub(super) trait Element: Pod {
    /// Whether it is a byte, and not an `f32`.
    const BYTE: bool;

    /// The number.
    fn value(self) -> f32;
}

impl Element for f32 {
    const BYTE: bool = false;

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }
}

impl Element for u8 {
    const BYTE: bool = true;

    #[inline(always)]
    fn value(self) -> f32 {
        f32::from(self)
    }
}

/// A matrix within a slice: where it begins, and how far apart its rows are.
pub(super) type Strided<'a, T> = (&'a [T], usize);

/// `out[r] ← factors[r]·out[r] + left[r]·right`, or without the first term, for `[m, n]`, `[m, k]` and `[k, n]`; `m` is
/// [`ROWS`] at most.
///
/// # Panics
/// If a slice is too short for its shape.
pub(super) fn multiply<T: Element>(
    simd: Simd,
    (out, out_stride): (&mut [f32], usize),
    factors: Option<&[f32]>,
    (left, left_stride): Strided<'_, f32>,
    (right, right_stride): Strided<'_, T>,
    shape: [usize; 3],
) {
    let [m, k, n] = shape;
    if m == 0 || n == 0 {
        return;
    }
    assert!(m <= ROWS, "{m} rows");
    assert!(out.len() >= (m - 1) * out_stride + n && factors.is_none_or(|factors| factors.len() >= m), "outputs");
    assert!(k == 0 || left.len() >= (m - 1) * left_stride + k && right.len() >= (k - 1) * right_stride + n, "inputs");
    #[cfg(target_arch = "x86_64")]
    if n.is_multiple_of(LANES) && simd.level() >= SimdLevel::Avx2 {
        let (out, left, right) = ((out, out_stride), (left, left_stride), (right, right_stride));
        return super::x86_64::multiply(simd, out, factors, left, right, shape);
    }
    if T::BYTE {
        let right = bytemuck::cast_slice::<T, u8>(right);
        multiply_bytes(simd, out, out_stride, factors, (left, left_stride), (right, right_stride), shape);
    } else {
        let right = bytemuck::cast_slice::<T, f32>(right);
        multiply_floats(simd, out, out_stride, factors, (left, left_stride), (right, right_stride), shape);
    }
}

for_every_level! {
    fn multiply_floats(
        out: &mut [f32],
        out_stride: usize,
        factors: Option<&[f32]>,
        left: Strided<'_, f32>,
        right: Strided<'_, f32>,
        shape: [usize; 3],
    ) -> () {
        multiply_lanes(out, out_stride, factors, left, right, shape);
    }
}

for_every_level! {
    fn multiply_bytes(
        out: &mut [f32],
        out_stride: usize,
        factors: Option<&[f32]>,
        left: Strided<'_, f32>,
        right: Strided<'_, u8>,
        shape: [usize; 3],
    ) -> () {
        multiply_lanes(out, out_stride, factors, left, right, shape);
    }
}

/// See [`multiply`].
#[inline(always)]
fn multiply_lanes<T: Element>(
    out: &mut [f32],
    out_stride: usize,
    factors: Option<&[f32]>,
    (left, left_stride): Strided<'_, f32>,
    (right, right_stride): Strided<'_, T>,
    [m, k, n]: [usize; 3],
) {
    for r in 0..m {
        let left = &left[r * left_stride..][..k];
        for (first, out) in (0..).step_by(LANES).zip(out[r * out_stride..][..n].chunks_mut(LANES)) {
            let mut sums = [0.0; LANES];
            for (i, factor) in left.iter().enumerate() {
                let terms = &right[i * right_stride + first..][..out.len()];
                if let Ok(terms) = <&[T; LANES]>::try_from(terms) {
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += factor * term.value());
                } else {
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += factor * term.value());
                }
            }
            match factors {
                Some(factors) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *out * factors[r] + sum),
                None => out.copy_from_slice(&sums[..out.len()]),
            }
        }
    }
}

/// Writes the transpose of `rows`, `[BLOCK, width]`, to `out`, `[width, BLOCK]`; `width` is a multiple of [`LANES`].
pub(super) fn transpose(simd: Simd, rows: &[f32], width: usize, out: &mut [f32]) {
    let block = rows.len() / width;
    assert_eq!((rows.len(), out.len()), (block * width, block * width), "a block of {width}");
    #[cfg(target_arch = "x86_64")]
    if simd.level() >= SimdLevel::Avx512 && width.is_multiple_of(LANES) && block.is_multiple_of(LANES) {
        return super::x86_64::transpose(simd, rows, width, out);
    }
    transpose_plainly(simd, rows, width, out);
}

for_every_level! {
    fn transpose_plainly(rows: &[f32], width: usize, out: &mut [f32]) -> () {
        let block = rows.len() / width;
        for (i, out) in out.chunks_exact_mut(block).enumerate() {
            out.iter_mut().zip(rows.chunks_exact(width)).for_each(|(out, row)| *out = row[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(i: usize) -> f32 {
        (i * 7919 % 1009) as f32 / 504.5 - 1.0
    }

    fn check<T: Element>(simd: Simd, right: &[T], [m, k, n]: [usize; 3]) {
        let left: Vec<f32> = (0..m * (k + 3)).map(number).collect();
        let old: Vec<f32> = (0..m * (n + 5)).map(|i| number(i + 77)).collect();
        let factors: Vec<f32> = (0..m).map(|i| number(i + 99)).collect();
        for factors in [None, Some(&*factors)] {
            let mut out = old.clone();
            multiply(simd, (&mut out, n + 5), factors, (&left, k + 3), (right, n + 2), [m, k, n]);
            for (at, (found, old)) in out.iter().zip(&old).enumerate() {
                let (r, col) = (at / (n + 5), at % (n + 5));
                if col >= n {
                    assert_eq!(found, old);
                    continue;
                }
                let product = |i: usize| f64::from(left[r * (k + 3) + i]) * f64::from(right[i * (n + 2) + col].value());
                let kept = factors.map_or(0.0, |factors| f64::from(factors[r]) * f64::from(*old));
                let expected = (0..k).map(product).sum::<f64>() + kept;
                let size: f64 = 1.0 + (0..k).map(|i| product(i).abs()).sum::<f64>();
                assert!((f64::from(*found) - expected).abs() < 1e-6 * size, "{simd:?} {m} {k} {n}: {found} {expected}");
            }
        }
    }

    #[test]
    fn products_of_every_shape_are_those_of_the_definition() {
        for simd in Simd::available() {
            for m in 1..=ROWS {
                for (k, n) in [(1, 16), (7, 64), (64, 80), (3, 128), (5, 6), (0, 16), (9, 17)] {
                    let numbers = 0..(k + 1) * (n + 2);
                    check::<f32>(simd, &numbers.clone().map(number).collect::<Vec<_>>(), [m, k, n]);
                    check::<u8>(simd, &numbers.map(|i| (i * 37 % 256) as u8).collect::<Vec<_>>(), [m, k, n]);
                }
            }
        }
    }

    #[test]
    fn a_transpose_swaps_rows_and_columns() {
        for simd in Simd::available() {
            for width in [16, 48, 64] {
                let rows: Vec<f32> = (0..64 * width).map(|i| i as f32).collect();
                let mut out = vec![0.0; rows.len()];
                transpose(simd, &rows, width, &mut out);
                assert!((0..rows.len()).all(|at| out[at] == rows[at % 64 * width + at / 64]), "{simd:?}, {width}");
            }
        }
    }
}
