//! Where the codes of a weight lie in a file.

use super::{EIGHT, nibble};
use crate::codec::bits::{read_bits, write_bits};
use crate::matrix::Shape;

/// The stream `codes`: row after row, each from a new word on, nibble after nibble, `per_eight` for eight weights.
#[derive(Debug, Clone, Copy)]
pub(in crate::codec) struct StoredRows {
    pub(in crate::codec) shape: Shape,
    pub(in crate::codec) per_eight: usize,
}

impl StoredRows {
    /// Bits of the codes of eight weights.
    const fn eight_bits(self) -> usize {
        4 * self.per_eight
    }

    /// Nibbles of a row.
    pub(in crate::codec) const fn row_nibbles(self) -> usize {
        self.shape.d_input().div_ceil(EIGHT) * self.per_eight
    }

    /// Bits of a row without padding.
    pub(in crate::codec) const fn row_bits(self) -> usize {
        4 * self.row_nibbles()
    }

    /// Words of a row.
    pub(in crate::codec) const fn row_words(self) -> usize {
        self.row_bits().div_ceil(32)
    }

    /// The codes of eight weights, the first nibble lowest.
    pub(in crate::codec) fn read(self, words: &[u32], row: usize, eight: usize) -> u32 {
        read_bits(&words[row * self.row_words()..], eight * self.eight_bits(), self.eight_bits() as u32)
    }

    /// Nibble `t` of a row.
    pub(in crate::codec) fn read_one(self, words: &[u32], row: usize, t: usize) -> usize {
        nibble(self.read(words, row, t / self.per_eight), t % self.per_eight)
    }

    /// Writes the codes of eight weights over zeros.
    pub(in crate::codec) fn write(self, words: &mut [u32], row: usize, eight: usize, codes: u32) {
        let words = &mut words[row * self.row_words()..];
        write_bits(words, eight * self.eight_bits(), self.eight_bits() as u32, codes);
    }
}
