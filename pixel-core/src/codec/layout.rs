//! What a kernel needs to know about a codec.

use super::bits::write_bits;
use super::matching::{MatchingLayout, Universal};
use super::nibble::{EIGHT, NibbleLayout};
use super::trellis::TrellisLayout;
use super::uniform::UniformLayout;
use crate::math::simd::{Simd, SimdLevel, for_every_level};
use crate::matrix::Shape;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// How the words of a weight select values of its dictionary, codec by codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodecLayout {
    /// Windows of a bit string, hashed.
    Trellis(TrellisLayout),
    /// Sums of patterns, one of sixteen for each nibble: `additive` and `lapped`.
    Nibble(NibbleLayout),
    /// Sums of scaled patterns of tiles.
    Matching(MatchingLayout),
    /// Levels and zero points.
    Uniform(UniformLayout),
}

/// What all weights of one layout look up when they are decoded: the computed patterns of `matching`, nothing for the
/// other codecs. They are shared by all holders and rebuilt after the last one drops them, so a caller that decodes
/// often holds them.
#[derive(Debug, Clone)]
pub struct LayoutTables(Option<Arc<Universal>>);

impl LayoutTables {
    /// The patterns of `matching`.
    ///
    /// # Panics
    /// If these are the tables of another codec.
    fn universal(&self) -> &Universal {
        self.0.as_deref().expect("the tables of `matching`")
    }
}

impl CodecLayout {
    /// The weight.
    pub const fn shape(&self) -> Shape {
        match self {
            Self::Trellis(layout) => layout.grid.shape,
            Self::Nibble(layout) => layout.shape,
            Self::Matching(layout) => layout.grid().shape,
            Self::Uniform(layout) => layout.shape,
        }
    }

    /// Words of the codes, every index stream one after the other.
    pub const fn num_words(&self) -> usize {
        match self {
            Self::Trellis(layout) => layout.grid.num_tiles() * layout.tile_words(),
            Self::Nibble(layout) => layout.num_words(),
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
            Self::Nibble(layout) => layout.dictionary_len(),
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
            Self::Nibble(_) | Self::Uniform(_) => 1,
        }
    }

    /// The codes in the order of this layout, from the streams of words of a file, one after the other.
    pub(crate) fn arrange<'a>(&self, stored: &'a [u32]) -> Cow<'a, [u32]> {
        match self {
            Self::Nibble(layout) => layout.arrange(stored).into(),
            Self::Trellis(_) | Self::Matching(_) | Self::Uniform(_) => stored.into(),
        }
    }

    /// What decoding looks up in addition to the weight's own words and dictionary.
    pub fn tables(&self) -> LayoutTables {
        match self {
            Self::Matching(layout) => LayoutTables(Some(layout.universal())),
            Self::Trellis(_) | Self::Nibble(_) | Self::Uniform(_) => LayoutTables(None),
        }
    }

    /// The streams of words of a file, one after the other.
    pub(crate) fn stored_order<'a>(&self, words: &'a [u32]) -> Cow<'a, [u32]> {
        match self {
            Self::Nibble(layout) => layout.stored_order(words).into(),
            Self::Trellis(_) | Self::Matching(_) | Self::Uniform(_) => words.into(),
        }
    }

    /// Makes arbitrary stored words codes: padding becomes zero, and every tile of `matching` gets the gain of a
    /// Gaussian one.
    pub(crate) fn tidy(&self, words: &mut [u32]) {
        let clear = |words: &mut [u32], row_words: usize, row_bits: usize| {
            if !row_bits.is_multiple_of(32) {
                words.chunks_exact_mut(row_words).for_each(|row| row[row_words - 1] &= (1 << (row_bits % 32)) - 1);
            }
        };
        match self {
            Self::Trellis(_) => {}
            Self::Nibble(layout) => {
                let row_bits = 4 * layout.fields();
                clear(words, row_bits.div_ceil(32), row_bits);
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

    /// Columns decode in runs that begin at a multiple of this.
    pub(crate) const fn column_step(&self) -> usize {
        match self {
            Self::Trellis(layout) => layout.grid.tile.cols,
            Self::Nibble(_) => EIGHT,
            // Groups, and 32 fields of any width, which end with a word.
            Self::Uniform(layout) => layout.group << 5u32.saturating_sub(layout.group.trailing_zeros()),
            Self::Matching(layout) => layout.grid().shape.d_input(),
        }
    }
}

/// The words of a weight with all that they are read by, borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Readable<'a> {
    pub(crate) layout: &'a CodecLayout,
    pub(crate) tables: &'a LayoutTables,
    /// `[layout.num_words()]`.
    pub(crate) words: &'a [u32],
    /// `[layout.dictionary_len()]`.
    pub(crate) dictionary: &'a [f32],
}

impl Readable<'_> {
    /// Decodes columns `columns` of band `band` into `rows`, `[rows of the band, columns]`, in units of the scales, in
    /// the same order of operations whatever `simd` is.
    ///
    /// # Panics
    /// If a slice is shorter than this layout says.
    pub(crate) fn decode_columns(&self, simd: Simd, band: usize, columns: Range<usize>, rows: &mut [f32]) {
        debug_assert!(
            columns.start.is_multiple_of(self.layout.column_step()),
            "a run of columns from {}",
            columns.start
        );
        let simd = match self.layout {
            // Whole patterns are added: in registers of 512 bits that takes twice as long.
            CodecLayout::Nibble(_) => simd.min(Simd::at_most(SimdLevel::Avx2)),
            _ => simd,
        };
        decode_columns(simd, self, band, columns, rows);
    }
}

for_every_level! {
    fn decode_columns(codes: &Readable<'_>, band: usize, columns: Range<usize>, rows: &mut [f32]) -> () {
        let Readable { layout, tables, words, dictionary } = *codes;
        match layout {
            CodecLayout::Trellis(layout) => layout.decode_columns(words, dictionary, band, columns, rows),
            CodecLayout::Nibble(layout) => layout.decode_columns(words, dictionary, band, columns, rows),
            CodecLayout::Matching(layout) => layout.decode_band(tables.universal(), words, dictionary, band, rows),
            CodecLayout::Uniform(layout) => {
                let (codes, zeros) = words.split_at(layout.code_words());
                layout.decode_columns(codes, zeros, dictionary, band, columns, rows);
            }
        }
    }
}
