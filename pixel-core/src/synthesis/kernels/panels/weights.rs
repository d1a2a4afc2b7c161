//! Rows of a weight as integers, in the order of the multiplication.

use super::super::scratch::Scratch;
use super::super::{Decoder, scale};
use super::patterns::Patterns;
use super::round::{Block, factor, fit, round, step};
use super::{DEPTH, LANES};
use crate::codec::CodecLayout;
use crate::math::simd::Simd;
use std::arch::x86_64::*;

/// Columns that are decoded at a time, where the codec does not ask for others.
const COLUMNS: usize = 2 * DEPTH;

/// A pair of columns of all rows, `[rows, 2]`.
pub(super) type Pair = [i16; 2 * LANES];

/// [`LANES`] rows of a block of columns.
#[derive(Clone, Copy)]
pub(super) struct WeightBlock<'a> {
    pub(super) pairs: &'a [Pair],
    /// What an integer of a row stands for, in units of the row's scale.
    pub(super) steps: &'a [f32; LANES],
}

/// How a weight becomes integers.
pub(super) struct Source<'a> {
    decoder: &'a Decoder<'a>,
    /// Straight from the codes.
    patterns: Option<Patterns>,
}

impl<'a> Source<'a> {
    pub(super) fn new(decoder: &'a Decoder<'a>) -> Self {
        Self {
            decoder,
            patterns: match &decoder.product.layout {
                CodecLayout::Nibble(layout) => Patterns::new(layout, decoder.product.dictionary, decoder.product.simd),
                _ => None,
            },
        }
    }

    pub(super) const fn layout(&self) -> &CodecLayout {
        &self.decoder.product.layout
    }

    /// Decodes [`LANES`] rows from `row` on, columns from `start` on, straight to integers, and returns what an integer
    /// stands for; `None` if the codec has none.
    fn integers(&self, row: usize, start: usize, pairs: &mut [Pair]) -> Option<f32> {
        let product = &self.decoder.product;
        if let Some(patterns) = &self.patterns {
            patterns.decode(product.codes, row / LANES, start, pairs);
            return Some(fit(product.simd, pairs) * patterns.step);
        }
        // At most 510·√256 = 8160: the norm of a block fits.
        self.decoder.trellis.as_ref()?.decode_pairs(product, row / LANES, start, pairs);
        Some(product.dictionary[0])
    }

    /// Whether there are [`integers`](Self::integers).
    const fn has_integers(&self) -> bool {
        self.patterns.is_some() || self.decoder.trellis.is_some()
    }
}

/// Some rows of a weight.
pub(super) struct Panel<'a> {
    source: &'a Source<'a>,
    /// The first row, that of a band.
    first: usize,
    rows: usize,
    /// What the rows are divided by, `[rows]`.
    scales: Scratch<f32>,
    /// The scales of the groups of a row, divided by that of the row, `[rows, scales_per_row]`; nothing if a row has
    /// one.
    relative: Scratch<f32>,
}

impl<'a> Panel<'a> {
    pub(super) fn new(source: &'a Source<'a>, first: usize, rows: usize) -> Self {
        let product = &source.decoder.product;
        let per_row = product.layout.scales_per_row();
        let stored = &product.scales[first * per_row..][..rows * per_row];
        let mut scales = Scratch::<f32>::new(rows);
        let mut relative = Scratch::<f32>::new(if per_row == 1 { 0 } else { rows * per_row });
        if per_row == 1 {
            scales.copy_from_slice(stored);
        } else {
            for (scale, row) in scales.iter_mut().zip(stored.chunks_exact(per_row)) {
                *scale = row.iter().fold(0.0, |largest, scale| scale.abs().max(largest));
            }
            for (i, (relative, stored)) in relative.iter_mut().zip(stored).enumerate() {
                *relative = if *stored == 0.0 { 0.0 } else { stored / scales[i / per_row] };
            }
        }
        Self { source, first, rows, scales, relative }
    }

    /// Groups of [`LANES`] rows; the last may have fewer.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The scales of the rows of a group.
    pub(super) fn scales(&self, group: usize) -> &[f32] {
        let first = group * LANES;
        &self.scales[first..self.rows.min(first + LANES)]
    }

    /// Calls `run` with the first column of a block, the group, and its rows of the block, for all of them.
    pub(super) fn for_each_block(&self, mut run: impl FnMut(usize, usize, WeightBlock<'_>)) {
        if !self.source.has_integers() {
            return self.for_each_decoded_block(run);
        }
        let n = self.source.decoder.product.layout.shape().d_input();
        let mut pairs = Scratch::<Pair>::new(DEPTH / 2);
        for start in (0..n).step_by(DEPTH) {
            let pairs = &mut pairs[..DEPTH.min(n - start).div_ceil(2)];
            for group in 0..self.groups() {
                let step = self.source.integers(self.first + group * LANES, start, pairs);
                let steps = &[step.expect("integers of a block"); LANES];
                run(start, group, WeightBlock { pairs, steps });
            }
        }
    }

    /// [`for_each_block`](Self::for_each_block) by way of decoded weights.
    fn for_each_decoded_block(&self, mut run: impl FnMut(usize, usize, WeightBlock<'_>)) {
        let Decoder { product, .. } = self.source.decoder;
        let n = product.layout.shape().d_input();
        let columns = if COLUMNS.is_multiple_of(product.layout.column_step()) { COLUMNS.min(n) } else { n };
        let mut weights = Scratch::<f32>::new(self.rows * columns);
        let mut packed = Packed::new();
        for start in (0..n).step_by(columns) {
            let width = columns.min(n - start);
            let weights = &mut weights[..self.rows * width];
            self.decode(start, weights);
            for first in (0..width).step_by(DEPTH) {
                for (group, rows) in weights.chunks(LANES * width).enumerate() {
                    run(start + first, group, packed.fill(product.simd, rows, width, first));
                }
            }
        }
    }

    /// Decodes the columns from `start` on into `weights` `[rows, columns]`.
    fn decode(&self, start: usize, weights: &mut [f32]) {
        let Decoder { product, .. } = self.source.decoder;
        let (layout, width) = (&product.layout, weights.len() / self.rows);
        let columns = start..start + width;
        let bands = weights.chunks_mut(layout.band_height() * width);
        for (band, rows) in (self.first / layout.band_height()..).zip(bands) {
            self.source.decoder.decode(band, columns.clone(), rows);
        }
        if !self.relative.is_empty() {
            let (per_row, group) = (layout.scales_per_row(), layout.scale_group());
            scale(product.simd, weights, columns, &self.relative, per_row, group);
        }
    }
}

/// Memory for a [`WeightBlock`].
struct Packed {
    rows: Scratch<Block>,
    pairs: Scratch<Pair>,
    steps: [f32; LANES],
}

impl Packed {
    fn new() -> Self {
        Self { rows: Scratch::new(LANES), pairs: Scratch::new(DEPTH / 2), steps: [0.0; LANES] }
    }

    /// Rounds and packs the block from column `first` on of `weights` `[rows, width]`.
    fn fill(&mut self, simd: Simd, weights: &[f32], width: usize, first: usize) -> WeightBlock<'_> {
        let depth = DEPTH.min(width - first);
        let count = weights.len() / width;
        for ((block, to), weights) in self.rows.iter_mut().zip(&mut self.steps).zip(weights.chunks_exact(width)) {
            let weights = &weights[first..first + depth];
            // What is not finite makes the outputs NaN, and what vanishes is zero.
            *to = step(simd, weights).unwrap_or_else(|| 0.0 * weights.iter().sum::<f32>());
            round(simd, weights, factor(*to), block);
        }
        for (block, step) in self.rows[count..].iter_mut().zip(&mut self.steps[count..]) {
            block.fill(0);
            *step = 0.0;
        }
        let pairs = &mut self.pairs[..depth.div_ceil(2)];
        // SAFETY: without AVX2 there are no panels.
        unsafe { transpose(self.rows.first_chunk().expect("rows of a group"), pairs) };
        WeightBlock { pairs, steps: &self.steps }
    }
}

/// Pairs of columns of rows side by side, eight pairs of eight rows at a time.
#[target_feature(enable = "avx2")]
fn transpose(rows: &[Block; LANES], pairs: &mut [Pair]) {
    for (eight, pairs) in pairs.chunks_mut(8).enumerate() {
        for (group, rows) in rows.as_chunks::<8>().0.iter().enumerate() {
            let values = transpose_eight(rows, eight);
            for (pair, values) in pairs.iter_mut().zip(values) {
                // SAFETY: sixteen integers, eight rows.
                unsafe { _mm256_storeu_si256(pair.as_mut_ptr().add(16 * group).cast(), values) };
            }
        }
    }
}

/// Pairs `8·eight` to `8·eight + 7` of eight rows: lanes of 128 bits are transposed in fours, then exchanged.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_eight(rows: &[Block; 8], eight: usize) -> [__m256i; 8] {
    // SAFETY: sixteen of `DEPTH` integers.
    let load = |row: usize| unsafe { _mm256_loadu_si256(rows[row].as_chunks::<16>().0[eight].as_ptr().cast()) };
    let four = |first: usize| {
        let rows = [load(first), load(first + 1), load(first + 2), load(first + 3)];
        let low = [_mm256_unpacklo_epi32(rows[0], rows[1]), _mm256_unpacklo_epi32(rows[2], rows[3])];
        let high = [_mm256_unpackhi_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[2], rows[3])];
        [
            _mm256_unpacklo_epi64(low[0], low[1]),
            _mm256_unpackhi_epi64(low[0], low[1]),
            _mm256_unpacklo_epi64(high[0], high[1]),
            _mm256_unpackhi_epi64(high[0], high[1]),
        ]
    };
    let (a, b) = (four(0), four(4));
    [
        _mm256_permute2x128_si256::<0x20>(a[0], b[0]),
        _mm256_permute2x128_si256::<0x20>(a[1], b[1]),
        _mm256_permute2x128_si256::<0x20>(a[2], b[2]),
        _mm256_permute2x128_si256::<0x20>(a[3], b[3]),
        _mm256_permute2x128_si256::<0x31>(a[0], b[0]),
        _mm256_permute2x128_si256::<0x31>(a[1], b[1]),
        _mm256_permute2x128_si256::<0x31>(a[2], b[2]),
        _mm256_permute2x128_si256::<0x31>(a[3], b[3]),
    ]
}
