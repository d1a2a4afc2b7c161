//! Where the codes of a weight lie in a file.

use super::GROUP;
use crate::codec::bits::{read_bits, write_bits};
use crate::matrix::Shape;

/// The stream `codes`: row after row, each from a new word on, group after group.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredRows {
    pub(super) shape: Shape,
    pub(super) sub_dictionaries: usize,
}

impl StoredRows {
    /// Bits of a group's codes.
    const fn group_bits(self) -> usize {
        4 * self.sub_dictionaries
    }

    /// Bits of a row without padding.
    pub(super) const fn row_bits(self) -> usize {
        self.shape.d_input().div_ceil(GROUP) * self.group_bits()
    }

    /// Words of a row.
    pub(super) const fn row_words(self) -> usize {
        self.row_bits().div_ceil(32)
    }

    /// The codes of a group, sub-dictionary 0 in the lowest nibble.
    pub(super) fn read(self, words: &[u32], row: usize, group: usize) -> u32 {
        read_bits(&words[row * self.row_words()..], group * self.group_bits(), self.group_bits() as u32)
    }

    /// Writes the codes of a group over zeros.
    pub(super) fn write(self, words: &mut [u32], row: usize, group: usize, codes: u32) {
        let words = &mut words[row * self.row_words()..];
        write_bits(words, group * self.group_bits(), self.group_bits() as u32, codes);
    }
}
