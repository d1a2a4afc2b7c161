//! Functions between the projections of an MLP.

use crate::math::exp::{erf, sigmoid, tanh};
use crate::math::simd::{Simd, for_every_level};

/// What is done to the outputs of a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x·Φ(x)`, `Φ` the normal distribution.
    Gelu,
    /// The same with `Φ` approximated by a hyperbolic tangent.
    ///
    /// Source: Hendrycks and Gimpel, *Gaussian Error Linear Units*, <https://arxiv.org/abs/1606.08415>.
    GeluTanh,
    /// `silu(first half)·second half` of the outputs, `silu(x) = x/(1 + e^(−x))`.
    ///
    /// Source: Shazeer, *GLU Variants Improve Transformer*, <https://arxiv.org/abs/2002.05202>.
    GatedSilu,
}

impl Activation {
    /// How many outputs of the projections become one.
    pub const fn inputs(self) -> usize {
        match self {
            Self::GatedSilu => 2,
            _ => 1,
        }
    }

    /// The function of one row, `[inputs · width]` to `[width]`; with one input `outputs` may be what goes in, and
    /// `inputs` is not read.
    pub(super) fn apply(self, inputs: &[f32], outputs: &mut [f32]) {
        let simd = Simd::detect();
        match self {
            Self::Identity => {}
            Self::Relu => outputs.iter_mut().for_each(|x| *x = x.max(0.0)),
            Self::Gelu => gelu(simd, outputs),
            Self::GeluTanh => gelu_tanh(simd, outputs),
            Self::GatedSilu => {
                let (gate, up) = inputs.split_at(inputs.len() / 2);
                gated_silu(simd, gate, up, outputs);
            }
        }
    }
}

for_every_level! {
    fn gelu(row: &mut [f32]) -> () {
        row.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2)));
    }
}

for_every_level! {
    fn gelu_tanh(row: &mut [f32]) -> () {
        /// √(2/π).
        const FACTOR: f32 = 0.797_884_6;
        row.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + tanh(FACTOR * (*x + 0.044_715 * *x * *x * *x))));
    }
}

for_every_level! {
    fn gated_silu(gate: &[f32], up: &[f32], out: &mut [f32]) -> () {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(*gate) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_of_their_formulas() {
        let points: Vec<f32> = (-600..=600).map(|i| i as f32 / 50.0).collect();
        let apply = |activation: Activation| {
            let mut row = points.clone();
            activation.apply(&[], &mut row);
            row
        };
        let gelu_tanh = |x: f64| 0.5 * x * (1.0 + (0.7978845608028654 * (x + 0.044715 * x.powi(3))).tanh());
        for (x, found) in points.iter().zip(apply(Activation::GeluTanh)) {
            assert!((f64::from(found) - gelu_tanh(f64::from(*x))).abs() < 3e-6, "{x}: {found}");
        }
        for (x, (exact, approximate)) in
            points.iter().zip(apply(Activation::Gelu).iter().zip(apply(Activation::GeluTanh)))
        {
            // The approximation is within 5·10⁻⁴.
            assert!((exact - approximate).abs() < 5e-4, "{x}: {exact} {approximate}");
        }
        assert_eq!(apply(Activation::Identity), points);
        assert!(apply(Activation::Relu).iter().zip(&points).all(|(y, x)| *y == x.max(0.0)));
        let (mut row, inputs) = (vec![0.0; points.len()], [points.clone(), points.clone()].concat());
        Activation::GatedSilu.apply(&inputs, &mut row);
        for (x, found) in points.iter().zip(row) {
            let x = f64::from(*x);
            assert!((f64::from(found) - x * x / (1.0 + (-x).exp())).abs() < 1e-6 * (1.0 + x * x), "{x}: {found}");
        }
    }
}
