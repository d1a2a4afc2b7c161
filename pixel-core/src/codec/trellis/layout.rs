//! Where the bits of a weight lie, and how a band is decoded.

use super::TILE_LEN;
use super::patterns::{Hash, Step};
use crate::codec::bits::Field;
use crate::matrix::{TileGrid, TileShape};

/// The codes of one weight: `[tile_rows, tile_cols, tile_words]`. The dictionary is one value, what an integer of the
/// hash is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrellisLayout {
    /// The tiles.
    pub grid: TileGrid,
    /// The hash from windows to integers.
    pub hash: Hash,
    /// Weights and bits of a step.
    pub step: Step,
    /// Bits of the state, `L`.
    pub window: u32,
}

impl TrellisLayout {
    /// Words of a tile.
    pub const fn tile_words(&self) -> usize {
        self.step.tile_words()
    }

    /// The bits of the window that the weight at `(row, col)` comes from.
    pub const fn field(&self, row: usize, col: usize) -> Field {
        let TileShape { rows, cols } = self.grid.tile;
        let tile = (row / rows) * self.grid.tile_cols() + col / cols;
        let step = (row % rows * cols + col % cols) / self.step.weights;
        let bit = (TILE_LEN / self.step.weights - 1 - step) * self.step.bits as usize;
        let (base, words) = (tile * self.tile_words(), self.tile_words());
        Field { word: base + bit / 32, next: base + (bit / 32 + 1) % words, shift: (bit % 32) as u32 }
    }

    /// Which of the weights of its step the weight at `(row, col)` is.
    pub const fn within_step(&self, row: usize, col: usize) -> usize {
        (row % self.grid.tile.rows * self.grid.tile.cols + col % self.grid.tile.cols) % self.step.weights
    }

    /// Decodes one tile: weight pair or weight `t` is the pattern of `window(t) = bits[(T−1−t)·k, +L) mod T·k`.
    pub(super) fn decode_tile(&self, words: &[u32], unit: f32, tile: &mut [f32]) {
        let (k, mask) = (self.step.bits as usize, (1u32 << self.window) - 1);
        for (i, weights) in tile.chunks_exact_mut(self.step.weights).rev().enumerate() {
            let (word, offset) = (i * k / 32, i * k % 32);
            let next = if word + 1 == words.len() { words[0] } else { words[word + 1] };
            let pair = u64::from(words[word]) | u64::from(next) << 32;
            let integers = self.hash.integers((pair >> offset) as u32 & mask);
            for (weight, integer) in weights.iter_mut().zip(integers) {
                *weight = integer as f32 * unit;
            }
        }
    }

    /// Decodes band `band` into `rows`, `[rows of the band, d_input]`.
    pub(crate) fn decode_band(&self, words: &[u32], dictionary: &[f32], band: usize, rows: &mut [f32]) {
        let (grid, width, tile_words) = (self.grid, self.grid.shape.d_input(), self.tile_words());
        let band_words = &words[band * grid.tile_cols() * tile_words..];
        let mut tile = [0.0; TILE_LEN];
        for (tile_col, words) in band_words.chunks_exact(tile_words).take(grid.tile_cols()).enumerate() {
            self.decode_tile(words, dictionary[0], &mut tile);
            let start = tile_col * grid.tile.cols;
            let inside = grid.tile.cols.min(width - start);
            for (row, values) in rows.chunks_exact_mut(width).zip(tile.chunks_exact(grid.tile.cols)) {
                row[start..start + inside].copy_from_slice(&values[..inside]);
            }
        }
    }
}
