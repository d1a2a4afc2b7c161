//! Projections: one launch prepares the input, one multiplies it with all weights that share a layout, one does what
//! follows. Where projections follow one another, what follows the products of one prepares the input of the next.

use super::finish::{Ending, Part, Products};
use super::prepare::{Preparation, prepare};
use super::row;
use super::{Weight, empty_like, levels, linear, lookup, panel, tiles};
use crate::backend::{
    CodedTensors, Direction, FeedForwardTensors, OptionalTensor, PixelBackend, ProjectionTensors, RotationTables,
    WeightTensors, definition,
};
use crate::codec::CodecLayout;
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// `[rows, n]` of a tensor `[…, n]`.
fn rows_of(x: &CubeTensor) -> [usize; 2] {
    let shape = x.shape();
    let n = shape[shape.num_dims() - 1];
    [shape.num_elements() / n.max(1), n]
}

/// The shape of a tensor `[…, n]` with another last axis.
fn with_last(mut shape: Shape, last: usize) -> Shape {
    let axis = shape.num_dims() - 1;
    shape[axis] = last;
    shape
}

/// The weights of a projection, and their biases.
fn weights_of(weights: WeightTensors<CubeBackend>) -> (Vec<Weight>, [Option<CubeTensor>; 3]) {
    let mut biases = [const { None }; 3];
    let weights = weights.into_weights().enumerate().map(|(i, weight)| {
        let CodedTensors { codes, scales, dictionary, bias, layout, arithmetic } = weight;
        biases[i] = bias.into_option().map(into_contiguous);
        Weight::new(codes, scales, dictionary, layout, arithmetic)
    });
    (weights.collect(), biases)
}

/// [`PixelBackend::project`]; in parts where a row has no room in shared memory.
pub(super) fn project(x: FloatTensor<CubeBackend>, with: ProjectionTensors<CubeBackend>) -> FloatTensor<CubeBackend> {
    let (shape, dtype, [rows, n]) = (x.shape(), x.dtype, rows_of(&x));
    let outputs = with.widths().1;
    if rows == 0 || (with.has_post_norm() && !row::fits(&x, outputs)) {
        return definition::project::<CubeBackend>(x, with);
    }
    let x = into_contiguous(x);
    let ProjectionTensors { norm, rotation, weights, activation, residual, post_norm } = with;
    let x = if row::fits(&x, n) {
        let preparation = Preparation::new(norm, rotation, &x);
        if preparation.is_empty() {
            CubeBackend::float_reshape(x, Shape::from([rows, n]))
        } else {
            prepare(x, preparation, [rows, n])
        }
    } else {
        let x = definition::norm::<CubeBackend>(CubeBackend::float_reshape(x, Shape::from([rows, n])), norm);
        match rotation {
            RotationTables::Absent => x,
            RotationTables::Present { signs, hartley, rotation } => {
                CubeBackend::rotate(x, signs, hartley, rotation, Direction::Forward)
            }
        }
    };
    let (weights, biases) = weights_of(weights);
    let residual = residual.into_option().map(into_contiguous);
    let ending = Ending { biases, activation, residual, norm: post_norm };
    multiply(into_contiguous(x), weights).finish(ending, with_last(shape, outputs), dtype)
}

/// [`PixelBackend::feed_forward`]; in parts where a row has no room in shared memory.
pub(super) fn feed_forward(
    x: FloatTensor<CubeBackend>,
    with: FeedForwardTensors<CubeBackend>,
) -> FloatTensor<CubeBackend> {
    let (shape, dtype, [rows, n]) = (x.shape(), x.dtype, rows_of(&x));
    let FeedForwardTensors { output, inner, down } = with;
    let widths = [n, output.widths().1, inner.widths().1, down.widths().1];
    if rows == 0 || widths.iter().any(|width| !row::fits(&x, *width)) {
        return definition::feed_forward::<CubeBackend>(x, FeedForwardTensors { output, inner, down });
    }
    let x = into_contiguous(x);
    let shape = with_last(shape, widths[1]);
    let preparation = Preparation::new(output.norm, output.rotation, &x);
    let x = if preparation.is_empty() {
        CubeBackend::float_reshape(x, Shape::from([rows, n]))
    } else {
        prepare(x, preparation, [rows, n])
    };
    let ending = |weights, activation, residual: OptionalTensor<CubeBackend>, norm| {
        let (weights, biases) = weights_of(weights);
        (weights, Ending { biases, activation, residual: residual.into_option().map(into_contiguous), norm })
    };

    let (weights, end) = ending(output.weights, output.activation, output.residual, output.post_norm);
    let next = Preparation::new(inner.norm, inner.rotation, &x);
    let (sum, x) = multiply(x, weights).finish_and_prepare(end, next, shape.clone(), dtype);

    let (weights, end) = ending(inner.weights, inner.activation, inner.residual, inner.post_norm);
    let next = Preparation::new(down.norm, down.rotation, &x);
    let x = multiply(x, weights).prepare(end, next);

    let (weights, end) = ending(down.weights, down.activation, OptionalTensor::Present(sum), down.post_norm);
    multiply(x, weights).finish(end, shape, dtype)
}

/// The products of `x`, `[rows, d_input]`, contiguous, with each of `weights`.
fn multiply(x: CubeTensor, weights: Vec<Weight>) -> Products {
    let rows = x.shape()[0];
    let width = weights.iter().map(|weight| weight.layout.shape().d_output()).sum();
    if weights.iter().all(|weight| panel::takes(&x, rows, weight.arithmetic)) {
        let (mut end, mut parts) = (0, [Part { end: width, slices: 1, has_bias: false }; 3]);
        for (weight, part) in weights.iter().zip(&mut parts) {
            end += weight.layout.shape().d_output();
            part.end = end;
        }
        parts[2].end = width;
        let values = CubeBackend::float_reshape(panel::multiply(x, &weights), Shape::from([1, rows, width]));
        return Products { values, parts };
    }
    let launches = stacks(weights);
    let slices: Vec<usize> = launches.iter().map(|weights| slices(&x, weights, rows)).collect();
    let most = slices.iter().copied().max().unwrap_or(1);
    let values = empty_like(&x, Shape::from([most, rows, width]), DType::F32);
    // Behind the last weight there is nothing.
    let mut parts = [Part { end: width, slices: 1, has_bias: false }; 3];
    let (mut start, mut part) = (0, parts.iter_mut());
    for (weights, slices) in launches.into_iter().zip(slices) {
        let first = start;
        for (weight, part) in weights.iter().zip(&mut part) {
            start += weight.layout.shape().d_output();
            *part = Part { end: start, slices, has_bias: false };
        }
        into_columns(x.clone(), weights, &values, first);
    }
    parts[2].end = width;
    Products { values, parts }
}

/// The weights of each launch: neighbours that are read alike share one.
fn stacks(weights: Vec<Weight>) -> Vec<Vec<Weight>> {
    let mut stacks: Vec<Vec<Weight>> = Vec::new();
    for weight in weights {
        match stacks.last_mut() {
            Some(stack) if lookup::is_read_alike(&stack[0].layout, &weight.layout) => stack.push(weight),
            _ => stacks.push(vec![weight]),
        }
    }
    stacks
}

/// The parts of products with `weights`, which share a launch: see [`into_columns`].
fn slices(x: &CubeTensor, weights: &[Weight], rows: usize) -> usize {
    match weights[0].layout {
        CodecLayout::Nibble(_) => lookup::slices(x, weights, rows),
        CodecLayout::Trellis(layout) if tiles::takes(&layout) => tiles::slices(x, &layout, rows),
        CodecLayout::Uniform(layout) if levels::takes(&layout) => levels::slices(x, &layout, rows),
        _ => 1,
    }
}

/// Writes products into the columns of `values` from `first` on, in one launch.
fn into_columns(x: CubeTensor, mut weights: Vec<Weight>, values: &CubeTensor, first: usize) {
    if let CodecLayout::Nibble(_) = weights[0].layout {
        return lookup::into_columns(x, weights, values, first);
    }
    let weight = weights.remove(0);
    match weight.layout {
        CodecLayout::Trellis(layout) if tiles::takes(&layout) => tiles::into_columns(x, weight, layout, values, first),
        CodecLayout::Uniform(layout) if levels::takes(&layout) => {
            levels::into_columns(x, weight, layout, values, first);
        }
        _ => linear::into_columns(x, weight, values, first),
    }
}

/// [`PixelBackend::pattern_linear`]: `x` is `[rows, d_input]`, contiguous, of any float type, which the result has too.
pub(super) fn linear(x: CubeTensor, weight: Weight) -> CubeTensor {
    let (shape, dtype) = (Shape::from([x.shape()[0], weight.layout.shape().d_output()]), x.dtype);
    multiply(x, vec![weight]).finish(Ending::sum(), shape, dtype)
}
