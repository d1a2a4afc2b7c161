//! Products with any codes, the weights decoded one by one in registers: the units of a line share an output row, each
//! weight is decoded once for up to `BATCH` rows of `x`, and sums are in f32.

use super::machine::{Machine, Reduction};
use super::{Weight, decode};
use crate::codec::CodecLayout;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Output rows of a cube.
const ROWS: u32 = 4;

/// Rows of `x` for which a weight is decoded once.
const BATCH: usize = 8;

#[cube(launch)]
fn linear_kernel<X: Float>(
    x: &Tensor<X>,
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    first_column: usize,
    #[comptime] layout: CodecLayout,
    #[comptime] tile: usize,
    #[comptime] width: usize,
    #[comptime] reduction: Reduction,
    #[define(X)] _x_type: ElemType,
) {
    let d_input = comptime!(layout.shape().d_input());
    let d_output = comptime!(layout.shape().d_output());
    // Cubes in one row, which the launcher spreads over the axes as the device's limits ask: some may be beyond the
    // end.
    let row_blocks = comptime!(d_output.div_ceil(ROWS as usize));
    let batch = x.shape(0);
    let tiles = (batch + comptime!(tile - 1)) / tile;
    let is_inside = CUBE_POS < row_blocks * tiles;
    let cube = min(CUBE_POS, row_blocks * tiles - 1);
    let row = cube % row_blocks * comptime!(ROWS as usize) + UNIT_POS_Y as usize;
    let first = cube / row_blocks * tile;
    let unit = UNIT_POS_X as usize;
    // Units beyond the last row work on it again and write nothing, so that all reach the sums.
    let source = min(row, comptime!(d_output - 1));

    let mut sums = Array::<f32>::new(tile);
    #[unroll]
    for b in 0..tile {
        sums[b] = 0.0f32;
    }
    let steps = comptime!(d_input.div_ceil(width));
    for step in 0..steps {
        let col = step * width + unit;
        if col < d_input {
            let weight = decode::weight(codes, scales, dictionary, source, col, layout);
            #[unroll]
            for b in 0..tile {
                let at = min(first + b, batch - 1) * d_input + col;
                sums[b] += weight * f32::cast_from(x[at]);
            }
        }
    }

    if comptime!(reduction == Reduction::Plane) {
        #[unroll]
        for b in 0..tile {
            sums[b] = plane_sum(sums[b]);
        }
    } else {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(width * ROWS as usize));
        let start = UNIT_POS_Y as usize * width;
        #[unroll]
        for b in 0..tile {
            shared[start + unit] = sums[b];
            sync_cube();
            let mut half = comptime!(width / 2).runtime();
            while half > 0 {
                if unit < half {
                    let other = shared[start + unit + half];
                    shared[start + unit] += other;
                }
                sync_cube();
                half /= 2;
            }
            sums[b] = shared[start];
            sync_cube();
        }
    }
    let stride = out.shape(2);
    if unit == 0 && row < d_output && is_inside {
        #[unroll]
        for b in 0..tile {
            if first + b < batch {
                out[(first + b) * stride + first_column + row] = sums[b];
            }
        }
    }
}

/// `x · Wᵀ`: `x` is `[batch, d_input]`, contiguous, of any float type; `out` is F32, `[slices, batch, …]`, and the
/// product is written into the columns of its first slice from `first` on.
pub(super) fn into_columns(x: CubeTensor, weight: Weight, out: &CubeTensor, first: usize) {
    let (batch, d_output) = (x.shape()[0], weight.layout.shape().d_output());
    let client = out.client.clone();
    // A line of a cube is an output row.
    let Machine { width, reduction, .. } = Machine::new(&client);
    let tile = batch.next_power_of_two().min(BATCH);
    let cube_dim = CubeDim::new_2d(width as u32, ROWS);
    let cubes = d_output.div_ceil(ROWS as usize) * batch.div_ceil(tile);
    let count = calculate_cube_count_elemwise(&client, cubes * cube_dim.num_elems() as usize, cube_dim);
    let x_type = dtype_to_storage_type(x.dtype);
    linear_kernel::launch(
        &client,
        count,
        cube_dim,
        x.into_tensor_arg(),
        weight.codes.into_tensor_arg(),
        weight.scales.into_tensor_arg(),
        weight.dictionary.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        first,
        weight.layout,
        tile,
        width,
        reduction,
        x_type,
    );
}
