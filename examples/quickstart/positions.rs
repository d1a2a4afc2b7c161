//! Where tokens stand: rotary angles and the causal mask, computed once.

use burn::tensor::{Device, Tensor};

use crate::model::LlamaShape;

/// A score that no softmax gives weight to; finite, so that it never makes a NaN.
const HIDDEN: f32 = -1e9;

/// What attention needs to know of positions.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    cos: Tensor<4>,
    sin: Tensor<4>,
    causal: Tensor<2>,
}

impl Positions {
    /// The tables for sequences of at most `shape.context` tokens.
    pub(crate) fn new(shape: &LlamaShape, device: &Device) -> Self {
        let (length, half) = (shape.context, shape.d_head / 2);
        let table = |f: fn(f64) -> f64| {
            let angles = rotary_angles(length, half, shape.rope_theta);
            let values: Vec<f32> = angles.map(|angle| f(angle) as f32).collect();
            Tensor::<1>::from_floats(values.as_slice(), device).reshape([1, 1, length, half])
        };
        let seen = |at: usize| at % length <= at / length;
        let causal: Vec<f32> = (0..length * length).map(|at| if seen(at) { 0.0 } else { HIDDEN }).collect();
        Self {
            cos: table(f64::cos),
            sin: table(f64::sin),
            causal: Tensor::<1>::from_floats(causal.as_slice(), device).reshape([length, length]),
        }
    }

    /// Turns the pairs `(i, i + d_head / 2)` by their angles, as `rotate_half` does.
    ///
    /// # Shapes
    /// - heads, output: `[batch, heads, length, d_head]`
    pub(crate) fn rotate(&self, heads: Tensor<4>) -> Tensor<4> {
        let [_, _, length, width] = heads.dims();
        let cos = self.cos.clone().narrow(2, 0, length);
        let sin = self.sin.clone().narrow(2, 0, length);
        let first = heads.clone().narrow(3, 0, width / 2);
        let second = heads.narrow(3, width / 2, width / 2);
        let turned = first.clone() * cos.clone() - second.clone() * sin.clone();
        Tensor::cat(vec![turned, second * cos + first * sin], 3)
    }

    /// Zero where a query may look and [`HIDDEN`] where not, `[1, 1, stack * length, length]`.
    pub(crate) fn mask(&self, stack: usize, length: usize) -> Tensor<4> {
        let one = self.causal.clone().narrow(0, 0, length);
        let one = one.narrow(1, 0, length).repeat_dim(0, stack);
        one.reshape([1, 1, stack * length, length])
    }
}

/// `position / theta^(i / half)` for each position and each `i < half`.
fn rotary_angles(length: usize, half: usize, theta: f64) -> impl Iterator<Item = f64> {
    (0..length).flat_map(move |position| (0..half).map(move |i| position as f64 / theta.powf(i as f64 / half as f64)))
}
