//! Dense linear algebra in a fixed order of operations: the same bits on every machine.
//!
//! Every output value is a sum in one written order, without fused products; vector registers hold neighbouring
//! outputs, so their width changes nothing. Archives stay reproducible that way, which a general library, whose
//! blocking follows the processor, does not promise.

use super::simd::{Simd, for_every_level};

/// `out += left · right`, with `[m, n]`, `[m, k]` and `[k, n]` of the given row strides, each slice starting at its
/// first element; sums run over `k` upwards.
///
/// # Panics
/// If a slice is too short for its shape.
pub(crate) fn add_product<T: Real>(
    (out, out_stride): (&mut [T], usize),
    (left, left_stride): (&[T], usize),
    (right, right_stride): (&[T], usize),
    [m, k, n]: [usize; 3],
) {
    if m == 0 || k == 0 || n == 0 {
        return;
    }
    T::multiply((out, out_stride), (left, left_stride), (right, right_stride), [m, k, n]);
}

/// A number of 32 or 64 bits.
pub(crate) trait Real: Copy + Default + std::ops::Mul<Output = Self> + std::ops::AddAssign {
    /// [`add_product`] with the widest registers of the machine.
    fn multiply(out: (&mut [Self], usize), left: (&[Self], usize), right: (&[Self], usize), shape: [usize; 3]);
}

/// [`multiply_lanes`] for every level, in blocks of `$lanes` columns.
macro_rules! real {
    ($type:ty, $lanes:literal, $name:ident) => {
        for_every_level! {
            fn $name(
                out: (&mut [$type], usize),
                left: (&[$type], usize),
                right: (&[$type], usize),
                shape: [usize; 3],
            ) -> () {
                multiply_lanes::<$type, $lanes>(out, left, right, shape);
            }
        }

        impl Real for $type {
            fn multiply(out: (&mut [Self], usize), left: (&[Self], usize), right: (&[Self], usize), shape: [usize; 3]) {
                $name(Simd::detect(), out, left, right, shape);
            }
        }
    };
}

real!(f32, 64, multiply_f32);
real!(f64, 32, multiply_f64);

/// Products of one panel of `right` at a time, so that it stays in the nearest cache while all rows pass.
#[inline(always)]
fn multiply_lanes<T: Real, const LANES: usize>(
    (out, out_stride): (&mut [T], usize),
    (left, left_stride): (&[T], usize),
    (right, right_stride): (&[T], usize),
    [m, k, n]: [usize; 3],
) {
    /// Rows of a panel.
    const DEPTH: usize = 128;
    for first in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - first);
        for col in (0..n).step_by(LANES) {
            let width = LANES.min(n - col);
            for row in 0..m {
                let factors = &left[row * left_stride + first..][..depth];
                let out = &mut out[row * out_stride + col..][..width];
                let mut sums = [T::default(); LANES];
                sums[..width].copy_from_slice(out);
                if width == LANES {
                    for (i, &factor) in factors.iter().enumerate() {
                        let terms = &right[(first + i) * right_stride + col..][..LANES];
                        for (sum, &term) in sums.iter_mut().zip(terms) {
                            *sum += factor * term;
                        }
                    }
                } else {
                    for (i, &factor) in factors.iter().enumerate() {
                        let terms = &right[(first + i) * right_stride + col..][..width];
                        for (sum, &term) in sums.iter_mut().zip(terms) {
                            *sum += factor * term;
                        }
                    }
                }
                out.copy_from_slice(&sums[..width]);
            }
        }
    }
}

/// Columns that are factored together.
const PANEL: usize = 64;

/// The Cholesky factor of a symmetric matrix `[n, n]`, row-major, of which the lower triangle is read: `C·Cᵀ`, `C`
/// lower triangular, in the lower triangle of the result; what stands above the diagonal means nothing. `None` if the
/// matrix is not positive definite in f64.
pub(crate) fn cholesky(mut matrix: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for start in (0..n).step_by(PANEL) {
        let end = (start + PANEL).min(n);
        factor_panel(&mut matrix, n, start..end)?;
        let (width, below) = (end - start, n - end);
        // Trailing part −= panel · panelᵀ, a block of rows at a time: only the lower triangle is needed.
        let mut panel = vec![0.0; below * width];
        let mut transposed = vec![0.0; width * below];
        for i in 0..below {
            for j in 0..width {
                let value = matrix[(end + i) * n + start + j];
                panel[i * width + j] = -value;
                transposed[j * below + i] = value;
            }
        }
        for row in (0..below).step_by(PANEL) {
            let rows = PANEL.min(below - row);
            let out = &mut matrix[(end + row) * n + end..];
            add_product((out, n), (&panel[row * width..], width), (&transposed, below), [rows, width, row + rows]);
        }
    }
    Some(matrix)
}

/// Factors columns `columns`, whose earlier ones have been subtracted.
fn factor_panel(matrix: &mut [f64], n: usize, columns: std::ops::Range<usize>) -> Option<()> {
    for j in columns.clone() {
        let pivot = matrix[j * n + j];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let root = pivot.sqrt();
        matrix[j * n + j] = root;
        let (above, below) = matrix.split_at_mut((j + 1) * n);
        let pivot_row = &mut above[j * n..];
        for row in below.chunks_exact_mut(n) {
            row[j] /= root;
        }
        // The columns of the panel to the right of `j`; `pivot_row` gathers column `j` for them.
        let width = columns.end - (j + 1);
        let column: Vec<f64> = below.chunks_exact(n).take(width).map(|row| row[j]).collect();
        pivot_row[j + 1..columns.end].copy_from_slice(&column);
        for (i, row) in below.chunks_exact_mut(n).enumerate() {
            let factor = row[j];
            let last = width.min(i + 1);
            for (value, &other) in row[j + 1..].iter_mut().zip(&column[..last]) {
                *value -= factor * other;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::rotation::split_mix;

    fn numbers(n: usize, seed: u64) -> Vec<f64> {
        (0..n).map(|i| (split_mix(seed, i as u64) >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect()
    }

    #[test]
    fn a_product_of_any_shape_is_the_sum_of_its_terms_in_order() {
        for [m, k, n] in [[1, 1, 1], [3, 130, 70], [5, 7, 64], [2, 260, 129]] {
            let (left, right) = (numbers(m * k, 1), numbers(k * n, 2));
            let mut out = numbers(m * n, 3);
            let expected: Vec<f64> = (0..m * n)
                .map(|i| (0..k).fold(out[i], |sum, j| sum + left[i / n * k + j] * right[j * n + i % n]))
                .collect();
            add_product((&mut out, n), (&left, k), (&right, n), [m, k, n]);
            assert_eq!(out, expected, "{m}·{k}·{n}");

            let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
            let (left, right) = (narrow(&left), narrow(&right));
            let mut out = vec![0.5f32; m * n];
            let expected: Vec<f32> = (0..m * n)
                .map(|i| (0..k).fold(0.5, |sum, j| sum + left[i / n * k + j] * right[j * n + i % n]))
                .collect();
            add_product((&mut out, n), (&left, k), (&right, n), [m, k, n]);
            assert_eq!(out, expected, "{m}·{k}·{n}");
        }
    }

    #[test]
    fn strides_skip_what_lies_between() {
        let left = [1.0f32, 2.0, 9.0, 3.0, 4.0, 9.0];
        let right = [1.0f32, 10.0, 9.0, 100.0, 1000.0, 9.0];
        let mut out = [0.0f32; 6];
        add_product((&mut out, 3), (&left, 3), (&right, 3), [2, 2, 2]);
        assert_eq!(out, [201.0, 2010.0, 0.0, 403.0, 4030.0, 0.0]);
    }

    #[test]
    fn a_factor_multiplied_out_is_the_matrix() {
        for n in [1, 2, 5, 63, 64, 65, 200] {
            // Aᵀ·A of a matrix with as many rows as columns, and a little on the diagonal.
            let a = numbers(n * n, 7);
            let mut h = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..n {
                    h[i * n + j] = (0..n).map(|k| a[k * n + i] * a[k * n + j]).sum();
                }
                h[i * n + i] += 0.1;
            }
            let c = cholesky(h.clone(), n).unwrap();
            for i in 0..n {
                for j in 0..=i {
                    let product: f64 = (0..=j).map(|k| c[i * n + k] * c[j * n + k]).sum();
                    assert!((product - h[i * n + j]).abs() < 1e-12 * n as f64, "width {n}: ({i}, {j})");
                }
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_has_no_factor() {
        assert_eq!(cholesky(vec![1.0, 0.0, 2.0, 1.0], 2), None);
        assert_eq!(cholesky(vec![f64::NAN], 1), None);
        assert_eq!(cholesky(vec![0.0], 1), None);
        let mut identity = vec![0.0; 200 * 200];
        (0..200).for_each(|i| identity[i * 201] = if i == 150 { -1.0 } else { 1.0 });
        assert_eq!(cholesky(identity, 200), None);
    }
}
