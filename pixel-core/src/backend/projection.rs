//! Projections with what goes before and after them, as one operation.

#![allow(clippy::large_enum_variant, reason = "they live for a call, and what crosses the dispatch is no box")]

use super::{Dispatch, PatternTensors, PixelBackend, RotationTensors};
use crate::codec::CodecLayout;
use crate::forward::Activation;
use crate::math::rotation::Rotation;
use crate::synthesis::Arithmetic;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType};
use burn::tensor::Tensor;
use std::sync::Arc;

/// `y = post(activation(rotate(norm(x))·[W₀; W₁; …]ᵀ + b) + residual)`, all but the weights optional: the tensors of
/// [`forward::Projection`](crate::forward::Projection) on a backend.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct ProjectionTensors<B: Backend> {
    /// The norm of the input.
    #[extension_type]
    pub norm: NormTensors<B>,
    /// The rotation of the input, which all weights share.
    #[extension_type]
    pub rotation: RotationTables<B>,
    /// The weights.
    #[extension_type]
    pub weights: WeightTensors<B>,
    /// The function of the products.
    pub activation: Activation,
    /// What is added to the outputs, of their shape.
    #[extension_type]
    pub residual: OptionalTensor<B>,
    /// The norm of the outputs.
    #[extension_type]
    pub post_norm: NormTensors<B>,
}

/// What follows an attention in a layer: `y = output(x)`, then `y + down(inner(y))`, with what `down` does behind the
/// sum.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct FeedForwardTensors<B: Backend> {
    /// The output projection of the attention, with its residual.
    #[extension_type]
    pub output: ProjectionTensors<B>,
    /// The first projection of the MLP, or two under a gated activation.
    #[extension_type]
    pub inner: ProjectionTensors<B>,
    /// The last one; its residual is what `output` gives.
    #[extension_type]
    pub down: ProjectionTensors<B>,
}

/// A tensor of floats, or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum OptionalTensor<B: Backend> {
    /// None.
    Absent,
    /// One.
    Present(FloatTensor<B>),
}

/// A norm over the last axis, its parameters `[n]`, or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum NormTensors<B: Backend> {
    /// None.
    Absent,
    /// `x / √(mean x² + ε) · γ`.
    Rms {
        /// γ.
        gamma: FloatTensor<B>,
        /// ε.
        epsilon: f64,
    },
    /// `(x − mean x) / √(var x + ε) · γ + β`.
    Layer {
        /// γ.
        gamma: FloatTensor<B>,
        /// β.
        #[extension_type]
        beta: OptionalTensor<B>,
        /// ε.
        epsilon: f64,
    },
}

/// A rotation and its [tables](RotationTensors), or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum RotationTables<B: Backend> {
    /// None.
    Absent,
    /// One.
    Present {
        /// The signs' bits.
        signs: IntTensor<B>,
        /// The values of the Hartley matrix.
        hartley: FloatTensor<B>,
        /// The rotation.
        rotation: Arc<Rotation>,
    },
}

/// One to [`MAX_WEIGHTS`](crate::forward::MAX_WEIGHTS) weights of one input.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum WeightTensors<B: Backend> {
    /// One.
    One(#[extension_type] CodedTensors<B>),
    /// Two, such as gate and up.
    Two(#[extension_type] CodedTensors<B>, #[extension_type] CodedTensors<B>),
    /// Three, such as query, key and value.
    Three(#[extension_type] CodedTensors<B>, #[extension_type] CodedTensors<B>, #[extension_type] CodedTensors<B>),
}

/// A weight `[d_output, d_input]` in the rotated basis, and its bias; see [`PatternTensors`] for the tensors.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct CodedTensors<B: Backend> {
    /// `[layout.num_words()]`, U32.
    pub codes: IntTensor<B>,
    /// `[d_output, layout.scales_per_row()]`, F32.
    pub scales: FloatTensor<B>,
    /// `[layout.dictionary_len()]`, F32.
    pub dictionary: FloatTensor<B>,
    /// `[d_output]`.
    #[extension_type]
    pub bias: OptionalTensor<B>,
    /// How the codes are read.
    pub layout: CodecLayout,
    /// What the product computes with.
    pub arithmetic: Arithmetic,
}

impl<B: Backend> ProjectionTensors<B> {
    /// The widths of the products and of the outputs.
    #[cfg(feature = "cube")]
    pub(super) fn widths(&self) -> (usize, usize) {
        let width = |weight: &CodedTensors<B>| weight.layout.shape().d_output();
        let width = match &self.weights {
            WeightTensors::One(a) => width(a),
            WeightTensors::Two(a, b) => width(a) + width(b),
            WeightTensors::Three(a, b, c) => width(a) + width(b) + width(c),
        };
        (width, width / self.activation.inputs())
    }

    #[cfg(feature = "cube")]
    pub(super) fn has_post_norm(&self) -> bool {
        !matches!(self.post_norm, NormTensors::Absent)
    }
}

#[cfg(feature = "cube")]
impl ProjectionTensorsMetadata {
    /// The width of the outputs.
    pub(super) fn outputs(&self) -> usize {
        let width = |weight: &CodedTensorsMetadata| weight.layout.shape().d_output();
        let width = match &self.weights {
            WeightTensorsMetadata::One(a) => width(a),
            WeightTensorsMetadata::Two(a, b) => width(a) + width(b),
            WeightTensorsMetadata::Three(a, b, c) => width(a) + width(b) + width(c),
        };
        width / self.activation.inputs()
    }
}

impl<B: Backend> OptionalTensor<B> {
    /// The tensor, if there is one.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Absent => None,
            Self::Present(tensor) => Some(tensor),
        }
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for OptionalTensor<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::Present)
    }
}

impl<B: Backend> WeightTensors<B> {
    /// The weights, first to last.
    pub fn into_weights(self) -> impl Iterator<Item = CodedTensors<B>> {
        let weights = match self {
            Self::One(a) => [Some(a), None, None],
            Self::Two(a, b) => [Some(a), Some(b), None],
            Self::Three(a, b, c) => [Some(a), Some(b), Some(c)],
        };
        weights.into_iter().flatten()
    }
}

impl NormTensors<Dispatch> {
    /// An RMS norm.
    pub fn rms(gamma: Tensor<1>, epsilon: f64) -> Self {
        Self::Rms { gamma: gamma.into_dispatch(), epsilon }
    }

    /// A layer norm.
    pub fn layer(gamma: Tensor<1>, beta: Option<Tensor<1>>, epsilon: f64) -> Self {
        let beta = beta.map_or(OptionalTensor::Absent, |beta| OptionalTensor::Present(beta.into_dispatch()));
        Self::Layer { gamma: gamma.into_dispatch(), beta, epsilon }
    }
}

impl RotationTables<Dispatch> {
    pub(super) fn new(rotation: Option<&RotationTensors>) -> Self {
        rotation.map_or(Self::Absent, RotationTensors::tables)
    }
}

impl CodedTensors<Dispatch> {
    /// The codes of `weight`, and a bias.
    pub(super) fn new(weight: PatternTensors, bias: Option<Tensor<1>>) -> Self {
        let PatternTensors { layout, codes, scales, dictionary, arithmetic, .. } = weight;
        let bias = bias.map_or(OptionalTensor::Absent, |bias| OptionalTensor::Present(bias.into_dispatch()));
        let (codes, scales, dictionary) = (codes.into_dispatch(), scales.into_dispatch(), dictionary.into_dispatch());
        Self { codes, scales, dictionary, bias, layout, arithmetic }
    }
}

impl ProjectionTensors<Dispatch> {
    /// The products with some weights and their biases, and the rotation of their input.
    ///
    /// # Panics
    /// If there is no weight or more than [`MAX_WEIGHTS`](crate::forward::MAX_WEIGHTS), if they do not share a rotation
    /// and a width, or if one has protected columns or a low-rank part, which are no part of the operation.
    pub fn new<const N: usize>(weights: [(PatternTensors, Option<Tensor<1>>); N]) -> Self {
        let first = weights.first().map(|(weight, _)| (weight.seed(), weight.layout.shape().d_input()));
        for (weight, _) in &weights {
            assert_eq!(Some((weight.seed(), weight.layout.shape().d_input())), first, "rotation and width");
            assert!(weight.is_coded_alone(), "protected columns and low-rank parts are no part of a projection");
        }
        let rotation = RotationTables::new(weights.first().and_then(|(weight, _)| weight.rotation.as_ref()));
        let mut coded = weights.into_iter().map(|(weight, bias)| CodedTensors::new(weight, bias));
        let weights = match (coded.next(), coded.next(), coded.next(), coded.next()) {
            (Some(a), None, ..) => WeightTensors::One(a),
            (Some(a), Some(b), None, _) => WeightTensors::Two(a, b),
            (Some(a), Some(b), Some(c), None) => WeightTensors::Three(a, b, c),
            _ => panic!("{N} weights of a projection"),
        };
        let (norm, post_norm) = (NormTensors::Absent, NormTensors::Absent);
        let (activation, residual) = (Activation::Identity, OptionalTensor::Absent);
        Self { norm, rotation, weights, activation, residual, post_norm }
    }

    /// With a norm of the input.
    pub fn with_norm(self, norm: NormTensors<Dispatch>) -> Self {
        Self { norm, ..self }
    }

    /// With a function of the products.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// With something added to the outputs, of their shape.
    pub fn with_residual<const D: usize>(self, residual: Tensor<D>) -> Self {
        Self { residual: OptionalTensor::Present(residual.into_dispatch()), ..self }
    }

    /// With a norm of the outputs.
    pub fn with_post_norm(self, post_norm: NormTensors<Dispatch>) -> Self {
        Self { post_norm, ..self }
    }
}

/// A [projection](ProjectionTensors) of the last axis of `x`: `[…, d_input]` to `[…, Σ d_output]`, or half of that
/// under a gated activation. Everything is computed in f32, products as their weights' arithmetic says, and the
/// result has the type of `x`.
///
/// # Panics
/// If the last axis has another width, the residual has not the shape of the result, or a tensor is on another device.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_core::backend::{NormTensors, PatternTensors, ProjectionTensors, project};
/// use pixel_core::{MatrixRef, Shape, compress_weight};
///
/// let data: Vec<f32> = (0..48 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3)).collect();
/// let (packed, _) = compress_weight(MatrixRef::new(Shape::new(48, 64)?, &data)?, &"lapped:3".parse()?, Some(1))?;
/// let device = Device::flex();
/// let weight = PatternTensors::new(&packed, &device)?;
/// let (x, gamma) = (Tensor::<2>::ones([4, 64], &device) * 3.0, Tensor::<1>::ones([64], &device));
/// let norm = NormTensors::rms(gamma, 1e-6);
/// let y = project(x.clone(), ProjectionTensors::new([(weight.clone(), None)]).with_norm(norm));
/// let expected = weight.linear(x / 3.0);
/// assert!((y - expected).abs().max().into_scalar::<f32>() < 1e-4);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn project<const D: usize>(x: Tensor<D>, with: ProjectionTensors<Dispatch>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::project(x.into_dispatch(), with))
}

/// What follows an attention; see [`FeedForwardTensors`]. As three [`project`]s, in fewer launches on devices.
///
/// # Panics
/// As [`project`]; if the outputs of the MLP have another width than its input, or its last projection a residual.
pub fn feed_forward<const D: usize>(x: Tensor<D>, with: FeedForwardTensors<Dispatch>) -> Tensor<D> {
    assert!(matches!(with.down.residual, OptionalTensor::Absent), "the residual of an MLP is its input");
    Tensor::from_dispatch(Dispatch::feed_forward(x.into_dispatch(), with))
}
