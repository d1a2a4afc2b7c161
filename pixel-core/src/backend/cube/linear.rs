//! `y = x · Wᵀ`, the weights decoded in registers: `WIDTH` units share an output row, each weight is decoded once for
//! up to `BATCH` rows of `x`, and sums are in f32.

use super::{Weight, decode, empty_like};
use crate::codec::CodecLayout;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::Shape;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

/// Units that share an output row, where it is not the size of a plane.
const WIDTH: u32 = 32;

/// Output rows of a cube.
const ROWS: u32 = 4;

/// Rows of `x` for which a weight is decoded once.
const BATCH: usize = 8;

/// How the units of an output row add up their sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reduction {
    /// By the plane's own sum: the units of a row are one plane.
    Plane,
    /// Through shared memory, in halves.
    Shared,
}

#[cube(launch)]
fn linear_kernel<X: Float, F: Float>(
    x: &Tensor<X>,
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<F>,
    first_column: usize,
    #[comptime] layout: CodecLayout,
    #[comptime] tile: usize,
    #[comptime] width: usize,
    #[comptime] reduction: Reduction,
    #[define(X)] _x_type: ElemType,
    #[define(F)] _dtype: ElemType,
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
    if comptime!(decode::has_eights(&layout)) {
        let mut weights = Array::<f32>::new(8usize);
        let steps = comptime!(d_input.div_ceil(width * 8));
        for step in 0..steps {
            let col = (step * width + unit) * 8;
            if col < d_input {
                decode::eight(codes, dictionary, source, col, &mut weights, layout);
                #[unroll]
                for i in 0..8 {
                    // Only the last eight of a width that is no multiple of it reach beyond the row.
                    if comptime!(d_input.is_multiple_of(8)) || col + i < d_input {
                        #[unroll]
                        for b in 0..tile {
                            let at = min(first + b, batch - 1) * d_input + col + i;
                            sums[b] += weights[i] * f32::cast_from(x[at]);
                        }
                    }
                }
            }
        }
        // These layouts have one scale a row.
        #[unroll]
        for b in 0..tile {
            sums[b] *= scales[source];
        }
    } else {
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
    let stride = out.shape(1);
    if unit == 0 && row < d_output && is_inside {
        #[unroll]
        for b in 0..tile {
            if first + b < batch {
                out[(first + b) * stride + first_column + row] = F::cast_from(sums[b]);
            }
        }
    }
}

/// `x` is `[batch, d_input]`, contiguous, of any float type; the result `[batch, d_output]` of the same type.
pub(super) fn linear(x: CubeTensor, weight: Weight) -> CubeTensor {
    let out = empty_like(&x, Shape::from([x.shape()[0], weight.layout.shape().d_output()]), x.dtype);
    into_columns(x, weight, &out, 0);
    out
}

/// [`linear`] into the columns of `out` `[batch, …]` from `first` on.
pub(super) fn into_columns(x: CubeTensor, weight: Weight, out: &CubeTensor, first: usize) {
    let (batch, d_output) = (x.shape()[0], weight.layout.shape().d_output());
    let client = out.client.clone();
    let hardware = &client.properties().hardware;
    let plane = hardware.plane_size_max;
    // A plane's size must be known beforehand to give each output row one.
    let fits = plane * ROWS <= hardware.max_units_per_cube;
    let fixed = hardware.plane_size_min == plane && plane.is_power_of_two() && plane > 1 && fits;
    let has_planes = client.features().plane.contains(Plane::Ops);
    let (reduction, width) = if fixed && has_planes { (Reduction::Plane, plane) } else { (Reduction::Shared, WIDTH) };
    let tile = batch.next_power_of_two().min(BATCH);
    let cube_dim = CubeDim::new_2d(width, ROWS);
    let cubes = d_output.div_ceil(ROWS as usize) * batch.div_ceil(tile);
    let count = calculate_cube_count_elemwise(&client, cubes * cube_dim.num_elems() as usize, cube_dim);
    let types = [x.dtype, out.dtype].map(dtype_to_storage_type);
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
        width as usize,
        reduction,
        types[0],
        types[1],
    );
}
