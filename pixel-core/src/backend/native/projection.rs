//! Projections on the tensors' own memory.

use super::{Lend, from_f32, ready};
use crate::backend::{CodedTensors, NormTensors, OptionalTensor, ProjectionTensors, RotationTables, WeightTensors};
use crate::forward::{MAX_WEIGHTS, Norm, Projection};
use crate::synthesis::PatternSlices;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

/// [`PixelBackend::project`](crate::backend::PixelBackend::project).
pub(super) fn project<B: Backend>(x: FloatTensor<B>, with: ProjectionTensors<B>) -> FloatTensor<B>
where
    FloatTensor<B>: Lend,
    IntTensor<B>: Lend,
{
    let (dtype, shape) = (x.dtype(), x.shape());
    let x = ready::<B>(x);
    let (norm, post_norm) = (Parameters::<B>::new(with.norm), Parameters::<B>::new(with.post_norm));
    let residual = with.residual.into_option().map(ready::<B>);
    let weights = Weights::<B>::new(with.weights);
    let rotation = match &with.rotation {
        RotationTables::Absent => None,
        RotationTables::Present { rotation, .. } => Some(&**rotation),
    };

    let (slices, biases) = weights.lend();
    let count = weights.0.iter().flatten().count();
    let projection = Projection {
        norm: norm.lend(),
        rotation,
        weights: &slices[..count],
        biases: &biases[..count],
        activation: with.activation,
        residual: residual.as_ref().map(Lend::floats),
        post_norm: post_norm.lend(),
    };
    from_f32::<B>(run::<B>(shape, x.floats(), &projection), dtype)
}

/// The projection of values of a given shape.
pub(super) fn run<B: Backend>(mut shape: Shape, x: &[f32], projection: &Projection<'_>) -> FloatTensor<B>
where
    FloatTensor<B>: Lend,
{
    let last = shape.num_dims() - 1;
    shape[last] = projection.outputs();
    let mut out = vec![0.0; shape.num_elements()];
    projection.run(x, &mut out);
    Lend::from_values(out, shape)
}

/// The parameters of a norm, ready.
struct Parameters<B: Backend>(NormTensors<B>);

impl<B: Backend> Parameters<B>
where
    FloatTensor<B>: Lend,
{
    fn new(norm: NormTensors<B>) -> Self {
        Self(match norm {
            NormTensors::Absent => NormTensors::Absent,
            NormTensors::Rms { gamma, epsilon } => NormTensors::Rms { gamma: ready::<B>(gamma), epsilon },
            NormTensors::Layer { gamma, beta, epsilon } => {
                let beta = beta.into_option().map(ready::<B>).into();
                NormTensors::Layer { gamma: ready::<B>(gamma), beta, epsilon }
            }
        })
    }

    fn lend(&self) -> Option<Norm<'_>> {
        Some(match &self.0 {
            NormTensors::Absent => return None,
            NormTensors::Rms { gamma, epsilon } => Norm::Rms { gamma: gamma.floats(), epsilon: *epsilon },
            NormTensors::Layer { gamma, beta, epsilon } => {
                Norm::Layer { gamma: gamma.floats(), beta: lend(beta), epsilon: *epsilon }
            }
        })
    }
}

fn lend<B: Backend>(tensor: &OptionalTensor<B>) -> Option<&[f32]>
where
    FloatTensor<B>: Lend,
{
    match tensor {
        OptionalTensor::Absent => None,
        OptionalTensor::Present(tensor) => Some(tensor.floats()),
    }
}

/// Weights and biases, ready; none are behind the last.
struct Weights<B: Backend>([Option<CodedTensors<B>>; MAX_WEIGHTS]);

impl<B: Backend> Weights<B>
where
    FloatTensor<B>: Lend,
    IntTensor<B>: Lend,
{
    fn new(weights: WeightTensors<B>) -> Self {
        let mut weights = weights.into_weights().map(|weight| CodedTensors {
            codes: weight.codes.contiguous(),
            scales: ready::<B>(weight.scales),
            dictionary: ready::<B>(weight.dictionary),
            bias: weight.bias.into_option().map(ready::<B>).into(),
            ..weight
        });
        Self(std::array::from_fn(|_| weights.next()))
    }

    /// The slices of each; behind the last those of the first.
    fn lend(&self) -> ([PatternSlices<'_>; MAX_WEIGHTS], [Option<&[f32]>; MAX_WEIGHTS]) {
        let weight = |i: usize| self.0[i].as_ref().or(self.0[0].as_ref()).expect("at least one weight");
        let slices = |i: usize| {
            let CodedTensors { codes, scales, dictionary, layout, arithmetic, .. } = weight(i);
            let slices = PatternSlices::new(*layout, codes.words(), scales.floats(), dictionary.floats());
            slices.with_arithmetic(*arithmetic)
        };
        (std::array::from_fn(slices), std::array::from_fn(|i| lend(&weight(i).bias)))
    }
}
