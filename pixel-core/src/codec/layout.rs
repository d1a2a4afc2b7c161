//! What a kernel has to know of a codec.

use super::additive::{AdditiveLayout, GROUP};
use super::bits::write_bits;
use super::matching::MatchingLayout;
use super::trellis::TrellisLayout;
use super::uniform::UniformLayout;
use crate::matrix::Shape;

/// How the words of a weight select values of its dictionary, codec by codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodecLayout {
    /// Windows of a bit string, hashed.
    Trellis(TrellisLayout),
    /// Sums of patterns of eight weights.
    Additive(AdditiveLayout),
    /// Sums of scaled patterns of tiles.
    Matching(MatchingLayout),
    /// Levels and zero points.
    Uniform(UniformLayout),
}

impl CodecLayout {
    /// The weight.
    pub const fn shape(&self) -> Shape {
        match self {
            Self::Trellis(layout) => layout.grid.shape,
            Self::Additive(layout) => layout.shape,
            Self::Matching(layout) => layout.grid().shape,
            Self::Uniform(layout) => layout.shape,
        }
    }

    /// Words of the codes, every index stream one after the other.
    pub const fn num_words(&self) -> usize {
        match self {
            Self::Trellis(layout) => layout.grid.num_tiles() * layout.tile_words(),
            Self::Additive(layout) => layout.num_words(),
            Self::Matching(layout) => layout.num_words(),
            Self::Uniform(layout) => layout.code_words() + layout.zero_words(),
        }
    }

    /// Weights of a row that share a scale.
    pub const fn scale_group(&self) -> usize {
        match self {
            Self::Uniform(layout) => layout.group,
            _ => self.shape().d_input(),
        }
    }

    /// Scales of a row.
    pub const fn scales_per_row(&self) -> usize {
        self.shape().d_input().div_ceil(self.scale_group())
    }

    /// Values of the dictionary.
    pub const fn dictionary_len(&self) -> usize {
        match self {
            Self::Trellis(_) => 1,
            Self::Additive(layout) => layout.dictionary_len(),
            Self::Matching(layout) => layout.dictionary_len(),
            Self::Uniform(layout) => 1 << layout.bits,
        }
    }

    /// The part of the dictionary that is stored with the weight.
    pub const fn learned_range(&self) -> std::ops::Range<usize> {
        match self {
            Self::Matching(layout) => layout.learned_start()..layout.norms_start(),
            _ => 0..0,
        }
    }

    /// Rows that are decoded together. The last band may have fewer.
    pub const fn band_height(&self) -> usize {
        match self {
            Self::Trellis(layout) => layout.grid.tile.rows,
            Self::Matching(layout) => layout.grid().tile.rows,
            Self::Additive(_) | Self::Uniform(_) => 1,
        }
    }

    /// Makes arbitrary words codes: padding becomes zero, and every tile of `matching` gets the gain of a Gaussian one.
    pub(crate) fn tidy(&self, words: &mut [u32]) {
        let clear = |words: &mut [u32], row_words: usize, row_bits: usize| {
            if !row_bits.is_multiple_of(32) {
                words.chunks_exact_mut(row_words).for_each(|row| row[row_words - 1] &= (1 << (row_bits % 32)) - 1);
            }
        };
        match self {
            Self::Trellis(_) => {}
            Self::Additive(layout) => {
                let row_bits = layout.shape.d_input().div_ceil(GROUP) * layout.group_bits();
                clear(words, layout.row_words(), row_bits);
            }
            Self::Matching(layout) => {
                clear(words, layout.band_words(), layout.grid().tile_cols() * layout.tile_bits());
                layout.set_gains(words);
            }
            Self::Uniform(layout) => {
                let (codes, zeros) = words.split_at_mut(layout.code_words());
                clear(codes, layout.row_words(), layout.shape.d_input() * layout.bits as usize);
                // The zero point in the middle, which lies between two levels: above it and below it in turn.
                zeros.fill(0);
                for place in 0..layout.shape.d_output() * layout.num_groups() {
                    let zero = (1 << (layout.bits - 1)) - (place as u32 & 1);
                    write_bits(zeros, place * layout.bits as usize, layout.bits, zero);
                }
            }
        }
    }

    /// Decodes band `band` into `rows`, `[rows of the band, d_input]`, in units of the scales.
    ///
    /// # Panics
    /// If a slice is shorter than this layout says.
    pub(crate) fn decode_band(&self, words: &[u32], dictionary: &[f32], band: usize, rows: &mut [f32]) {
        match self {
            Self::Trellis(layout) => layout.decode_band(words, dictionary, band, rows),
            Self::Additive(layout) => layout.decode_band(words, dictionary, band, rows),
            Self::Matching(layout) => layout.decode_band(words, dictionary, band, rows),
            Self::Uniform(layout) => {
                let (codes, zeros) = words.split_at(layout.code_words());
                layout.decode_band(codes, zeros, dictionary, band, rows);
            }
        }
    }
}
