//! Ready projections on Flex: the tensors lend their memory and are not routed.

use super::{Lend, projection};
use crate::backend::{NormTensors, OptionalTensor, ReadyProjection};
use crate::forward::{Norm, Projection};
use crate::synthesis::PatternSlices;
use burn::backend::{
    BackendTensor, Dispatch, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, TensorMetadata,
};
use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};

/// The projection of `x`, if all its tensors are Flex's, in F32 where they are floats, contiguous, and outside of any
/// graph.
pub(in crate::backend) fn run<const N: usize>(
    x: &DispatchTensor,
    with: &ReadyProjection<'_, N>,
) -> Option<DispatchTensor> {
    let x = floats(x)?;
    let mut weights = [const { None }; N];
    for (i, slot) in weights.iter_mut().enumerate() {
        let coded = with.coded(i);
        let (codes, scales, dictionary) = (flex(&coded.codes)?, floats(&coded.scales)?, floats(&coded.dictionary)?);
        if !codes.is_contiguous() {
            return None;
        }
        let slices = PatternSlices::new(coded.layout, codes.words(), scales.floats(), dictionary.floats());
        *slot = Some(slices.with_arithmetic(with.weights[i].1));
    }
    let mut added = [None; N];
    for (slot, bias) in added.iter_mut().zip(&with.biases) {
        *slot = optional(bias.as_ref())?;
    }
    let projection = Projection {
        norm: norm(&with.norm)?,
        rotation: with.rotation(),
        weights: &weights.map(|weight| weight.expect("filled above")),
        biases: &added,
        activation: with.activation,
        residual: optional(with.residual.as_ref())?,
        post_norm: norm(&with.post_norm)?,
    };
    let y = projection::run::<Flex>(x.shape(), x.floats(), &projection);
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(y));
    Some(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

/// The tensor, if it is Flex's and outside of any graph.
fn flex(tensor: &DispatchTensor) -> Option<&FlexTensor> {
    match &tensor.kind {
        DispatchTensorKind::Flex(BackendTensor::Float(inner) | BackendTensor::Int(inner)) => {
            matches!(tensor.autodiff, DispatchAutodiffContext::Disabled).then_some(inner)
        }
        #[allow(unreachable_patterns, reason = "the features of the build decide which backends exist")]
        _ => None,
    }
}

/// The same for contiguous F32.
fn floats(tensor: &DispatchTensor) -> Option<&FlexTensor> {
    flex(tensor).filter(|tensor| tensor.dtype() == DType::F32 && tensor.is_contiguous())
}

/// The values of a tensor that may be absent; `None` if they cannot be lent.
fn optional(tensor: Option<&DispatchTensor>) -> Option<Option<&[f32]>> {
    Some(match tensor {
        None => None,
        Some(tensor) => Some(floats(tensor)?.floats()),
    })
}

/// The same for a norm.
fn norm(norm: &NormTensors<Dispatch>) -> Option<Option<Norm<'_>>> {
    Some(Some(match norm {
        NormTensors::Absent => return Some(None),
        NormTensors::Rms { gamma, epsilon } => Norm::Rms { gamma: floats(gamma)?.floats(), epsilon: *epsilon },
        NormTensors::Layer { gamma, beta, epsilon } => {
            let beta = match beta {
                OptionalTensor::Absent => None,
                OptionalTensor::Present(beta) => Some(floats(beta)?.floats()),
            };
            Norm::Layer { gamma: floats(gamma)?.floats(), beta, epsilon: *epsilon }
        }
    }))
}
