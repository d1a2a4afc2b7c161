//! Filling a dictionary: base, computed and learned patterns.

use super::error::{DictionaryError, check_finite};
use super::pattern::PatternId;
use super::store::PatternDictionary;
use crate::matrix::{Matrix, MatrixRef, Shape, TileShape};
use crate::patterns::{PatternKind, base_patterns, computed_pattern, learn_patterns};

impl PatternDictionary {
    /// Adds the [base patterns](base_patterns) of a shape and returns their ids.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn generate_base_patterns(&mut self, shape: Shape) -> Result<Vec<PatternId>, DictionaryError> {
        let tile = TileShape { rows: shape.d_output(), cols: shape.d_input() };
        base_patterns(tile)
            .into_iter()
            .map(|(kind, values)| self.add(Matrix::new(shape, values)?.as_ref(), kind))
            .collect()
    }

    /// Adds the first `count` [computed patterns](computed_pattern) of a shape and returns their ids.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn generate_random_patterns(&mut self, shape: Shape, count: u16) -> Result<Vec<PatternId>, DictionaryError> {
        let mut values = Matrix::zeros(shape);
        (0..count)
            .map(|index| {
                computed_pattern(0, index, values.as_mut_slice());
                self.add(values.as_ref(), PatternKind::Random)
            })
            .collect()
    }

    /// Learns at most `count` patterns of `shape` from tiles, `[T, shape]`, by [`learn_patterns`], adds them, and
    /// returns their ids.
    ///
    /// # Errors
    /// As [`add`](Self::add); [`DictionaryError::NotFinite`] for a tile; [`DictionaryError::PartialTile`] if the values
    /// are no whole number of tiles.
    pub fn learn(
        &mut self,
        shape: Shape,
        tiles: &[f32],
        count: usize,
        seed: u64,
    ) -> Result<Vec<PatternId>, DictionaryError> {
        check_finite("the tiles", tiles)?;
        let len = shape.num_weights();
        if !tiles.len().is_multiple_of(len) {
            return Err(DictionaryError::PartialTile { shape, len: tiles.len() });
        }
        let patterns = learn_patterns(tiles, len, count, seed);
        let add = |pattern: &[f32]| self.add(MatrixRef::new(shape, pattern)?, PatternKind::Learned);
        patterns.chunks_exact(len).map(add).collect()
    }
}
