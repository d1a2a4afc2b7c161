//! The form that kernels read: one dictionary of values that the codes select from.

use super::layout::Layout;
use super::patterns::{Patterns, Tables, halvings};
use super::universal::Universal;
use crate::codec::bits::{Field, write_bits};
use crate::matrix::TileGrid;
use crate::patterns::computed_values;
use half::f16;
use std::sync::Arc;

/// The codes of one weight, `[tile_rows, band_words]`. A weight is a sum over terms `k` of
///
/// ```text
/// ±2^−m · D[gain] · D[ladder_k] · { D[pattern, place]                       of a base or learned pattern
///                                 { v(part, index, place) · D[inverse norm]   of a computed one
/// ```
///
/// so the dictionary holds the gains, the ladder, the base and learned patterns, and the inverse norms of the computed
/// ones, `v` being the integers of [`computed_pattern`](crate::patterns::computed_pattern).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatchingLayout {
    layout: Layout,
    base: usize,
}

/// Where the values of one term of a weight stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatternValue {
    /// No pattern: the term is zero.
    Nothing,
    /// The value at this place of the dictionary.
    Stored(usize),
    /// A computed value, times the inverse norm at this place of the dictionary.
    Computed {
        /// The place of the inverse norm.
        inverse_norm: usize,
    },
}

impl MatchingLayout {
    pub(super) fn new(layout: Layout, universal: &Universal) -> Self {
        Self { layout, base: universal.base() }
    }

    /// The patterns that belong to no weight.
    pub(crate) fn universal(&self) -> Arc<Universal> {
        Universal::of(&self.layout)
    }

    /// The tiles.
    pub const fn grid(&self) -> TileGrid {
        self.layout.grid
    }

    /// Terms of a tile.
    pub const fn terms(&self) -> usize {
        self.layout.terms
    }

    /// Parts of the dictionary; term `k` picks from part `k mod parts`.
    pub const fn parts(&self) -> usize {
        self.layout.parts
    }

    /// Patterns of a part, the first of which is nothing.
    pub const fn patterns(&self) -> usize {
        self.layout.patterns()
    }

    /// Bits of a pattern's index.
    pub const fn index_bits(&self) -> u32 {
        self.layout.index_bits
    }

    /// Bits of a term: its index, its sign, and the exponent `m`.
    pub const fn term_bits(&self) -> u32 {
        self.layout.width()
    }

    /// Bits of a gain.
    pub const fn gain_bits(&self) -> u32 {
        self.layout.gain_bits
    }

    /// Bits of a tile.
    pub const fn tile_bits(&self) -> usize {
        self.layout.tile_bits()
    }

    /// Words of a tile row.
    pub const fn band_words(&self) -> usize {
        self.layout.words_per_band()
    }

    /// Words of the weight.
    pub const fn num_words(&self) -> usize {
        self.layout.grid.tile_rows() * self.band_words()
    }

    /// Base and learned patterns of each part.
    pub const fn stored(&self) -> usize {
        self.base + self.layout.learned
    }

    /// Computed patterns of each part.
    pub const fn computed(&self) -> usize {
        self.patterns() - 1 - self.stored()
    }

    /// Where the ladder starts in the dictionary; the gains stand before it.
    pub const fn ladder_start(&self) -> usize {
        1 << self.layout.gain_bits
    }

    /// Where the base and learned patterns start in the dictionary.
    pub const fn stored_start(&self) -> usize {
        self.ladder_start() + self.terms()
    }

    /// Where the learned patterns start in the dictionary, behind the base patterns.
    pub const fn learned_start(&self) -> usize {
        self.stored_start() + self.base * self.layout.grid.tile.len()
    }

    /// Where the inverse norms start in the dictionary, `[parts, computed]`.
    pub const fn norms_start(&self) -> usize {
        self.stored_start() + self.stored() * self.layout.grid.tile.len()
    }

    /// Values of the dictionary.
    pub const fn dictionary_len(&self) -> usize {
        self.norms_start() + self.parts() * self.computed()
    }

    /// The gain of the tile that holds `(row, col)`.
    pub const fn gain_field(&self, row: usize, col: usize) -> Field {
        Field::at(self.tile_offset(row, col), self.num_words())
    }

    /// Term `k` of the tile that holds `(row, col)`.
    pub const fn term_field(&self, row: usize, col: usize, k: usize) -> Field {
        let within = self.gain_bits() as usize + k * self.term_bits() as usize;
        Field::at(self.tile_offset(row, col) + within, self.num_words())
    }

    const fn tile_offset(&self, row: usize, col: usize) -> usize {
        let tile = self.layout.grid.tile;
        row / tile.rows * self.band_words() * 32 + col / tile.cols * self.tile_bits()
    }

    /// The place of `(row, col)` within its tile.
    pub const fn place(&self, row: usize, col: usize) -> usize {
        let tile = self.layout.grid.tile;
        row % tile.rows * tile.cols + col % tile.cols
    }

    /// Where value `place` of pattern `index` of part `part` comes from.
    pub const fn value(&self, part: usize, index: usize, place: usize) -> PatternValue {
        if index == 0 {
            PatternValue::Nothing
        } else if index <= self.stored() {
            PatternValue::Stored(self.stored_start() + (index - 1) * self.layout.grid.tile.len() + place)
        } else {
            let inverse_norm = self.norms_start() + part * self.computed() + index - 1 - self.stored();
            PatternValue::Computed { inverse_norm }
        }
    }

    /// Gives every tile the gain of a Gaussian one, in the middle of the range.
    pub(crate) fn set_gains(&self, words: &mut [u32]) {
        let middle = 1 << (self.gain_bits() - 1);
        for band in words.chunks_exact_mut(self.band_words()) {
            for tile in 0..self.layout.grid.tile_cols() {
                let offset = tile * self.tile_bits();
                for bit in offset..offset + self.gain_bits() as usize {
                    band[bit / 32] &= !(1 << (bit % 32));
                }
                write_bits(band, offset, self.gain_bits(), middle);
            }
        }
    }

    /// Decodes band `band` into `rows`, `[rows of the band, d_input]`.
    pub(crate) fn decode_band(
        &self,
        universal: &Universal,
        words: &[u32],
        dictionary: &[f32],
        band: usize,
        rows: &mut [f32],
    ) {
        let (layout, tile) = (&self.layout, self.layout.grid.tile);
        let words = &words[band * self.band_words()..][..self.band_words()];
        let (mut terms, mut values) = (vec![0; layout.terms], vec![0.0; tile.len()]);
        for tile_col in 0..layout.grid.tile_cols() {
            let gain = layout.read(words, tile_col, &mut terms);
            self.decode_tile(universal, dictionary, gain, &terms, &mut values);
            let start = tile_col * tile.cols;
            for (row, values) in rows.chunks_exact_mut(layout.grid.shape.d_input()).zip(values.chunks_exact(tile.cols))
            {
                let inside = tile.cols.min(row.len() - start);
                row[start..start + inside].copy_from_slice(&values[..inside]);
            }
        }
    }

    /// Writes the tile that `gain` and `terms` stand for.
    pub(super) fn decode_tile(
        &self,
        universal: &Universal,
        dictionary: &[f32],
        gain: u32,
        terms: &[u32],
        tile: &mut [f32],
    ) {
        tile.fill(0.0);
        for (k, &term) in terms.iter().enumerate() {
            let (part, index) = (k % self.layout.parts, self.layout.index(term));
            let scale = self.scale(dictionary, gain, k, term);
            match self.value(part, index, 0) {
                PatternValue::Nothing => {}
                PatternValue::Stored(at) => {
                    tile.iter_mut().zip(&dictionary[at..]).for_each(|(out, value)| *out += scale * value);
                }
                PatternValue::Computed { inverse_norm } => {
                    let (scale, integers) = (scale * dictionary[inverse_norm], universal.integers(k, index));
                    tile.iter_mut().zip(integers).for_each(|(out, value)| *out += scale * f32::from(*value));
                }
            }
        }
    }

    /// `±2^−m · D[gain] · D[ladder_k]` of term `k`.
    fn scale(&self, dictionary: &[f32], gain: u32, k: usize, term: u32) -> f32 {
        let code = term >> self.layout.index_bits;
        let sign = if code & 1 == 0 { 1.0 } else { -1.0 };
        dictionary[gain as usize] * dictionary[self.ladder_start() + k] * sign * halvings(code >> 1)
    }

    /// The value at `place` of a tile by itself, as the definition has it: term after term, its scale first. Of the
    /// dictionary, the norms are not needed.
    pub(super) fn decode_value(&self, dictionary: &[f32], gain: u32, terms: &[u32], place: usize) -> f32 {
        let mut integers = vec![0.0; self.layout.grid.tile.len()];
        let term = |(k, &term): (usize, &u32)| {
            let (part, index) = (k % self.layout.parts, self.layout.index(term));
            let scale = self.scale(dictionary, gain, k, term);
            match self.value(part, index, place) {
                PatternValue::Nothing => 0.0,
                PatternValue::Stored(at) => scale * dictionary[at],
                PatternValue::Computed { .. } => {
                    computed_values(part as u16, index as u16, &mut integers);
                    let norm = inverse_norm(&integers.iter().map(|value| *value as i8).collect::<Vec<i8>>());
                    scale * norm * integers[place]
                }
            }
        };
        terms.iter().enumerate().map(term).fold(0.0, |sum, value| sum + value)
    }
}

/// The dictionary of a weight, in the order of [`MatchingLayout`].
pub(super) fn dictionary(layout: &Layout, patterns: &Patterns) -> Vec<f32> {
    let form = MatchingLayout { layout: *layout, base: patterns.base() };
    let universal = form.universal();
    let computed = form.stored() + 1..form.patterns();
    let places = (0..form.parts()).flat_map(|part| computed.clone().map(move |index| (part, index)));
    let mut values = without_norms(layout, patterns);
    values.extend(places.map(|(part, index)| inverse_norm(universal.integers(part, index))));
    values
}

/// The dictionary up to the inverse norms of the computed patterns.
pub(super) fn without_norms(layout: &Layout, patterns: &Patterns) -> Vec<f32> {
    let tables = Tables::new(layout);
    let base = (1..=patterns.base()).flat_map(|index| patterns.pattern(0, index).iter().copied());
    let head = tables.gains.iter().chain(&tables.ladder).copied();
    head.chain(base).chain(patterns.learned().iter().copied()).collect()
}

/// `1 / √(Σ v²)`, the sum in whole numbers.
fn inverse_norm(integers: &[i8]) -> f32 {
    // In 32 bits as far as these hold it, which compilers make vectors of.
    let squares = |chunk: &[i8]| i64::from(chunk.iter().map(|v| i32::from(*v).pow(2)).sum::<i32>());
    let sum: i64 = integers.chunks(1 << 16).map(squares).sum();
    (1.0 / (sum as f64).sqrt()) as f32
}

/// The learned patterns of `dictionary` as they are stored.
pub(super) fn learned_halves(layout: &MatchingLayout, dictionary: &[f32]) -> Vec<f16> {
    let len = layout.layout.grid.tile.len();
    let learned = &dictionary[layout.learned_start()..layout.norms_start()];
    let unit = (len as f64).sqrt();
    learned.iter().map(|value| f16::from_f64(f64::from(*value) * unit)).collect()
}
