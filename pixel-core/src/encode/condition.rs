//! The step before a codec: rotate, extract parts, bring to unit scale, divide each row by its own.

use super::low_rank::{FactorStorage, LowRank, LowRankFactors};
use super::protected::ProtectedColumns;
use crate::codec::RowScaling;
use crate::error::WeightError;
use crate::math::Exponent;
use crate::math::rotation::Rotation;
use crate::matrix::{Matrix, MatrixRef};
use half::f16;

/// A weight as codecs want it: `W·Q = 2^exponent · (diag(row_scales) · weight + low_rank)`, up to the zero rows.
#[derive(Debug)]
pub struct Conditioned {
    /// What the codec sees.
    pub weight: Matrix,
    /// The factor extracted from the whole matrix, so that F16 scales suit weights of every magnitude.
    pub exponent: Exponent,
    /// The factor extracted from each row, `[d_output]`; empty under [`RowScaling::None`]. A row too small for F16 next
    /// to the largest row has scale 0 and reads as zeros.
    pub row_scales: Vec<f16>,
    /// `Σ w²` of the rows whose scale is 0, in units of `2^exponent`.
    pub lost_power: f64,
    /// The rotation, if there was one.
    pub rotation: Option<Rotation>,
    /// The columns extracted before it.
    pub protected: ProtectedColumns,
    /// The low-rank part extracted after it.
    pub low_rank: Option<LowRankFactors>,
}

/// What is extracted from a weight before a codec sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extracted<'a> {
    /// Columns, ascending.
    pub columns: &'a [u32],
    /// A part of low rank, in the basis of the rotation, and how its factors are rounded.
    pub low_rank: Option<(&'a LowRank, FactorStorage)>,
}

impl Extracted<'_> {
    /// Whether the codec sees the whole weight.
    pub const fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.low_rank.is_none()
    }
}

/// Conditions `weight` in place, minus the `extracted` parts. The exponent is that of the whole weight, so that F16
/// suits the extracted parts too.
///
/// # Errors
/// [`WeightError::NotFinite`] with the first NaN or infinite weight; [`WeightError::LowRank`] for factors that are not
/// finite or, in units of the weight, beyond F16; [`WeightError::RowScale`] for a row whose residual after the low-rank
/// part is beyond F16 scales.
///
/// # Panics
/// If a column does not exist, or the low-rank part has another shape.
pub fn condition(
    mut weight: Matrix,
    scaling: RowScaling,
    rotation: Option<Rotation>,
    extracted: Extracted<'_>,
) -> Result<Conditioned, WeightError> {
    check_finite(weight.as_ref())?;
    let shape = weight.shape();
    let exponent = exponent_of(weight.as_ref());
    let unit = exponent.inverse();
    weight.as_mut_slice().iter_mut().for_each(|w| *w *= unit);
    let protected = ProtectedColumns::take(&mut weight, extracted.columns);
    if let Some(rotation) = &rotation {
        rotation.rotate(&mut weight);
    }
    let round = |(part, storage)| LowRankFactors::round(part, exponent, storage);
    let low_rank = extracted.low_rank.map(round).transpose().map_err(|error| WeightError::LowRank(Box::new(error)))?;
    if let Some(factors) = &low_rank {
        factors.decode(Exponent::ZERO).add_scaled(&mut weight, -1.0);
    }
    let mut lost_power = 0.0;
    let row_scales = match scaling {
        RowScaling::None => Vec::new(),
        RowScaling::RootMeanSquare(factor) => {
            let rows = weight.as_mut_slice().chunks_exact_mut(shape.d_input()).enumerate();
            rows.map(|(row, values)| normalize_row(row, values, factor, &mut lost_power)).collect::<Result<_, _>>()?
        }
    };
    Ok(Conditioned { weight, exponent, row_scales, lost_power, rotation, protected, low_rank })
}

fn check_finite(weight: MatrixRef<'_>) -> Result<(), WeightError> {
    match weight.as_slice().iter().position(|w| !w.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let n = weight.shape().d_input();
            Err(WeightError::NotFinite { row: at / n, col: at % n, value: weight.as_slice()[at] })
        }
    }
}

/// The exponent that brings the root mean square of the largest row into [1, 2); 0 for a zero matrix.
fn exponent_of(weight: MatrixRef<'_>) -> Exponent {
    let n = weight.shape().d_input();
    Exponent::below(weight.as_slice().chunks_exact(n).map(root_mean_square).fold(0.0, f64::max))
}

fn root_mean_square(row: &[f32]) -> f64 {
    (row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / row.len() as f64).sqrt()
}

/// Divides the values of row `row` by their scale, which it returns; adds the power of a row that is lost to
/// `lost_power`.
fn normalize_row(row: usize, values: &mut [f32], factor: f32, lost_power: &mut f64) -> Result<f16, WeightError> {
    let root_mean_square = root_mean_square(values);
    let value = root_mean_square * f64::from(factor);
    let scale = f16::from_f64(value);
    if !scale.is_finite() {
        return Err(WeightError::RowScale { row, value });
    }
    if scale == f16::ZERO {
        *lost_power += root_mean_square * root_mean_square * values.len() as f64;
    }
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    values.iter_mut().for_each(|x| *x *= inverse);
    Ok(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Shape;

    fn conditioned(rows: usize, data: Vec<f32>) -> Conditioned {
        let shape = Shape::new(rows, data.len() / rows).unwrap();
        let extracted = Extracted::default();
        condition(Matrix::new(shape, data).unwrap(), RowScaling::RootMeanSquare(1.0), None, extracted).unwrap()
    }

    #[test]
    fn rows_come_out_with_unit_root_mean_square() {
        let c = conditioned(2, vec![3.0, -3.0, 12.0, 12.0]);
        assert_eq!(c.exponent.get(), 3);
        assert_eq!(c.row_scales, [f16::from_f32(0.375), f16::from_f32(1.5)]);
        assert_eq!(c.weight.as_slice(), [1.0, -1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_zero_row_has_zero_scale_and_stays_zero() {
        let c = conditioned(2, vec![0.0, 0.0, 1.0, 1.0]);
        assert_eq!(c.row_scales[0], f16::ZERO);
        assert_eq!(c.weight.as_slice(), [0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn the_power_of_a_row_too_small_for_its_scale_is_told() {
        let tiny = 2f32.powi(-40);
        let c = conditioned(2, vec![tiny, tiny, 1.0, 1.0]);
        assert_eq!(c.row_scales[0], f16::ZERO);
        assert_eq!(c.lost_power, 2.0 * f64::from(tiny) * f64::from(tiny));
    }

    #[test]
    fn the_extremes_of_f32_stay_finite() {
        for value in [f32::MIN_POSITIVE / 8.0, 1e-38, 1e38, f32::MAX] {
            let c = conditioned(1, vec![value, -value]);
            assert!(c.weight.as_slice().iter().all(|x| x.is_finite()), "{value:e}");
            assert!(c.row_scales[0].is_finite());
        }
    }

    #[test]
    fn the_first_weight_that_is_not_finite_is_named() {
        let data = vec![1.0, 2.0, f32::NAN, f32::INFINITY];
        let weight = Matrix::new(Shape::new(2, 2).unwrap(), data).unwrap();
        let error = condition(weight, RowScaling::None, None, Extracted::default()).unwrap_err();
        assert!(error.to_string().contains("row 1, column 0 is NaN"), "{error}");
    }
}
