//! Norms of rows.

use crate::math::simd::{Simd, for_every_level};

/// A norm over the last axis, with its parameters, `[n]` each.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// `x / √(mean x² + ε) · γ`.
    ///
    /// Source: Zhang and Sennrich, *Root Mean Square Layer Normalization*, <https://arxiv.org/abs/1910.07467>.
    Rms {
        /// The factor of each value.
        gamma: &'a [f32],
        /// What is added to the mean of the squares.
        epsilon: f64,
    },
    /// `(x − mean x) / √(var x + ε) · γ + β`.
    ///
    /// Source: Ba, Kiros and Hinton, *Layer Normalization*, <https://arxiv.org/abs/1607.06450>.
    Layer {
        /// The factor of each value.
        gamma: &'a [f32],
        /// What is added to each value; zeros without.
        beta: Option<&'a [f32]>,
        /// What is added to the variance.
        epsilon: f64,
    },
}

impl Norm<'_> {
    /// Norms `row` in place.
    ///
    /// # Panics
    /// If a parameter has another length.
    pub fn apply(&self, row: &mut [f32]) {
        let simd = Simd::detect();
        let n = row.len() as f64;
        match *self {
            Self::Rms { gamma, epsilon } => {
                assert_eq!(gamma.len(), row.len(), "factors of a norm");
                let power = sum_of_squares(simd, row, 0.0);
                scale(simd, row, 0.0, inverse_root(power, n, epsilon), gamma);
            }
            Self::Layer { gamma, beta, epsilon } => {
                assert_eq!((gamma.len(), beta.map_or(row.len(), <[f32]>::len)), (row.len(), row.len()), "a norm");
                let mean = (sum(simd, row) / n) as f32;
                let power = sum_of_squares(simd, row, mean);
                scale(simd, row, mean, inverse_root(power, n, epsilon), gamma);
                if let Some(beta) = beta {
                    row.iter_mut().zip(beta).for_each(|(x, beta)| *x += beta);
                }
            }
        }
    }
}

fn inverse_root(power: f64, n: f64, epsilon: f64) -> f32 {
    (1.0 / (power / n + epsilon).sqrt()) as f32
}

/// Independent sums.
const LANES: usize = 32;

for_every_level! {
    fn sum(row: &[f32]) -> f64 {
        let (blocks, rest) = row.as_chunks::<LANES>();
        let mut lanes = [0.0f32; LANES];
        for block in blocks {
            lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x);
        }
        lanes.iter().chain(rest).map(|x| f64::from(*x)).sum()
    }
}

for_every_level! {
    /// `Σ (x − mean)²`.
    fn sum_of_squares(row: &[f32], mean: f32) -> f64 {
        let (blocks, rest) = row.as_chunks::<LANES>();
        let mut lanes = [0.0f32; LANES];
        for block in blocks {
            lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += (x - mean) * (x - mean));
        }
        let rest: f64 = rest.iter().map(|x| f64::from((x - mean) * (x - mean))).sum();
        rest + lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>()
    }
}

for_every_level! {
    fn scale(row: &mut [f32], mean: f32, factor: f32, gamma: &[f32]) -> () {
        row.iter_mut().zip(gamma).for_each(|(x, gamma)| *x = (*x - mean) * factor * gamma);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, in f64.
    fn expected(norm: &Norm<'_>, row: &[f32]) -> Vec<f64> {
        let n = row.len() as f64;
        let x: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        let (gamma, beta, epsilon, mean) = match *norm {
            Norm::Rms { gamma, epsilon } => (gamma, None, epsilon, 0.0),
            Norm::Layer { gamma, beta, epsilon } => (gamma, beta, epsilon, x.iter().sum::<f64>() / n),
        };
        let power = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let beta = |i: usize| beta.map_or(0.0, |beta| f64::from(beta[i]));
        (0..row.len()).map(|i| (x[i] - mean) / (power + epsilon).sqrt() * f64::from(gamma[i]) + beta(i)).collect()
    }

    proptest! {
        #[test]
        fn norms_are_those_of_the_definition(
            row in prop::collection::vec((-10f32..10.0, -2f32..2.0, -2f32..2.0), 1..200), offset in -3f32..3.0,
        ) {
            let gamma: Vec<f32> = row.iter().map(|row| row.1).collect();
            let beta: Vec<f32> = row.iter().map(|row| row.2).collect();
            let row: Vec<f32> = row.iter().map(|row| row.0 + offset).collect();
            for norm in [
                Norm::Rms { gamma: &gamma, epsilon: 1e-5 },
                Norm::Layer { gamma: &gamma, beta: None, epsilon: 1e-5 },
                Norm::Layer { gamma: &gamma, beta: Some(&beta), epsilon: 1e-3 },
            ] {
                let mut found = row.clone();
                norm.apply(&mut found);
                for (found, expected) in found.iter().zip(expected(&norm, &row)) {
                    let error = (f64::from(*found) - expected).abs();
                    prop_assert!(error < 2e-5 * (1.0 + expected.abs()), "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_finite() {
        let mut row = [0.0; 5];
        Norm::Rms { gamma: &[1.0; 5], epsilon: 1e-6 }.apply(&mut row);
        assert_eq!(row, [0.0; 5]);
        let mut row = [3.0; 5];
        Norm::Layer { gamma: &[1.0; 5], beta: Some(&[2.0; 5]), epsilon: 1e-6 }.apply(&mut row);
        assert_eq!(row, [2.0; 5]);
    }
}
