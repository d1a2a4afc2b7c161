//! Matrices and their tiles.
//!
//! A weight is stored row-major as `[d_output, d_input]`, the convention of the papers and of Hugging Face checkpoints.
//! Codecs cut it into tiles; a tile that extends beyond the right or the lower edge is padded with zeros when it is
//! read and clipped when it is written.

use crate::error::ShapeError;
use crate::math::rotation::split_mix;
use serde::{Deserialize, Serialize};

/// The largest matrix, in weights: no size in bits that is computed from a shape overflows, and no real matrix comes
/// near it.
const MAX_WEIGHTS: usize = 1 << 48;

/// The shape of a weight matrix, both sides at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "[usize; 2]", into = "[usize; 2]")]
pub struct Shape {
    d_output: usize,
    d_input: usize,
}

impl Shape {
    /// A matrix of `d_output` rows and `d_input` columns.
    ///
    /// # Errors
    /// [`ShapeError::Empty`] if a side is zero, [`ShapeError::TooLarge`] if there are more than 2⁴⁸ weights.
    pub fn new(d_output: usize, d_input: usize) -> Result<Self, ShapeError> {
        if d_output == 0 || d_input == 0 {
            return Err(ShapeError::Empty { d_output, d_input });
        }
        match d_output.checked_mul(d_input) {
            Some(n) if n <= MAX_WEIGHTS => Ok(Self { d_output, d_input }),
            _ => Err(ShapeError::TooLarge { d_output, d_input }),
        }
    }

    /// Rows: the outputs of the layer.
    pub const fn d_output(self) -> usize {
        self.d_output
    }

    /// Columns: the inputs of the layer.
    pub const fn d_input(self) -> usize {
        self.d_input
    }

    /// The number of weights, `d_output · d_input`.
    pub const fn num_weights(self) -> usize {
        self.d_output * self.d_input
    }
}

impl TryFrom<[usize; 2]> for Shape {
    type Error = ShapeError;

    fn try_from([d_output, d_input]: [usize; 2]) -> Result<Self, ShapeError> {
        Self::new(d_output, d_input)
    }
}

impl From<Shape> for [usize; 2] {
    fn from(shape: Shape) -> Self {
        [shape.d_output, shape.d_input]
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.d_output, self.d_input)
    }
}

/// A borrowed row-major matrix.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    shape: Shape,
    data: &'a [f32],
}

impl<'a> MatrixRef<'a> {
    /// Views `data`, row-major `[d_output, d_input]`, as a matrix.
    ///
    /// # Errors
    /// [`ShapeError::Length`] if `data` does not hold exactly `shape.num_weights()` values.
    pub fn new(shape: Shape, data: &'a [f32]) -> Result<Self, ShapeError> {
        check_length(shape, data.len())?;
        Ok(Self { shape, data })
    }

    /// The shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// All weights, row-major.
    pub const fn as_slice(&self) -> &'a [f32] {
        self.data
    }

    /// Row `row`, `[d_input]`.
    ///
    /// # Panics
    /// If `row` is not below `d_output`.
    pub fn row(&self, row: usize) -> &'a [f32] {
        let n = self.shape.d_input;
        &self.data[row * n..][..n]
    }

    /// Copies columns `columns` of all rows into `block`, `[d_output, block_width]` row-major; columns beyond the
    /// matrix read as zero.
    ///
    /// # Panics
    /// If `block` is not `d_output` rows of equal width.
    pub fn copy_columns(&self, start: usize, block: &mut [f32]) {
        let width = block.len() / self.shape.d_output;
        assert_eq!(block.len(), width * self.shape.d_output, "block rows");
        let inside = self.shape.d_input.saturating_sub(start).min(width);
        for (row, out) in self.data.chunks_exact(self.shape.d_input).zip(block.chunks_exact_mut(width)) {
            out[..inside].copy_from_slice(&row[start..start + inside]);
            out[inside..].fill(0.0);
        }
    }
}

impl MatrixRef<'_> {
    /// The tiles of `shape` one after the other, each row-major, those of the first `shape.d_output()` rows first; what
    /// reaches over an edge is zero. From such tiles a [dictionary](crate::dictionary::PatternDictionary::learn)
    /// learns.
    ///
    /// # Example
    /// ```
    /// use pixel_core::{Matrix, Shape};
    /// let w = Matrix::new(Shape::new(2, 3)?, vec![1., 2., 3., 4., 5., 6.])?;
    /// assert_eq!(w.as_ref().tiles(Shape::new(2, 2)?), [1., 2., 4., 5., 3., 0., 6., 0.]);
    /// # Ok::<(), pixel_core::ShapeError>(())
    /// ```
    pub fn tiles(self, shape: Shape) -> Vec<f32> {
        let (rows, columns) = (shape.d_output(), shape.d_input());
        let [m, n] = <[usize; 2]>::from(self.shape);
        let tiles = m.div_ceil(rows) * n.div_ceil(columns);
        let mut out = Vec::with_capacity(tiles * shape.num_weights());
        for top in (0..m).step_by(rows) {
            for left in (0..n).step_by(columns) {
                for row in top..top + rows {
                    let inside = if row < m { &self.row(row)[left..(left + columns).min(n)] } else { &[] };
                    out.extend_from_slice(inside);
                    out.resize(out.len() + columns - inside.len(), 0.0);
                }
            }
        }
        out
    }
}

/// An owned row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    shape: Shape,
    data: Vec<f32>,
}

impl Matrix {
    /// Takes `data`, row-major `[d_output, d_input]`, as a matrix.
    ///
    /// # Errors
    /// [`ShapeError::Length`] if `data` does not hold exactly `shape.num_weights()` values.
    ///
    /// # Example
    /// ```
    /// use pixel_core::{Matrix, Shape};
    /// let w = Matrix::new(Shape::new(2, 3)?, vec![1., 2., 3., 4., 5., 6.])?;
    /// assert_eq!(w.as_ref().row(1), [4., 5., 6.]);
    /// # Ok::<(), pixel_core::ShapeError>(())
    /// ```
    pub fn new(shape: Shape, data: Vec<f32>) -> Result<Self, ShapeError> {
        check_length(shape, data.len())?;
        Ok(Self { shape, data })
    }

    /// Standard normal numbers that depend on `seed` alone (Box & Muller 1958).
    ///
    /// # Example
    /// ```
    /// use pixel_core::{Matrix, Shape};
    /// let w = Matrix::random(Shape::new(64, 100)?, 7);
    /// let power = w.as_slice().iter().map(|w| w * w).sum::<f32>() / 6400.0;
    /// assert!((power - 1.0).abs() < 0.05);
    /// # Ok::<(), pixel_core::ShapeError>(())
    /// ```
    pub fn random(shape: Shape, seed: u64) -> Self {
        // Of 53 bits, and never 0, which has no logarithm.
        let uniform = |at: u64| ((split_mix(seed, at) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let normal = |at: usize| {
            let (radius, turn) = (uniform(2 * at as u64), uniform(2 * at as u64 + 1));
            ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()) as f32
        };
        Self { shape, data: (0..shape.num_weights()).map(normal).collect() }
    }

    /// A matrix of zeros.
    pub fn zeros(shape: Shape) -> Self {
        Self { shape, data: vec![0.0; shape.num_weights()] }
    }

    /// The shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Borrows the matrix.
    #[allow(clippy::should_implement_trait, reason = "the view is a struct of its own, not a reference")]
    pub fn as_ref(&self) -> MatrixRef<'_> {
        MatrixRef { shape: self.shape, data: &self.data }
    }

    /// All weights, row-major.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// All weights, row-major, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The weights, row-major.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }
}

fn check_length(shape: Shape, len: usize) -> Result<(), ShapeError> {
    if len == shape.num_weights() { Ok(()) } else { Err(ShapeError::Length { shape, len }) }
}

/// The shape of a tile: the patch of weights that one code covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileShape {
    /// Rows of a tile, at least 1.
    pub rows: usize,
    /// Columns of a tile, at least 1.
    pub cols: usize,
}

impl TileShape {
    /// Weights in a tile.
    pub const fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Whether the tile holds no weight.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// The tiles that cover a matrix, those at the right and lower edges extending beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TileGrid {
    /// The matrix.
    pub shape: Shape,
    /// One tile.
    pub tile: TileShape,
}

impl TileGrid {
    /// Tiles from top to bottom.
    pub const fn tile_rows(&self) -> usize {
        self.shape.d_output.div_ceil(self.tile.rows)
    }

    /// Tiles from left to right.
    pub const fn tile_cols(&self) -> usize {
        self.shape.d_input.div_ceil(self.tile.cols)
    }

    /// All tiles.
    pub const fn num_tiles(&self) -> usize {
        self.tile_rows() * self.tile_cols()
    }

    /// Copies tile row `tile_row` of a column block, `[d_output, tile.cols]`, into `tile`, row-major; rows beyond the
    /// matrix read as zero.
    pub fn read_from_block(&self, block: &[f32], tile_row: usize, tile: &mut [f32]) {
        let start = tile_row * self.tile.len();
        let inside = (block.len() - start).min(tile.len());
        tile[..inside].copy_from_slice(&block[start..start + inside]);
        tile[inside..].fill(0.0);
    }

    /// Writes `tile` into tile row `tile_row` of a column block, `[d_output, tile.cols]`; rows beyond the matrix are
    /// dropped.
    pub fn write_to_block(&self, tile: &[f32], tile_row: usize, block: &mut [f32]) {
        let start = tile_row * self.tile.len();
        let inside = (block.len() - start).min(tile.len());
        block[start..start + inside].copy_from_slice(&tile[..inside]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_shape_is_refused_with_both_sides() {
        let error = Shape::new(0, 7).unwrap_err();
        assert_eq!(error, ShapeError::Empty { d_output: 0, d_input: 7 });
        assert!(error.to_string().contains("0×7"), "{error}");
        assert!(Shape::new(usize::MAX, 2).is_err());
    }

    #[test]
    fn columns_beyond_the_edge_read_as_zero() {
        let w = Matrix::new(Shape::new(2, 3).unwrap(), vec![1., 2., 3., 4., 5., 6.]).unwrap();
        let mut block = [9.0; 4];
        w.as_ref().copy_columns(2, &mut block);
        assert_eq!(block, [3., 0., 6., 0.]);
    }

    #[test]
    fn a_tile_round_trips_through_a_block_that_is_shorter() {
        let grid = TileGrid { shape: Shape::new(3, 2).unwrap(), tile: TileShape { rows: 2, cols: 2 } };
        let block = [1., 2., 3., 4., 5., 6.];
        let (mut tile, mut copy) = ([9.0; 4], [0.0; 6]);
        for tile_row in 0..grid.tile_rows() {
            grid.read_from_block(&block, tile_row, &mut tile);
            grid.write_to_block(&tile, tile_row, &mut copy);
        }
        assert_eq!(tile, [5., 6., 0., 0.]);
        assert_eq!(copy, block);
    }
}
