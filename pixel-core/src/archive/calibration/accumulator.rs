//! Sums over the inputs of one group, from which its moments and its mean follow.

use crate::encode::{Evidence, Moments};

/// Sums over the inputs of one group, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Accumulator {
    pub(super) d_input: usize,
    /// `Σ w·x·xᵀ`, the lower triangle row after row.
    pub(super) products: Vec<f64>,
    /// `Σ x`.
    pub(super) sums: Vec<f64>,
    /// Of how many inputs, and how much they leave open.
    pub(super) evidence: Evidence,
}

impl Accumulator {
    /// Nothing yet, for inputs of width `d_input`.
    pub fn new(d_input: usize) -> Self {
        let products = vec![0.0; d_input * (d_input + 1) / 2];
        Self { d_input, products, sums: vec![0.0; d_input], evidence: Evidence::default() }
    }

    /// Bytes that the sums over inputs of width `d_input` take.
    pub const fn num_bytes(d_input: usize) -> u64 {
        8 * (d_input as u64 * (d_input as u64 + 1) / 2 + d_input as u64)
    }

    /// The width of the inputs.
    pub const fn d_input(&self) -> usize {
        self.d_input
    }

    /// The tokens seen.
    pub const fn tokens(&self) -> u64 {
        self.evidence.tokens
    }

    /// Adds a batch of inputs whose weighted products `Σ w·x·xᵀ`, `[d_input, d_input]`, sums `Σ x`, `[d_input]`, and
    /// powers `w·‖x‖²`, `[tokens]`, were formed elsewhere, such as on a device.
    ///
    /// # Panics
    /// If a length differs.
    pub fn add_products(&mut self, products: &[f32], sums: &[f32], powers: &[f32]) {
        let n = self.d_input;
        assert_eq!((products.len(), sums.len()), (n * n, n), "lengths for width {n}");
        let mut triangle = self.products.iter_mut();
        for (i, row) in products.chunks_exact(n).enumerate() {
            row[..=i].iter().zip(&mut triangle).for_each(|(&product, sum)| *sum += f64::from(product));
        }
        self.sums.iter_mut().zip(sums).for_each(|(sum, &x)| *sum += f64::from(x));
        self.evidence.add(powers);
    }

    /// Adds a batch of inputs `[tokens, d_input]`, row-major, every token the same.
    ///
    /// # Panics
    /// If `inputs` is not a whole number of rows.
    pub fn add_inputs(&mut self, inputs: &[f32]) {
        let n = self.d_input;
        assert_eq!(inputs.len() % n, 0, "{} values of width {n}", inputs.len());
        let mut powers = Vec::with_capacity(inputs.len() / n);
        for row in inputs.chunks_exact(n) {
            powers.push(row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32);
            let mut triangle = self.products.iter_mut();
            for (i, &x) in row.iter().enumerate() {
                let x = f64::from(x);
                row[..=i].iter().zip(&mut triangle).for_each(|(&y, sum)| *sum += x * f64::from(y));
                self.sums[i] += x;
            }
        }
        self.evidence.add(&powers);
    }

    /// The moments seen; zero if there was no token.
    pub fn moments(&self) -> Moments {
        let count = self.tokens().max(1) as f64;
        let moments = Moments::from_lower_triangle(self.d_input, self.products.iter().map(|sum| sum / count));
        moments.with_evidence(&self.evidence)
    }

    /// The tensor of `sums` as a file holds it, or the place of the first that F32 cannot hold.
    pub(super) fn stored(&self, sums: &[f64]) -> Result<Vec<u8>, usize> {
        let count = self.tokens().max(1) as f64;
        let mut bytes = Vec::with_capacity(4 * sums.len());
        for (i, sum) in sums.iter().enumerate() {
            let mean = (sum / count) as f32;
            if !mean.is_finite() {
                return Err(i);
            }
            bytes.extend(mean.to_le_bytes());
        }
        Ok(bytes)
    }
}
