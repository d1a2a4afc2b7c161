//! Second moments of a layer's inputs: how an error of the weight changes its outputs.

use super::evidence::Evidence;
use crate::math::linalg::add_product;
use crate::math::metrics::ErrorSums;
use crate::math::rotation::Rotation;
use crate::matrix::{Matrix, MatrixRef};

/// `H = E[x·xᵀ]`, symmetric, `[d_input, d_input]`, in f64: condition numbers of real layers reach 10⁸.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    d_input: usize,
    /// Row-major, both triangles.
    values: Vec<f64>,
    /// What an input yet to come is expected to add along an axis; 0 if that is not known.
    unseen_power: f64,
}

impl Moments {
    /// The moments of inputs that are uncorrelated and of unit power: under them, every codec minimises plain squared
    /// error.
    pub fn identity(d_input: usize) -> Self {
        let mut values = vec![0.0; d_input * d_input];
        values.iter_mut().step_by(d_input + 1).for_each(|value| *value = 1.0);
        Self { d_input, values, unseen_power: 0.0 }
    }

    /// From the lower triangle, row after row: `h00, h10, h11, h20 …`, `[n·(n+1)/2]`.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn from_lower_triangle(d_input: usize, triangle: impl IntoIterator<Item = f64>) -> Self {
        let mut values = vec![0.0; d_input * d_input];
        let mut triangle = triangle.into_iter();
        for i in 0..d_input {
            for j in 0..=i {
                let value = triangle.next().expect("as many values as the triangle has");
                values[i * d_input + j] = value;
                values[j * d_input + i] = value;
            }
        }
        Self { d_input, values, unseen_power: 0.0 }
    }

    /// From the inputs themselves, `[samples, d_input]` row-major: `Σ x·xᵀ / samples`.
    ///
    /// # Panics
    /// If `inputs` is empty or not a whole number of rows.
    pub fn of_inputs(d_input: usize, inputs: &[f32]) -> Self {
        let samples = inputs.len() / d_input;
        assert!(samples > 0 && inputs.len() == samples * d_input, "{} values of width {d_input}", inputs.len());
        let wide: Vec<f64> = inputs.iter().map(|&x| f64::from(x) / (samples as f64).sqrt()).collect();
        let mut transposed = vec![0.0; wide.len()];
        for (i, &x) in wide.iter().enumerate() {
            transposed[i % d_input * samples + i / d_input] = x;
        }
        let mut values = vec![0.0; d_input * d_input];
        let shape = [d_input, samples, d_input];
        add_product((&mut values, d_input), (&transposed, samples), (&wide, d_input), shape);
        Self { d_input, values, unseen_power: 0.0 }.with_evidence(&Evidence::of_inputs(d_input, inputs))
    }

    /// The same moments with the [power that they do not show](Self::unseen_power), by the `evidence` of the inputs
    /// that they were summed from.
    pub fn with_evidence(mut self, evidence: &Evidence) -> Self {
        self.unseen_power = evidence.unseen_power(&self);
        self
    }

    /// The power that an input yet to come is expected to have along an axis beyond what the moments show, in the units
    /// of their diagonal; 0 if that is not known. Error feedback adds it to the diagonal.
    pub const fn unseen_power(&self) -> f64 {
        self.unseen_power
    }

    /// The width of the inputs.
    pub const fn d_input(&self) -> usize {
        self.d_input
    }

    /// `H_ij`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.d_input + j]
    }

    /// The mean power of an input.
    pub fn mean_diagonal(&self) -> f64 {
        self.trace() / self.d_input as f64
    }

    /// `tr H`, the power of all inputs.
    pub(super) fn trace(&self) -> f64 {
        (0..self.d_input).map(|i| self.at(i, i)).sum()
    }

    /// `Σ H_ij²`.
    pub(super) fn squared_norm(&self) -> f64 {
        self.values.iter().map(|value| value * value).sum()
    }

    /// `Qᵀ·H·Q`: the moments of rotated inputs.
    ///
    /// # Panics
    /// If the rotation has another width.
    pub fn rotated(mut self, rotation: &Rotation) -> Self {
        rotation.rotate_symmetric(&mut self.values);
        // Makes both triangles equal again: they were rounded separately.
        for i in 0..self.d_input {
            for j in 0..i {
                self.values[j * self.d_input + i] = self.values[i * self.d_input + j];
            }
        }
        self
    }

    /// Sets the moments of the inputs `columns` to zero: errors there cost nothing. The power that is not shown shrinks
    /// with the power of all inputs.
    pub fn without(mut self, columns: &[u32]) -> Self {
        let before = self.trace();
        for &column in columns {
            for i in 0..self.d_input {
                self.values[i * self.d_input + column as usize] = 0.0;
                self.values[column as usize * self.d_input + i] = 0.0;
            }
        }
        if before > 0.0 {
            self.unseen_power *= self.trace() / before;
        }
        self
    }

    /// `rows·H` for rows `[_, d_input]`, into `out` of the same size.
    pub(crate) fn multiply(&self, rows: &[f64], out: &mut [f64]) {
        let n = self.d_input;
        out.fill(0.0);
        add_product((out, n), (rows, n), (&self.values, n), [rows.len() / n, n, n]);
    }

    /// `tr(W·H·Wᵀ)`, the power of the outputs of a weight `W`.
    ///
    /// # Panics
    /// If the width is another.
    pub fn output_power(&self, weight: MatrixRef<'_>) -> f64 {
        self.output_error(weight, Matrix::zeros(weight.shape()).as_ref()).power
    }

    /// Power and error of the outputs of a weight `W` that is reproduced as `Ŵ`: `tr(W·H·Wᵀ)` and
    /// `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)`. Their quotient is the proxy loss.
    ///
    /// # Panics
    /// If the shapes differ or the width is another.
    pub fn output_error(&self, original: MatrixRef<'_>, reproduced: MatrixRef<'_>) -> ErrorSums {
        assert_eq!(original.shape(), reproduced.shape(), "shapes");
        assert_eq!(original.shape().d_input(), self.d_input, "width");
        let n = self.d_input;
        let mut sums = ErrorSums::default();
        let (mut rows, mut product) = (Vec::new(), Vec::new());
        let mut quadratic = |values: &mut dyn Iterator<Item = f64>| -> f64 {
            rows.clear();
            rows.extend(values);
            product.resize(rows.len(), 0.0);
            self.multiply(&rows, &mut product);
            rows.iter().zip(&product).map(|(a, b)| a * b).sum()
        };
        for (w, r) in original.as_slice().chunks(64 * n).zip(reproduced.as_slice().chunks(64 * n)) {
            sums.power += quadratic(&mut w.iter().map(|&w| f64::from(w)));
            sums.error += quadratic(&mut w.iter().zip(r).map(|(&w, &r)| f64::from(w) - f64::from(r)));
        }
        sums.error = sums.error.max(0.0);
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Shape;
    use approx::assert_abs_diff_eq;

    #[test]
    fn moments_of_inputs_are_their_mean_products() {
        let h = Moments::of_inputs(2, &[1.0, 2.0, 3.0, -4.0]);
        let expected = [5.0, -5.0, -5.0, 10.0];
        assert_abs_diff_eq!(h.values.as_slice(), expected.as_slice(), epsilon = 1e-12);
        assert_abs_diff_eq!(h.mean_diagonal(), 7.5, epsilon = 1e-12);
        assert_eq!(Moments::from_lower_triangle(2, [5.0, -5.0, 10.0]).values, expected);
    }

    #[test]
    fn the_output_error_is_that_of_the_outputs() {
        let inputs = [1.0f32, 2.0, 3.0, -4.0];
        let shape = Shape::new(1, 2).unwrap();
        let (w, r) = ([0.5f32, -1.0], [0.25f32, -1.5]);
        let sums = Moments::of_inputs(2, &inputs)
            .output_error(MatrixRef::new(shape, &w).unwrap(), MatrixRef::new(shape, &r).unwrap());
        // Outputs −1.5 and 5.5 become −2.75 and 6.75.
        assert_abs_diff_eq!(sums.power, (2.25 + 30.25) / 2.0, epsilon = 1e-12);
        assert_abs_diff_eq!(sums.error, 1.5625, epsilon = 1e-12);
    }

    #[test]
    fn forgotten_inputs_cost_nothing() {
        let h = Moments::of_inputs(2, &[1.0, 2.0]).without(&[1]);
        assert_eq!(h.values, [1.0, 0.0, 0.0, 0.0]);
        let (whole, part) = (Moments::of_inputs(2, &[1.0, 0.0, 0.0, 3.0]), 0.1);
        let left = whole.clone().without(&[1]).unseen_power();
        assert_abs_diff_eq!(left, part * whole.unseen_power(), epsilon = 1e-12);
    }
}
