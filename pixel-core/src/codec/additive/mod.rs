//! The nibble additive codec, the fast one: a group of 8 weights is a sum of `M` patterns, one out of each of `M`
//! sub-dictionaries of 16.
//!
//! ```text
//! ŵ[8g .. 8g + 8] = s · Σ_{m < M} P_m[c_m]        c_m one nibble, s the scale of the row
//! ```
//!
//! A code of 4 bits is the index of one in-register byte shuffle on a CPU: a forward pass makes one table of 16
//! products per 8 activations and sub-dictionary, and every row of the weight then only adds what it looks up.
//!
//! The sub-dictionaries are [constants](dictionary), the codes are found by a [beam](search).
//!
//! # Stored
//! `codes`, U32 `[d_output, row_words]` with `row_words = ⌈groups · 4M / 32⌉`: each row starts at a new word; in it
//! groups run from left to right, `4M` bits each, sub-dictionary 0 first, least significant bit first. Bits after the
//! last group are zero. A last group that reaches over the edge decodes to 8 weights like any other, and those beyond
//! the edge are dropped; the search ignores them.
//!
//! # Accuracy
//! `Σ(w − ŵ)² / Σw²` on held-out Gaussian weights, and the speed of the search on one core without AVX:
//!
//! | bits | 1 | 1.5 | 2 | 2.5 | 3 | 4 |
//! |---|---|---|---|---|---|---|
//! | error, beam 16 | .3321 | .1754 | .0937 | .0490 | .0261 | .0073 |
//! | 10⁶ weights a second | 27 | 7.5 | 3.1 | 1.8 | 1.2 | .8 |
//!
//! | beam, at 2 bits | 1 | 2 | 4 | 8 | 16 | 32 | 64 |
//! |---|---|---|---|---|---|---|---|
//! | error | .1217 | .1096 | .1014 | .0962 | .0937 | .0928 | .0926 |
//! | 10⁶ weights a second | 12 | 9.2 | 6.5 | 4.6 | 3.1 | 2.0 | 1.2 |
//!
//! Twice the default beam of 16 gains 1 % of the error, half of it loses 2.7 %. With AVX2 or AVX-512 the search is
//! 1.1 to 1.25 times as fast.
//!
//! # Sources
//! Babenko and Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014; André, Kermarrec and Le
//! Scouarnec, "Quicker ADC", 2019: 4-bit sub-quantizers for tables in registers; Egiazarian et al., "Extreme
//! Compression of Large Language Models via Additive Quantization", 2024: weights of language models.

pub mod dictionary;
pub mod search;

pub use super::nibble::PATTERNS;
use super::nibble::{EIGHT, NibbleLayout, StoredRows, Windows, nibble};
use super::{
    BlockEncoder, Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec,
    StreamType, WeightEncoder, check_row_padding,
};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use rayon::prelude::*;
use search::{MAX_BEAM, Search};

/// Weights in a group.
pub const GROUP: usize = EIGHT;

/// The most sub-dictionaries: their codes fill a word.
pub const MAX_SUB_DICTIONARIES: usize = 8;

/// The patterns of a sub-dictionary.
pub type Patterns = [[f32; GROUP]; PATTERNS];

/// The family of nibble additive codecs.
#[derive(Debug, Clone, Copy)]
pub struct Additive;

impl CodecFamily for Additive {
    fn name(&self) -> &'static str {
        "additive"
    }

    fn summary(&self) -> &'static str {
        "sums of patterns of 8 weights, one of 16 from each sub-dictionary; made for fast CPU kernels"
    }

    fn rates(&self) -> &'static [f64] {
        &dictionary::RATES
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[OptionSpec {
            name: "beam",
            default: 16,
            min: 1,
            max: MAX_BEAM as u32,
            search_only: true,
            help: "sums of patterns that the search keeps; more are slower and closer",
        }]
    }

    fn rotates(&self) -> bool {
        true
    }

    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError> {
        let sub_dictionaries = dictionary::sub_dictionaries(bits).expect("a rate of the family");
        let dictionary: Vec<_> = sub_dictionaries.iter().map(dictionary::to_weights).collect();
        let search = Search::new(&dictionary, options["beam"] as usize);
        Ok(Box::new(AdditiveCodec { dictionary, search }))
    }
}

/// One rate of the family.
#[derive(Debug)]
struct AdditiveCodec {
    dictionary: Vec<Patterns>,
    search: Search,
}

impl AdditiveCodec {
    fn stored(&self, shape: Shape) -> StoredRows {
        StoredRows { shape, per_eight: self.dictionary.len() }
    }

    /// A search that ignores all but the first `width` weights of a group.
    fn edge_search(&self, width: usize) -> Search {
        let mut dictionary = self.dictionary.clone();
        for pattern in dictionary.iter_mut().flatten() {
            pattern[width..].fill(0.0);
        }
        Search::new(&dictionary, self.search.beam())
    }
}

impl Codec for AdditiveCodec {
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
        GROUP
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> WeightEncoder<'a> {
        let shape = weight.shape();
        let edge = match shape.d_input() % GROUP {
            0 => self.search.clone(),
            width => self.edge_search(width),
        };
        let words = vec![0; shape.d_output() * self.stored(shape).row_words()];
        WeightEncoder::Blocks(Box::new(Encoder { codec: self, shape, edge, words }))
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let codes = self.stored(shape).read(codes.streams[0].words(), row, col / GROUP);
        self.dictionary.iter().enumerate().map(|(m, patterns)| patterns[nibble(codes, m)][col % GROUP]).sum()
    }

    fn layout(&self, shape: Shape) -> Option<CodecLayout> {
        let (per_eight, windows) = (self.dictionary.len(), Windows::Grouped);
        Some(CodecLayout::Nibble(NibbleLayout { shape, per_eight, windows }))
    }

    fn dictionary(&self, _shape: Shape, _codes: &Codes) -> Vec<f32> {
        self.dictionary.as_flattened().as_flattened().to_vec()
    }

    /// Two searches, each with the Gram table of all pairs of patterns.
    fn search_bytes(&self, _shape: Shape) -> usize {
        1 << 20
    }

    fn num_indices(&self, shape: Shape) -> usize {
        shape.d_output() * self.stored(shape).row_nibbles()
    }

    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError> {
        let rows = self.stored(shape);
        check_row_padding("codes", codes.streams[0].words(), rows.row_words(), rows.row_bits())
    }
}

/// Rows of one group that a thread searches at least.
const ROWS_A_TASK: usize = 32;

/// Writes each group's codes in their place.
struct Encoder<'a> {
    codec: &'a AdditiveCodec,
    shape: Shape,
    /// The search for the last group of a row.
    edge: Search,
    words: Vec<u32>,
}

impl BlockEncoder for Encoder<'_> {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let rows = self.codec.stored(self.shape);
        let patterns = self.codec.dictionary.as_flattened().as_flattened();
        let is_edge = (block + 1) * GROUP >= self.shape.d_input();
        let search = if is_edge { &self.edge } else { &self.codec.search };
        let (groups, _) = values.as_chunks::<GROUP>();
        let (decoded, _) = decoded.as_chunks_mut::<GROUP>();
        let found = groups.par_iter().with_min_len(ROWS_A_TASK).zip(decoded).map(|(group, decoded)| {
            let codes = search.encode(group);
            *decoded = decode_group(codes, patterns);
            codes
        });
        for (row, codes) in found.collect::<Vec<u32>>().into_iter().enumerate() {
            rows.write(&mut self.words, row, block, codes);
        }
    }

    fn finish(self: Box<Self>) -> Codes {
        Codes { streams: vec![Stream::U32(self.words)] }
    }
}

/// `Σ P_m[c_m]` for the codes of one group.
fn decode_group(codes: u32, dictionary: &[f32]) -> [f32; GROUP] {
    let mut sum = [0.0; GROUP];
    for (m, patterns) in dictionary.chunks_exact(PATTERNS * GROUP).enumerate() {
        for (sum, weight) in sum.iter_mut().zip(&patterns[nibble(codes, m) * GROUP..][..GROUP]) {
            *sum += weight;
        }
    }
    sum
}

#[cfg(test)]
mod tests;
