//! The lapped codec: the kernels of `additive` with the quality of the trellis. Like there a weight is a sum of
//! patterns, each chosen by a nibble out of sixteen, but windows overlap, as those of a lapped transform do, so that a
//! weight is a sum of more patterns than are paid for by its own bits, and a nibble is chosen in the light of many
//! others.
//!
//! ```text
//! ŵ[i] = s · Σ_t D_{t mod P}[c_t][i − p_t]      over the nibbles t with 0 ≤ i − p_t < S
//! p_t = ⌊8t / M⌋,   M = 2·bits nibbles for eight weights,   P = M / gcd(M, 8),   s the scale of the row
//! ```
//!
//! The number of nibbles, their order and what a forward pass does with them are those of `additive`; only its tables
//! come from longer runs of activations.
//!
//! The patterns are [constants](dictionary), the nibbles are found by a [search].
//!
//! # Stored
//! `codes`, U32 `[d_output, row_words]` with `row_words = ⌈⌈d_input / 8⌉ · 4M / 32⌉`: each row starts at a new word; in
//! it nibbles run from left to right, least significant bit first. Bits after the last nibble are zero. Windows that
//! reach over the right edge are cut; a row has all nibbles of its last eight weights, of which those beyond the edge
//! reach nothing.
//!
//! # Accuracy
//! `Σ(w − ŵ)² / Σw²` on held-out Gaussian rows of 1024 weights; the first 32 weights of a row, where fewer nibbles
//! reach, err a third more.
//!
//! | bits | 1 | 1.5 | 2 | 2.5 | 3 | 4 |
//! |---|---|---|---|---|---|---|
//! | error, beam 128 | .3062 | .1484 | .0731 | .0369 | .0188 | .0047 |
//! | error, beam 256 | .3052 | .1471 | .0722 | .0362 | .0183 | .0046 |
//! | error, beam 512 | .3043 | .1460 | .0714 | .0356 | .0179 | .0045 |
//!
//! Twice the default beam of 256 gains 1 % of the error at 2 bits and 2 % at 3 and 4, half of it loses as much and
//! more; the time goes with the beam.
//!
//! # Sources
//! The sums of tables are those of [`additive`](super::additive). Overlapping windows: Malvar, "Signal Processing with
//! Lapped Transforms", 1992. That a code with a long memory may be searched along few paths: Anderson and Mohan, 1984
//! (see [`search`]).

pub mod dictionary;
pub mod search;

use super::nibble::{NibbleLayout, PATTERNS, StoredRows};
use super::{
    Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowEncoder, RowFeedback, RowScaling, Stream,
    StreamSpec, StreamType, WeightEncoder, check_row_padding,
};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use dictionary::Rate;
use search::{MAX_BEAM, Search};

/// The family of lapped codecs.
#[derive(Debug, Clone, Copy)]
pub struct Lapped;

impl CodecFamily for Lapped {
    fn name(&self) -> &'static str {
        "lapped"
    }

    fn summary(&self) -> &'static str {
        "sums of overlapping patterns, one of 16 for each nibble: near the trellis, by the fast CPU kernels"
    }

    fn rates(&self) -> &'static [f64] {
        &dictionary::RATES
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "beam",
            default: 256,
            min: 1,
            max: MAX_BEAM as u32,
            search_only: true,
            help: "ways through a row that the search keeps; more are slower and closer",
        }]
    }

    fn rotates(&self) -> bool {
        true
    }

    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError> {
        let rate = Rate::of(bits).expect("a rate of the family");
        let search = rate.search(options["beam"] as usize);
        Ok(Box::new(LappedCodec { rate, dictionary: rate.patterns(), search }))
    }
}

/// One rate of the family.
#[derive(Debug)]
struct LappedCodec {
    rate: &'static Rate,
    /// `[P, 16, S]`.
    dictionary: Vec<f32>,
    search: Search,
}

impl LappedCodec {
    const fn layout_of(&self, shape: Shape) -> NibbleLayout {
        self.rate.layout(shape)
    }

    const fn stored(&self, shape: Shape) -> StoredRows {
        StoredRows { shape, per_eight: self.rate.per_eight() }
    }
}

impl Codec for LappedCodec {
    fn row_scaling(&self) -> RowScaling {
        RowScaling::RootMeanSquare(1.0)
    }

    fn streams(&self, shape: Shape) -> Vec<StreamSpec> {
        vec![StreamSpec {
            name: "codes",
            dtype: StreamType::U32,
            shape: vec![shape.d_output(), self.stored(shape).row_words()],
        }]
    }

    fn block_width(&self, _shape: Shape) -> usize {
        1
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> WeightEncoder<'a> {
        let rows = self.stored(weight.shape());
        WeightEncoder::Rows(Box::new(Encoder { search: &self.search, rows }))
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let (rows, layout) = (self.stored(shape), self.layout_of(shape));
        let (per_eight, period, span) = (layout.per_eight, layout.period(), layout.span());
        let mut sum = 0.0;
        for t in 0..rows.row_nibbles() {
            let start = 8 * t / per_eight;
            if (start..start + span).contains(&col) {
                let code = rows.read_one(codes.streams[0].words(), row, t);
                sum += self.dictionary[(t % period * PATTERNS + code) * span + col - start];
            }
        }
        sum
    }

    fn layout(&self, shape: Shape) -> Option<CodecLayout> {
        Some(CodecLayout::Nibble(self.layout_of(shape)))
    }

    fn dictionary(&self, _shape: Shape, _codes: &Codes) -> Vec<f32> {
        self.dictionary.clone()
    }

    fn search_bytes(&self, shape: Shape) -> usize {
        self.search.peak_bytes(shape)
    }

    fn num_indices(&self, shape: Shape) -> usize {
        shape.d_output() * self.stored(shape).row_nibbles()
    }

    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError> {
        let rows = self.stored(shape);
        check_row_padding("codes", codes.streams[0].words(), rows.row_words(), rows.row_bits())
    }
}

/// Writes each row's nibbles in their place.
struct Encoder<'a> {
    search: &'a Search,
    rows: StoredRows,
}

impl RowEncoder for Encoder<'_> {
    fn encode_rows(
        self: Box<Self>,
        weight: MatrixRef<'_>,
        feedback: Option<&RowFeedback>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Codes {
        let rows = self.rows;
        let mut words = vec![0; rows.shape.d_output() * rows.row_words()];
        self.search.encode(weight, feedback, |found| {
            for (eight, nibbles) in found.codes.chunks_exact(rows.per_eight).enumerate() {
                let codes = nibbles.iter().rev().fold(0, |codes, nibble| codes << 4 | u32::from(*nibble));
                rows.write(&mut words, found.row, eight, codes);
            }
            sink(found.row, found.decoded);
        });
        Codes { streams: vec![Stream::U32(words)] }
    }
}

#[cfg(test)]
mod tests;
