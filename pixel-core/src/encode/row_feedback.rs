//! Error feedback for codecs that take whole rows.
//!
//! Columns are coded from the first to the last, each a block by itself. With `H = (I + A)·D·(I + A)ᵀ` in that order,
//! `A` strictly upper triangular, the residuals of a row are `R = E·(I + A)`, `E` being its errors (see
//! [`feedback`](super::feedback)), and the loss is `Σ_j D_j·R_j²`. A target is a weight and `R − E`, which is
//! `R·(I − (I + A)⁻¹)`: in terms of residuals, which a codec knows of every path that it follows.

use super::feedback::{Damping, FeedbackOptions, factorise};
use super::moments::Moments;
use crate::codec::RowFeedback;
use crate::math::linalg::add_product;

/// Rows of a triangular matrix that are inverted together, and columns whose values stay in a near cache.
const BLOCK: usize = 64;

/// The feedback of rows, and what made `H` positive definite.
#[derive(Debug)]
pub(super) struct FactoredRows {
    pub(super) feedback: RowFeedback,
    pub(super) damping: Damping,
}

impl FactoredRows {
    /// Factors `moments`, rotated as the weight is. Columns are coded in their own order, whatever `options` say.
    pub(super) fn new(moments: &Moments, options: FeedbackOptions) -> Self {
        let n = moments.d_input();
        // The factor is lower triangular in the places of columns that count from the last.
        let columns: Vec<usize> = (0..n).rev().collect();
        let (factor, damping) = factorise(moments, &columns, options.damping);
        let mut inverse = inverse_of_unit(&factor, n);
        // From places to columns, row and column are both counted from the other end.
        inverse.reverse();
        inverse.iter_mut().for_each(|value| *value = -*value);
        Self { feedback: RowFeedback::new(n, inverse), damping }
    }
}

/// The inverse of `L = C·diag(C)⁻¹`, unit lower triangular, `[n, n]`, for the Cholesky factor `C`: block of rows by
/// block of rows `X_r = L_rr⁻¹·(I_r − L_r·X)`, with the rows of `X` above.
fn inverse_of_unit(factor: &[f64], n: usize) -> Vec<f32> {
    let mut inverse = vec![0.0f32; n * n];
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let unit = |row: usize, col: usize| (factor[row * n + col] / factor[col * n + col]) as f32;
        let minus: Vec<f32> = (start..end).flat_map(|row| (0..start).map(move |col| -unit(row, col))).collect();
        let (above, rows) = inverse.split_at_mut(start * n);
        for first in (0..start).step_by(BLOCK) {
            // Rows above are zero right of the diagonal.
            let width = BLOCK.min(start - first);
            add_product(
                (&mut rows[first..], n),
                (&minus[first..], start),
                (&above[first * n + first..], n),
                [end - start, start - first, width],
            );
        }
        for row in 0..end - start {
            rows[row * n + start + row] = 1.0;
            let (done, rest) = rows.split_at_mut(row * n);
            for col in 0..row {
                let factor = unit(start + row, start + col);
                let columns = 0..start + col + 1;
                let values = rest[columns.clone()].iter_mut().zip(&done[col * n..][columns]);
                values.for_each(|(value, above)| *value -= factor * above);
            }
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::rotation::split_mix;
    use approx::assert_abs_diff_eq;

    fn inputs(n: usize, samples: usize) -> Vec<f32> {
        let hash = |i: usize| (split_mix(3, i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        // Each column shares something with the one before.
        (0..samples * n).map(|i| hash(i) + if i % n > 0 { 0.7 * hash(i - 1) } else { 0.0 }).collect()
    }

    /// From the definition of the loss: with targets that are fed back, it is a sum of squared residuals.
    #[test]
    fn residuals_are_what_the_loss_is_made_of() {
        for n in [1, 2, 7, 64, 65, 150] {
            let moments = Moments::of_inputs(n, &inputs(n, 2 * n + 3));
            let options = FeedbackOptions { damping: Some(0.0), ..FeedbackOptions::DEFAULT };
            let FactoredRows { feedback, damping } = FactoredRows::new(&moments, options);
            assert_eq!(damping.retries, 0);
            let residuals: Vec<f64> = (0..n).map(|i| (split_mix(5, i as u64) >> 40) as f64 / 1e7 - 0.8).collect();
            // E = R − R·F.
            let fed = |j: usize| (0..j).map(|i| residuals[i] * f64::from(feedback.row(i)[j])).sum::<f64>();
            let errors: Vec<f64> = (0..n).map(|j| residuals[j] - fed(j)).collect();
            let product = |i: usize| (0..n).map(|j| moments.at(i, j) * errors[j]).sum::<f64>();
            let loss: f64 = (0..n).map(|i| errors[i] * product(i)).sum();
            // D_j: the squared diagonal of the Cholesky factor.
            let columns: Vec<usize> = (0..n).rev().collect();
            let (factor, _) = factorise(&moments, &columns, Some(0.0));
            let weight = |j: usize| factor[(n - 1 - j) * n + n - 1 - j].powi(2);
            let sum: f64 = (0..n).map(|j| weight(j) * residuals[j].powi(2)).sum();
            assert_abs_diff_eq!(loss, sum, epsilon = 1e-5 * sum);
        }
    }
}
