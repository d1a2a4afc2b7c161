//! `trellis`: the quality codec. Tail-biting bitshift trellises over tiles of 256 weights, patterns computed by a hash.
//!
//! A step of the trellis shifts `k` bits into a window of `L` bits and yields `V` weights, the pattern of the window
//! (see [`patterns`]). `k/V` is the rate. The search over all `2^L` states (Viterbi) picks the bits; see
//! `docs/format.md` for the layout and `docs/architecture.md` for why the tile is 32 × 8.
//!
//! The option `beam` asks for a faster search that loses a little; any bits are a path, so archives do not record it.
//! Error over that of the exhaustive search, and speed as a multiple of its speed, at window 16 with AVX-512 VBMI
//! (131 072 Gaussian weights; processor time of one core, on a machine with other work, so to a tenth or two):
//!
//! | bits | 1 | 1.5 | 2 | 2.5 | 3 | 4 |
//! |---|---|---|---|---|---|---|
//! | `beam=4` | +1.1 %, 2.3 | +.7 %, 2.4 | +.7 %, 2.8 | +1.3 %, 2.6 | +1.4 %, 1.6 | +4.9 %, 2.7 |
//! | `beam=8` | +.9 %, 2.1 | +.6 %, 1.9 | +.5 %, 2.3 | +.8 %, 1.9 | +1.0 %, 1.2 | +3.0 %, 2.2 |
//! | `beam=16` | +.8 %, 1.4 | +.6 %, 1.4 | +.4 %, 1.4 | +.6 %, 1.3 | +.7 %, .8 | +1.9 %, 1.3 |
//!
//! With AVX2, `beam=4` is 1.2 times as fast at 1 bit, 1.3 to 1.5 up to 2.5 bits and 1.6 from 3 on. Without either it is
//! three to five times slower than the exhaustive search, which stays the default.
//!
//! Sources: Marcellin and Fischer, *Trellis coded quantization* (1990); Tseng et al., *QTIP* (2024).

mod coarse;
mod layout;
pub mod patterns;
mod viterbi;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use super::{
    BlockEncoder, Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec,
    StreamType, WeightEncoder,
};
use crate::error::{ConfigError, FormatError};
use crate::math::simd::{Simd, SimdLevel};
use crate::matrix::{MatrixRef, Shape, TileGrid, TileShape};
use coarse::{BATCH, CoarseSearch, CoarseTables, MAX_BEAM};
pub use layout::TrellisLayout;
use patterns::{Hash, Step};
use rayon::prelude::*;
use std::sync::{Mutex, OnceLock, PoisonError};
use viterbi::{Engine, Search, Tables};

/// Weights in a tile.
pub const TILE_LEN: usize = 256;

/// The family of trellis codecs.
#[derive(Debug)]
pub struct Trellis;

impl CodecFamily for Trellis {
    fn name(&self) -> &'static str {
        "trellis"
    }

    fn summary(&self) -> &'static str {
        "computed patterns on a tail-biting trellis; the best quality per bit"
    }

    fn rates(&self) -> &'static [f64] {
        &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    }

    fn options(&self) -> &'static [OptionSpec] {
        &[
            OptionSpec {
                name: "window",
                default: 16,
                min: 8,
                max: 16,
                search_only: false,
                help: "bits of the trellis state; 12 encodes about nine times as fast as 16 for 7 % more error at \
                       2 bits, decoding costs the same",
            },
            OptionSpec {
                name: "beam",
                default: 0,
                min: 0,
                max: MAX_BEAM as u32,
                search_only: true,
                help: "paths that a faster search keeps, for machines with AVX-512: 4 encodes 1.6 to 2.8 times as \
                       fast for 1 % more error, 5 % at 4 bits; 0 is the exhaustive search",
            },
        ]
    }

    fn rotates(&self) -> bool {
        true
    }

    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError> {
        let step = Step::for_rate(bits);
        let codec = TrellisCodec::new(Hash::new(step.weights), step, options["window"]);
        Ok(Box::new(TrellisCodec { beam: options["beam"] as usize, ..codec }))
    }
}

/// A codec with patterns of your own, to compare hashes; archives know only [`Hash::new`].
///
/// # Panics
/// If `window` is outside 8..=16 or `hash` yields another number of weights a step than `bits` asks for.
pub fn with_hash(hash: Hash, bits: f64, window: u32) -> Box<dyn Codec> {
    let step = Step::for_rate(bits);
    assert!((8..=16).contains(&window), "window {window}");
    assert_eq!(hash.weights, step.weights, "weights a step");
    Box::new(TrellisCodec::new(hash, step, window))
}

/// A codec whose search uses no wider instructions than `simd`, to compare them; the codes are the same.
///
/// # Panics
/// If `window` is outside 8..=16.
pub fn with_simd(bits: f64, window: u32, simd: SimdLevel) -> Box<dyn Codec> {
    let step = Step::for_rate(bits);
    assert!((8..=16).contains(&window), "window {window}");
    Box::new(TrellisCodec { simd: Simd::at_most(simd), ..TrellisCodec::new(Hash::new(step.weights), step, window) })
}

/// The same for the faster search that keeps `beam` paths.
///
/// # Panics
/// If `window` is outside 8..=16 or `beam` outside 1..=64.
pub fn with_beam(bits: f64, window: u32, beam: usize, simd: SimdLevel) -> Box<dyn Codec> {
    let step = Step::for_rate(bits);
    assert!((8..=16).contains(&window), "window {window}");
    assert!((1..=MAX_BEAM).contains(&beam), "a beam of {beam}");
    let codec = TrellisCodec::new(Hash::new(step.weights), step, window);
    Box::new(TrellisCodec { simd: Simd::at_most(simd), beam, ..codec })
}

/// A trellis of fixed rate and window.
#[derive(Debug)]
struct TrellisCodec {
    hash: Hash,
    step: Step,
    window: u32,
    /// Paths that the coarse search keeps; 0 is the exhaustive search.
    beam: usize,
    /// The instructions of the search.
    simd: Simd,
    /// Made by the first encoder; decoding needs none.
    tables: OnceLock<Tables>,
    /// The same for the coarse search.
    coarse: OnceLock<CoarseTables>,
}

/// Where the tiles of a weight lie: 32 × 8, or flatter or narrower where the weight has fewer rows or columns.
///
/// Tall tiles make narrow column blocks, which error feedback wants; a single row must not pay for 32.
pub fn tile_grid(shape: Shape) -> TileGrid {
    let rows = shape.d_output().next_power_of_two().min(32);
    let cols = shape.d_input().next_power_of_two().min(TILE_LEN / rows);
    TileGrid { shape, tile: TileShape { rows: TILE_LEN / cols, cols } }
}

impl TrellisCodec {
    fn new(hash: Hash, step: Step, window: u32) -> Self {
        Self { hash, step, window, beam: 0, simd: Simd::detect(), tables: OnceLock::new(), coarse: OnceLock::new() }
    }

    fn layout_of(&self, shape: Shape) -> TrellisLayout {
        TrellisLayout { grid: tile_grid(shape), hash: self.hash, step: self.step, window: self.window }
    }

    fn search(&self) -> TileSearch<'_> {
        if self.beam == 0 {
            let tables = self.tables.get_or_init(|| Tables::new(self.hash, self.step, self.window));
            TileSearch::Exhaustive(Search::new(tables, Engine::new(tables, self.simd), TILE_LEN))
        } else {
            let tables = self.coarse.get_or_init(|| CoarseTables::new(self.hash, self.step, self.window));
            TileSearch::Coarse(CoarseSearch::new(tables, self.simd, self.beam))
        }
    }
}

impl Codec for TrellisCodec {
    /// The factors are the best of .8, .9, .95, 1 and 1.05 on a Gaussian (at 2 bits the last two tie): at a low rate
    /// the few values that a tile can take are worth more close to the mean.
    fn row_scaling(&self) -> RowScaling {
        let bits = self.step.bits as f32 / self.step.weights as f32;
        RowScaling::RootMeanSquare(match bits {
            ..=1.0 => 0.9,
            ..=1.5 => 0.95,
            ..=2.0 => 1.025,
            _ => 1.05,
        })
    }

    fn streams(&self, shape: Shape) -> Vec<StreamSpec> {
        let grid = tile_grid(shape);
        let shape = vec![grid.tile_rows(), grid.tile_cols(), self.step.tile_words()];
        vec![StreamSpec { name: "codes", dtype: StreamType::U32, shape }]
    }

    fn block_width(&self, shape: Shape) -> usize {
        tile_grid(shape).tile.cols
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> WeightEncoder<'a> {
        let grid = tile_grid(weight.shape());
        let words = vec![0; grid.num_tiles() * self.step.tile_words()];
        WeightEncoder::Blocks(Box::new(TrellisEncoder { codec: self, grid, idle: Mutex::default(), words }))
    }

    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32 {
        let layout = self.layout_of(shape);
        let TileShape { rows, cols } = layout.grid.tile;
        let tile = (row / rows) * layout.grid.tile_cols() + col / cols;
        let words = &codes.streams[0].words()[tile * layout.tile_words()..][..layout.tile_words()];
        let within = row % rows * cols + col % cols;
        let (steps, k) = (TILE_LEN / self.step.weights, self.step.bits as usize);
        let t = within / self.step.weights;
        let window = (0..self.window as usize).fold(0, |window, bit| {
            let at = ((steps - 1 - t) * k + bit) % (steps * k);
            window | super::read_bits(words, at, 1) << bit
        });
        self.hash.integers(window)[within % self.step.weights] as f32 * self.hash.unit()
    }

    fn layout(&self, shape: Shape) -> Option<CodecLayout> {
        Some(CodecLayout::Trellis(self.layout_of(shape)))
    }

    fn dictionary(&self, _shape: Shape, _codes: &Codes) -> Vec<f32> {
        vec![self.hash.unit()]
    }

    /// The costs of all steps, and the tables.
    fn search_bytes(&self, _shape: Shape) -> usize {
        if self.beam > 0 {
            return coarse::search_bytes(self.step, self.window);
        }
        let steps = TILE_LEN / self.step.weights + 1;
        2 * steps * (1 << (self.window - self.step.bits)) + ((2 * self.step.weights) << self.window)
    }

    fn num_indices(&self, shape: Shape) -> usize {
        tile_grid(shape).num_tiles() * TILE_LEN / self.step.weights
    }

    /// Every bit string is a path: nothing to refuse.
    fn check(&self, _shape: Shape, _codes: &Codes) -> Result<(), FormatError> {
        Ok(())
    }
}

/// How the bits of tiles are found.
enum TileSearch<'a> {
    Exhaustive(Search<'a>),
    Coarse(CoarseSearch<'a>),
}

impl TileSearch<'_> {
    /// Finds the chunks of up to [`BATCH`] tiles.
    fn run(&mut self, tiles: &[[f32; TILE_LEN]], chunks: &mut [[u8; TILE_LEN]]) {
        match self {
            Self::Exhaustive(search) => tiles.iter().zip(chunks).for_each(|(tile, chunks)| search.run(tile, chunks)),
            Self::Coarse(search) => search.run(tiles, chunks),
        }
    }
}

struct TrellisEncoder<'a> {
    codec: &'a TrellisCodec,
    grid: TileGrid,
    /// Searches that no thread uses at the moment.
    idle: Mutex<Vec<TileSearch<'a>>>,
    /// `[tile_rows, tile_cols, tile_words]`.
    words: Vec<u32>,
}

impl TrellisEncoder<'_> {
    /// Finds the chunks of all tiles of a block, on all threads of rayon's pool.
    fn search(&self, values: &[f32]) -> Vec<[u8; TILE_LEN]> {
        let mut chunks = vec![[0; TILE_LEN]; self.grid.tile_rows()];
        chunks.par_chunks_mut(BATCH).enumerate().for_each(|(batch, chunks)| {
            let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let mut tiles = [[0.0; TILE_LEN]; BATCH];
            let tiles = &mut tiles[..chunks.len()];
            for (i, tile) in tiles.iter_mut().enumerate() {
                self.grid.read_from_block(values, batch * BATCH + i, tile);
            }
            let found = idle().pop();
            let mut search = found.unwrap_or_else(|| self.codec.search());
            search.run(tiles, chunks);
            idle().push(search);
        });
        chunks
    }
}

impl BlockEncoder for TrellisEncoder<'_> {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let (step, tile_words) = (self.codec.step, self.codec.step.tile_words());
        let (k, steps) = (step.bits as usize, TILE_LEN / step.weights);
        let (layout, unit) = (self.codec.layout_of(self.grid.shape), self.codec.hash.unit());
        let mut tile = [0.0; TILE_LEN];
        for (tile_row, chunks) in self.search(values).iter().enumerate() {
            let words = &mut self.words[(tile_row * self.grid.tile_cols() + block) * tile_words..][..tile_words];
            for (i, &chunk) in chunks[..steps].iter().rev().enumerate() {
                super::write_bits(words, i * k, k as u32, chunk.into());
            }
            layout.decode_tile(words, unit, &mut tile);
            self.grid.write_to_block(&tile, tile_row, decoded);
        }
    }

    fn finish(self: Box<Self>) -> Codes {
        Codes { streams: vec![Stream::U32(self.words)] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_distr::{Distribution, StandardNormal};

    fn gaussian(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
    }

    fn codec(bits: f64, window: u32) -> TrellisCodec {
        let step = Step::for_rate(bits);
        TrellisCodec::new(Hash::new(step.weights), step, window)
    }

    fn fast(bits: f64, window: u32, beam: usize) -> TrellisCodec {
        TrellisCodec { beam, ..codec(bits, window) }
    }

    fn encode(codec: &TrellisCodec, shape: Shape, weights: &[f32]) -> (Codes, Vec<f32>) {
        let width = codec.block_width(shape);
        let mut encoder = codec.encoder(MatrixRef::new(shape, weights).unwrap()).into_blocks().unwrap();
        let mut block = vec![0.0; shape.d_output() * width];
        let mut decoded = block.clone();
        let mut all = vec![0.0; weights.len()];
        for b in 0..shape.d_input().div_ceil(width) {
            MatrixRef::new(shape, weights).unwrap().copy_columns(b * width, &mut block);
            encoder.encode_block(b, &block, &mut decoded);
            for (row, values) in all.chunks_exact_mut(shape.d_input()).zip(decoded.chunks_exact(width)) {
                let n = width.min(shape.d_input() - b * width);
                row[b * width..][..n].copy_from_slice(&values[..n]);
            }
        }
        (encoder.finish(), all)
    }

    fn decode(codec: &TrellisCodec, shape: Shape, codes: &Codes) -> Vec<f32> {
        crate::codec::decode(codec, shape, codes).into_vec()
    }

    #[test]
    fn a_band_decodes_to_the_patterns_of_its_windows_read_bit_by_bit() {
        let shape = Shape::new(33, 20).unwrap();
        for bits in Trellis.rates() {
            for window in [8, 12, 16] {
                let codec = codec(*bits, window);
                let words = (0..codec.streams(shape)[0].len() as u32).map(|i| (i + 7).wrapping_mul(0x9E37_79B9));
                let codes = Codes { streams: vec![Stream::U32(words.collect())] };
                for (i, weight) in decode(&codec, shape, &codes).into_iter().enumerate() {
                    assert_eq!(weight, codec.decode_weight(shape, &codes, i / 20, i % 20), "{bits} bits, weight {i}");
                }
            }
        }
    }

    #[test]
    fn gaussian_weights_reach_the_known_rate_distortion() {
        // Relative mean squared error at window 12: the table of docs/quality.md and the spread of a sample of 8192.
        for (bits, limit) in [(1.0, 0.285), (1.5, 0.150), (2.0, 0.079), (2.5, 0.042), (3.0, 0.021), (4.0, 0.006)] {
            let shape = Shape::new(32, 256).unwrap();
            let weights = gaussian(shape.num_weights(), 1);
            let (_, decoded) = encode(&codec(bits, 12), shape, &weights);
            let error: f32 = weights.iter().zip(&decoded).map(|(w, d)| (w - d).powi(2)).sum();
            let power: f32 = weights.iter().map(|w| w * w).sum();
            assert!(error / power < limit, "{bits} bits: {}", error / power);
        }
    }

    #[test]
    fn the_faster_search_loses_little() {
        let shape = Shape::new(128, 64).unwrap();
        let mut weights = gaussian(shape.num_weights(), 2);
        // Beyond the extreme patterns, where the costs of a tile's other weights must not drown.
        weights.iter_mut().step_by(512).for_each(|weight| *weight = 4.2 * weight.signum());
        let power: f32 = weights.iter().map(|w| w * w).sum();
        let error = |codec: &TrellisCodec| {
            let (_, decoded) = encode(codec, shape, &weights);
            weights.iter().zip(&decoded).map(|(w, d)| (w - d).powi(2)).sum::<f32>() / power
        };
        for bits in Trellis.rates() {
            let exhaustive = error(&codec(*bits, 12));
            let [one, eight] = [1, 8].map(|beam| error(&fast(*bits, 12, beam)));
            assert!(eight < 1.04 * exhaustive, "{bits} bits: {eight}, exhaustive {exhaustive}");
            assert!(eight < one, "{bits} bits: {eight} with a beam of 8, {one} with one of 1");
        }
    }

    #[test]
    fn a_path_bites_its_tail() {
        // If start and end disagreed, the first windows would decode to other patterns than the search meant, and the
        // first steps of a tile would be worse than the rest.
        bites_its_tail(&codec(2.0, 12));
        bites_its_tail(&fast(2.0, 12, 4));
    }

    fn bites_its_tail(codec: &TrellisCodec) {
        let shape = Shape::new(32, 512).unwrap();
        let weights = gaussian(shape.num_weights(), 5);
        let (_, decoded) = encode(codec, shape, &weights);
        let grid = tile_grid(shape);
        let error_of_row = |row: usize| -> f32 {
            (0..shape.d_input()).map(|c| (weights[row * 512 + c] - decoded[row * 512 + c]).powi(2)).sum::<f32>() / 512.0
        };
        assert_eq!(grid.tile.rows, 32);
        let inner = (1..31).map(error_of_row).sum::<f32>() / 30.0;
        assert!(error_of_row(0) < 1.5 * inner, "{} {inner}", error_of_row(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_encoder_reports_what_is_decoded(
            rows in 1usize..200, cols in 1usize..70, rate in 0usize..6, beam in 0usize..4, seed in any::<u64>()
        ) {
            let codec = fast(Trellis.rates()[rate], 8, beam);
            let shape = Shape::new(rows, cols).unwrap();
            let weights = gaussian(shape.num_weights(), seed);
            let (codes, reported) = encode(&codec, shape, &weights);
            prop_assert_eq!(codes.streams[0].len(), codec.streams(shape)[0].len());
            prop_assert_eq!(decode(&codec, shape, &codes), reported);
        }

        #[test]
        fn extreme_weights_are_coded_without_panic(scale in -40f32..40.0, beam in 0usize..3, seed in any::<u64>()) {
            let codec = fast(3.0, 10, beam);
            let shape = Shape::new(16, 16).unwrap();
            let weights: Vec<f32> = gaussian(256, seed).iter().map(|w| w * 10f32.powf(scale)).collect();
            let (codes, reported) = encode(&codec, shape, &weights);
            prop_assert_eq!(decode(&codec, shape, &codes), reported);
        }
    }
}
