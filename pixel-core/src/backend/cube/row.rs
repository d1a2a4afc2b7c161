//! What a cube does with a row that it holds in shared memory.

use crate::math::rotation::Rotation;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube that holds a row, at most.
const UNITS: u32 = 128;

/// How the values of a row are rotated, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    /// The power of two of the width.
    pub(super) run: usize,
    /// The odd part of the width.
    pub(super) odd: usize,
    /// `1/√n`, by its bits.
    pub(super) scale: u32,
}

impl Turn {
    pub(super) fn new(rotation: &Rotation) -> Self {
        let (n, odd) = (rotation.d_input(), rotation.odd_part());
        Self { run: n / odd, odd, scale: ((1.0 / (n as f64).sqrt()) as f32).to_bits() }
    }
}

/// Units for a row of `width` values on the device of `tensor`, a power of two.
pub(super) fn units(tensor: &CubeTensor, width: usize) -> u32 {
    let most = tensor.client.properties().hardware.max_units_per_cube.min(UNITS);
    (width as u32).next_power_of_two().min(1 << most.ilog2())
}

/// Whether a cube of the device of `tensor` has room for `values` F32 in shared memory, and for some more.
pub(super) fn fits(tensor: &CubeTensor, values: usize) -> bool {
    (values + 2 * UNITS as usize) * size_of::<f32>() <= tensor.client.properties().hardware.max_shared_memory_size
}

/// −1 where bit `at` is set, 1 elsewhere.
#[cube]
pub(super) fn sign(signs: &Tensor<u32>, at: usize) -> f32 {
    let bit = (signs[at / 32] >> ((at % 32) as u32)) & 1u32;
    1.0 - 2.0 * f32::cast_from(bit)
}

/// The sum of what each unit has, for all units; `sums` has a place for each.
#[cube]
pub(super) fn sum_of_units(value: f32, sums: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sums[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let total = sums[0];
    sync_cube();
    total
}

/// The largest of what each unit has, for all units.
#[cube]
pub(super) fn max_of_units(value: f32, values: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    values[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = values[unit + half];
            values[unit] = max(values[unit], other);
        }
        sync_cube();
        half /= 2;
    }
    let largest = values[0];
    sync_cube();
    largest
}

/// The fast Hadamard transform of every run of the row in `values`.
#[cube]
pub(super) fn hadamard(values: &mut Shared<[f32]>, #[comptime] turn: Turn, #[comptime] units: usize) {
    let unit = UNIT_POS as usize;
    let pairs = comptime!(turn.run * turn.odd / 2);
    let steps = comptime!(pairs.div_ceil(units));
    let mut half = comptime!(1usize).runtime();
    while half < comptime!(turn.run) {
        for i in 0..steps {
            let pair = i * units + unit;
            if pair < pairs {
                let low = pair / half * (half * 2) + pair % half;
                let (a, b) = (values[low], values[low + half]);
                values[low] = a + b;
                values[low + half] = a - b;
            }
        }
        sync_cube();
        half *= 2;
    }
}

/// Value `at` of the row after the odd part of the rotation, scaled; `values` are behind [`hadamard`].
#[cube]
pub(super) fn mixed(values: &Shared<[f32]>, hartley: &Tensor<f32>, at: usize, #[comptime] turn: Turn) -> f32 {
    let mut sum = 0.0f32;
    if comptime!(turn.odd == 1) {
        sum = values[at];
    } else {
        let (i, j) = (at / turn.run, at % turn.run);
        for k in 0..turn.odd {
            sum += hartley[i * k % turn.odd] * values[k * turn.run + j];
        }
    }
    sum * comptime!(f32::from_bits(turn.scale))
}
