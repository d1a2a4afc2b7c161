//! The extension trait.

use super::{Attended, AttentionTensors, Direction, FeedForwardTensors, ProjectionTensors, definition};
#[cfg(feature = "cube")]
use super::{
    attention::{AttendedMetadata, AttentionTensorsMetadata},
    projection::{FeedForwardTensorsMetadata, ProjectionTensorsMetadata},
};
use crate::attention::AttentionSpec;
use crate::codec::CodecLayout;
use crate::math::rotation::Rotation;
use crate::synthesis::Arithmetic;
#[cfg(feature = "cube")]
use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};
#[cfg(feature = "cube")]
use burn::tensor::Shape;
use std::sync::Arc;

/// The operations that compressed layers need from a backend. [`PatternTensors`](super::PatternTensors) and
/// [`rotate`](super::rotate) call it with valid arguments.
///
/// # Shapes
/// `codes` is `[layout.num_words()]`, U32; `scales` `[d_output, layout.scales_per_row()]` and `dictionary`
/// `[layout.dictionary_len()]`, F32. Weights are in the rotated basis.
///
/// # Accuracy
/// The integer part of decoding is the same to the bit on every backend. A weight is a sum of as many products as its
/// layout has terms (one, two, `2·bits`, or those of a tile of `matching`), each rounded in f32; a product over
/// `d_input` has the error of a sum of `d_input` f32 terms in the backend's order, and that of its [`Arithmetic`]. What
/// is a product of Burn's own (low-rank parts, protected columns, gradients of weights, dense weights) is as exact as
/// the backend's: on CUDA its factors are rounded to eleven bits (TF32).
#[backend_extension(
    Cube: cfg(feature = "cube"),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Autodiff: cfg(feature = "autodiff"),
    Fusion: cfg(feature = "cube"),
)]
pub trait PixelBackend: Backend {
    /// Rotates the last axis of `x`, which is `rotation.d_input()` wide. `signs` and `hartley` are the rotation's
    /// [tables](super::RotationTensors).
    #[fusion(dtype = x, shape = x)]
    fn rotate(
        x: FloatTensor<Self>,
        signs: IntTensor<Self>,
        hartley: FloatTensor<Self>,
        rotation: Arc<Rotation>,
        direction: Direction,
    ) -> FloatTensor<Self> {
        definition::rotate::<Self>(x, signs, hartley, &rotation, direction)
    }

    /// The weight, `[d_output, d_input]`.
    #[fusion(dtype = scales, shape = definition::dense_shape(layout))]
    fn synthesize(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
    ) -> FloatTensor<Self> {
        definition::synthesize::<Self>(codes, scales, dictionary, &layout)
    }

    /// Rows `rows` `[k]` of the weight, `[k, d_input]`.
    #[fusion(dtype = scales, shape = rows_shape(rows, layout))]
    fn synthesize_rows(
        rows: IntTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
    ) -> FloatTensor<Self> {
        definition::synthesize_rows::<Self>(rows, codes, scales, dictionary, &layout)
    }

    /// `x · Wᵀ` for rotated activations `x` `[batch, d_input]`: `[batch, d_output]`, as exact as `arithmetic` asks.
    #[fusion(dtype = x, shape = linear_shape(x, layout))]
    fn pattern_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
        arithmetic: Arithmetic,
    ) -> FloatTensor<Self> {
        let _ = arithmetic;
        definition::pattern_linear::<Self>(x, codes, scales, dictionary, &layout)
    }

    /// A [projection](ProjectionTensors) of the last axis of `x`, `[…, d_input]`.
    #[fusion(dtype = x, shape = projected_shape(x, with))]
    fn project(x: FloatTensor<Self>, #[extension_type] with: ProjectionTensors<Self>) -> FloatTensor<Self> {
        definition::project::<Self>(x, with)
    }

    /// What follows an attention in a layer, see [`FeedForwardTensors`], for the last axis of `x`, `[…, d_input]`.
    #[fusion(dtype = x, shape = fed_forward_shape(x, with))]
    fn feed_forward(x: FloatTensor<Self>, #[extension_type] with: FeedForwardTensors<Self>) -> FloatTensor<Self> {
        definition::feed_forward::<Self>(x, with)
    }

    /// Attention of new tokens, heads `qkv` `[batch, seq, (n_heads + 2·n_kv_heads) · d_head]`, to a cache of `start`
    /// tokens and to themselves; see [`attend`](super::attend).
    #[fusion(meta = attended)]
    fn attend(
        qkv: FloatTensor<Self>,
        #[extension_type] with: AttentionTensors<Self>,
        start: usize,
        spec: AttentionSpec,
    ) -> Attended<Self> {
        definition::attend::<Self>(qkv, with, start, &spec)
    }

    /// The cosine of every tile with every pattern, `[tiles, patterns]`, for `tiles` `[tiles, tile_len]` and `patterns`
    /// `[patterns, tile_len]`; 0 where one of them is zero. Burn's own product is the best kernel for it.
    #[fusion(default)]
    fn match_patterns(tiles: FloatTensor<Self>, patterns: FloatTensor<Self>) -> FloatTensor<Self> {
        definition::match_patterns::<Self>(tiles, patterns)
    }
}

#[cfg(feature = "cube")]
fn rows_shape(rows: &Shape, layout: &CodecLayout) -> Shape {
    Shape::from([rows[0], layout.shape().d_input()])
}

#[cfg(feature = "cube")]
fn linear_shape(x: &Shape, layout: &CodecLayout) -> Shape {
    Shape::from([x[0], layout.shape().d_output()])
}

#[cfg(feature = "cube")]
fn projected_shape(x: &Shape, with: &ProjectionTensorsMetadata) -> Shape {
    let mut shape = x.clone();
    let last = shape.num_dims() - 1;
    shape[last] = with.outputs();
    shape
}

#[cfg(feature = "cube")]
fn fed_forward_shape(x: &Shape, with: &FeedForwardTensorsMetadata) -> Shape {
    projected_shape(x, &with.down)
}

#[cfg(feature = "cube")]
fn attended(
    qkv: &TensorSpec,
    with: &AttentionTensorsMetadata,
    _start: &usize,
    spec: &AttentionSpec,
) -> AttendedMetadata {
    let shape = Shape::from([qkv.shape[0], qkv.shape[1], spec.n_heads * spec.d_head]);
    AttendedMetadata { out: TensorSpec::new(shape, qkv.dtype), keys: with.keys.clone(), values: with.values.clone() }
}
