//! Where the bits of a weight lie, and how a band is decoded.

use super::TILE_LEN;
use super::patterns::{Hash, Step};
use crate::codec::bits::Field;
use crate::matrix::{TileGrid, TileShape};
use std::ops::Range;

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
    #[inline(always)]
    pub(super) fn decode_tile(&self, words: &[u32], unit: f32, tile: &mut [f32; TILE_LEN]) {
        match (self.step.weights, self.step.bits) {
            (2, 2) => self.decode_steps::<2, 2>(words, unit, tile),
            (2, 3) => self.decode_steps::<2, 3>(words, unit, tile),
            (2, 4) => self.decode_steps::<2, 4>(words, unit, tile),
            (2, 5) => self.decode_steps::<2, 5>(words, unit, tile),
            (1, 3) => self.decode_steps::<1, 3>(words, unit, tile),
            (1, 4) => self.decode_steps::<1, 4>(words, unit, tile),
            (weights, bits) => unreachable!("a step of {weights} weights and {bits} bits"),
        }
    }

    /// Eight weights at a time in as many lanes as there are eights: their windows begin within bits that follow on
    /// those of the next eight.
    #[inline(always)]
    fn decode_steps<const WEIGHTS: usize, const BITS: usize>(
        &self,
        words: &[u32],
        unit: f32,
        tile: &mut [f32; TILE_LEN],
    ) {
        const EIGHTS: usize = TILE_LEN / 8;
        let (steps, mask) = (8 / WEIGHTS, (1u32 << self.window) - 1);
        let mut bits = [0u64; EIGHTS];
        for (i, bits) in bits.iter_mut().rev().enumerate() {
            let start = i * steps * BITS;
            let (word, next) = (words[start / 32], words[(start / 32 + 1) % words.len()]);
            *bits = (u64::from(word) | u64::from(next) << 32) >> (start % 32);
        }
        for step in 0..steps {
            let mut columns = [[0.0; EIGHTS]; WEIGHTS];
            for (i, bits) in bits.iter().enumerate() {
                let integers = self.hash.integers_of::<WEIGHTS>((bits >> (step * BITS)) as u32 & mask);
                for (column, integer) in columns.iter_mut().zip(integers) {
                    column[i] = integer as f32 * unit;
                }
            }
            for (weight, column) in columns.iter().enumerate() {
                let at = (steps - 1 - step) * WEIGHTS + weight;
                for (eight, value) in tile.as_chunks_mut::<8>().0.iter_mut().zip(column) {
                    eight[at] = *value;
                }
            }
        }
    }

    /// Decodes columns `columns` of band `band` into `rows`, `[rows of the band, columns]`; the first is that of a
    /// tile.
    #[inline(always)]
    pub(crate) fn decode_columns(
        &self,
        words: &[u32],
        dictionary: &[f32],
        band: usize,
        columns: Range<usize>,
        rows: &mut [f32],
    ) {
        let (grid, width, tile_words) = (self.grid, columns.len(), self.tile_words());
        let first = band * grid.tile_cols() + columns.start / grid.tile.cols;
        let mut tile = [0.0; TILE_LEN];
        for (start, words) in
            (0..width).step_by(grid.tile.cols).zip(words[first * tile_words..].chunks_exact(tile_words))
        {
            self.decode_tile(words, dictionary[0], &mut tile);
            let inside = grid.tile.cols.min(width - start);
            for (row, values) in rows.chunks_exact_mut(width).zip(tile.chunks_exact(grid.tile.cols)) {
                row[start..start + inside].copy_from_slice(&values[..inside]);
            }
        }
    }
}
