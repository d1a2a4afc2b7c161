//! Bit fields in 32-bit words, least significant bit first.

/// Reads `width` ≤ 32 bits at bit `offset`: bit `i` of the value is bit `(offset + i) mod 32` of word
/// `(offset + i) / 32`.
///
/// # Panics
/// If the field reaches beyond the words.
///
/// # Example
/// ```
/// use pixel_core::codec::{read_bits, write_bits};
/// let mut words = [0u32; 2];
/// write_bits(&mut words, 30, 5, 0b10110);
/// assert_eq!(words, [0b10 << 30, 0b101]);
/// assert_eq!(read_bits(&words, 30, 5), 0b10110);
/// ```
#[inline]
pub fn read_bits(words: &[u32], offset: usize, width: u32) -> u32 {
    let (word, shift) = (offset / 32, (offset % 32) as u32);
    let mut value = u64::from(words[word]);
    if shift + width > 32 {
        value |= u64::from(words[word + 1]) << 32;
    }
    ((value >> shift) & ((1u64 << width) - 1)) as u32
}

/// Writes the low `width` ≤ 32 bits of `value` at bit `offset`, over bits that are zero.
///
/// # Panics
/// If the field reaches beyond the words.
#[inline]
pub fn write_bits(words: &mut [u32], offset: usize, width: u32, value: u32) {
    let (word, shift) = (offset / 32, (offset % 32) as u32);
    let value = (u64::from(value) & ((1u64 << width) - 1)) << shift;
    words[word] |= value as u32;
    if shift + width > 32 {
        words[word + 1] |= (value >> 32) as u32;
    }
}

/// Where a bit field of up to 32 bits lies: it starts at bit `shift` of word `word` and goes on in word `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The word with the first bit.
    pub word: usize,
    /// The word after it; where the field needs none, any word of the stream.
    pub next: usize,
    /// The first bit.
    pub shift: u32,
}

impl Field {
    /// The field at bit `offset` of a stream of `words` words.
    pub const fn at(offset: usize, words: usize) -> Self {
        let word = offset / 32;
        let next = if word + 1 < words { word + 1 } else { word };
        Self { word, next, shift: (offset % 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(fields in prop::collection::vec((1u32..=32, any::<u32>()), 1..200)) {
            let mut words = vec![0u32; 201];
            let mut offset = 0;
            for &(width, value) in &fields {
                write_bits(&mut words, offset, width, value);
                offset += width as usize;
            }
            let mut offset = 0;
            for &(width, value) in &fields {
                let mask = ((1u64 << width) - 1) as u32;
                prop_assert_eq!(read_bits(&words, offset, width), value & mask);
                offset += width as usize;
            }
        }
    }
}
