//! Where the nibbles of a weight lie, and how a row is decoded.

use super::{GROUP, PATTERNS, nibble};
use crate::codec::bits::{Field, read_bits};
use crate::matrix::Shape;

/// The codes of one weight: `[d_output, row_words]`. The dictionary is `[sub_dictionaries, 16, 8]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AdditiveLayout {
    /// The weight.
    pub shape: Shape,
    /// How many patterns are added, `M`.
    pub sub_dictionaries: usize,
}

impl AdditiveLayout {
    /// Bits of a group's codes.
    pub const fn group_bits(&self) -> usize {
        4 * self.sub_dictionaries
    }

    /// Words of a row.
    pub const fn row_words(&self) -> usize {
        (self.shape.d_input().div_ceil(GROUP) * self.group_bits()).div_ceil(32)
    }

    /// Words of the weight.
    pub const fn num_words(&self) -> usize {
        self.shape.d_output() * self.row_words()
    }

    /// Values of the dictionary.
    pub const fn dictionary_len(&self) -> usize {
        self.sub_dictionaries * PATTERNS * GROUP
    }

    /// The nibble of the weight at `(row, col)` for sub-dictionary `m`.
    pub const fn field(&self, row: usize, col: usize, m: usize) -> Field {
        Field::at(row * self.row_words() * 32 + col / GROUP * self.group_bits() + 4 * m, self.num_words())
    }

    /// `Σ P_m[c_m]` for the codes of one group.
    pub(super) fn decode(&self, codes: u32, dictionary: &[f32]) -> [f32; GROUP] {
        let mut sum = [0.0; GROUP];
        for (m, patterns) in dictionary.chunks_exact(PATTERNS * GROUP).enumerate() {
            for (sum, weight) in sum.iter_mut().zip(&patterns[nibble(codes, m) * GROUP..][..GROUP]) {
                *sum += weight;
            }
        }
        sum
    }

    /// Decodes row `row`, `[d_input]`.
    pub(crate) fn decode_band(&self, words: &[u32], dictionary: &[f32], row: usize, values: &mut [f32]) {
        let words = &words[row * self.row_words()..][..self.row_words()];
        for (g, group) in values.chunks_mut(GROUP).enumerate() {
            let codes = read_bits(words, g * self.group_bits(), self.group_bits() as u32);
            group.copy_from_slice(&self.decode(codes, dictionary)[..group.len()]);
        }
    }
}
