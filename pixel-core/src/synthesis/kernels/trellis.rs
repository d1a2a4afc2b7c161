//! Products with a trellis-coded weight, in integers: the hash of a window is a sum of its fields, and a sum of fields
//! times an activation of 16 bits is one instruction.
//!
//! A tile is 32 rows × 8 columns. In the words of a tile a row is `8·bits` consecutive bits, the last row first, and
//! the windows of a row begin within them: row `r`, step `q` counted from the end of the row, begins at bit
//! `(31 − r)·row_bits + q·k`. So the same step of all rows is a register of equal shifts, and all of it is multiplied
//! by the activations of the same columns: what adds up in a lane belongs to one row.

use super::activations::quantize;
use super::scratch::Scratch;
use super::trellis_avx2::Avx2Kernel;
use super::trellis_avx512::Avx512Kernel;
use super::{MAX_BATCH, Product};
use crate::codec::CodecLayout;
use crate::codec::trellis::TrellisLayout;
use crate::math::simd::{Simd, SimdLevel};
use std::ops::Range;

/// Rows of a tile.
pub(super) const ROWS: usize = 32;

/// Columns of a tile.
pub(super) const COLS: usize = 8;

/// Tiles whose products are summed as integers: the sums of two products of 510 and 32767 over 8 columns fit 31 bits.
pub(super) const CHUNK: usize = 16;

/// Multiply-adds a nanosecond, roughly.
pub(super) const RATE: usize = 20;

/// What a kernel reads of the activations of up to [`MAX_BATCH`] rows.
#[derive(Clone, Copy)]
pub(super) struct Activations<'a> {
    /// `[tiles, batch]`, the columns of a tile.
    integers: &'a [[i16; COLS]],
    /// `[chunks, batch]`, the excess of the lanes of the even and the odd pairs of columns for fields that count from
    /// zero.
    excess: &'a [[i32; 2]],
    /// Rows: a power of two up to [`MAX_BATCH`].
    pub(super) batch: usize,
}

impl<'a> Activations<'a> {
    /// Chunk by chunk the columns of its tiles, `[tiles, B]`, and its excess, for the batch `B`.
    pub(super) fn chunks<const B: usize>(self) -> impl Iterator<Item = (&'a [[[i16; COLS]; B]], &'a [[i32; 2]; B])> {
        assert_eq!(self.batch, B, "rows of activations");
        self.integers.as_chunks::<B>().0.chunks(CHUNK).zip(self.excess.as_chunks::<B>().0)
    }
}

/// What the fields of a weight add up to when the weight is zero, where the kernel does not subtract it itself.
const fn offset(layout: &TrellisLayout) -> i32 {
    if layout.step.weights == 2 { 30 } else { 0 }
}

/// The activations of a batch, rounded.
struct Rounded {
    /// Per block of rows: `[tiles, rows]`.
    integers: Scratch<[i16; COLS]>,
    /// Per block: `[chunks, rows]`.
    excess: Scratch<[i32; 2]>,
    /// What an integer of a row stands for, `[batch]`; 0 for a row that cannot be rounded, whose integers are zero.
    steps: Scratch<f32>,
    /// The rows that cannot be rounded.
    unrounded: Vec<usize>,
    tiles: usize,
}

impl Rounded {
    /// Rounds `x` `[batch, d_input]`, each row by itself.
    fn new(layout: &TrellisLayout, simd: Simd, x: &[f32]) -> Self {
        let (n, tiles) = (layout.grid.shape.d_input(), layout.grid.tile_cols());
        let (batch, chunks) = (x.len() / n, tiles.div_ceil(CHUNK));
        let padded = batch / MAX_BATCH * MAX_BATCH + block_width(batch % MAX_BATCH);
        let mut row = Scratch::<[i16; COLS]>::new(tiles);
        let (mut integers, mut excess) = (Scratch::new(padded * tiles), Scratch::new(padded * chunks));
        let (mut steps, mut unrounded) = (Scratch::new(batch), Vec::new());
        for b in 0..padded {
            let (first, within) = (b / MAX_BATCH * MAX_BATCH, b % MAX_BATCH);
            let width = block_width((batch - first).min(MAX_BATCH));
            let step = x.chunks_exact(n).nth(b).map(|x| quantize(simd, x, row.as_flattened_mut()));
            if b < batch {
                steps[b] = step.flatten().unwrap_or(0.0);
            }
            match step {
                Some(Some(_)) => {}
                None => row.fill([0; COLS]),
                Some(None) => {
                    row.fill([0; COLS]);
                    unrounded.push(b);
                }
            }
            let block = &mut integers[first * tiles..][..width * tiles];
            for (tile, values) in row.iter().enumerate() {
                block[tile * width + within] = *values;
            }
            let block = &mut excess[first * chunks..][..width * chunks];
            for (chunk, values) in row.chunks(CHUNK).enumerate() {
                let mut sums = [0; 2];
                for pairs in values.as_flattened().as_chunks::<4>().0 {
                    sums[0] += i32::from(pairs[0]) + i32::from(pairs[1]);
                    sums[1] += i32::from(pairs[2]) + i32::from(pairs[3]);
                }
                block[chunk * width + within] = sums.map(|sum| sum * offset(layout));
            }
        }
        Self { integers, excess, steps, unrounded, tiles }
    }

    /// The block of rows from `first` on.
    fn block(&self, first: usize) -> Activations<'_> {
        let batch = block_width((self.steps.len() - first).min(MAX_BATCH));
        let (tiles, chunks) = (self.tiles, self.tiles.div_ceil(CHUNK));
        Activations {
            integers: &self.integers[first * tiles..][..batch * tiles],
            excess: &self.excess[first * chunks..][..batch * chunks],
            batch,
        }
    }
}

/// The rows of a block for `rows` of a batch: kernels exist for powers of two, and what is missing is zero.
const fn block_width(rows: usize) -> usize {
    if rows == 0 { 0 } else { rows.next_power_of_two() }
}

/// Rounded activations, and the kernel that multiplies by them.
pub(super) struct Input {
    kernel: Kernel,
    rounded: Rounded,
}

impl Input {
    /// `x` `[batch, d_input]`, rounded.
    ///
    /// # Panics
    /// If there is [no kernel](Kernel::exists) for the layout.
    pub(super) fn new(product: &Product<'_>, layout: &TrellisLayout, x: &[f32]) -> Self {
        let kernel = Kernel::new(layout, product.simd).expect("a kernel for the layout");
        Self { kernel, rounded: Rounded::new(layout, product.simd, x) }
    }

    /// Whether what is made for `made` serves `product`.
    pub(super) fn serve(product: &Product<'_>, made: &Product<'_>) -> bool {
        let reads = |product: &Product<'_>| match product.layout {
            CodecLayout::Trellis(layout) => {
                Some((layout.grid.tile, layout.grid.shape.d_input(), layout.hash, layout.step, layout.window))
            }
            _ => None,
        };
        reads(product) == reads(made)
    }

    /// The rows of `x` that could not be rounded; what [`multiply`](Self::multiply) gives for them is zero.
    pub(super) fn unrounded(&self) -> &[usize] {
        &self.rounded.unrounded
    }

    /// The products of band `band`, [`ROWS`] rows, with every row of `x`, into `out` `[rows, batch]`.
    pub(super) fn multiply(&self, product: &Product<'_>, layout: &TrellisLayout, band: usize, out: &mut [f32]) {
        let batch = self.rounded.steps.len();
        let band_words = self.rounded.tiles * layout.tile_words();
        let unit = f64::from(product.dictionary[0]);
        let words = &product.codes[band * band_words..][..band_words];
        let scales = &product.scales[band * ROWS..];
        for first in (0..batch).step_by(MAX_BATCH) {
            let activations = self.rounded.block(first);
            let mut sums = [[0.0; ROWS]; MAX_BATCH];
            self.kernel.run(words, activations, &mut sums);
            for (b, sums) in (first..).zip(&sums[..activations.batch.min(batch - first)]) {
                let step = unit * f64::from(self.rounded.steps[b]);
                for (row, (sum, scale)) in out.chunks_exact_mut(batch).zip(sums.iter().zip(scales)) {
                    row[b] = (f64::from(*sum) * step * f64::from(*scale)) as f32;
                }
            }
        }
    }
}

/// The kernel of the highest level that has one.
#[derive(Debug)]
pub(super) enum Kernel {
    Avx2(Avx2Kernel),
    Avx512(Box<Avx512Kernel>),
}

impl Kernel {
    /// Whether there is one.
    pub(super) fn exists(layout: &TrellisLayout, simd: Simd) -> bool {
        let tile = layout.grid.tile;
        (tile.rows, tile.cols) == (ROWS, COLS) && simd.level() >= SimdLevel::Avx2
    }

    pub(super) fn new(layout: &TrellisLayout, simd: Simd) -> Option<Self> {
        if !Self::exists(layout, simd) {
            return None;
        }
        let avx512 = Avx512Kernel::new(layout, simd).map(|kernel| Self::Avx512(Box::new(kernel)));
        avx512.or_else(|| Avx2Kernel::new(layout, simd).map(Self::Avx2))
    }

    /// Decodes columns `columns` of band `band` into `rows`, `[rows of the band, columns]`, in units of the scales;
    /// `false` if the kernel cannot, or if they are not whole tiles.
    pub(super) fn decode(&self, product: &Product<'_>, band: usize, columns: Range<usize>, rows: &mut [f32]) -> bool {
        let CodecLayout::Trellis(layout) = &product.layout else { return false };
        if rows.len() != ROWS * columns.len() || !columns.len().is_multiple_of(COLS) {
            return false;
        }
        let first = band * layout.grid.tile_cols() + columns.start / COLS;
        let words = &product.codes[first * layout.tile_words()..][..columns.len() / COLS * layout.tile_words()];
        match self {
            Self::Avx512(kernel) => kernel.decode(words, product.dictionary[0], rows),
            Self::Avx2(_) => return false,
        }
        true
    }

    /// Decodes band `band`, columns from `start` on, into `pairs`, `[pairs of columns, 32 rows, 2]`, as the integers of
    /// the hash. Where the last tile is cut, so are its pairs.
    pub(super) fn decode_pairs(&self, product: &Product<'_>, band: usize, start: usize, pairs: &mut [[i16; 2 * ROWS]]) {
        let CodecLayout::Trellis(layout) = &product.layout else { unreachable!("a trellis kernel of another codec") };
        let first = band * layout.grid.tile_cols() + start / COLS;
        let mut words = product.codes[first * layout.tile_words()..].chunks_exact(layout.tile_words());
        let decode = |words: &[u32], tile: &mut [[i16; 2 * ROWS]; COLS / 2]| match self {
            Self::Avx2(kernel) => kernel.decode_pairs(words, tile),
            Self::Avx512(kernel) => kernel.decode_pairs(words, tile),
        };
        let (tiles, cut) = pairs.as_chunks_mut::<{ COLS / 2 }>();
        for (tile, words) in tiles.iter_mut().zip(&mut words) {
            decode(words, tile);
        }
        if !cut.is_empty() {
            let mut tile = [[0; 2 * ROWS]; COLS / 2];
            decode(words.next().expect("words of the last tile"), &mut tile);
            cut.copy_from_slice(&tile[..cut.len()]);
        }
    }

    fn run(&self, words: &[u32], activations: Activations<'_>, sums: &mut [[f32; ROWS]; MAX_BATCH]) {
        match self {
            Self::Avx2(kernel) => kernel.run(words, activations, sums),
            Self::Avx512(kernel) => kernel.run(words, activations, sums),
        }
    }
}
