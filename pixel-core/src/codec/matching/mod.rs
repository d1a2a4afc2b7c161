//! The matching codec: every tile a sum of scaled patterns, found by pursuit.
//!
//! This is the original's form, `W ≈ Σ sᵢ · P[idxᵢ]`, with a dictionary of base patterns (identity, diagonals, waves,
//! blocks), patterns learned from the weight if asked for, and otherwise *computed* patterns, of which nothing is
//! stored ([`computed_pattern`](crate::patterns::computed_pattern)). A tile decodes as
//!
//! ```text
//! tile = Σ_k ±(gain · ladder^k · 2^−m_k) · part_k[index_k]        k = 0 … terms − 1
//! ```
//!
//! Two things make it compress where the original does not:
//!
//! * Scales cost almost nothing. Each pick explains the same share of the residual, so scales fall along a geometric
//!   ladder; a tile stores its gain once and a term its sign alone (`scale_bits` = 1).
//! * Term k picks from a part of the dictionary of its own. With one part the order of the terms would be stored and
//!   mean nothing: log₂(terms!) bits, a sixth of the tile at 4 bits.
//!
//! # Layout
//! Stream `codes`, U32 `[tile rows, words]`: the tiles of a tile row from left to right as bit fields, least
//! significant bit first, each `gain` then the terms as `index`, `sign`, `m`; the rest of the last word is zero. Stream
//! `patterns`, F16 `[learned, tile_len]`, if patterns are learned. `layout.rs` has the widths, `patterns.rs` the gains
//! and the ladder.
//!
//! # Sources
//! Mallat & Zhang 1993 (matching pursuit); Barnes, Rizvi & Nasrabadi 1996 (residual vector quantisation); Barron &
//! Joseph 2012 (superposition codes, whose section-wise dictionary and geometric ladder these are).

mod kernel;
mod layout;
mod patterns;
mod search;
#[cfg(test)]
mod tests;
mod universal;

use super::{
    BlockEncoder, Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec,
    StreamType, WeightEncoder, check_finite, check_row_padding,
};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use crate::patterns::learn_patterns;
use half::f16;
pub use kernel::{MatchingLayout, PatternValue};
use layout::{Layout, Parameters};
use patterns::{Patterns, Tables};
use rayon::prelude::*;
use search::Search;
use std::sync::{Arc, OnceLock};
pub(crate) use universal::Universal;

/// The family of matching codecs.
#[derive(Debug, Clone, Copy)]
pub struct Matching;

const OPTIONS: [OptionSpec; 5] = [
    OptionSpec {
        name: "tile",
        default: 8,
        min: 0,
        max: 64,
        search_only: false,
        help: "side of a tile; 0 takes the whole matrix, halved while it has over 262144 weights",
    },
    OptionSpec {
        name: "patterns",
        default: 9,
        min: 1,
        max: 14,
        search_only: false,
        help: "patterns a term chooses from, as a power of two; fewer where they would need over 64 MB",
    },
    OptionSpec {
        name: "scale_bits",
        default: 0,
        min: 0,
        max: 6,
        search_only: false,
        help: "bits of a term's scale: sign, then halvings; 0 means 1 for tiles and 5 for whole matrices",
    },
    OptionSpec {
        name: "learned",
        default: 0,
        min: 0,
        max: 4096,
        search_only: false,
        help: "patterns learned from each weight and stored",
    },
    OptionSpec {
        name: "beam",
        default: 8,
        min: 1,
        max: 64,
        search_only: true,
        help: "sums kept while a tile is matched; costs time alone",
    },
];

impl CodecFamily for Matching {
    fn name(&self) -> &'static str {
        "matching"
    }

    fn summary(&self) -> &'static str {
        "tiles as sums of scaled patterns: identity, waves, blocks, learned and computed ones"
    }

    fn rates(&self) -> &'static [f64] {
        &[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    }

    fn options(&self) -> &'static [OptionSpec] {
        &OPTIONS
    }

    fn rotates(&self) -> bool {
        false
    }

    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError> {
        Ok(Box::new(MatchingCodec {
            parameters: Parameters::new(bits, options)?,
            universal: OnceLock::new(),
            given: None,
        }))
    }
}

#[derive(Debug)]
struct MatchingCodec {
    parameters: Parameters,
    /// The patterns of the first requested shape; others are rare.
    universal: OnceLock<Arc<Universal>>,
    /// The patterns to store in place of learned ones, `[learned, tile_len]`.
    given: Option<Vec<f32>>,
}

impl MatchingCodec {
    fn layout_of(&self, shape: Shape) -> Layout {
        Layout::new(&self.parameters, shape)
    }

    /// The patterns of a layout that belong to no weight, held so that they outlast this call.
    fn universal(&self, layout: &Layout) -> Arc<Universal> {
        let found = Universal::of(layout);
        let _ = self.universal.set(Arc::clone(&found));
        found
    }

    /// All patterns of a weight with those that it has learned.
    fn patterns(&self, layout: &Layout, learned: &[f16]) -> Patterns {
        Patterns::new(self.universal(layout), layout, learned)
    }

    fn kernel_layout(&self, layout: Layout) -> MatchingLayout {
        MatchingLayout::new(layout, &self.universal(&layout))
    }
}

impl Codec for MatchingCodec {
    fn row_scaling(&self) -> RowScaling {
        RowScaling::RootMeanSquare(1.0)
    }

    fn streams(&self, shape: Shape) -> Vec<StreamSpec> {
        let layout = self.layout_of(shape);
        let codes = vec![layout.grid.tile_rows(), layout.words_per_band()];
        let mut streams = vec![StreamSpec { name: "codes", dtype: StreamType::U32, shape: codes }];
        if layout.learned > 0 {
            let patterns = vec![layout.learned, layout.grid.tile.len()];
            streams.push(StreamSpec { name: "patterns", dtype: StreamType::F16, shape: patterns });
        }
        streams
    }

    fn block_width(&self, shape: Shape) -> usize {
        self.layout_of(shape).grid.tile.cols
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> WeightEncoder<'a> {
        let layout = self.layout_of(weight.shape());
        let learned = match &self.given {
            Some(patterns) => stored(&layout, patterns),
            None => learn(&layout, weight),
        };
        let patterns = self.patterns(&layout, &learned);
        let words = vec![0; layout.grid.tile_rows() * layout.words_per_band()];
        let decoder = Decoder {
            form: self.kernel_layout(layout),
            universal: self.universal(&layout),
            dictionary: kernel::dictionary(&layout, &patterns),
        };
        let tables = Tables::new(&layout);
        WeightEncoder::Blocks(Box::new(Encoder {
            tables,
            beam: self.parameters.beam,
            layout,
            patterns,
            decoder,
            learned,
            words,
        }))
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let layout = self.layout_of(shape);
        let (tile, band_words, mut terms) = (layout.grid.tile, layout.words_per_band(), vec![0; layout.terms]);
        let words = &codes.streams[0].words()[row / tile.rows * band_words..][..band_words];
        let gain = layout.read(words, col / tile.cols, &mut terms);
        let place = row % tile.rows * tile.cols + col % tile.cols;
        let dictionary = kernel::without_norms(&layout, &self.patterns(&layout, learned_values(codes)));
        self.kernel_layout(layout).decode_value(&dictionary, gain, &terms, place)
    }

    fn layout(&self, shape: Shape) -> Option<CodecLayout> {
        let layout = self.layout_of(shape);
        Some(CodecLayout::Matching(self.kernel_layout(layout)))
    }

    fn dictionary(&self, shape: Shape, codes: &Codes) -> Vec<f32> {
        let layout = self.layout_of(shape);
        kernel::dictionary(&layout, &self.patterns(&layout, learned_values(codes)))
    }

    fn learned(&self, shape: Shape, dictionary: &[f32]) -> Vec<f16> {
        let layout = self.layout_of(shape);
        kernel::learned_halves(&self.kernel_layout(layout), dictionary)
    }

    fn pattern_shape(&self, shape: Shape) -> Option<Shape> {
        let layout = self.layout_of(shape);
        let tile = layout.grid.tile;
        (layout.learned > 0).then(|| Shape::new(tile.rows, tile.cols).expect("a tile holds weights"))
    }

    fn with_patterns(&self, patterns: Vec<f32>) -> Option<Box<dyn Codec>> {
        Some(Box::new(Self { parameters: self.parameters, universal: OnceLock::new(), given: Some(patterns) }))
    }

    /// The dictionary of this tile and its transpose, the cached ones, and a copy of the weight where patterns are
    /// learned.
    fn search_bytes(&self, shape: Shape) -> usize {
        let layout = self.layout_of(shape);
        let dictionary = 4 * layout.parts * layout.patterns() * layout.grid.tile.len();
        let tiles = if layout.learned > 0 {
            4 * layout.grid.num_tiles() * (layout.grid.tile.len() + layout.learned)
        } else {
            0
        };
        2 * dictionary + universal::KEPT_BYTES + tiles
    }

    fn num_indices(&self, shape: Shape) -> usize {
        let layout = self.layout_of(shape);
        layout.grid.num_tiles() * layout.terms
    }

    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError> {
        // An index is as wide as its part, so every index points at a pattern.
        let layout = self.layout_of(shape);
        check_row_padding("codes", codes.streams[0].words(), layout.words_per_band(), layout.band_bits())?;
        check_finite("patterns", learned_values(codes))
    }
}

/// The stored patterns; none without the stream.
fn learned_values(codes: &Codes) -> &[f16] {
    codes.streams.get(1).map_or(&[], Stream::halves)
}

/// The weight's own patterns.
fn learn(layout: &Layout, weight: MatrixRef<'_>) -> Vec<f16> {
    if layout.learned == 0 {
        return Vec::new();
    }
    let (grid, len) = (layout.grid, layout.grid.tile.len());
    let mut block = vec![0.0; weight.shape().d_output() * grid.tile.cols];
    let mut tiles = vec![0.0; grid.num_tiles() * len];
    for (tile_col, tiles) in tiles.chunks_exact_mut(grid.tile_rows() * len).enumerate() {
        weight.copy_columns(tile_col * grid.tile.cols, &mut block);
        for (tile_row, tile) in tiles.chunks_exact_mut(len).enumerate() {
            grid.read_from_block(&block, tile_row, tile);
        }
    }
    stored(layout, &learn_patterns(&tiles, len, layout.learned, 0))
}

/// Patterns of norm 1 as they are stored: times √tile_len, so that their values are near 1, where F16 is precise.
fn stored(layout: &Layout, learned: &[f32]) -> Vec<f16> {
    let len = layout.grid.tile.len();
    let unit = (len as f64).sqrt();
    let learned = learned.iter().take(layout.learned * len);
    let mut halves: Vec<f16> = learned.map(|value| f16::from_f64(f64::from(*value) * unit)).collect();
    halves.resize(layout.learned * len, f16::ZERO);
    halves
}

/// Decodes a block by the one decoder, so that its values are those of the codes to the bit.
struct Decoder {
    form: MatchingLayout,
    universal: Arc<Universal>,
    dictionary: Vec<f32>,
}

struct Encoder {
    layout: Layout,
    tables: Tables,
    beam: usize,
    patterns: Patterns,
    decoder: Decoder,
    learned: Vec<f16>,
    words: Vec<u32>,
}

impl BlockEncoder for Encoder {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let Self { layout, tables, beam, patterns, decoder, .. } = self;
        let (grid, len) = (layout.grid, layout.grid.tile.len());
        let start = || (Search::new(layout, tables, patterns, *beam), vec![0.0; len]);
        let tiles: Vec<(u32, Vec<u32>)> = (0..grid.tile_rows())
            .into_par_iter()
            .map_init(start, |(search, tile), tile_row| {
                grid.read_from_block(values, tile_row, tile);
                search.encode(tile)
            })
            .collect();
        let mut tile = vec![0.0; len];
        let bands = self.words.chunks_exact_mut(layout.words_per_band());
        for (tile_row, ((gain, terms), words)) in tiles.iter().zip(bands).enumerate() {
            layout.write(words, block, *gain, terms);
            decoder.form.decode_tile(&decoder.universal, &decoder.dictionary, *gain, terms, &mut tile);
            grid.write_to_block(&tile, tile_row, decoded);
        }
    }

    fn finish(self: Box<Self>) -> Codes {
        let mut streams = vec![Stream::U32(self.words)];
        if self.layout.learned > 0 {
            streams.push(Stream::F16(self.learned));
        }
        Codes { streams }
    }
}
