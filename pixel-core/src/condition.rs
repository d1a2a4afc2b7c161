//! The step before a codec: rotate, bring to unit scale, divide each row by its own.

use crate::codec::RowScaling;
use crate::error::WeightError;
use crate::low_rank::{FactorStorage, LowRank, LowRankFactors};
use crate::matrix::{Matrix, MatrixRef};
use crate::protected::ProtectedColumns;
use crate::rotation::Rotation;
use half::f16;

/// The exponents that a packed weight may have: `2^exponent` and its inverse are normal f32 numbers.
pub const EXPONENT_RANGE: std::ops::RangeInclusive<i32> = -126..=126;

/// A weight as codecs want it: `W·Q = 2^exponent · (diag(row_scales) · weight + low_rank)`, up to the zero rows.
#[derive(Debug)]
pub struct Conditioned {
    /// What the codec sees.
    pub weight: Matrix,
    /// The factor taken out of the whole matrix, so that F16 scales suit weights of every magnitude.
    pub exponent: i32,
    /// The factor taken out of each row, `[d_output]`; empty under [`RowScaling::None`]. A row too small for F16 beside
    /// the largest row has scale 0 and reads as zeros.
    pub row_scales: Vec<f16>,
    /// `Σ w²` of the rows whose scale is 0, in units of `2^exponent`.
    pub lost_power: f64,
    /// The rotation, if there was one.
    pub rotation: Option<Rotation>,
    /// The columns taken out before it.
    pub protected: ProtectedColumns,
    /// The low-rank part taken out after it.
    pub low_rank: Option<LowRankFactors>,
}

/// What is taken out of a weight before a codec sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct TakenOut<'a> {
    /// Columns, ascending.
    pub columns: &'a [u32],
    /// A part of low rank, in the basis of the rotation, and how its factors are rounded.
    pub low_rank: Option<(&'a LowRank, FactorStorage)>,
}

/// Conditions `weight` in place.
///
/// # Errors
/// [`WeightError::NotFinite`] with the first NaN or infinite weight.
pub fn condition(weight: Matrix, scaling: RowScaling, rotation: Option<Rotation>) -> Result<Conditioned, WeightError> {
    condition_without(weight, scaling, rotation, TakenOut::default())
}

/// [`condition`] with `taken` out. The exponent is that of the whole weight, so that what was taken out fits F16 too.
///
/// # Errors
/// As [`condition`]; [`WeightError::LowRank`] for factors that are not finite or, in units of the weight, beyond F16.
///
/// # Panics
/// If there is no such column, or the low-rank part has another shape.
pub fn condition_without(
    mut weight: Matrix,
    scaling: RowScaling,
    rotation: Option<Rotation>,
    taken: TakenOut<'_>,
) -> Result<Conditioned, WeightError> {
    check_finite(weight.as_ref())?;
    let shape = weight.shape();
    let exponent = exponent_of(weight.as_ref());
    let unit = exp2(-exponent);
    weight.as_mut_slice().iter_mut().for_each(|w| *w *= unit);
    let protected = ProtectedColumns::take(&mut weight, taken.columns);
    if let Some(rotation) = &rotation {
        rotation.rotate(&mut weight);
    }
    let round = |(part, storage)| LowRankFactors::round(part, exponent, storage);
    let low_rank = taken.low_rank.map(round).transpose().map_err(|error| WeightError::LowRank(Box::new(error)))?;
    if let Some(factors) = &low_rank {
        factors.decode(0).add_scaled(&mut weight, -1.0);
    }
    let mut lost_power = 0.0;
    let row_scales = match scaling {
        RowScaling::None => Vec::new(),
        RowScaling::RootMeanSquare(factor) => {
            let rows = weight.as_mut_slice().chunks_exact_mut(shape.d_input());
            rows.map(|row| normalize_row(row, factor, &mut lost_power)).collect()
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
fn exponent_of(weight: MatrixRef<'_>) -> i32 {
    let n = weight.shape().d_input();
    let largest = weight.as_slice().chunks_exact(n).map(root_mean_square).fold(0.0, f64::max);
    if largest == 0.0 {
        return 0;
    }
    // The exponent field of a normal f64 is the floor of its logarithm.
    let exponent = (largest.to_bits() >> 52) as i32 - 1023;
    exponent.clamp(*EXPONENT_RANGE.start(), *EXPONENT_RANGE.end())
}

/// `2^exponent`, for an exponent in [`EXPONENT_RANGE`].
pub(crate) fn exp2(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

fn root_mean_square(row: &[f32]) -> f64 {
    (row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / row.len() as f64).sqrt()
}

/// Divides `row` by its scale, which it returns; adds the power of a row that is lost to `lost_power`.
fn normalize_row(row: &mut [f32], factor: f32, lost_power: &mut f64) -> f16 {
    let root_mean_square = root_mean_square(row);
    let scale = f16::from_f64(root_mean_square * f64::from(factor));
    if scale == f16::ZERO {
        *lost_power += root_mean_square * root_mean_square * row.len() as f64;
    }
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    row.iter_mut().for_each(|x| *x *= inverse);
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Shape;

    fn conditioned(rows: usize, data: Vec<f32>) -> Conditioned {
        let shape = Shape::new(rows, data.len() / rows).unwrap();
        condition(Matrix::new(shape, data).unwrap(), RowScaling::RootMeanSquare(1.0), None).unwrap()
    }

    #[test]
    fn rows_come_out_with_unit_root_mean_square() {
        let c = conditioned(2, vec![3.0, -3.0, 12.0, 12.0]);
        assert_eq!(c.exponent, 3);
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
        let error = condition(weight, RowScaling::None, None).unwrap_err();
        assert!(error.to_string().contains("row 1, column 0 is NaN"), "{error}");
    }
}
