//! The matching codec: every tile a sum of scaled patterns, found by pursuit.
//!
//! This is the original's form, `W ≈ Σ sᵢ · P[idxᵢ]`, with a dictionary of base patterns (identity, diagonals, waves,
//! blocks), patterns learned from the weight if asked for, and otherwise *computed* patterns, of which nothing is stored
//! ([`computed_pattern`](crate::dictionary::computed_pattern)). A tile decodes as
//!
//! ```text
//! tile = Σ_k ±(gain · ladder^k · 2^−m_k) · part_k[index_k]        k = 0 … terms − 1
//! ```
//!
//! Two things make it compress where the original does not:
//!
//! * Scales cost almost nothing. Each pick explains the same share of what is left, so scales fall along a geometric
//!   ladder; a tile stores its gain once and a term its sign alone (`scale_bits` = 1).
//! * Term k picks from a part of the dictionary of its own. With one part the order of the terms would be stored and
//!   mean nothing: log₂(terms!) bits, a sixth of the tile at 4 bits.
//!
//! # Layout
//! Stream `codes`, U32 `[tile rows, words]`: the tiles of a tile row from left to right as bit fields, least significant
//! bit first, each `gain` then the terms as `index`, `sign`, `m`; what is left of the last word is zero. Stream
//! `patterns`, F16 `[learned, tile_len]`, if patterns are learned. `layout.rs` has the widths, `patterns.rs` the gains and the ladder.
//!
//! # Sources
//! Mallat & Zhang 1993 (matching pursuit); Barnes, Rizvi & Nasrabadi 1996 (residual vector quantisation); Barron & Joseph
//! 2012 (superposition codes, whose section-wise dictionary and geometric ladder these are).

mod kernel;
mod layout;
mod patterns;
mod search;
#[cfg(test)]
mod tests;

use super::{
    BlockEncoder, Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec,
    StreamType, check_finite, check_row_padding,
};
use crate::dictionary::learn_patterns;
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use half::f16;
pub use kernel::{MatchingLayout, PatternValue};
use layout::{Layout, Parameters};
use patterns::{Patterns, Tables};
use rayon::prelude::*;
use search::Search;

/// The family of matching codecs.
#[derive(Debug, Clone, Copy)]
pub struct Matching;

const OPTIONS: [OptionSpec; 5] = [
    OptionSpec {
        name: "tile",
        default: 8,
        min: 0,
        max: 64,
        help: "side of a tile; 0 takes the whole matrix, halved while it has over 262144 weights",
    },
    OptionSpec {
        name: "patterns",
        default: 9,
        min: 1,
        max: 14,
        help: "patterns a term chooses from, as a power of two; fewer where they would need over 64 MB",
    },
    OptionSpec {
        name: "scale_bits",
        default: 0,
        min: 0,
        max: 6,
        help: "bits of a term's scale: sign, then halvings; 0 means 1 for tiles and 5 for whole matrices",
    },
    OptionSpec { name: "learned", default: 0, min: 0, max: 4096, help: "patterns learned from each weight and stored" },
    OptionSpec {
        name: "beam",
        default: 8,
        min: 1,
        max: 64,
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
        Ok(Box::new(MatchingCodec { parameters: Parameters::new(bits, options)? }))
    }
}

#[derive(Debug)]
struct MatchingCodec {
    parameters: Parameters,
}

impl MatchingCodec {
    fn layout_of(&self, shape: Shape) -> Layout {
        Layout::new(&self.parameters, shape)
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

    fn band_height(&self, shape: Shape) -> usize {
        self.layout_of(shape).grid.tile.rows
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> Box<dyn BlockEncoder + 'a> {
        let layout = self.layout_of(weight.shape());
        let learned = learn(&layout, weight);
        let patterns = Patterns::of(&layout, &learned);
        let words = vec![0; layout.grid.tile_rows() * layout.words_per_band()];
        Box::new(Encoder { tables: Tables::new(&layout), beam: self.parameters.beam, layout, patterns, learned, words })
    }

    fn decode_band(&self, shape: Shape, codes: &Codes, band: usize, rows: &mut [f32]) {
        let layout = self.layout_of(shape);
        let (patterns, tables) = (Patterns::of(&layout, learned_values(codes)), Tables::new(&layout));
        let words = &codes.streams[0].words()[band * layout.words_per_band()..][..layout.words_per_band()];
        let (tile, mut terms) = (layout.grid.tile, vec![0; layout.terms]);
        let mut values = vec![0.0; tile.len()];
        for tile_col in 0..layout.grid.tile_cols() {
            let gain = layout.read(words, tile_col, &mut terms);
            patterns.synthesize(&layout, &tables, gain, &terms, &mut values);
            let start = tile_col * tile.cols;
            for (row, values) in rows.chunks_exact_mut(shape.d_input()).zip(values.chunks_exact(tile.cols)) {
                let inside = tile.cols.min(row.len() - start);
                row[start..start + inside].copy_from_slice(&values[..inside]);
            }
        }
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let layout = self.layout_of(shape);
        let (tile, band_words, mut terms) = (layout.grid.tile, layout.words_per_band(), vec![0; layout.terms]);
        let words = &codes.streams[0].words()[row / tile.rows * band_words..][..band_words];
        let gain = layout.read(words, col / tile.cols, &mut terms);
        let (patterns, tables) = (Patterns::of(&layout, learned_values(codes)), Tables::new(&layout));
        let place = row % tile.rows * tile.cols + col % tile.cols;
        let term = |(k, term): (usize, &u32)| {
            tables.scale(&layout, gain, k, *term) * patterns.pattern(k, layout.index(*term))[place]
        };
        terms.iter().enumerate().map(term).fold(0.0, |sum, value| sum + value)
    }

    fn layout(&self, shape: Shape) -> Option<CodecLayout> {
        let layout = self.layout_of(shape);
        Some(CodecLayout::Matching(MatchingLayout::new(layout, &Patterns::of(&layout, &[]))))
    }

    fn dictionary(&self, shape: Shape, codes: &Codes) -> Vec<f32> {
        let layout = self.layout_of(shape);
        kernel::dictionary(&layout, &Patterns::of(&layout, learned_values(codes)))
    }

    fn learned(&self, shape: Shape, dictionary: &[f32]) -> Vec<f16> {
        let layout = self.layout_of(shape);
        kernel::learned_halves(&MatchingLayout::new(layout, &Patterns::of(&layout, &[])), dictionary)
    }

    /// The dictionary of this tile and its transpose, those that are kept from before, and, where patterns are learned, a
    /// copy of the weight.
    fn search_bytes(&self, shape: Shape) -> usize {
        let layout = self.layout_of(shape);
        let dictionary = 4 * layout.parts * layout.patterns() * layout.grid.tile.len();
        let tiles = if layout.learned > 0 {
            4 * layout.grid.num_tiles() * (layout.grid.tile.len() + layout.learned)
        } else {
            0
        };
        2 * dictionary + patterns::KEPT_BYTES + tiles
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

/// The weight's own patterns, times √tile_len so that their values are near 1, where F16 is precise.
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
    let unit = (len as f64).sqrt();
    let learned = learn_patterns(&tiles, len, layout.learned, 0);
    let mut halves: Vec<f16> = learned.iter().map(|value| f16::from_f64(f64::from(*value) * unit)).collect();
    halves.resize(layout.learned * len, f16::ZERO);
    halves
}

struct Encoder {
    layout: Layout,
    tables: Tables,
    beam: usize,
    patterns: Patterns,
    learned: Vec<f16>,
    words: Vec<u32>,
}

impl BlockEncoder for Encoder {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let Self { layout, tables, beam, patterns, .. } = self;
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
            patterns.synthesize(layout, tables, *gain, terms, &mut tile);
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
