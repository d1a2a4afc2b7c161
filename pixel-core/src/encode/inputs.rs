//! What is known about a weight's inputs, prepared for error feedback.

use super::feedback::{Feedback, FeedbackOptions};
use super::moments::Moments;
use super::row_feedback::FactoredRows;
use super::spec::CodingSpec;
use crate::error::WeightError;
use crate::math::rotation::Rotation;
use crate::matrix::{Matrix, Shape};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The moments of a weight's inputs, rotated and factored: for one weight at several rates, or several weights that
/// share their inputs. Factors are made when a codec first asks for blocks of their width, and kept.
#[derive(Debug)]
pub struct PreparedInputs {
    rotation: Option<u64>,
    options: FeedbackOptions,
    /// Of the rotated inputs, without the protected ones.
    moments: Moments,
    protected: Option<ProtectedInputs>,
    /// One for each width of blocks that was asked for.
    factors: Mutex<Vec<Arc<Feedback>>>,
    /// For codecs that take whole rows.
    rows: OnceLock<Arc<FactoredRows>>,
}

/// Columns that are protected, ascending, and the unchanged moments of all inputs.
#[derive(Debug)]
struct ProtectedInputs {
    columns: Vec<u32>,
    moments: Moments,
}

impl PreparedInputs {
    /// Prepares `moments` for weights that are rotated, and whose errors are fed back, as `spec` says; of these,
    /// `columns`, ascending, are [protected](super::ProtectedColumns): errors of the codes there cost nothing. A `spec`
    /// without feedback gets that of the default options.
    ///
    /// # Panics
    /// If there is no such column.
    pub fn new(moments: Moments, spec: &CodingSpec, columns: Vec<u32>) -> Self {
        let (moments, protected) = match columns.is_empty() {
            true => (moments, None),
            false => (moments.clone().without(&columns), Some(ProtectedInputs { columns, moments })),
        };
        let moments = match spec.rotation {
            None => moments,
            Some(seed) => {
                let rotation = Rotation::new(moments.d_input(), seed);
                moments.rotated(&rotation)
            }
        };
        let (rotation, options) = (spec.rotation, spec.feedback.unwrap_or_default());
        Self { rotation, options, moments, protected, factors: Mutex::default(), rows: OnceLock::new() }
    }

    /// The protected columns, ascending.
    pub fn columns(&self) -> &[u32] {
        self.protected.as_ref().map_or(&[], |protected| &protected.columns)
    }

    /// The seed of the rotation.
    pub(super) const fn rotation(&self) -> Option<u64> {
        self.rotation
    }

    /// The moments of the rotated inputs, without the protected ones.
    pub(super) const fn moments(&self) -> &Moments {
        &self.moments
    }

    /// The given moments of all inputs, if some are protected.
    pub(super) fn original_moments(&self) -> Option<&Moments> {
        self.protected.as_ref().map(|protected| &protected.moments)
    }

    /// The feedback for blocks of `width` columns.
    pub(super) fn feedback(&self, width: usize) -> Arc<Feedback> {
        let mut factors = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = factors.iter().find(|factor| factor.width() == width) {
            return Arc::clone(found);
        }
        let made = Arc::new(Feedback::new(&self.moments, width, self.rotation.is_some(), self.options));
        factors.push(Arc::clone(&made));
        made
    }

    /// The feedback for codecs that take whole rows.
    pub(super) fn row_feedback(&self) -> Arc<FactoredRows> {
        Arc::clone(self.rows.get_or_init(|| Arc::new(FactoredRows::new(&self.moments, self.options))))
    }

    /// Refuses a weight of another width.
    pub(super) fn check_width(&self, shape: Shape) -> Result<(), WeightError> {
        check_width(&self.moments, shape)
    }

    /// `tr(W·H·Wᵀ)` of a weight before it is rotated.
    ///
    /// # Errors
    /// [`WeightError::MomentsWidth`].
    pub fn output_power(&self, mut weight: Matrix) -> Result<f64, WeightError> {
        let shape = weight.shape();
        self.check_width(shape)?;
        if let Some(moments) = self.original_moments() {
            return Ok(moments.output_power(weight.as_ref()));
        }
        if let Some(seed) = self.rotation {
            Rotation::new(shape.d_input(), seed).rotate(&mut weight);
        }
        Ok(self.moments.output_power(weight.as_ref()))
    }

    /// Bytes that encoding a weight of `shape` with feedback holds, without the weight itself; more if columns are
    /// protected, because errors are then measured under the given moments.
    pub fn peak_bytes(shape: Shape, protect: usize) -> u64 {
        let n = shape.d_input() as u64;
        Feedback::peak_bytes(shape) + if protect > 0 { 8 * n * n } else { 0 }
    }
}

/// Refuses moments that are not of the width of a weight of `shape`.
pub(super) fn check_width(moments: &Moments, shape: Shape) -> Result<(), WeightError> {
    match moments.d_input() {
        found if found != shape.d_input() => Err(WeightError::MomentsWidth { shape, found }),
        _ => Ok(()),
    }
}
