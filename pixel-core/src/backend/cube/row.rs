//! What a cube does with a row that it holds in shared memory.

use crate::math::rotation::Rotation;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube that holds a row, at most.
const UNITS: u32 = 512;

/// The same where planes are shorter than 32: such devices have fewer lanes to keep busy.
pub(super) const FEW_UNITS: u32 = 128;

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
    let hardware = &tensor.client.properties().hardware;
    let most = hardware.max_units_per_cube.min(if hardware.plane_size_max < 32 { FEW_UNITS } else { UNITS });
    (width as u32).next_power_of_two().min(1 << most.ilog2())
}

/// Whether a cube of the device of `tensor` has room for `values` F32 in shared memory, and for some more.
pub(super) fn fits(tensor: &CubeTensor, values: usize) -> bool {
    (slots(values) + 2 * UNITS as usize) * size_of::<f32>()
        <= tensor.client.properties().hardware.max_shared_memory_size
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

/// Where value `at` of a row lies in shared memory: with a gap after each 32, units that are eight values apart want
/// different banks.
#[cube]
pub(super) fn slot(at: usize) -> usize {
    at + at / 32
}

/// Room for a row of `width` values.
pub(super) const fn slots(width: usize) -> usize {
    width + width / 32
}

/// Levels of the transform that a unit computes in registers.
const LEVELS: usize = 3;

/// The fast Hadamard transform of every run of the row in `values`.
#[cube]
pub(super) fn hadamard(values: &mut Shared<[f32]>, #[comptime] turn: Turn, #[comptime] units: usize) {
    let levels = comptime!(turn.run.trailing_zeros() as usize);
    #[unroll]
    for pass in 0..comptime!(levels.div_ceil(LEVELS)) {
        butterflies(values, comptime!(pass * LEVELS), comptime!((levels - pass * LEVELS).min(LEVELS)), turn, units);
        sync_cube();
    }
}

/// `levels` levels of the transform behind the first `done`: a unit takes the `2^levels` values that they mix.
#[cube]
fn butterflies(
    values: &mut Shared<[f32]>,
    #[comptime] done: usize,
    #[comptime] levels: usize,
    #[comptime] turn: Turn,
    #[comptime] units: usize,
) {
    let (apart, taken) = comptime!((1usize << done, 1usize << levels));
    let groups = comptime!(turn.run * turn.odd / taken);
    let steps = comptime!(groups.div_ceil(units));
    for i in 0..steps {
        let group = i * units + UNIT_POS as usize;
        if group < groups {
            let low = group / apart * comptime!(apart * taken) + group % apart;
            let mut mixed = Array::<f32>::new(taken);
            #[unroll]
            for k in 0..taken {
                mixed[k] = values[slot(low + comptime!(k * apart))];
            }
            #[unroll]
            for level in 0..levels {
                #[unroll]
                for pair in 0..comptime!(taken / 2) {
                    let half = comptime!(1usize << level);
                    let a = comptime!(pair / half * 2 * half + pair % half);
                    let (sum, difference) =
                        (mixed[a] + mixed[comptime!(a + half)], mixed[a] - mixed[comptime!(a + half)]);
                    mixed[a] = sum;
                    mixed[comptime!(a + half)] = difference;
                }
            }
            #[unroll]
            for k in 0..taken {
                values[slot(low + comptime!(k * apart))] = mixed[k];
            }
        }
    }
}

/// The largest odd part of a width whose factor of the rotation is written out, number by number.
const WRITTEN_OUT: usize = 47;

/// The odd part of the rotation, in place, where it is [written out](WRITTEN_OUT); [`turned`] reads the result.
///
/// `cas(t) = cos t + sin t`: with `p_k = x_k + x_{m−k}` and `q_k = x_k − x_{m−k}` outputs `i` and `m − i` are `x_0 + Σ
/// cos(2πik/m)·p_k ± Σ sin(2πik/m)·q_k`, half of the products of a matrix.
#[cube]
pub(super) fn mix(values: &mut Shared<[f32]>, #[comptime] turn: Turn, #[comptime] units: usize) {
    let (run, odd, half) = comptime!((turn.run, turn.odd, turn.odd / 2));
    if comptime!(odd > 1 && odd <= WRITTEN_OUT) {
        let steps = comptime!(run.div_ceil(units));
        for i in 0..steps {
            let at = i * units + UNIT_POS as usize;
            if at < run {
                let first = values[slot(at)];
                let mut sums = Array::<f32>::new(half);
                let mut differences = Array::<f32>::new(half);
                let mut total = first;
                #[unroll]
                for k in 0..half {
                    let x = values[slot(at + comptime!((k + 1) * run))];
                    let y = values[slot(at + comptime!((odd - 1 - k) * run))];
                    sums[k] = x + y;
                    differences[k] = x - y;
                    total += x + y;
                }
                values[slot(at)] = total;
                #[unroll]
                for i in 0..half {
                    let mut even = first;
                    let mut uneven = 0.0f32;
                    #[unroll]
                    for k in 0..half {
                        even += sums[k] * comptime!(wave(odd, i + 1, k + 1).1);
                        uneven += differences[k] * comptime!(wave(odd, i + 1, k + 1).0);
                    }
                    values[slot(at + comptime!((i + 1) * run))] = even + uneven;
                    values[slot(at + comptime!((odd - 1 - i) * run))] = even - uneven;
                }
            }
        }
        sync_cube();
    }
}

/// Sine and cosine of `2π·ik/m`.
fn wave(m: usize, i: usize, k: usize) -> (f32, f32) {
    let (sine, cosine) = (std::f64::consts::TAU * (i * k % m) as f64 / m as f64).sin_cos();
    (sine as f32, cosine as f32)
}

/// Value `at` of the row after the rotation but for the signs; `values` are behind [`hadamard`] and [`mix`].
#[cube]
pub(super) fn turned(values: &Shared<[f32]>, hartley: &Tensor<f32>, at: usize, #[comptime] turn: Turn) -> f32 {
    let mut sum = 0.0f32;
    if comptime!(turn.odd <= WRITTEN_OUT) {
        sum = values[slot(at)];
    } else {
        let (i, j) = (at / turn.run, at % turn.run);
        for k in 0..turn.odd {
            sum += hartley[i * k % turn.odd] * values[slot(k * turn.run + j)];
        }
    }
    sum * comptime!(f32::from_bits(turn.scale))
}
