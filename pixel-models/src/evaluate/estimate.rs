//! Means and how far they are to be trusted.

use serde::Serialize;

/// A measured value and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// One σ, as if the observations were independent. NaN, `null` in JSON, if there is one observation.
    pub error: f64,
}

impl Estimate {
    /// `exp` of the mean `m ± σ`, to first order: `exp(m) ± exp(m)·σ`.
    pub(super) fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, error: value * self.error }
    }
}

/// The mean of numbers and the spread around it, updated one by one.
///
/// Source: Welford, Note on a Method for Calculating Corrected Sums of Squares and Products, Technometrics 4 (1962).
#[derive(Debug, Clone, Default)]
pub(super) struct Mean {
    count: usize,
    mean: f64,
    /// `Σ (x − mean)²`.
    spread: f64,
}

impl Mean {
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        let step = value - self.mean;
        self.mean += step / self.count as f64;
        self.spread += step * (value - self.mean);
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The mean and `√(Σ (x − mean)² / (n·(n − 1)))`.
    pub(super) fn estimate(&self) -> Estimate {
        let count = self.count as f64;
        Estimate { value: self.mean, error: (self.spread / (count * (count - 1.0))).sqrt() }
    }
}

impl FromIterator<f64> for Mean {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut mean = Self::default();
        values.into_iter().for_each(|value| mean.add(value));
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn the_error_is_the_deviation_of_the_mean() {
        // Mean 5, squares 9 + 1 + 1 + 9 = 20, 20 / (4·3).
        let estimate = [2.0, 4.0, 6.0, 8.0].into_iter().collect::<Mean>().estimate();
        assert_eq!(estimate.value, 5.0);
        assert_abs_diff_eq!(estimate.error, (20.0f64 / 12.0).sqrt(), epsilon = 1e-15);
    }

    #[test]
    fn one_observation_has_no_error() {
        let estimate = std::iter::once(3.0).collect::<Mean>().estimate();
        assert!(estimate.value == 3.0 && estimate.error.is_nan());
        assert_eq!(serde_json::to_string(&estimate).unwrap(), r#"{"value":3.0,"error":null}"#);
    }
}
