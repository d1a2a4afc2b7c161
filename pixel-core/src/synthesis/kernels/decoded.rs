//! Products with rows that are decoded first: any codec, in f32.

use super::scratch::Scratch;
use super::{Decoder, Product};
use crate::math::simd::for_every_level;
use crate::pool::{self, for_each_chunk};

/// Values that are decoded before they are multiplied by themselves: they stay in the nearest cache.
const NEAR: usize = 1 << 12;

/// Rows and columns that are decoded before a matrix product.
const BLOCK: [usize; 2] = [128, 512];

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 4;

/// Independent sums of an inner product.
const LANES: usize = 32;

/// The batch from which a blocked matrix product is faster than inner products.
const GEMM_FROM: usize = 8;

/// Rows that are multiplied by inner products.
pub(super) const FEW: usize = GEMM_FROM - 1;

/// `x·Wᵀ`, `[d_output, batch]`, for `x` `[batch, d_input]`. A weight is decoded once for the whole batch.
pub(super) fn linear(product: &Product<'_>, x: &[f32], out: &mut [f32]) {
    let (m, n) = (product.layout.shape().d_output(), product.layout.shape().d_input());
    let (batch, height, step) = (x.len() / n, product.layout.band_height(), product.layout.column_step());
    let [rows, columns] = if batch < GEMM_FROM { [height, NEAR / height.min(NEAR)] } else { BLOCK };
    let (bands, columns) = (rows.div_ceil(height), columns.next_multiple_of(step));
    // Where a band is a row, a task has several, so that there are not too many tasks.
    let threads = pool::threads();
    let blocks = (m / (8 * threads * bands * height)).clamp(1, 16);
    let task = blocks * bands * height;
    let decoder = Decoder::new(product);
    for_each_chunk(out, task * batch, product.is_parallel(batch, RATE), |i, out| {
        let mut weights = Scratch::new(bands * height * columns.min(n));
        let mut sums = Scratch::new(if batch < GEMM_FROM { height * batch * LANES } else { 0 });
        for (block, out) in out.chunks_mut(bands * height * batch).enumerate() {
            let first = (i * blocks + block) * bands;
            out.fill(0.0);
            sums.fill(0.0);
            for start in (0..n).step_by(columns) {
                let width = columns.min(n - start);
                let weights = &mut weights[..out.len() / batch * width];
                for (band, rows) in weights.chunks_mut(height * width).enumerate() {
                    decoder.run(first + band, start..start + width, rows);
                }
                if batch < GEMM_FROM {
                    let sums = sums.as_chunks_mut::<LANES>().0.chunks_exact_mut(batch);
                    for (row, sums) in weights.chunks_exact(width).zip(sums) {
                        for (sums, x) in sums.iter_mut().zip(x.chunks_exact(n)) {
                            add_dot(product.simd, row, &x[start..start + width], sums);
                        }
                    }
                } else {
                    add_product(weights, (&x[start..], n), out, [out.len() / batch, width, batch]);
                }
            }
            for (out, sums) in out.iter_mut().zip(sums.as_chunks::<LANES>().0) {
                *out = sums.iter().sum();
            }
        }
    });
}

/// [`linear`] for rows `rows` of `x` alone, into their columns of `out` `[d_output, batch]`. What a row gives is that
/// of the row by itself, to the bit: below [`GEMM_FROM`] rows each has its own sums.
#[cfg(target_arch = "x86_64")]
pub(super) fn linear_of(product: &Product<'_>, rows: &[usize], x: &[f32], out: &mut [f32]) {
    let (m, n) = (product.layout.shape().d_output(), product.layout.shape().d_input());
    let batch = x.len() / n;
    for rows in rows.chunks(FEW) {
        let (mut some, mut products) = (Scratch::new(rows.len() * n), Scratch::new(m * rows.len()));
        for (some, &row) in some.chunks_exact_mut(n).zip(rows) {
            some.copy_from_slice(&x[row * n..][..n]);
        }
        linear(product, &some, &mut products);
        for (out, products) in out.chunks_exact_mut(batch).zip(products.chunks_exact(rows.len())) {
            rows.iter().zip(products).for_each(|(&row, value)| out[row] = *value);
        }
    }
}

/// `out += weights · xᵀ`: `weights` `[m, k]`, `x` `[n, k]` with the given stride between rows, `out` `[m, n]`.
fn add_product(weights: &[f32], (x, x_stride): (&[f32], usize), out: &mut [f32], [m, k, n]: [usize; 3]) {
    assert_eq!((weights.len(), out.len()), (m * k, m * n), "lengths of a product");
    assert!(x.len() >= (n - 1) * x_stride + k, "activations of a product");
    let stride = |len: usize| isize::try_from(len).expect("a width below isize::MAX");
    // SAFETY: the strides stay within the slices, whose lengths were checked.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(n),
            true,
            weights.as_ptr(),
            1,
            stride(k),
            x.as_ptr(),
            stride(x_stride),
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

for_every_level! {
    /// `sums[i mod LANES] += a[i]·b[i]`.
    fn add_dot(a: &[f32], b: &[f32], sums: &mut [f32; LANES]) -> () {
        let mut lanes = *sums;
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
            *lane += a * b;
        }
        *sums = lanes;
    }
}
