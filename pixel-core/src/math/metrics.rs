//! How far a reproduction lies from its weight, and what it costs.

use serde::{Deserialize, Serialize};

/// The error of a reproduction `Ŵ` of `W`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorSums {
    /// `Σ W²`.
    pub power: f64,
    /// `Σ (W − Ŵ)²`.
    pub error: f64,
}

impl ErrorSums {
    /// The sums over two slices of equal length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn between(original: &[f32], reproduced: &[f32]) -> Self {
        assert_eq!(original.len(), reproduced.len(), "lengths");
        let mut sums = Self::default();
        for (&w, &r) in original.iter().zip(reproduced) {
            let (w, r) = (f64::from(w), f64::from(r));
            sums.power += w * w;
            sums.error += (w - r) * (w - r);
        }
        sums
    }

    /// Relative mean squared error, `Σ (W − Ŵ)² / Σ W²`; 0 for an exact reproduction, also of zero.
    pub fn relative_mse(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.power }
    }

    /// Signal to quantization noise ratio in dB, `−10·log₁₀` of [`relative_mse`](Self::relative_mse).
    pub fn sqnr_db(&self) -> f64 {
        -10.0 * self.relative_mse().log10()
    }
}

impl std::ops::AddAssign for ErrorSums {
    fn add_assign(&mut self, other: Self) {
        self.power += other.power;
        self.error += other.error;
    }
}

/// Relative error `‖W − Ŵ‖ / ‖W‖` (Frobenius).
///
/// # Panics
/// If the lengths differ.
pub fn relative_error(original: &[f32], reproduced: &[f32]) -> f64 {
    ErrorSums::between(original, reproduced).relative_mse().sqrt()
}

/// Cosine similarity `⟨a, b⟩ / (‖a‖·‖b‖)`; 0 if either is zero.
///
/// # Panics
/// If the lengths differ.
///
/// # Example
/// ```
/// assert_eq!(pixel_core::math::metrics::cosine(&[1.0, 0.0], &[-2.0, 0.0]), -1.0);
/// ```
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let (mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        aa += x * x;
        bb += y * y;
        ab += x * y;
    }
    if aa == 0.0 || bb == 0.0 { 0.0 } else { ab / (aa.sqrt() * bb.sqrt()) }
}

/// Bits per weight of `num_bytes` stored bytes for `num_weights` weights; 0 for no weights.
pub fn bits_per_weight(num_bytes: u64, num_weights: u64) -> f64 {
    if num_weights == 0 { 0.0 } else { num_bytes as f64 * 8.0 / num_weights as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn the_relative_error_of_a_worked_example() {
        let sums = ErrorSums::between(&[3.0, 4.0], &[3.0, 3.0]);
        assert_eq!((sums.power, sums.error), (25.0, 1.0));
        assert_eq!(sums.relative_mse(), 0.04);
        assert_abs_diff_eq!(sums.sqnr_db(), 13.979, epsilon = 1e-3);
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 3.0]), 0.2);
    }

    #[test]
    fn zero_reproduced_as_zero_has_no_error() {
        assert_eq!(ErrorSums::between(&[0.0], &[0.0]).relative_mse(), 0.0);
        assert_eq!(ErrorSums::between(&[0.0], &[1.0]).relative_mse(), f64::INFINITY);
    }
}
