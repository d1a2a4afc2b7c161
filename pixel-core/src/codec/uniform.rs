//! `uniform`: round to nearest on an evenly spaced grid for each group of weights. The yardstick.
//!
//! ```text
//! ŵ = scale · (q − zero_point),   q, zero_point ∈ 0 … 2^b − 1
//! ```
//!
//! One F16 scale and one `b`-bit zero point serve a group of neighbouring weights of a row. The range of a group is
//! clipped where that lowers the squared error: the shares of the full range that are tried are `1 − i/32`, `i < 20`.

use super::{BlockEncoder, Codec, CodecFamily, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec, StreamType};
use super::{read_bits, write_bits};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use half::f16;

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
        &[OptionSpec { name: "group", default: 64, min: 8, max: 1024, help: "weights of a row that share a scale" }]
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
    fn num_groups(self, shape: Shape) -> usize {
        shape.d_input().div_ceil(self.group)
    }

    /// Words of one row of indices; a row starts at a new word.
    fn row_words(self, shape: Shape) -> usize {
        (shape.d_input() * self.bits as usize).div_ceil(32)
    }

    /// Words of all zero points, row after row without gaps.
    fn zero_words(self, shape: Shape) -> usize {
        (shape.d_output() * self.num_groups(shape) * self.bits as usize).div_ceil(32)
    }

    /// The bit offset of the zero point of `group` of `row`.
    fn zero_offset(self, shape: Shape, row: usize, group: usize) -> usize {
        (row * self.num_groups(shape) + group) * self.bits as usize
    }
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
            let difference = value - self.decode(self.encode(value, levels));
            sums[i % 8] += difference * difference;
        }
        sums.iter().sum()
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
        let (m, groups) = (shape.d_output(), self.num_groups(shape));
        vec![
            StreamSpec { name: "codes", dtype: StreamType::U32, shape: vec![m, self.row_words(shape)] },
            StreamSpec { name: "scales", dtype: StreamType::F16, shape: vec![m, groups] },
            StreamSpec { name: "zeros", dtype: StreamType::U32, shape: vec![self.zero_words(shape)] },
        ]
    }

    fn block_width(&self, _shape: Shape) -> usize {
        self.group
    }

    fn band_height(&self, _shape: Shape) -> usize {
        1
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> Box<dyn BlockEncoder + 'a> {
        let shape = weight.shape();
        Box::new(UniformEncoder {
            codec: *self,
            shape,
            codes: vec![0; shape.d_output() * self.row_words(shape)],
            scales: vec![f16::ZERO; shape.d_output() * self.num_groups(shape)],
            zeros: vec![0; self.zero_words(shape)],
        })
    }

    fn decode_band(&self, shape: Shape, codes: &Codes, band: usize, rows: &mut [f32]) {
        let (row_words, groups) = (self.row_words(shape), self.num_groups(shape));
        let [codes, scales, zeros] = &codes.streams[..] else { unreachable!("three streams") };
        let words = &codes.words()[band * row_words..][..row_words];
        for (group, values) in rows.chunks_mut(self.group).enumerate() {
            let grid = Grid {
                scale: scales.halves()[band * groups + group],
                zero_point: read_bits(zeros.words(), self.zero_offset(shape, band, group), self.bits),
            };
            for (i, value) in values.iter_mut().enumerate() {
                let offset = (group * self.group + i) * self.bits as usize;
                *value = grid.decode(read_bits(words, offset, self.bits));
            }
        }
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let group = col / self.group;
        let offset = row * self.row_words(shape) * 32 + col * self.bits as usize;
        let index = read_bits(codes.streams[0].words(), offset, self.bits);
        let scale = codes.streams[1].halves()[row * self.num_groups(shape) + group];
        let zero_point = read_bits(codes.streams[2].words(), self.zero_offset(shape, row, group), self.bits);
        scale.to_f32() * (index as f32 - zero_point as f32)
    }

    fn search_bytes(&self, _shape: Shape) -> usize {
        0
    }

    fn num_indices(&self, shape: Shape) -> usize {
        shape.num_weights()
    }

    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError> {
        let row_bits = shape.d_input() * self.bits as usize;
        super::check_row_padding("codes", codes.streams[0].words(), self.row_words(shape), row_bits)?;
        super::check_finite("scales", codes.streams[1].halves())?;
        let zero_bits = shape.d_output() * self.num_groups(shape) * self.bits as usize;
        super::check_row_padding("zeros", codes.streams[2].words(), self.zero_words(shape), zero_bits)
    }
}

struct UniformEncoder {
    codec: UniformCodec,
    shape: Shape,
    codes: Vec<u32>,
    scales: Vec<f16>,
    zeros: Vec<u32>,
}

impl BlockEncoder for UniformEncoder {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let codec = self.codec;
        let levels = (1u32 << codec.bits) - 1;
        let (row_words, groups) = (codec.row_words(self.shape), codec.num_groups(self.shape));
        let inside = codec.group.min(self.shape.d_input() - block * codec.group);
        let rows = values.chunks_exact(codec.group).zip(decoded.chunks_exact_mut(codec.group));
        for (row, (values, decoded)) in rows.enumerate() {
            let grid = Grid::fit(&values[..inside], levels);
            self.scales[row * groups + block] = grid.scale;
            write_bits(&mut self.zeros, codec.zero_offset(self.shape, row, block), codec.bits, grid.zero_point);
            let words = &mut self.codes[row * row_words..][..row_words];
            for (i, (&value, decoded)) in values[..inside].iter().zip(decoded).enumerate() {
                let index = grid.encode(value, levels);
                write_bits(words, (block * codec.group + i) * codec.bits as usize, codec.bits, index);
                *decoded = grid.decode(index);
            }
        }
    }

    fn finish(self: Box<Self>) -> Codes {
        Codes { streams: vec![Stream::U32(self.codes), Stream::F16(self.scales), Stream::U32(self.zeros)] }
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
