//! Weights that are part of projections again and again.
//!
//! Every operation of Burn takes its tensors by value, and to clone and route the dozen tensors of a projection takes
//! as long as to multiply with a small weight. A [`ReadyWeight`] holds them as they are routed; where that is Flex,
//! they are borrowed.

use super::{
    CodedTensors, Dispatch, FeedForwardTensors, NormTensors, PatternTensors, PixelBackend, ProjectionTensors,
    RotationTables, WeightTensors,
};
use crate::forward::Activation;
use crate::synthesis::Arithmetic;
use burn::backend::DispatchTensor;
use burn::tensor::Tensor;
use std::sync::Arc;

/// The tensors of a weight as operations take them; a clone is the same tensors.
#[derive(Debug, Clone)]
pub struct ReadyWeight(Arc<Ready>);

#[derive(Debug)]
struct Ready {
    coded: CodedTensors<Dispatch>,
    rotation: RotationTables<Dispatch>,
    seed: Option<u64>,
}

impl ReadyWeight {
    /// The tensors of `weight`.
    ///
    /// # Panics
    /// If it has protected columns or a low-rank part, which are no part of a projection.
    pub fn new(weight: PatternTensors) -> Self {
        assert!(weight.is_coded_alone(), "protected columns and low-rank parts are no part of a projection");
        let (rotation, seed) = (RotationTables::new(weight.rotation.as_ref()), weight.seed());
        Self(Arc::new(Ready { coded: CodedTensors::new(weight, None), rotation, seed }))
    }

    /// The seed of the rotation, if there is one.
    pub fn seed(&self) -> Option<u64> {
        self.0.seed
    }

    fn d_input(&self) -> usize {
        self.0.coded.layout.shape().d_input()
    }
}

/// A projection with ready weights; see [`ProjectionTensors`] for its parts.
#[derive(Debug, Clone)]
pub struct ReadyProjection<'a, const N: usize> {
    /// The weights, and what products with each compute with.
    pub weights: [(&'a ReadyWeight, Arithmetic); N],
    /// What is added to the products of each, `[d_output]`.
    pub biases: [Option<DispatchTensor>; N],
    /// The norm of the input.
    pub norm: NormTensors<Dispatch>,
    /// The function of the products.
    pub activation: Activation,
    /// What is added to the outputs, of their shape.
    pub residual: Option<DispatchTensor>,
    /// The norm of the outputs.
    pub post_norm: NormTensors<Dispatch>,
}

impl<'a, const N: usize> ReadyProjection<'a, N> {
    /// The products of `weights` and nothing else.
    ///
    /// # Panics
    /// If the weights do not share a rotation and a width.
    pub fn new(weights: [(&'a ReadyWeight, Arithmetic); N]) -> Self {
        const { assert!(N >= 1 && N <= crate::forward::MAX_WEIGHTS, "one to three weights") };
        let of = |weight: &ReadyWeight| (weight.seed(), weight.d_input());
        assert!(weights.iter().all(|(weight, _)| of(weight) == of(weights[0].0)), "rotation and width");
        let (norm, post_norm) = (NormTensors::Absent, NormTensors::Absent);
        Self { weights, biases: [const { None }; N], norm, activation: Activation::Identity, residual: None, post_norm }
    }

    /// Applies it to the last axis of `x`, as [`project`](super::project).
    ///
    /// # Panics
    /// As [`project`](super::project).
    pub fn run<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let x = x.into_dispatch();
        #[cfg(feature = "flex")]
        if let Some(y) = super::native::ready::run(&x, &self) {
            return Tensor::from_dispatch(y);
        }
        Tensor::from_dispatch(Dispatch::project(x, self.into_tensors()))
    }

    /// The tensors of all parts.
    fn into_tensors(self) -> ProjectionTensors<Dispatch> {
        let rotation = self.weights[0].0.0.rotation.clone();
        let mut coded = self.weights.into_iter().zip(self.biases).map(|((weight, arithmetic), bias)| CodedTensors {
            bias: bias.into(),
            arithmetic,
            ..weight.0.coded.clone()
        });
        let weights = match (coded.next(), coded.next(), coded.next()) {
            (Some(a), Some(b), Some(c)) => WeightTensors::Three(a, b, c),
            (Some(a), Some(b), None) => WeightTensors::Two(a, b),
            (Some(a), ..) => WeightTensors::One(a),
            _ => unreachable!("one weight at least"),
        };
        let (norm, activation, residual, post_norm) =
            (self.norm, self.activation, self.residual.into(), self.post_norm);
        ProjectionTensors { norm, rotation, weights, activation, residual, post_norm }
    }

    /// The tensors of each weight.
    #[cfg(feature = "flex")]
    pub(super) fn coded(&self, i: usize) -> &CodedTensors<Dispatch> {
        &self.weights[i].0.0.coded
    }

    /// The rotation that the weights share.
    #[cfg(feature = "flex")]
    pub(super) fn rotation(&self) -> Option<&crate::Rotation> {
        match &self.weights[0].0.0.rotation {
            RotationTables::Absent => None,
            RotationTables::Present { rotation, .. } => Some(rotation),
        }
    }
}

/// What follows an attention, with ready weights; see [`FeedForwardTensors`].
#[derive(Debug, Clone)]
pub struct ReadyFeedForward<'a, const N: usize> {
    /// The output projection of the attention, with its residual.
    pub output: ReadyProjection<'a, 1>,
    /// What begins the MLP.
    pub inner: ReadyProjection<'a, N>,
    /// What ends it; its residual is what `output` gives.
    pub down: ReadyProjection<'a, 1>,
}

impl<const N: usize> ReadyFeedForward<'_, N> {
    /// Applies it to the last axis of `x`, as [`feed_forward`](super::feed_forward).
    ///
    /// # Panics
    /// As [`feed_forward`](super::feed_forward).
    pub fn run<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let Self { output, inner, mut down } = self;
        let x = x.into_dispatch();
        #[cfg(feature = "flex")]
        if let Some(y) = super::native::ready::run(&x, &output) {
            let x = inner.run(Tensor::<D>::from_dispatch(y.clone()));
            down.residual = Some(y);
            return down.run(x);
        }
        let [output, inner, down] = [output.into_tensors(), inner.into_tensors(), down.into_tensors()];
        Tensor::from_dispatch(Dispatch::feed_forward(x, FeedForwardTensors { output, inner, down }))
    }
}
