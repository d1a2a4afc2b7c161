//! The heads of new tokens: to queries, and into the cache.

use super::super::row;
use super::Constants;
use cubecl::prelude::*;

/// Norm, position and rotation of a head of a new token, then its place: queries in `queries`, keys and values in the
/// cache.
#[cube(launch)]
pub(super) fn write_kernel<F: Float, P: Float, K: Float, C: Float>(
    qkv: &Tensor<F>,
    gamma_query: &Tensor<P>,
    gamma_key: &Tensor<K>,
    cos: &Tensor<C>,
    sin: &Tensor<C>,
    signs: &Tensor<u32>,
    hartley: &Tensor<f32>,
    queries: &mut Tensor<f32>,
    keys: &mut Tensor<f32>,
    values: &mut Tensor<f32>,
    key_words: &mut Tensor<u32>,
    value_words: &mut Tensor<u32>,
    key_scales: &mut Tensor<f32>,
    value_scales: &mut Tensor<f32>,
    first_angle: usize,
    start: usize,
    capacity: usize,
    #[comptime] of: Constants,
    #[define(F)] _qkv_type: ElemType,
    #[define(P)] _query_type: ElemType,
    #[define(K)] _key_type: ElemType,
    #[define(C)] _angles_type: ElemType,
) {
    let d = comptime!(of.d_head);
    let units = comptime!(of.units);
    let heads = comptime!(of.n_heads + 2 * of.n_kv_heads);
    let (batch, seq) = (qkv.shape(0), qkv.shape(1));
    let mut head = Shared::<[f32]>::new_slice(d);
    let mut turned = Shared::<[f32]>::new_slice(comptime!(row::slots(d)));
    let mut sums = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    // Cubes beyond the last head work on it again, and write the same.
    let cube = min(CUBE_POS, batch * seq * heads - 1);
    let h = cube % heads;
    let (token, text) = (cube / heads % seq, cube / heads / seq);
    let is_query = h < comptime!(of.n_heads);
    let is_value = h >= comptime!(of.n_heads + of.n_kv_heads);
    let steps = comptime!(d.div_ceil(units));
    let mut power = 0.0f32;
    for i in 0..steps {
        let at = i * units + unit;
        if at < d {
            let value = f32::cast_from(qkv[cube * d + at]);
            head[at] = value;
            power += value * value;
        }
    }
    sync_cube();
    if let Some(epsilon) = comptime!(of.norm) {
        let power = row::sum_of_units(power, &mut sums, units) / comptime!(d as f32);
        let root = f32::sqrt(power + comptime!(f32::from_bits(epsilon)));
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                if is_query {
                    head[at] = head[at] / root * f32::cast_from(gamma_query[at]);
                } else if !is_value {
                    head[at] = head[at] / root * f32::cast_from(gamma_key[at]);
                }
            }
        }
        sync_cube();
    }
    for i in 0..steps {
        let at = i * units + unit;
        if at < d {
            let mut value = head[at];
            if comptime!(of.has_rotary) {
                let half = comptime!(d / 2);
                let pair = at % half;
                let angle = (first_angle + token) * half + pair;
                let (c, s) = (f32::cast_from(cos[angle]), f32::cast_from(sin[angle]));
                if !is_value {
                    if at < half {
                        value = value * c - head[at + half] * s;
                    } else {
                        value = value * c + head[at - half] * s;
                    }
                }
            }
            turned[row::slot(at)] = value;
        }
    }
    sync_cube();
    if let Some(narrow) = comptime!(of.narrow) {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                turned[row::slot(at)] *= row::sign(signs, at);
            }
        }
        sync_cube();
        row::hadamard(&mut turned, narrow.turn, units);
        row::mix(&mut turned, narrow.turn, units);
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                head[at] = row::turned(&turned, hartley, at, narrow.turn);
            }
        }
        sync_cube();
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                turned[row::slot(at)] = head[at];
            }
        }
        sync_cube();
    }

    if is_query {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                queries[((text * comptime!(of.n_heads) + h) * seq + token) * d + at] =
                    turned[row::slot(at)] / comptime!((d as f32).sqrt());
            }
        }
    }
    // Queries have a place too, which is not used: all units reach every barrier.
    let kv = (h + comptime!(of.n_kv_heads) - comptime!(of.n_heads % of.n_kv_heads)) % comptime!(of.n_kv_heads);
    let place = (text * comptime!(of.n_kv_heads) + kv) * capacity + start + token;
    if let Some(narrow) = comptime!(of.narrow) {
        let mut peak = 0.0f32;
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                peak = max(peak, f32::abs(turned[row::slot(at)]));
            }
        }
        let scale = row::max_of_units(peak, &mut sums, units) / comptime!(narrow.largest as f32);
        let divisor = max(scale, comptime!(f32::MIN_POSITIVE));
        let words = comptime!(of.words());
        let per_word = comptime!(32 / narrow.bits);
        let word_steps = comptime!(words.div_ceil(units));
        for i in 0..word_steps {
            let w = i * units + unit;
            if w < words {
                let mut word = 0u32;
                for field in 0..per_word {
                    let rounded = f32::round(turned[row::slot(w * per_word + field)] / divisor);
                    let code = u32::cast_from(rounded + comptime!(narrow.offset as f32));
                    word |= code << ((field * comptime!(narrow.bits)) as u32);
                }
                if is_value {
                    value_words[place * words + w] = word;
                } else if !is_query {
                    key_words[place * words + w] = word;
                }
            }
        }
        if unit == 0 {
            if is_value {
                value_scales[place] = scale;
            } else if !is_query {
                key_scales[place] = scale;
            }
        }
    } else {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                if is_value {
                    values[place * d + at] = turned[row::slot(at)];
                } else if !is_query {
                    keys[place * d + at] = turned[row::slot(at)];
                }
            }
        }
    }
}
