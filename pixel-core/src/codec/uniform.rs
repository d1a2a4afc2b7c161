//! `uniform`: round to nearest on an evenly spaced grid for each group of weights. The yardstick.
//!
//! ```text
//! ŵ = scale · (q − zero_point),   q, zero_point ∈ 0 … 2^b − 1
//! ```
//!
//! One F16 scale and one `b`-bit zero point serve a group of neighbouring weights of a row. The range of a group is
//! clipped where that lowers the squared error: the shares of the full range that are tried are `1 − i/32`, `i < 20`.

use super::bits::{Field, read_bits, write_bits};
use super::{
    BlockEncoder, Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec,
    StreamType, WeightEncoder,
};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of one column that a thread codes at least: fewer take less time than to ask for another thread.
const ROWS_A_TASK: usize = 2048;

/// Shares of a group's range that the clip search tries.
const CLIP_STEPS: u32 = 20;

/// The family of uniform codecs.
#[derive(Debug)]
pub struct Uniform;

impl CodecFamily for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn summary(&self) -> &'static str {
        "round to nearest with group scales and clip search; the yardstick, and 8 bits for embeddings"
    }

    fn rates(&self) -> &'static [f64] {
        &[2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "group",
            default: 64,
            min: 8,
            max: 1024,
            search_only: false,
            help: "weights of a row that share a scale",
        }]
    }

    fn rotates(&self) -> bool {
        false
    }

    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError> {
        Ok(Box::new(UniformCodec { bits: bits as u32, group: options["group"] as usize }))
    }
}

#[derive(Debug, Clone, Copy)]
struct UniformCodec {
    bits: u32,
    group: usize,
}

impl UniformCodec {
    fn layout_of(self, shape: Shape) -> UniformLayout {
        UniformLayout { shape, bits: self.bits, group: self.group }
    }
}

/// The codes of one weight, `[d_output, row_words]`, and after them the zero points, [`zero_words`](Self::zero_words)
/// words. The dictionary is the `2^bits` levels; the zero points select from it too, so that a zero stays zero:
/// `ŵ = scale · (D[q] − D[zero_point])`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UniformLayout {
    /// The weight.
    pub shape: Shape,
    /// Bits of an index.
    pub bits: u32,
    /// Weights of a row that share a scale.
    pub group: usize,
}

impl UniformLayout {
    /// Groups of a row.
    pub const fn num_groups(&self) -> usize {
        self.shape.d_input().div_ceil(self.group)
    }

    /// Words of one row of indices; a row starts at a new word.
    pub const fn row_words(&self) -> usize {
        (self.shape.d_input() * self.bits as usize).div_ceil(32)
    }

    /// Words of all indices.
    pub const fn code_words(&self) -> usize {
        self.shape.d_output() * self.row_words()
    }

    /// Words of all zero points, row after row without gaps.
    pub const fn zero_words(&self) -> usize {
        (self.shape.d_output() * self.num_groups() * self.bits as usize).div_ceil(32)
    }

    /// The bit offset of the zero point of `group` of `row`, within the zero points.
    const fn zero_offset(&self, row: usize, group: usize) -> usize {
        (row * self.num_groups() + group) * self.bits as usize
    }

    /// The index of the weight at `(row, col)`.
    pub const fn field(&self, row: usize, col: usize) -> Field {
        let offset = row * self.row_words() * 32 + col * self.bits as usize;
        Field::at(offset, self.code_words() + self.zero_words())
    }

    /// The zero point of the weight at `(row, col)`, in the words of the codes and the zero points.
    pub const fn zero_field(&self, row: usize, col: usize) -> Field {
        let offset = self.code_words() * 32 + self.zero_offset(row, col / self.group);
        Field::at(offset, self.code_words() + self.zero_words())
    }

    /// Decodes columns `columns` of row `row`, in units of the group scales; the first begins a word and a group.
    #[inline(always)]
    pub(crate) fn decode_columns(
        &self,
        words: &[u32],
        zeros: &[u32],
        dictionary: &[f32],
        row: usize,
        columns: Range<usize>,
        values: &mut [f32],
    ) {
        let first = columns.start * self.bits as usize / 32;
        self.unpack(&words[row * self.row_words()..][..self.row_words()][first..], values);
        // The levels of every file; training may have changed them.
        let are_integers = dictionary.iter().enumerate().all(|(i, level)| *level == i as f32);
        for (group, values) in (columns.start / self.group..).zip(values.chunks_mut(self.group)) {
            let zero = dictionary[read_bits(zeros, self.zero_offset(row, group), self.bits) as usize];
            if are_integers {
                values.iter_mut().for_each(|value| *value -= zero);
            } else {
                values.iter_mut().for_each(|value| *value = dictionary[*value as usize] - zero);
            }
        }
    }

    /// The indices in `words`, as floats.
    #[inline(always)]
    fn unpack(&self, words: &[u32], values: &mut [f32]) {
        match self.bits {
            2 => unpack::<2>(words, values),
            3 => unpack::<3>(words, values),
            4 => unpack::<4>(words, values),
            5 => unpack::<5>(words, values),
            6 => unpack::<6>(words, values),
            8 => unpack::<8>(words, values),
            bits => unreachable!("{bits} bits"),
        }
    }
}

/// Fields of `BITS` bits, as floats.
#[inline(always)]
fn unpack<const BITS: usize>(words: &[u32], values: &mut [f32]) {
    if cfg!(target_endian = "little") && BITS == 8 {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        values.iter_mut().zip(bytes).for_each(|(value, byte)| *value = f32::from(*byte));
        return;
    }
    let (blocks, rest) = words.as_chunks::<BITS>();
    let (full, edge) = values.as_chunks_mut::<32>();
    for (block, values) in blocks.iter().zip(&mut *full) {
        unpack_block(block, values);
    }
    if !edge.is_empty() {
        let (mut block, mut values) = ([0; BITS], [0.0; 32]);
        // The row may go on behind these columns.
        let words = blocks.get(full.len()).map_or(rest, |block| &block[..]);
        block[..words.len()].copy_from_slice(words);
        unpack_block(&block, &mut values);
        edge.copy_from_slice(&values[..edge.len()]);
    }
}

/// 32 fields, which end with a word.
#[inline(always)]
fn unpack_block<const BITS: usize>(block: &[u32; BITS], values: &mut [f32; 32]) {
    let mask = (1u32 << BITS) - 1;
    if 32 % BITS == 0 {
        for (word, values) in block.iter().zip(values.chunks_exact_mut(32 / BITS)) {
            for (i, value) in values.iter_mut().enumerate() {
                *value = (word >> (BITS * i) & mask) as f32;
            }
        }
        return;
    }
    for (eight, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // Eight fields begin with a byte and lie in two words: 5·8 bits begin at bit 24 at the latest, 6·8 at 16.
        let bit = eight * 8 * BITS;
        let next = block[(bit / 32 + 1) % BITS];
        let bits = (u64::from(block[bit / 32]) | u64::from(next) << 32) >> (bit % 32);
        for (i, value) in values.iter_mut().enumerate() {
            *value = ((bits >> (BITS * i)) as u32 & mask) as f32;
        }
    }
}

/// The levels of `bits` bits: 0, 1, 2 …
fn levels(bits: u32) -> Vec<f32> {
    (0..1u32 << bits).map(|level| level as f32).collect()
}

/// The grid of one group.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Grid {
    scale: f16,
    zero_point: u32,
}

impl Grid {
    /// The grid over `[low, high]`, a range that holds 0, with `levels + 1` points.
    fn over(low: f32, high: f32, levels: u32) -> Self {
        let scale = f16::from_f32((high - low) / levels as f32);
        let zero_point = if scale == f16::ZERO { 0.0 } else { (-low / scale.to_f32()).round() };
        Self { scale, zero_point: zero_point.clamp(0.0, levels as f32) as u32 }
    }

    /// The grid of least squared error among the clipped ranges of `values`.
    fn fit(values: &[f32], levels: u32) -> Self {
        let low = values.iter().copied().fold(0.0, f32::min);
        let high = values.iter().copied().fold(0.0, f32::max);
        let mut best = (f32::INFINITY, Self::over(low, high, levels));
        for step in 0..CLIP_STEPS {
            let share = 1.0 - step as f32 / 32.0;
            let grid = Self::over(low * share, high * share, levels);
            // At 8 bits, what clipping does to the largest value alone is nearly always too much.
            let is_hopeless = [low, high].into_iter().any(|end| grid.squared_error(end, levels) >= best.0);
            if is_hopeless {
                continue;
            }
            let error = grid.error(values, levels);
            if error < best.0 {
                best = (error, grid);
            }
        }
        best.1
    }

    fn error(self, values: &[f32], levels: u32) -> f32 {
        let mut sums = [0.0f32; 8];
        for (i, &value) in values.iter().enumerate() {
            sums[i % 8] += self.squared_error(value, levels);
        }
        sums.iter().sum()
    }

    #[inline]
    fn squared_error(self, value: f32, levels: u32) -> f32 {
        let difference = value - self.decode(self.encode(value, levels));
        difference * difference
    }

    #[inline]
    fn encode(self, value: f32, levels: u32) -> u32 {
        let inverse = if self.scale == f16::ZERO { 0.0 } else { 1.0 / self.scale.to_f32() };
        (value * inverse + self.zero_point as f32).round_ties_even().clamp(0.0, levels as f32) as u32
    }

    #[inline]
    fn decode(self, index: u32) -> f32 {
        self.scale.to_f32() * (index as f32 - self.zero_point as f32)
    }
}

impl Codec for UniformCodec {
    fn row_scaling(&self) -> RowScaling {
        RowScaling::None
    }

    fn streams(&self, shape: Shape) -> Vec<StreamSpec> {
        let (layout, m) = (self.layout_of(shape), shape.d_output());
        vec![
            StreamSpec { name: "codes", dtype: StreamType::U32, shape: vec![m, layout.row_words()] },
            StreamSpec { name: "scales", dtype: StreamType::F16, shape: vec![m, layout.num_groups()] },
            StreamSpec { name: "zeros", dtype: StreamType::U32, shape: vec![layout.zero_words()] },
        ]
    }

    /// One: grids are fitted before the first block, so that error feedback goes from column to column.
    fn block_width(&self, _shape: Shape) -> usize {
        1
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> WeightEncoder<'a> {
        let layout = self.layout_of(weight.shape());
        let rows = weight.as_slice().par_chunks_exact(weight.shape().d_input());
        let grids = rows.flat_map_iter(|row| row.chunks(self.group));
        let grids = grids.map(|values| Grid::fit(values, (1 << self.bits) - 1));
        WeightEncoder::Blocks(Box::new(UniformEncoder {
            layout,
            codes: vec![0; layout.code_words()],
            grids: grids.collect(),
        }))
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let layout = self.layout_of(shape);
        let offset = row * layout.row_words() * 32 + col * self.bits as usize;
        let index = read_bits(codes.streams[0].words(), offset, self.bits);
        let scale = codes.streams[1].halves()[row * layout.num_groups() + col / self.group];
        let zero_point = read_bits(codes.streams[2].words(), layout.zero_offset(row, col / self.group), self.bits);
        scale.to_f32() * (index as f32 - zero_point as f32)
    }

    fn layout(&self, shape: Shape) -> Option<CodecLayout> {
        Some(CodecLayout::Uniform(self.layout_of(shape)))
    }

    fn dictionary(&self, _shape: Shape, _codes: &Codes) -> Vec<f32> {
        levels(self.bits)
    }

    fn search_bytes(&self, _shape: Shape) -> usize {
        0
    }

    fn num_indices(&self, shape: Shape) -> usize {
        shape.num_weights()
    }

    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError> {
        let layout = self.layout_of(shape);
        let row_bits = shape.d_input() * self.bits as usize;
        super::check_row_padding("codes", codes.streams[0].words(), layout.row_words(), row_bits)?;
        super::check_finite("scales", codes.streams[1].halves())?;
        let zero_bits = shape.d_output() * layout.num_groups() * self.bits as usize;
        super::check_row_padding("zeros", codes.streams[2].words(), layout.zero_words(), zero_bits)
    }
}

struct UniformEncoder {
    layout: UniformLayout,
    codes: Vec<u32>,
    /// `[d_output, num_groups]`.
    grids: Vec<Grid>,
}

impl BlockEncoder for UniformEncoder {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let UniformLayout { bits, group, .. } = self.layout;
        let (row_words, groups) = (self.layout.row_words(), self.layout.num_groups());
        let rows = self.codes.par_chunks_exact_mut(row_words).zip(self.grids.par_chunks_exact(groups));
        let values = values.par_iter().zip(decoded).zip(rows).with_min_len(ROWS_A_TASK);
        values.for_each(|((value, decoded), (words, grids))| {
            let grid = grids[block / group];
            let index = grid.encode(*value, (1 << bits) - 1);
            write_bits(words, block * bits as usize, bits, index);
            *decoded = grid.decode(index);
        });
    }

    fn finish(self: Box<Self>) -> Codes {
        let bits = self.layout.bits;
        let mut zeros = vec![0; self.layout.zero_words()];
        for (i, grid) in self.grids.iter().enumerate() {
            write_bits(&mut zeros, i * bits as usize, bits, grid.zero_point);
        }
        let scales = self.grids.iter().map(|grid| grid.scale).collect();
        Codes { streams: vec![Stream::U32(self.codes), Stream::F16(scales), Stream::U32(zeros)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_the_grid_are_exact() {
        let values = [-1.0, -0.5, 0.0, 0.5, 0.5, -1.0, 0.0, 0.5];
        let grid = Grid::fit(&values, 3);
        assert_eq!(grid, Grid { scale: f16::from_f32(0.5), zero_point: 2 });
        assert_eq!(grid.error(&values, 3), 0.0);
    }

    #[test]
    fn an_outlier_is_clipped_when_that_pays() {
        let mut values: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) / 32.0).collect();
        values[0] = -3.0;
        let full = Grid::over(-3.0, 1.0, 3);
        let fitted = Grid::fit(&values, 3);
        assert!(fitted.error(&values, 3) < 0.8 * full.error(&values, 3));
    }

    #[test]
    fn a_group_of_zeros_has_scale_zero() {
        assert_eq!(Grid::fit(&[0.0; 8], 15), Grid { scale: f16::ZERO, zero_point: 0 });
    }
}
