//! Gradients of activations, scales and dictionary. Codes are constant.
//!
//! With `y = x·Wᵀ`: `∂x = ∂y·W`, `∂W = ∂yᵀ·x`. From `∂W` follow those of scales and dictionary (`gradients.rs`), and a
//! rotation passes gradients back through its inverse. Products are in f32, whatever [`Arithmetic`] is requested.

use super::definition;
use super::gradients::{dictionary_gradient, scale_gradient};
use super::{Direction, PixelBackend};
use crate::codec::CodecLayout;
use crate::math::rotation::Rotation;
use crate::synthesis::Arithmetic;
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IndexingUpdateOp, IntTensor};
use burn::tensor::{DType, FloatDType};
use burn_autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};
use std::sync::Arc;

impl<B: PixelBackend, C: CheckpointStrategy> PixelBackend for Autodiff<B, C> {
    fn rotate(
        x: FloatTensor<Self>,
        signs: IntTensor<Self>,
        hartley: FloatTensor<Self>,
        rotation: Arc<Rotation>,
        direction: Direction,
    ) -> FloatTensor<Self> {
        let hartley = hartley.into_primitive();
        let out = |x| B::rotate(x, signs.clone(), hartley.clone(), Arc::clone(&rotation), direction);
        match RotateBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = out(x.into_primitive());
                prep.finish((signs.clone(), hartley.clone(), Arc::clone(&rotation), direction), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(out(x.into_primitive())),
        }
    }

    fn synthesize(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
    ) -> FloatTensor<Self> {
        let out = |scales, dictionary| B::synthesize(codes.clone(), scales, dictionary, layout);
        match SynthesizeBackward.prepare::<C>([scales.node(), dictionary.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&scales), prep.checkpoint(&dictionary), codes.clone(), None, layout);
                prep.finish(state, out(scales.into_primitive(), dictionary.into_primitive()))
            }
            OpsKind::UnTracked(prep) => prep.finish(out(scales.into_primitive(), dictionary.into_primitive())),
        }
    }

    fn synthesize_rows(
        rows: IntTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
    ) -> FloatTensor<Self> {
        let out = |scales, dictionary| B::synthesize_rows(rows.clone(), codes.clone(), scales, dictionary, layout);
        match SynthesizeBackward.prepare::<C>([scales.node(), dictionary.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let (scale, values) = (prep.checkpoint(&scales), prep.checkpoint(&dictionary));
                let state = (scale, values, codes.clone(), Some(rows.clone()), layout);
                prep.finish(state, out(scales.into_primitive(), dictionary.into_primitive()))
            }
            OpsKind::UnTracked(prep) => prep.finish(out(scales.into_primitive(), dictionary.into_primitive())),
        }
    }

    fn pattern_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
        _arithmetic: Arithmetic,
    ) -> FloatTensor<Self> {
        // The gradients are those of the product in f32: rounded activations or tables have none.
        let out =
            |x, scales, dictionary| B::pattern_linear(x, codes.clone(), scales, dictionary, layout, Arithmetic::F32);
        let nodes = [x.node(), scales.node(), dictionary.node()];
        match LinearBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                // Only the gradient of the weight needs the activations.
                let trains = scales.is_tracked() || dictionary.is_tracked();
                let kept = trains.then(|| prep.checkpoint(&x));
                let state =
                    (kept, [prep.checkpoint(&scales), prep.checkpoint(&dictionary)], codes.clone(), layout, x.dtype());
                prep.finish(state, out(x.into_primitive(), scales.into_primitive(), dictionary.into_primitive()))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(out(x.into_primitive(), scales.into_primitive(), dictionary.into_primitive()))
            }
        }
    }
}

#[derive(Debug)]
struct RotateBackward;

impl<B: PixelBackend> Backward<B, 1> for RotateBackward {
    type State = (IntTensor<B>, FloatTensor<B>, Arc<Rotation>, Direction);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (signs, hartley, rotation, direction) = ops.state;
        let [x] = ops.parents;
        if let Some(node) = x {
            // The rotation is orthogonal: its transpose is its inverse.
            let back = match direction {
                Direction::Forward => Direction::Inverse,
                Direction::Inverse => Direction::Forward,
            };
            grads.register::<B>(node.id, B::rotate(gradient, signs, hartley, rotation, back));
        }
    }
}

#[derive(Debug)]
struct SynthesizeBackward;

impl<B: PixelBackend> Backward<B, 2> for SynthesizeBackward {
    /// Scales, dictionary, codes, the rows if not all, layout.
    type State = (NodeId, NodeId, IntTensor<B>, Option<IntTensor<B>>, CodecLayout);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (scales, dictionary, codes, rows, layout) = ops.state;
        let gradient = match rows {
            None => gradient,
            Some(rows) => {
                let zeros = B::float_zeros(definition::dense_shape(&layout), &gradient.device(), FloatDType::F32);
                B::float_select_assign(zeros, 0, rows, gradient, IndexingUpdateOp::Add)
            }
        };
        let (scales, dictionary) =
            (checkpointer.retrieve_node_output(scales), checkpointer.retrieve_node_output(dictionary));
        let parents = ops.parents.map(|node| node.map(|node| node.id));
        register_pattern_gradients::<B>(gradient, &codes, &scales, &dictionary, &layout, parents, grads);
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: PixelBackend> Backward<B, 3> for LinearBackward {
    /// Activations where the weight is trained; scales and dictionary; codes; layout; type of the activations.
    type State = (Option<NodeId>, [NodeId; 2], IntTensor<B>, CodecLayout, DType);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let (x, [scales, dictionary], codes, layout, dtype) = ops.state;
        let scales: FloatTensor<B> = checkpointer.retrieve_node_output(scales);
        let dictionary: FloatTensor<B> = checkpointer.retrieve_node_output(dictionary);
        let [of_x, of_scales, of_dictionary] = ops.parents;
        let gradient = in_f32::<B>(gradient);
        if let Some(x) = x {
            let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
            let of_weight = B::float_matmul(B::float_transpose(gradient.clone()), in_f32::<B>(x));
            let parents = [of_scales, of_dictionary].map(|node| node.map(|node| node.id));
            register_pattern_gradients::<B>(of_weight, &codes, &scales, &dictionary, &layout, parents, grads);
        }
        if let Some(node) = of_x {
            let of_x = B::float_matmul(gradient, B::synthesize(codes, scales, dictionary, layout));
            grads.register::<B>(node.id, if dtype == DType::F32 { of_x } else { B::float_cast(of_x, dtype.into()) });
        }
    }
}

fn in_f32<B: PixelBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    if x.dtype() == DType::F32 { x } else { B::float_cast(x, FloatDType::F32) }
}

/// Registers the gradients of scales and dictionary, those that are wanted, given that of the weight.
fn register_pattern_gradients<B: PixelBackend>(
    gradient: FloatTensor<B>,
    codes: &IntTensor<B>,
    scales: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    layout: &CodecLayout,
    [of_scales, of_dictionary]: [Option<NodeId>; 2],
    grads: &mut Gradients,
) {
    if let Some(node) = of_scales {
        grads.register::<B>(node, scale_gradient::<B>(gradient.clone(), codes, scales, dictionary, layout));
    }
    if let Some(node) = of_dictionary {
        grads.register::<B>(node, dictionary_gradient::<B>(gradient, codes, scales, dictionary, layout));
    }
}
