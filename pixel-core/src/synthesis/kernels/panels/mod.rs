//! Products with so many rows of activations that a weight is worth decoding: a panel of its rows is decoded once, both
//! factors are rounded to integers of 16 bits, and the integers are multiplied.
//!
//! Columns are taken in blocks of [`DEPTH`]. Within a block the sum of products is exact in 32 bits; between blocks it
//! is in f32. By the inequality of Cauchy and Schwarz no sum leaves 32 bits as long as the norms of both factors stay
//! below `√2³¹`, so a step follows from the norm of a block rather than from the largest possible sum: see
//! [`round`].
//!
//! Weights of `additive`, `lapped` and the trellis are sums of integers, which come straight from the codes; those of
//! other codecs are decoded and rounded.
//!
//! A lane of a register is a row of the weight: outputs are written where they belong, and a pair of activations is
//! broadcast to the pairs of weights that it is multiplied by.
//!
//! Source for the blocking: Goto and van de Geijn, *Anatomy of High-Performance Matrix Multiplication* (2008); for
//! pairs of 16 bits: Intel's `VPMADDWD` and `VPDPWSSD`.

mod costs;
mod multiply;
mod patterns;
mod round;
mod weights;

use super::scratch::Scratch;
use super::{Decoder, Product, decoded};
use crate::disjoint::Disjoint;
use crate::pool;
pub(super) use costs::pay;
use multiply::Kernel;
use round::Rows;
use weights::{Panel, Source};

/// Columns whose products are summed in integers.
const DEPTH: usize = 256;

/// Rows of a weight that are multiplied together: two registers of AVX-512.
const LANES: usize = 32;

/// Rows of a weight that a thread decodes at a time, at most.
const PANEL: usize = 128;

/// Rows of activations that use a decoded panel, at most, and the most values that they have.
const MAX_BATCH: usize = 1024;
const MAX_VALUES: usize = 1 << 22;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 60;

/// `y = x·Wᵀ`: `x` `[batch, d_input]`, `y` `[batch, d_output]`. Rows of `x` that cannot be rounded are multiplied in
/// f32; the others do not depend on them.
pub(super) fn linear(product: &Product<'_>, x: &[f32], y: &mut [f32]) {
    let (m, n) = (product.layout.shape().d_output(), product.layout.shape().d_input());
    let kernel = Kernel::new(product.simd).expect("AVX2, without which panels do not pay");
    let decoder = Decoder::new(product);
    let source = Source::new(&decoder);
    let most = (MAX_VALUES / n).clamp(1, MAX_BATCH);
    for (x, y) in x.chunks(most * n).zip(y.chunks_mut(most * m)) {
        let parallel = product.is_parallel(y.len() / m, RATE);
        let rows = Rows::new(product.simd, x, n, parallel);
        multiply(kernel, &source, &rows, y, parallel);
        rows.unrounded().chunks(decoded::FEW).for_each(|some| linear_in_f32(product, some, x, y));
    }
}

/// The product with the rounded rows.
fn multiply(kernel: Kernel, source: &Source<'_>, rows: &Rows, y: &mut [f32], parallel: bool) {
    let layout = source.layout();
    let m = layout.shape().d_output();
    let (batch, height) = (y.len() / m, panel_height(layout.band_height(), m));
    let y = Disjoint::new(y);
    for_each(m.div_ceil(height), parallel, |task| {
        let first = task * height;
        let panel = Panel::new(source, first, height.min(m - first));
        let mut sums = Scratch::<[f32; LANES]>::new(panel.groups() * batch);
        sums.fill([0.0; LANES]);
        panel.for_each_block(|start, group, block| {
            let sums = &mut sums[group * batch..][..batch];
            kernel.add_product(block, rows.block(start), sums);
        });
        for (group, sums) in sums.chunks_exact(batch).enumerate() {
            let scales = panel.scales(group);
            for (b, (sums, step)) in sums.iter().zip(rows.steps()).enumerate() {
                let at = b * m + first + group * LANES;
                // SAFETY: no other task has these rows of the weight.
                let out = unsafe { y.part(at..at + scales.len()) };
                for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
                    *out = sum * step * scale;
                }
            }
        }
    });
}

/// Rows of a panel: whole bands, and enough panels for all threads.
fn panel_height(band: usize, m: usize) -> usize {
    let rows = (m / (4 * pool::threads())).clamp(LANES, PANEL) / LANES * LANES;
    rows.div_ceil(band) * band
}

/// Rows `some` of the product in f32.
fn linear_in_f32(product: &Product<'_>, some: &[usize], x: &[f32], y: &mut [f32]) {
    let (m, n) = (product.layout.shape().d_output(), product.layout.shape().d_input());
    let (mut rows, mut columns) = (Scratch::new(some.len() * n), Scratch::new(m * some.len()));
    for (row, &b) in rows.chunks_exact_mut(n).zip(some) {
        row.copy_from_slice(&x[b * n..][..n]);
    }
    decoded::linear(product, &rows, &mut columns);
    for (i, &b) in some.iter().enumerate() {
        let column = columns[i..].iter().step_by(some.len());
        y[b * m..][..m].iter_mut().zip(column).for_each(|(y, value)| *y = *value);
    }
}

/// Calls `run` for every task, in parallel if asked to.
fn for_each(tasks: usize, parallel: bool, run: impl Fn(usize) + Sync) {
    if parallel { pool::for_each(tasks, run) } else { (0..tasks).for_each(run) }
}

#[cfg(test)]
mod tests;
