//! Dense weights: one unit a weight.

use super::{Weight, decode};
use crate::codec::CodecLayout;
use burn::backend::TensorMetadata;
use burn::tensor::Shape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

#[cube(launch)]
fn all_rows_kernel(
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    #[comptime] layout: CodecLayout,
) {
    let width = comptime!(layout.shape().d_input());
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    out[ABSOLUTE_POS] = decode::weight(codes, scales, dictionary, ABSOLUTE_POS / width, ABSOLUTE_POS % width, layout);
}

#[cube(launch)]
fn some_rows_kernel(
    rows: &Tensor<i32>,
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    #[comptime] layout: CodecLayout,
) {
    let width = comptime!(layout.shape().d_input());
    let last = comptime!(layout.shape().d_output() as u32 - 1);
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    // A missing row must not read beyond the codes.
    let row = min(rows[ABSOLUTE_POS / width] as u32, last) as usize;
    out[ABSOLUTE_POS] = decode::weight(codes, scales, dictionary, row, ABSOLUTE_POS % width, layout);
}

/// The weight, `[d_output, d_input]`.
pub(super) fn all_rows(weight: Weight) -> CubeTensor {
    let shape = weight.layout.shape();
    let out = weight.empty(Shape::from([shape.d_output(), shape.d_input()]));
    let client = out.client.clone();
    let cube_dim = CubeDim::new(&client, shape.num_weights());
    all_rows_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, shape.num_weights(), cube_dim),
        cube_dim,
        weight.codes.into_tensor_arg(),
        weight.scales.into_tensor_arg(),
        weight.dictionary.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        weight.layout,
    );
    out
}

/// Rows `rows` `[k]`, of type I32, of the weight, `[k, d_input]`.
pub(super) fn some_rows(rows: CubeTensor, weight: Weight) -> CubeTensor {
    let num_values = rows.shape()[0] * weight.layout.shape().d_input();
    let out = weight.empty(Shape::from([rows.shape()[0], weight.layout.shape().d_input()]));
    let client = out.client.clone();
    let cube_dim = CubeDim::new(&client, num_values);
    some_rows_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, num_values, cube_dim),
        cube_dim,
        rows.into_tensor_arg(),
        weight.codes.into_tensor_arg(),
        weight.scales.into_tensor_arg(),
        weight.dictionary.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        weight.layout,
    );
    out
}
