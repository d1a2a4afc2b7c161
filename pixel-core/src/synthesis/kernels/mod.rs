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
#[cfg(target_arch = "x86_64")]
mod panels;
mod several;
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
use crate::pool;
use crate::scratch;
use scratch::Scratch;
use serde::{Deserialize, Serialize};
use std::ops::Range;

pub(super) use several::linear;
pub(crate) use several::{MAX_WEIGHTS, Rows};

/// Nanoseconds of work below which a product stays on the calling thread: others are there after a microsecond, and
/// their caches have to be filled as well.
const PARALLEL_FROM: usize = 2_000;

/// Rows of activations that one pass over the codes serves, at most.
const MAX_BATCH: usize = 8;

/// What a product computes with.
///
/// # Accuracy
/// Per output, for a row `x` of activations and weights `w` `[n]` in the rotated basis, in addition to the rounding of
/// the output:
///
/// | | trellis | additive, lapped | uniform | matching |
/// |---|---|---|---|---|
/// | `F32` | sums of `n` products | of `bits·n/4` table values, or as the trellis | of `n` products | of `n` products |
/// | `Integer`, few rows | `x` rounded (1) | table values rounded (2) | `x` rounded (3) | as `F32` |
/// | `Integer`, many rows | `x` rounded (4) | `x` rounded (4) | `x` and `w` rounded (4) | `x` and `w` rounded (4) |
///
/// 1. `x` is rounded to multiples of `max|x| / 32767`: an error of at most `Σ|w|·max|x| / 65534`, of about
///    `√n·rms(w)·max|x| / 113000`.
/// 2. Table values are rounded to multiples of the largest magnitude / 32767: an error of at most half a multiple for
///    each of `bits·n/4` tables; with AVX-512 but not VBMI, with VBMI below 256 rows, and without AVX2 as `F32`.
/// 3. `x` is rounded to multiples of `max|x| / 32639`, the largest `256·high + low` of two signed bytes: an error of at
///    most `Σ|w|·max|x| / 65278`. The sums of a group are exact, those of groups in f32. Groups or widths that are no
///    multiples of 16 (with AVX2 alone, or AVX-512 but not VBMI: of 64), large batches, and without AVX2 as `F32`.
/// 4. With AVX2, from the batch on from which it is faster. `x` is rounded to multiples of a step `s`: the largest of
///    `max|x| / 32767` and, over blocks of 256 columns, `‖x‖ / 46300`; an error of at most `Σ|w|·s / 2`, its relative
///    square about `10⁻⁸` where the values of a row are of one size, `(max|x| / rms(x))²·10⁻¹⁰` where few are larger.
///    Weights of `matching` and `uniform` are rounded in the same way, each block of a row by itself; those of the
///    other codecs are integers already, unless training changed the dictionary, or a block's norm is more than 1.4
///    times what it is for values of a root mean square of 1: then its step is a larger power of two, at most twice the
///    step that the rule gives. Sums are exact over a block, in f32 from block to block. A block of weights below 1e-30
///    in units of the scale counts as zero.
///
/// `Integer` takes `F32` for a row that is not finite or vanishes (its largest magnitude, or that of its tables, below
/// 1e-30, but not zero), where there is no kernel for the shape, and in training: the autodiff backend computes in f32.
/// On CubeCL backends it takes `F32` for fewer than 16 rows; from there on tensor cores, where there are some, round
/// weights and activations to eleven bits (TF32). What a row gives does not depend on the values of the other rows.
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
    fn run(&self, x: &[f32], y: &mut [f32]) {
        let m = self.layout.shape().d_output();
        let batch = y.len() / m;
        #[cfg(target_arch = "x86_64")]
        if self.arithmetic == Arithmetic::Integer && panels::pay(self, batch) {
            return panels::linear(self, x, y);
        }
        if self.has_bands(batch) {
            return linear(std::slice::from_ref(self), Rows { x, prepare: None }, y);
        }
        if batch == 1 {
            return self.columns(x, y);
        }
        // Bands of the weight are runs of the outputs only where the batch comes last.
        let mut columns = Scratch::new(y.len());
        self.columns(x, &mut columns);
        transpose(&columns, batch, y, m);
    }

    /// [`run`](Self::run) into `[d_output, batch]`, by kernels that take a weight alone.
    fn columns(&self, x: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let CodecLayout::Uniform(layout) = &self.layout
            && uniform::linear(self, layout, x, out)
        {
            return;
        }
        decoded::linear(self, x, out);
    }

    /// Whether the kernels for few rows, which serve several weights in one step, are the fastest for `batch` rows.
    fn has_bands(&self, batch: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.arithmetic == Arithmetic::Integer && panels::pay(self, batch) {
            return false;
        }
        match &self.layout {
            CodecLayout::Nibble(layout) => nibble::pays(self, layout, batch),
            #[cfg(target_arch = "x86_64")]
            CodecLayout::Trellis(layout) => {
                self.arithmetic == Arithmetic::Integer && trellis::Kernel::exists(layout, self.simd)
            }
            _ => false,
        }
    }

    /// Whether the product with `batch` rows is worth more than one thread, at `rate` multiply-adds a nanosecond.
    fn is_parallel(&self, batch: usize, rate: usize) -> bool {
        self.layout.shape().num_weights() * batch >= PARALLEL_FROM * rate && pool::threads() > 1
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

/// `y` `[batch, m]` from `columns` `[m, batch]`.
fn transpose(columns: &[f32], batch: usize, y: &mut [f32], m: usize) {
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

#[cfg(test)]
mod tests;
