//! `trellis`: the quality codec. Tail-biting bitshift trellises over tiles of 256 weights, patterns computed by a hash.
//!
//! A step of the trellis shifts `k` bits into a window of `L` bits and yields `V` weights, the pattern of the window
//! (see [`patterns`]). `k/V` is the rate. The search over all `2^L` states (Viterbi) picks the bits; see
//! `docs/format.md` for the layout and `docs/architecture.md` for why the tile is 32 × 8.
//!
//! Sources: Marcellin and Fischer, *Trellis coded quantization* (1990); Tseng et al., *QTIP* (2024).

mod layout;
pub mod patterns;
mod viterbi;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use super::{
    BlockEncoder, Codec, CodecFamily, CodecLayout, Codes, OptionSpec, Options, RowScaling, Stream, StreamSpec,
    StreamType,
};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape, TileGrid, TileShape};
pub use layout::TrellisLayout;
use patterns::{Hash, Step};
use std::sync::OnceLock;
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
        &[OptionSpec {
            name: "window",
            default: 16,
            min: 8,
            max: 16,
            help: "bits of the trellis state; 12 encodes about nine times as fast as 16 for 7 % more error at 2 bits, decoding costs the same",
        }]
    }

    fn rotates(&self) -> bool {
        true
    }

    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError> {
        let step = Step::for_rate(bits);
        let window = options["window"];
        Ok(Box::new(TrellisCodec::new(Hash::new(step.weights), step, window)))
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

/// The instructions that a search may use; all make the same choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// What every machine of the target has.
    Portable,
    /// Up to AVX2.
    Avx2,
    /// Up to AVX-512 F and BW.
    Avx512,
}

/// A codec whose search uses no wider instructions than `simd`, to compare them; the codes are the same.
///
/// # Panics
/// If `window` is outside 8..=16.
pub fn with_simd(bits: f64, window: u32, simd: Simd) -> Box<dyn Codec> {
    let step = Step::for_rate(bits);
    assert!((8..=16).contains(&window), "window {window}");
    Box::new(TrellisCodec { simd, ..TrellisCodec::new(Hash::new(step.weights), step, window) })
}

/// A trellis of fixed rate and window.
#[derive(Debug)]
struct TrellisCodec {
    hash: Hash,
    step: Step,
    window: u32,
    /// The widest instructions allowed.
    simd: Simd,
    /// Made by the first encoder; decoding needs none.
    tables: OnceLock<Tables>,
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
        Self { hash, step, window, simd: Simd::Avx512, tables: OnceLock::new() }
    }

    fn layout_of(&self, shape: Shape) -> TrellisLayout {
        TrellisLayout { grid: tile_grid(shape), hash: self.hash, step: self.step, window: self.window }
    }
}

impl Codec for TrellisCodec {
    /// The factors are the best of .8, .9, .95, 1 and 1.05 on a Gaussian (at 2 bits the last two tie): at a low rate the
    /// few values that a tile can take are worth more close to the mean.
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

    fn band_height(&self, shape: Shape) -> usize {
        tile_grid(shape).tile.rows
    }

    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> Box<dyn BlockEncoder + 'a> {
        let tables = self.tables.get_or_init(|| Tables::new(self.hash, self.step, self.window));
        let grid = tile_grid(weight.shape());
        Box::new(TrellisEncoder {
            codec: self,
            grid,
            search: Search::new(tables, Engine::detect(tables, self.simd), TILE_LEN),
            words: vec![0; grid.num_tiles() * self.step.tile_words()],
        })
    }

    fn decode_band(&self, shape: Shape, codes: &Codes, band: usize, rows: &mut [f32]) {
        self.layout_of(shape).decode_band(codes.streams[0].words(), &[self.hash.unit()], band, rows);
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

struct TrellisEncoder<'a> {
    codec: &'a TrellisCodec,
    grid: TileGrid,
    search: Search<'a>,
    /// `[tile_rows, tile_cols, tile_words]`.
    words: Vec<u32>,
}

impl BlockEncoder for TrellisEncoder<'_> {
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]) {
        let (k, tile_words) = (self.codec.step.bits as usize, self.codec.step.tile_words());
        let (layout, unit) = (self.codec.layout_of(self.grid.shape), self.codec.hash.unit());
        let mut tile = [0.0; TILE_LEN];
        let mut chunks = [0u32; TILE_LEN];
        let chunks = &mut chunks[..TILE_LEN / self.codec.step.weights];
        for tile_row in 0..self.grid.tile_rows() {
            self.grid.read_from_block(values, tile_row, &mut tile);
            self.search.run(&tile, chunks);
            let words = &mut self.words[(tile_row * self.grid.tile_cols() + block) * tile_words..][..tile_words];
            for (i, &chunk) in chunks.iter().rev().enumerate() {
                super::write_bits(words, i * k, k as u32, chunk);
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

    fn encode(codec: &TrellisCodec, shape: Shape, weights: &[f32]) -> (Codes, Vec<f32>) {
        let width = codec.block_width(shape);
        let mut encoder = codec.encoder(MatrixRef::new(shape, weights).unwrap());
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
        let mut all = vec![0.0; shape.num_weights()];
        for (band, rows) in all.chunks_mut(codec.band_height(shape) * shape.d_input()).enumerate() {
            codec.decode_band(shape, codes, band, rows);
        }
        all
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
    fn a_path_bites_its_tail() {
        // If start and end disagreed, the first windows would decode to other patterns than the search meant, and the
        // first steps of a tile would be worse than the rest.
        let codec = codec(2.0, 12);
        let shape = Shape::new(32, 512).unwrap();
        let weights = gaussian(shape.num_weights(), 5);
        let (_, decoded) = encode(&codec, shape, &weights);
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
            rows in 1usize..70, cols in 1usize..70, rate in 0usize..6, seed in any::<u64>()
        ) {
            let codec = codec(Trellis.rates()[rate], 8);
            let shape = Shape::new(rows, cols).unwrap();
            let weights = gaussian(shape.num_weights(), seed);
            let (codes, reported) = encode(&codec, shape, &weights);
            prop_assert_eq!(codes.streams[0].len(), codec.streams(shape)[0].len());
            prop_assert_eq!(decode(&codec, shape, &codes), reported);
        }

        #[test]
        fn extreme_weights_are_coded_without_panic(scale in -40f32..40.0, seed in any::<u64>()) {
            let codec = codec(3.0, 10);
            let shape = Shape::new(16, 16).unwrap();
            let weights: Vec<f32> = gaussian(256, seed).iter().map(|w| w * 10f32.powf(scale)).collect();
            let (codes, reported) = encode(&codec, shape, &weights);
            prop_assert_eq!(decode(&codec, shape, &codes), reported);
        }
    }
}
