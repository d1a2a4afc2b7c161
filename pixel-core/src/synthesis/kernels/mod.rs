//! Fast products, chosen once a call by codec, batch and what the machine can do. Each is tested against
//! [`PatternSlices::synthesize`](super::PatternSlices::synthesize) and a plain product.

#[cfg(target_arch = "x86_64")]
mod activations;
mod decoded;
mod nibble;
mod nibble_tables;
#[cfg(target_arch = "x86_64")]
mod nibble_tables_x86;
#[cfg(target_arch = "x86_64")]
mod nibble_x86;
mod scratch;
#[cfg(target_arch = "x86_64")]
mod trellis;
#[cfg(target_arch = "x86_64")]
mod trellis_avx2;
#[cfg(target_arch = "x86_64")]
mod trellis_avx512;
#[cfg(target_arch = "x86_64")]
mod uniform;

use crate::codec::{CodecLayout, LayoutTables, Readable};
use crate::math::simd::{Simd, for_every_level};
use rayon::prelude::*;
use scratch::Scratch;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Nanoseconds of work below which a product stays on the calling thread. Another one is awake after some 10 000, but
/// in a model whose layers are that small it falls asleep and is woken again for each: SmolLM2 at 2 bits decodes a
/// fifth slower at 40 000.
const PARALLEL_FROM: usize = 100_000;

/// What a product computes with.
///
/// # Accuracy
/// Per output, for a row `x` of activations and weights `w` `[n]` in the rotated basis, in addition to the rounding of
/// the output:
///
/// | | trellis | additive, lapped | matching, uniform |
/// |---|---|---|---|
/// | `F32` | sums of `n` products in f32 | sums of `bits·n/4` table values in f32 | sums of `n` products in f32 |
/// | `Integer` | `x` rounded, sums exact (1) | table values rounded, sums exact (2) | as `F32` |
///
/// 1. `x` is rounded to multiples of `max|x| / 32767`: an error of at most `Σ|w|·max|x| / 65534`, of about
///    `√n·rms(w)·max|x| / 113000`.
/// 2. Table values are rounded to multiples of the largest magnitude / 32767: an error of at most half a multiple for
///    each of `bits·n/4` tables; with AVX-512 but not VBMI, with VBMI below 256 rows, and without AVX2 as `F32`.
///
/// `Integer` takes `F32` for a row that is not finite or vanishes (its largest magnitude, or that of its tables, below
/// 1e-30, but not zero), where there is no kernel for the shape, on the GPU, and in training: the autodiff backend
/// computes in f32. What a row gives does not depend on the values of the other rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// Activations, or tables of partial products, in integers of 16 bits where that is faster.
    #[default]
    Integer,
    /// Everything in f32.
    F32,
}

/// A weight to multiply with, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) layout: CodecLayout,
    pub(super) codes: &'a [u32],
    pub(super) scales: &'a [f32],
    pub(super) dictionary: &'a [f32],
    pub(super) arithmetic: Arithmetic,
    pub(super) simd: Simd,
}

impl Product<'_> {
    /// `y = x·Wᵀ`: `x` `[batch, d_input]`, `y` `[batch, d_output]`.
    pub(super) fn run(&self, x: &[f32], y: &mut [f32]) {
        let m = self.layout.shape().d_output();
        let batch = y.len() / m;
        if batch == 1 {
            return self.columns(x, y);
        }
        // Bands of the weight are runs of the outputs only where the batch comes last.
        let mut columns = Scratch::new(y.len());
        self.columns(x, &mut columns);
        const BLOCK: usize = 16;
        for (first, y) in (0..).step_by(BLOCK).zip(y.chunks_mut(m * BLOCK)) {
            let rows = y.len() / m;
            for (col, values) in columns.chunks_exact(batch).enumerate() {
                for (b, value) in values[first..first + rows].iter().enumerate() {
                    y[b * m + col] = *value;
                }
            }
        }
    }

    /// [`run`](Self::run) into `[d_output, batch]`.
    fn columns(&self, x: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.in_registers(x, out) {
            return;
        }
        match &self.layout {
            CodecLayout::Nibble(layout) => nibble::linear(self, layout, x, out),
            _ => decoded::linear(self, x, out),
        }
    }

    /// [`columns`](Self::columns) by kernels that never store a weight; `false`, and `out` unchanged, if there is none.
    #[cfg(target_arch = "x86_64")]
    fn in_registers(&self, x: &[f32], out: &mut [f32]) -> bool {
        match &self.layout {
            CodecLayout::Trellis(layout) if self.arithmetic == Arithmetic::Integer => {
                trellis::linear(self, layout, x, out)
            }
            CodecLayout::Uniform(layout) => uniform::linear(self, layout, x, out),
            _ => false,
        }
    }

    /// Whether the product with `batch` rows is worth more than one thread, at `rate` multiply-adds a nanosecond.
    fn is_parallel(&self, batch: usize, rate: usize) -> bool {
        self.layout.shape().num_weights() * batch >= PARALLEL_FROM * rate && rayon::current_num_threads() > 1
    }
}

/// A weight, ready to be decoded in parts.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    product: Product<'a>,
    tables: LayoutTables,
    #[cfg(target_arch = "x86_64")]
    trellis: Option<trellis::Kernel>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(product: &Product<'a>) -> Self {
        Self::with_tables(product, &product.layout.tables())
    }

    /// A decoder with the tables of the product's layout.
    pub(super) fn with_tables(product: &Product<'a>, tables: &LayoutTables) -> Self {
        Self {
            product: *product,
            tables: tables.clone(),
            #[cfg(target_arch = "x86_64")]
            trellis: match &product.layout {
                CodecLayout::Trellis(layout) => trellis::Kernel::new(layout, product.simd),
                _ => None,
            },
        }
    }

    /// Decodes columns `columns` of band `band`, scaled, into `rows`, `[rows of the band, columns]`. The first is at a
    /// multiple of the layout's step.
    pub(super) fn run(&self, band: usize, columns: Range<usize>, rows: &mut [f32]) {
        let Product { layout, scales, simd, .. } = &self.product;
        self.decode(band, columns.clone(), rows);
        let (per_row, group) = (layout.scales_per_row(), layout.scale_group());
        let first = band * layout.band_height() * per_row;
        scale(*simd, rows, columns, &scales[first..], per_row, group);
    }

    /// The same in units of the scales.
    fn decode(&self, band: usize, columns: Range<usize>, rows: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = &self.trellis
            && kernel.decode(&self.product, band, columns.clone(), rows)
        {
            return;
        }
        let Product { layout, codes, dictionary, simd, .. } = &self.product;
        let readable = Readable { layout, tables: &self.tables, words: codes, dictionary };
        readable.decode_columns(*simd, band, columns, rows);
    }
}

for_every_level! {
    /// Multiplies columns `columns` of rows with the scales of their groups; the first is that of a group.
    fn scale(rows: &mut [f32], columns: Range<usize>, scales: &[f32], per_row: usize, group: usize) -> () {
        for (row, scales) in rows.chunks_exact_mut(columns.len()).zip(scales.chunks_exact(per_row)) {
            for (values, scale) in row.chunks_mut(group).zip(&scales[columns.start / group..]) {
                values.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }
}

/// Calls `run` for every `len` values of `out`, in parallel if asked to.
fn for_each_band(out: &mut [f32], len: usize, parallel: bool, run: impl Fn(usize, &mut [f32]) + Sync) {
    if parallel {
        out.par_chunks_mut(len).enumerate().for_each(|(band, out)| run(band, out));
    } else {
        out.chunks_mut(len).enumerate().for_each(|(band, out)| run(band, out));
    }
}

#[cfg(test)]
mod tests;
