//! Protected columns: the weights of a few inputs, stored in F16 in place of what the codes decode to there.
//!
//! ```text
//! W ≈ what the codes decode to, but column c of `columns` is 2^exponent · values[:, c]
//! ```
//!
//! The codec works on the weight with these columns at zero, before it is rotated, and its errors there cost nothing.
//! The inputs worth protecting are those that contribute most to the outputs, by power and weights: `H_jj·‖w_j‖²`.
//!
//! Sources: the columns kept in F16 of Dettmers et al., *LLM.int8()* (2022) and Lee et al., *OWQ* (2024).

use super::moments::Moments;
use crate::codec::{StreamSpec, StreamType, check_finite};
use crate::error::{ConfigError, FormatError};
use crate::matrix::{Matrix, MatrixRef, Shape};
use half::f16;

/// The name of the stream of column numbers.
pub(crate) const COLUMNS: &str = "protected";
/// The name of the stream of their weights.
pub(crate) const VALUES: &str = "protected_values";

/// The protected columns of a packed weight. Most have none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProtectedColumns {
    columns: Vec<u32>,
    values: Vec<f16>,
}

impl ProtectedColumns {
    /// Columns `columns` of a weight of `shape`, with `values` `[d_output, columns]` in units of its power of two.
    ///
    /// # Errors
    /// [`FormatError`] if the columns do not ascend or are not there, or a value is not finite.
    ///
    /// # Panics
    /// If there are not as many values.
    pub(crate) fn new(shape: Shape, columns: Vec<u32>, values: Vec<f16>) -> Result<Self, FormatError> {
        assert_eq!(values.len(), shape.d_output() * columns.len(), "values of protected columns");
        for (index, &value) in columns.iter().enumerate() {
            let value = value as usize;
            if value >= shape.d_input() {
                return Err(FormatError::Column { stream: COLUMNS, index, value, d_input: shape.d_input() });
            }
            if let Some(previous) = index.checked_sub(1).map(|i| columns[i] as usize).filter(|&p| p >= value) {
                return Err(FormatError::NotAscending { stream: COLUMNS, index, value, previous });
            }
        }
        check_finite(VALUES, &values)?;
        Ok(Self { columns, values })
    }

    /// Extracts `columns` from `weight`, which is in units of its power of two, and sets them to zero.
    ///
    /// # Panics
    /// If there is no such column.
    pub(crate) fn take(weight: &mut Matrix, columns: &[u32]) -> Self {
        let n = weight.shape().d_input();
        let mut values = Vec::with_capacity(weight.shape().d_output() * columns.len());
        for row in weight.as_mut_slice().chunks_exact_mut(n) {
            for &column in columns {
                // A row of root mean square 2 holds no value beyond 2·√n: only widths of 10⁹ could reach F16's end.
                let value = std::mem::take(&mut row[column as usize]).clamp(-f16::MAX.to_f32(), f16::MAX.to_f32());
                values.push(f16::from_f32(value));
            }
        }
        Self { columns: columns.to_vec(), values }
    }

    /// The columns, ascending, `[k]`.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Their weights in units of the weight's power of two, `[d_output, k]`.
    pub fn values(&self) -> &[f16] {
        &self.values
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Replaces the columns in row `row` of the weight, `unit` being its power of two.
    pub(crate) fn replace(&self, row: usize, weights: &mut [f32], unit: f32) {
        let values = &self.values[row * self.len()..][..self.len()];
        for (&column, value) in self.columns.iter().zip(values) {
            weights[column as usize] = (value.to_f32() * unit).clamp(-f32::MAX, f32::MAX);
        }
    }
}

/// The `count` columns of `weight` with the largest `H_jj·‖w_j‖²`, ascending; `H` is the identity without `moments`. Of
/// two alike it is the first.
///
/// # Panics
/// If the moments are of another width.
///
/// # Example
/// ```
/// use pixel_core::encode::largest_columns;
/// use pixel_core::{MatrixRef, Moments, Shape};
/// let weight = MatrixRef::new(Shape::new(2, 3)?, &[1.0, 4.0, 2.0, 1.0, 0.0, 2.0])?;
/// assert_eq!(largest_columns(weight, None, 2), [1, 2]); // energies 2, 16, 8
/// let moments = Moments::of_inputs(3, &[4.0, 0.5, 1.0]); // times 16, ¼, 1
/// assert_eq!(largest_columns(weight, Some(&moments), 2), [0, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn largest_columns(weight: MatrixRef<'_>, moments: Option<&Moments>, count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let n = weight.shape().d_input();
    assert!(moments.is_none_or(|moments| moments.d_input() == n), "width of the moments");
    let mut energies = vec![0.0f64; n];
    for row in weight.as_slice().chunks_exact(n) {
        energies.iter_mut().zip(row).for_each(|(energy, &w)| *energy += f64::from(w) * f64::from(w));
    }
    if let Some(moments) = moments {
        energies.iter_mut().enumerate().for_each(|(j, energy)| *energy *= moments.at(j, j));
    }
    // Stored as U32, which cannot name columns beyond.
    let mut columns: Vec<u32> = (0..n.min(u32::MAX as usize) as u32).collect();
    columns.sort_by(|&a, &b| energies[b as usize].total_cmp(&energies[a as usize]));
    columns.truncate(count);
    columns.sort_unstable();
    columns
}

/// Refuses to protect all columns of a weight.
pub(crate) fn check_protect(count: usize, d_input: usize) -> Result<(), ConfigError> {
    if count < d_input { Ok(()) } else { Err(ConfigError::Protect { count, d_input }) }
}

/// What is stored for `count` protected columns of a weight of `shape`.
pub(crate) fn streams(shape: Shape, count: usize) -> Vec<StreamSpec> {
    if count == 0 {
        return Vec::new();
    }
    vec![
        StreamSpec { name: COLUMNS, dtype: StreamType::U32, shape: vec![count] },
        StreamSpec { name: VALUES, dtype: StreamType::F16, shape: vec![shape.d_output(), count] },
    ]
}
