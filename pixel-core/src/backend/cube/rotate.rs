//! `x · Q` and `x · Qᵀ` with `Q = diag(±1)·(M ⊗ H_b)/√n`: the Hadamard matrix of runs of `b` values as a fast transform
//! in shared memory, and the remaining factor, `M = R_m ⊗ H`, `[n/b, n/b]`, as a product, where it is more than one.

use super::row::sign;
use super::{Bound, empty_like};
use crate::backend::Direction;
use crate::math::rotation::Rotation;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// The longest run of a cube, in values; what every device has room for.
const LONGEST_RUN: usize = 2048;

/// Units of a cube, at most.
const UNITS: u32 = 128;

/// What a pass multiplies its result by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    /// The signs before.
    signs_in: bool,
    /// The signs after.
    signs_out: bool,
    /// `1/√n` after, by its bits.
    scale: Option<u32>,
}

#[cube]
fn finish(value: f32, signs: &Tensor<u32>, at: usize, #[comptime] ends: Ends) -> f32 {
    let mut value = value;
    if comptime!(ends.signs_out) {
        value *= sign(signs, at);
    }
    if comptime!(ends.scale.is_some()) {
        value *= comptime!(f32::from_bits(ends.scale.unwrap_or_default()));
    }
    value
}

/// The fast Hadamard transform of every run of `run` values.
#[cube(launch)]
fn hadamard_kernel<I: Float, O: Float>(
    x: &Tensor<I>,
    signs: &Tensor<u32>,
    out: &mut Tensor<O>,
    runs: usize,
    #[comptime] run: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] ends: Ends,
    #[define(I)] _input: ElemType,
    #[define(O)] _output: ElemType,
) {
    let mut values = Shared::<[f32]>::new_slice(run);
    // Cubes beyond the last run work on it again: all of them reach every barrier.
    let start = min(CUBE_POS, runs - 1) * run;
    let unit = UNIT_POS as usize;
    let loads = comptime!(run.div_ceil(units));
    for i in 0..loads {
        let at = i * units + unit;
        if at < run {
            let mut value = f32::cast_from(x[start + at]);
            if comptime!(ends.signs_in) {
                value *= sign(signs, (start + at) % width);
            }
            values[at] = value;
        }
    }
    sync_cube();
    let mut half = comptime!(1usize).runtime();
    while half < run {
        let pairs = comptime!((run / 2).div_ceil(units));
        for i in 0..pairs {
            let pair = i * units + unit;
            if pair < comptime!(run / 2) {
                let low = pair / half * (half * 2) + pair % half;
                let (a, b) = (values[low], values[low + half]);
                values[low] = a + b;
                values[low + half] = a - b;
            }
        }
        sync_cube();
        half *= 2;
    }
    for i in 0..loads {
        let at = i * units + unit;
        if at < run && CUBE_POS < runs {
            out[start + at] = O::cast_from(finish(values[at], signs, (start + at) % width, ends));
        }
    }
}

/// `out[i·run + j] = Σ_k M[i][k] · x[k·run + j]` in every row, with `M[i][k] = cas(i'k')·(−1)^⟨i″, k″⟩` where
/// `i = i'·h + i″`.
#[cube(launch)]
fn mix_kernel<I: Float, O: Float>(
    x: &Tensor<I>,
    signs: &Tensor<u32>,
    hartley: &Tensor<f32>,
    out: &mut Tensor<O>,
    #[comptime] run: usize,
    #[comptime] width: usize,
    #[comptime] odd: usize,
    #[comptime] ends: Ends,
    #[define(I)] _input: ElemType,
    #[define(O)] _output: ElemType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let outer = comptime!(width / run);
    let rest = comptime!(width / run / odd);
    let column = ABSOLUTE_POS % width;
    let row = ABSOLUTE_POS - column;
    let i = column / run;
    let j = column % run;
    let mut sum = 0.0f32;
    for k in 0..outer {
        let parity = u32::count_ones(((i % rest) & (k % rest)) as u32) & 1u32;
        let weight = hartley[(i / rest) * (k / rest) % odd];
        let at = k * run + j;
        let mut value = f32::cast_from(x[row + at]);
        if comptime!(ends.signs_in) {
            value *= sign(signs, at);
        }
        sum += select(parity == 0u32, weight, -weight) * value;
    }
    out[ABSOLUTE_POS] = O::cast_from(finish(sum, signs, column, ends));
}

/// `x` is `[…, d_input]`, contiguous, of any float type; the result has its shape and type.
pub(super) fn rotate(x: CubeTensor, tables: Bound, rotation: &Rotation, direction: Direction) -> CubeTensor {
    let (shape, dtype, n) = (x.shape(), x.dtype, rotation.d_input());
    let odd = rotation.odd_part();
    let run = (n / odd).min(LONGEST_RUN);
    let (has_runs, has_rest) = (run > 1, n > run);
    let scale = Some(((1.0 / (n as f64).sqrt()) as f32).to_bits());
    let forward = direction == Direction::Forward;
    // The Hadamard pass comes first, the product with M after it; either may be absent, not both but for n = 1.
    let first = Ends { signs_in: forward, signs_out: !forward && !has_rest, scale: scale.filter(|_| !has_rest) };
    let last = Ends { signs_in: forward && !has_runs, signs_out: !forward, scale };
    let between = if has_rest { DType::F32 } else { dtype };
    let x = if has_runs || !has_rest { hadamard(x, &tables, run, n, first, between) } else { x };
    if !has_rest {
        return x;
    }
    let out = empty_like(&x, shape.clone(), dtype);
    let client = out.client.clone();
    let cube_dim = CubeDim::new(&client, shape.num_elements());
    let types = (dtype_to_storage_type(x.dtype), dtype_to_storage_type(dtype));
    mix_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, shape.num_elements(), cube_dim),
        cube_dim,
        x.into_tensor_arg(),
        tables.signs.into_tensor_arg(),
        tables.hartley.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        run,
        n,
        odd,
        last,
        types.0,
        types.1,
    );
    out
}

fn hadamard(x: CubeTensor, tables: &Bound, run: usize, width: usize, ends: Ends, dtype: DType) -> CubeTensor {
    let out = empty_like(&x, x.shape(), dtype);
    let client = out.client.clone();
    let units = UNITS.min(client.properties().hardware.max_units_per_cube).min((run as u32 / 2).max(1));
    let runs = x.shape().num_elements() / run;
    let cube_dim = CubeDim::new_1d(units);
    let types = (dtype_to_storage_type(x.dtype), dtype_to_storage_type(dtype));
    hadamard_kernel::launch(
        &client,
        calculate_cube_count_elemwise(&client, runs * units as usize, cube_dim),
        cube_dim,
        x.into_tensor_arg(),
        tables.signs.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        runs,
        run,
        width,
        units as usize,
        ends,
        types.0,
        types.1,
    );
    out
}
