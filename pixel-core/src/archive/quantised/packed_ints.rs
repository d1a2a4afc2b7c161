//! Matrices of integers of a few bits, packed into words of 32.

/// Where the integers of a matrix `[rows, cols]` lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Those of a row follow each other as one string of bits, in the words `[rows, ⌈cols·bits/32⌉]`.
    Rows,
    /// Those of a column do, in the words `[⌈rows·bits/32⌉, cols]`.
    Columns,
    /// As rows, in the words `[rows, ⌈cols/8⌉]`: eight columns of four bits a word, the even ones before the odd ones.
    Interleaved,
}

/// The place of each of eight interleaved columns in its word.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// A packed matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedInts<'a> {
    /// Little-endian.
    words: &'a [[u8; 4]],
    /// Words of a row of words.
    row_words: usize,
    bits: usize,
    packing: Packing,
}

impl<'a> PackedInts<'a> {
    /// The shape of the words that hold a matrix of shape `[rows, cols]`.
    pub(super) const fn word_shape([rows, cols]: [usize; 2], bits: usize, packing: Packing) -> [usize; 2] {
        match packing {
            Packing::Rows => [rows, (cols * bits).div_ceil(32)],
            Packing::Columns => [(rows * bits).div_ceil(32), cols],
            Packing::Interleaved => [rows, cols.div_ceil(8)],
        }
    }

    /// The matrix `[rows, cols]` in `words`; `None` if they are not as many as it takes, or interleaved integers have
    /// other than four bits.
    pub(super) fn new(words: &'a [u8], shape: [usize; 2], bits: usize, packing: Packing) -> Option<Self> {
        let (words, rest) = words.as_chunks();
        let [height, row_words] = Self::word_shape(shape, bits, packing);
        let is_whole = rest.is_empty() && words.len() == height * row_words;
        (is_whole && (bits == 4 || packing != Packing::Interleaved)).then_some(Self { words, row_words, bits, packing })
    }

    /// The integer at `(row, col)`.
    pub(super) fn at(&self, row: usize, col: usize) -> u32 {
        let Self { row_words, bits, .. } = *self;
        let (first, next, bit) = match self.packing {
            Packing::Rows => (row * row_words + col * bits / 32, 1, col * bits % 32),
            Packing::Columns => (row * bits / 32 * row_words + col, row_words, row * bits % 32),
            Packing::Interleaved => (row * row_words + col / 8, 1, bits * PLACES[col % 8]),
        };
        let word = |at: usize| u64::from(u32::from_le_bytes(self.words[at]));
        let mut value = word(first) >> bit;
        if bit + bits > 32 {
            value |= word(first + next) << (32 - bit);
        }
        (value & ((1 << bits) - 1)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn integers_lie_where_each_packing_says() {
        let words = bytes(&[0x7654_3210, 0xfedc_ba98]);
        let all = |shape: [usize; 2], bits, packing| {
            let ints = PackedInts::new(&words, shape, bits, packing).unwrap();
            let places = (0..shape[0]).flat_map(|row| (0..shape[1]).map(move |col| (row, col)));
            places.map(|(row, col)| ints.at(row, col)).collect::<Vec<_>>()
        };
        assert_eq!(all([1, 16], 4, Packing::Rows), (0..16).collect::<Vec<_>>());
        assert_eq!(all([2, 8], 4, Packing::Rows), (0..16).collect::<Vec<_>>());
        assert_eq!(all([16, 1], 4, Packing::Columns), (0..16).collect::<Vec<_>>());
        assert_eq!(all([8, 2], 4, Packing::Columns), [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]);
        assert_eq!(all([1, 8], 8, Packing::Rows), [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
        let interleaved = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15];
        assert_eq!(all([1, 16], 4, Packing::Interleaved), interleaved);
    }

    /// Three bits do not divide a word: some integers lie in two.
    #[test]
    fn an_integer_may_lie_in_two_words() {
        let values: Vec<u32> = (0..32).map(|i| (i * 5 + 3) % 8).collect();
        let mut words = [0u32; 3];
        for (i, value) in values.iter().enumerate() {
            for bit in (0..3).filter(|bit| value >> bit & 1 == 1) {
                words[(3 * i + bit) / 32] |= 1 << ((3 * i + bit) % 32);
            }
        }
        let words = bytes(&words);
        let row = PackedInts::new(&words, [1, 32], 3, Packing::Rows).unwrap();
        let column = PackedInts::new(&words, [32, 1], 3, Packing::Columns).unwrap();
        for (i, &value) in values.iter().enumerate() {
            assert_eq!((row.at(0, i), column.at(i, 0)), (value, value), "{i}");
        }
    }

    #[test]
    fn words_of_another_number_are_refused() {
        for (shape, bits, packing) in
            [([1, 17], 4, Packing::Rows), ([1, 8], 4, Packing::Rows), ([1, 16], 3, Packing::Interleaved)]
        {
            assert!(PackedInts::new(&[0; 8], shape, bits, packing).is_none(), "{shape:?} {packing:?}");
        }
        assert!(PackedInts::new(&[0; 9], [1, 16], 4, Packing::Rows).is_none());
    }
}
