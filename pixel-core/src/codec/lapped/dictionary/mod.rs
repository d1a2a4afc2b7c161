//! The shipped sub-dictionaries, trained once on Gaussian rows: patterns as long as a window, sixteen for each of `P`
//! places of a window among the eights.
//!
//! One set serves every row of every weight, because a rotated row divided by its scale is Gaussian whatever the layer.
//! Patterns come in pairs of opposite signs, `D[c + 8] = −D[c]`: a Gaussian row is as likely as its negative, so
//! nothing is lost, and half of a table of products is the negative of the other.
//!
//! Weights of patterns are bytes in units of [`STEP`], so that sums are exact in `f32` and a decoder may add patterns
//! in any order. Rounding to `STEP` changes the error by less than is measured, since the search then finds other codes
//! that are as good.
//!
//! The tables are written by `train_lapped` (in `pixel-bench`), and the head of each names its arguments. They are part
//! of the stored format: another table decodes old files to something else.

mod m2;
mod m3;
mod m4;
mod m5;
mod m6;
mod m8;

use super::search::{Lookahead, Search};
use crate::codec::nibble::{NibbleLayout, PATTERNS, Windows};
use crate::matrix::Shape;

/// The unit of a pattern's weights.
pub const STEP: f32 = 1.0 / 64.0;

/// The rates in bits per weight, half as many as nibbles for eight weights.
pub const RATES: [f64; 6] = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0];

/// What belongs to one rate.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Bits per weight.
    pub bits: f64,
    /// The length of a window, `S`: as short as comes within one per cent of the error of a longer one.
    pub span: usize,
    /// How the search looks ahead: the finer the code, the less what is still lacking says about how it will end.
    pub lookahead: Lookahead,
    /// The first eight of each sixteen patterns, `[P, 8, S]`, in units of [`STEP`].
    halves: &'static [i8],
}

static ALL: [Rate; 6] = [
    rate(1.0, 32, 0.2, 32, m2::PATTERNS.as_flattened().as_flattened()),
    rate(1.5, 24, 0.15, 24, m3::PATTERNS.as_flattened().as_flattened()),
    rate(2.0, 16, 0.1, 16, m4::PATTERNS.as_flattened().as_flattened()),
    rate(2.5, 16, 0.06, 16, m5::PATTERNS.as_flattened().as_flattened()),
    rate(3.0, 16, 0.03, 16, m6::PATTERNS.as_flattened().as_flattened()),
    rate(4.0, 8, 0.005, 8, m8::PATTERNS.as_flattened().as_flattened()),
];

const fn rate(bits: f64, span: usize, weight: f32, columns: usize, halves: &'static [i8]) -> Rate {
    Rate { bits, span, lookahead: Lookahead { weight, columns }, halves }
}

impl Rate {
    /// Rate `bits`; `None` if it is not in [`RATES`].
    pub fn of(bits: f64) -> Option<&'static Self> {
        ALL.iter().find(|rate| rate.bits == bits)
    }

    /// Nibbles for eight weights, `M`.
    pub const fn per_eight(&self) -> usize {
        (2.0 * self.bits) as usize
    }

    /// The layout of a weight.
    pub const fn layout(&self, shape: Shape) -> NibbleLayout {
        NibbleLayout { shape, per_eight: self.per_eight(), windows: Windows::Lapped { span: self.span } }
    }

    /// The search for its codes that keeps `beam` paths.
    pub fn search(&self, beam: usize) -> Search {
        Search::new(self.per_eight(), self.span, self.patterns(), self.lookahead, beam)
    }

    /// All patterns, `[P, 16, S]`, `integer · STEP`, exactly.
    pub fn patterns(&self) -> Vec<f32> {
        to_weights(self.halves, self.span)
    }
}

/// The patterns `[P, 16, span]` of which `halves`, `[P, 8, span]`, are the first eight of each sixteen.
pub fn to_weights(halves: &[i8], span: usize) -> Vec<f32> {
    let mut patterns = Vec::with_capacity(2 * halves.len());
    for half in halves.chunks_exact(PATTERNS / 2 * span) {
        patterns.extend(half.iter().map(|weight| f32::from(*weight) * STEP));
        patterns.extend(half.iter().map(|weight| f32::from(*weight) * -STEP));
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_listed_and_have_as_many_patterns_as_their_layouts_say() {
        assert_eq!(ALL.map(|rate| rate.bits), RATES);
        for rate in ALL {
            let layout = rate.layout(Shape::new(1, 8).unwrap());
            assert_eq!(rate.patterns().len(), layout.dictionary_len(), "{} bits", rate.bits);
            assert!(rate.span <= super::super::search::MAX_SPAN && rate.span % 8 == 0);
        }
    }

    #[test]
    fn the_tables_are_those_that_old_files_were_written_with() {
        let bytes: Vec<u8> = ALL.iter().flat_map(|rate| rate.halves).map(|weight| weight.cast_unsigned()).collect();
        assert_eq!(blake3::hash(&bytes).to_hex()[..16], *"80491e474e2d04ca");
    }
}
