//! Where the nibbles of a weight lie for a kernel.

use super::{EIGHT, FIELD_BYTES, PATTERNS, QUAD, STRIP, StoredRows, nibble};
use crate::codec::bits::Field;
use crate::matrix::Shape;
use std::ops::Range;

/// Which weights the pattern of a nibble reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Windows {
    /// Eight weights, those of the nibble's own group: `p_t = 8·⌊t / M⌋`. Each nibble of a group has a sub-dictionary.
    Grouped,
    /// As many as it is to the next windows and more, so that windows overlap: `p_t = ⌊8t / M⌋`. What reaches over the
    /// right edge is cut.
    Lapped {
        /// The length of a window, a multiple of 8.
        span: usize,
    },
}

/// The codes of one weight: `[strips, fields, 16]` bytes, one field for each nibble of a row. All lookups into one
/// table of 16 values lie together: 32 rows in one register of 128 bits. Nibbles of rows and fields beyond the last are
/// zero. The dictionary is `[period, 16, span]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NibbleLayout {
    /// The weight.
    pub shape: Shape,
    /// Nibbles for eight weights of a row, `M`.
    pub per_eight: usize,
    /// What each of them reaches.
    pub windows: Windows,
}

impl NibbleLayout {
    /// Runs of eight weights in a row.
    pub const fn eights(&self) -> usize {
        self.shape.d_input().div_ceil(EIGHT)
    }

    /// Fields of a strip without padding: the nibbles of a row.
    pub const fn fields(&self) -> usize {
        self.eights() * self.per_eight
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

    /// The length of a window, `S`.
    pub const fn span(&self) -> usize {
        match self.windows {
            Windows::Grouped => EIGHT,
            Windows::Lapped { span } => span,
        }
    }

    /// The first column that nibble `t` reaches, `p_t`.
    pub const fn start(&self, t: usize) -> usize {
        match self.windows {
            Windows::Grouped => t / self.per_eight * EIGHT,
            Windows::Lapped { .. } => t * EIGHT / self.per_eight,
        }
    }

    /// Sub-dictionaries, `P`: nibbles after which the place of a window among the eights repeats.
    pub const fn period(&self) -> usize {
        match self.windows {
            Windows::Grouped => self.per_eight,
            // M / gcd(M, 8).
            Windows::Lapped { .. } => self.per_eight >> min(self.per_eight.trailing_zeros(), EIGHT.trailing_zeros()),
        }
    }

    /// Nibbles that reach a weight, where the left edge takes none away.
    pub const fn depth(&self) -> usize {
        self.per_eight * self.span() / EIGHT
    }

    /// Values of the dictionary.
    pub const fn dictionary_len(&self) -> usize {
        self.period() * PATTERNS * self.span()
    }

    /// The nibbles that reach column `col`.
    pub const fn reaching(&self, col: usize) -> Range<usize> {
        match self.windows {
            Windows::Grouped => {
                let first = col / EIGHT * self.per_eight;
                first..first + self.per_eight
            }
            Windows::Lapped { span } => {
                // ⌊8t / M⌋ ≥ k is t ≥ ⌈M·k / 8⌉.
                let first = (self.per_eight * (col + 1).saturating_sub(span)).div_ceil(EIGHT);
                first..(self.per_eight * (col + 1)).div_ceil(EIGHT)
            }
        }
    }

    /// Nibble `t` of row `row`.
    pub const fn field(&self, row: usize, t: usize) -> Field {
        let byte = t * FIELD_BYTES + row % FIELD_BYTES;
        let word = row / STRIP * self.strip_words() + byte / 4;
        Field { word, next: word, shift: (byte % 4 * 8 + row % STRIP / FIELD_BYTES * 4) as u32 }
    }

    /// Decodes columns `columns` of row `row`; the first is a multiple of 8.
    #[inline(always)]
    pub(crate) fn decode_columns(
        &self,
        words: &[u32],
        dictionary: &[f32],
        row: usize,
        columns: Range<usize>,
        values: &mut [f32],
    ) {
        match self.span() {
            8 => self.add_patterns::<8>(words, dictionary, row, columns, values),
            16 => self.add_patterns::<16>(words, dictionary, row, columns, values),
            24 => self.add_patterns::<24>(words, dictionary, row, columns, values),
            32 => self.add_patterns::<32>(words, dictionary, row, columns, values),
            40 => self.add_patterns::<40>(words, dictionary, row, columns, values),
            48 => self.add_patterns::<48>(words, dictionary, row, columns, values),
            56 => self.add_patterns::<56>(words, dictionary, row, columns, values),
            64 => self.add_patterns::<64>(words, dictionary, row, columns, values),
            span => unreachable!("a window of {span} weights"),
        }
    }

    /// [`decode_columns`](Self::decode_columns) for one span. Nibbles [`depth`](Self::depth) apart have windows side by
    /// side and the same sub-dictionary, so that as many passes over the row add whole patterns, none to a value that
    /// was only just written. A weight's terms come in an order that its column alone decides.
    #[inline(always)]
    fn add_patterns<const SPAN: usize>(
        &self,
        words: &[u32],
        dictionary: &[f32],
        row: usize,
        columns: Range<usize>,
        values: &mut [f32],
    ) {
        let depth = self.per_eight * SPAN / EIGHT;
        let (patterns, _) = dictionary.as_chunks::<SPAN>();
        let (sub_dictionaries, _) = patterns.as_chunks::<PATTERNS>();
        let values = &mut values[..columns.len()];
        values.fill(0.0);
        let reaching = self.reaching(columns.start).start..self.reaching(columns.end - 1).end;
        for pass in 0..depth.min(reaching.end) {
            let first = reaching.start + (pass + depth - reaching.start % depth) % depth;
            if first >= reaching.end {
                continue;
            }
            let patterns = &sub_dictionaries[pass % self.period()];
            let Field { word, shift, .. } = self.field(row, first);
            let codes = words[word..].iter().step_by(depth * FIELD_BYTES / 4);
            let mut chosen = codes.map(|word| &patterns[(word >> shift & 15) as usize]);
            let mut values = &mut *values;
            match self.start(first).checked_sub(columns.start) {
                Some(skipped) => values = &mut values[skipped..],
                None => {
                    // The part of the first that reaches in from the left.
                    let inside = SPAN - (columns.start - self.start(first));
                    let (cut, rest) = values.split_at_mut(inside.min(values.len()));
                    let pattern = chosen.next().expect("a nibble for every window");
                    cut.iter_mut().zip(&pattern[SPAN - inside..]).for_each(|(value, weight)| *value += weight);
                    values = rest;
                }
            }
            let (whole, cut) = values.as_chunks_mut::<SPAN>();
            for (values, pattern) in whole.iter_mut().zip(&mut chosen) {
                // All sums before the first is stored: else the compiler expects that this changes a pattern.
                *values = std::array::from_fn(|i| values[i] + pattern[i]);
            }
            if let Some(pattern) = chosen.next() {
                cut.iter_mut().zip(pattern).for_each(|(value, weight)| *value += weight);
            }
        }
    }

    /// This order from that of a file.
    pub(crate) fn arrange(&self, stored: &[u32]) -> Vec<u32> {
        let (rows, mut words) = (self.stored(), vec![0; self.num_words()]);
        for row in 0..self.shape.d_output() {
            for eight in 0..self.eights() {
                let codes = rows.read(stored, row, eight);
                for m in 0..self.per_eight {
                    let Field { word, shift, .. } = self.field(row, eight * self.per_eight + m);
                    words[word] |= (nibble(codes, m) as u32) << shift;
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
            for eight in 0..self.eights() {
                let codes = (0..self.per_eight).fold(0, |codes, m| {
                    let Field { word, shift, .. } = self.field(row, eight * self.per_eight + m);
                    codes | (words[word] >> shift & 15) << (4 * m)
                });
                rows.write(&mut stored, row, eight, codes);
            }
        }
        stored
    }

    const fn stored(&self) -> StoredRows {
        StoredRows { shape: self.shape, per_eight: self.per_eight }
    }
}

const fn min(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}
