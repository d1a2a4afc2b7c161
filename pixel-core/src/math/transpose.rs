//! A matrix on its side.

/// A row-major matrix of `cols` columns, `[rows, cols]`, as `[cols, rows]`.
///
/// # Panics
/// If `cols` is zero or does not divide the length.
pub fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    /// Rows and columns of a block: two of them, 32 KiB, stay in the first cache.
    const BLOCK: usize = 64;
    let rows = values.len() / cols;
    assert_eq!(values.len(), rows * cols, "rows of {cols}");
    let mut out = vec![0.0; values.len()];
    for first_row in (0..rows).step_by(BLOCK) {
        for first_col in (0..cols).step_by(BLOCK) {
            for col in first_col..cols.min(first_col + BLOCK) {
                for row in first_row..rows.min(first_row + BLOCK) {
                    out[col * rows + row] = values[row * cols + col];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_transposed_matrix_have_no_seams() {
        for (rows, cols) in [(1, 1), (2, 3), (64, 64), (65, 130), (127, 1), (1, 127)] {
            let values: Vec<f32> = (0..rows * cols).map(|value| value as f32).collect();
            let found = transposed(&values, cols);
            let expected = (0..cols).flat_map(|col| (0..rows).map(move |row| (row * cols + col) as f32));
            assert!(found.into_iter().eq(expected), "{rows}×{cols}");
        }
    }
}
