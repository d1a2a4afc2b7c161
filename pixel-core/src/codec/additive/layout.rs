//! Where the nibbles of a weight lie for a kernel.

use super::stored::StoredRows;
use super::{GROUP, PATTERNS, decode_group};
use crate::codec::bits::Field;
use crate::matrix::Shape;
use std::ops::Range;

/// Rows of a strip.
pub const STRIP: usize = 32;

/// Bytes that hold the codes of one sub-dictionary for one group in all rows of a strip: the lower nibble of byte `i`
/// is row `i`, the higher one row `i + 16`.
pub const FIELD_BYTES: usize = STRIP / 2;

/// Fields that fill a register of 512 bits; a strip has a multiple of it.
pub const QUAD: usize = 4;

/// The codes of one weight: `[strips, fields, 16]` bytes, one field for each group and sub-dictionary. All lookups into
/// one table of 16 values lie together: 32 rows in one register of 128 bits. Nibbles of rows and fields beyond the last
/// are zero. The dictionary is `[sub_dictionaries, 16, 8]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AdditiveLayout {
    /// The weight.
    pub shape: Shape,
    /// How many patterns are added, `M`.
    pub sub_dictionaries: usize,
}

impl AdditiveLayout {
    /// Groups of a row.
    pub const fn groups(&self) -> usize {
        self.shape.d_input().div_ceil(GROUP)
    }

    /// Fields of a strip without padding.
    pub const fn fields(&self) -> usize {
        self.groups() * self.sub_dictionaries
    }

    /// Quads of fields of a strip.
    pub const fn quads(&self) -> usize {
        self.fields().div_ceil(QUAD)
    }

    /// Words of a strip.
    pub const fn strip_words(&self) -> usize {
        self.quads() * QUAD * FIELD_BYTES / 4
    }

    /// Strips of the weight.
    pub const fn strips(&self) -> usize {
        self.shape.d_output().div_ceil(STRIP)
    }

    /// Words of the weight.
    pub const fn num_words(&self) -> usize {
        self.strips() * self.strip_words()
    }

    /// Values of the dictionary.
    pub const fn dictionary_len(&self) -> usize {
        self.sub_dictionaries * PATTERNS * GROUP
    }

    /// The nibble of the weight at `(row, col)` for sub-dictionary `m`.
    pub const fn field(&self, row: usize, col: usize, m: usize) -> Field {
        let byte = (col / GROUP * self.sub_dictionaries + m) * FIELD_BYTES + row % FIELD_BYTES;
        let word = row / STRIP * self.strip_words() + byte / 4;
        Field { word, next: word, shift: (byte % 4 * 8 + row % STRIP / FIELD_BYTES * 4) as u32 }
    }

    /// The codes of a group, sub-dictionary 0 in the lowest nibble.
    fn codes(&self, words: &[u32], row: usize, group: usize) -> u32 {
        (0..self.sub_dictionaries).fold(0, |codes, m| {
            let Field { word, shift, .. } = self.field(row, group * GROUP, m);
            codes | (words[word] >> shift & 15) << (4 * m)
        })
    }

    /// Decodes columns `columns` of row `row`; the first is that of a group.
    #[inline(always)]
    pub(crate) fn decode_columns(
        &self,
        words: &[u32],
        dictionary: &[f32],
        row: usize,
        columns: Range<usize>,
        values: &mut [f32],
    ) {
        for (g, group) in (columns.start / GROUP..).zip(values.chunks_mut(GROUP)) {
            group.copy_from_slice(&decode_group(self.codes(words, row, g), dictionary)[..group.len()]);
        }
    }

    /// This order from that of a file.
    pub(crate) fn arrange(&self, stored: &[u32]) -> Vec<u32> {
        let (rows, mut words) = (self.stored(), vec![0; self.num_words()]);
        for row in 0..self.shape.d_output() {
            for group in 0..self.groups() {
                let codes = rows.read(stored, row, group);
                for m in 0..self.sub_dictionaries {
                    let Field { word, shift, .. } = self.field(row, group * GROUP, m);
                    words[word] |= (codes >> (4 * m) & 15) << shift;
                }
            }
        }
        words
    }

    /// The order of a file from this one.
    pub(crate) fn stored_order(&self, words: &[u32]) -> Vec<u32> {
        let rows = self.stored();
        let mut stored = vec![0; self.shape.d_output() * rows.row_words()];
        for row in 0..self.shape.d_output() {
            for group in 0..self.groups() {
                rows.write(&mut stored, row, group, self.codes(words, row, group));
            }
        }
        stored
    }

    const fn stored(&self) -> StoredRows {
        StoredRows { shape: self.shape, sub_dictionaries: self.sub_dictionaries }
    }
}
