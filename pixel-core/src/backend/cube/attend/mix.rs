//! One query and all keys that it sees.

use super::super::{exponential, row};
use super::{Constants, Narrow};
use cubecl::prelude::*;

/// Value `at` of the head at `place` of a narrow cache, in units of its scale.
#[cube]
fn field(words: &Tensor<u32>, place: usize, at: usize, #[comptime] width: usize, #[comptime] narrow: Narrow) -> f32 {
    let per_word = comptime!(32 / narrow.bits);
    let word = words[place * width + at / per_word];
    let shift = (at % per_word * comptime!(narrow.bits)) as u32;
    let code = (word >> shift) & comptime!((1u32 << narrow.bits) - 1);
    f32::cast_from(code) - comptime!(narrow.offset as f32)
}

/// One query and all keys that it sees.
#[cube(launch)]
pub(super) fn mix_kernel<F: Float>(
    queries: &Tensor<f32>,
    keys: &Tensor<f32>,
    values: &Tensor<f32>,
    key_words: &Tensor<u32>,
    value_words: &Tensor<u32>,
    key_scales: &Tensor<f32>,
    value_scales: &Tensor<f32>,
    hidden: &Tensor<i32>,
    signs: &Tensor<u32>,
    hartley: &Tensor<f32>,
    out: &mut Tensor<F>,
    start: usize,
    capacity: usize,
    #[comptime] of: Constants,
    #[define(F)] _out_type: ElemType,
) {
    let d = comptime!(of.d_head);
    let units = comptime!(of.units);
    let n_heads = comptime!(of.n_heads);
    let (batch, seq) = (out.shape(0), out.shape(1));
    let mut query = Shared::<[f32]>::new_slice(comptime!(row::slots(d)));
    let mut weights = Shared::<[f32]>::new_slice(units);
    let mut sums = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    let cube = min(CUBE_POS, batch * seq * n_heads - 1);
    let token = cube % seq;
    let (h, text) = (cube / seq % n_heads, cube / seq / n_heads);
    let steps = comptime!(d.div_ceil(units));
    for i in 0..steps {
        let at = i * units + unit;
        if at < d {
            query[row::slot(at)] = queries[cube * d + at];
        }
    }
    sync_cube();
    let group = comptime!(of.n_heads / of.n_kv_heads);
    let first_place = (text * comptime!(of.n_kv_heads) + h / group) * capacity;
    let len = start + seq;
    let mut end = len;
    let mut begin = comptime!(0usize).runtime();
    if comptime!(of.causal) {
        end = start + token + 1;
        if let Some(window) = comptime!(of.window) {
            begin = end - min(end, window);
        }
    }
    let mut largest = f32::new(comptime!(f32::MIN));
    let mut total = 0.0f32;
    let mut acc = Array::<f32>::new(steps);
    for i in 0..steps {
        acc[i] = 0.0f32;
    }
    let blocks = (end - begin).div_ceil(units);
    for block in 0..blocks {
        let key = begin + block * units + unit;
        let mut is_seen = key < end;
        let key = min(key, end - 1);
        if comptime!(of.has_padding) {
            is_seen = is_seen && hidden[text * len + key] == 0;
        }
        let mut score = 0.0f32;
        let place = first_place + key;
        if let Some(narrow) = comptime!(of.narrow) {
            for at in 0..d {
                score += query[row::slot(at)] * field(key_words, place, at, comptime!(of.words()), narrow);
            }
            score *= key_scales[place];
        } else {
            for at in 0..d {
                score += query[row::slot(at)] * keys[place * d + at];
            }
        }
        score = select(is_seen, score, f32::new(comptime!(f32::MIN)));
        let top = max(largest, row::max_of_units(score, &mut sums, units));
        let weight = select(is_seen, exponential::exp(score - top), 0.0f32);
        let keep = exponential::exp(largest - top);
        total = total * keep + row::sum_of_units(weight, &mut sums, units);
        largest = top;
        if comptime!(of.narrow.is_some()) {
            weights[unit] = weight * value_scales[place];
        } else {
            weights[unit] = weight;
        }
        sync_cube();
        let count = min(units, end - begin - block * units);
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                let mut sum = acc[i] * keep;
                for k in 0..count {
                    let place = first_place + begin + block * units + k;
                    if let Some(narrow) = comptime!(of.narrow) {
                        sum += weights[k] * field(value_words, place, at, comptime!(of.words()), narrow);
                    } else {
                        sum += weights[k] * values[place * d + at];
                    }
                }
                acc[i] = sum;
            }
        }
        sync_cube();
    }
    if comptime!(of.quiet) {
        // e⁰ beside the largest score so far, which may be far below it.
        let top = max(largest, 0.0f32);
        let keep = exponential::exp(largest - top);
        total = total * keep + exponential::exp(-top);
        for i in 0..steps {
            acc[i] *= keep;
        }
    }
    let divisor = max(total, comptime!(f32::MIN_POSITIVE));
    for i in 0..steps {
        let at = i * units + unit;
        if at < d {
            query[row::slot(at)] = acc[i] / divisor;
        }
    }
    sync_cube();
    let first_out = ((text * seq + token) * n_heads + h) * d;
    if let Some(narrow) = comptime!(of.narrow) {
        row::hadamard(&mut query, narrow.turn, units);
        row::mix(&mut query, narrow.turn, units);
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                let value = row::turned(&query, hartley, at, narrow.turn) * row::sign(signs, at);
                out[first_out + at] = F::cast_from(value);
            }
        }
    } else {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                out[first_out + at] = F::cast_from(query[row::slot(at)]);
            }
        }
    }
}
