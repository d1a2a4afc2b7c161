//! Attention over a cache: one launch writes the heads of the new tokens, one lets their queries attend.
//!
//! A cube is a head of a token. In the second launch it takes as many keys at a time as it has units, a unit a key for
//! the scores and a unit a few values of the head for the sums; the softmax keeps up with the largest score so far.
//!
//! Source: Milakov and Gimelshein, *Online normalizer calculation for softmax*, <https://arxiv.org/abs/1805.02867>.

use super::row::{self, Turn};
use super::{Bound, empty_like};
use crate::attention::{AttentionSpec, CacheFormat};
use crate::backend::{
    Attended, AttentionTensors, HeadNormTensors, HeldTensors, PaddingTensor, RotaryTensors, definition,
};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, IntDType, Shape, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// What kernels know of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Constants {
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    units: usize,
    causal: bool,
    window: Option<usize>,
    quiet: bool,
    /// ε of the norms, by its bits.
    norm: Option<u32>,
    has_rotary: bool,
    has_padding: bool,
    narrow: Option<Narrow>,
}

/// A narrow format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Narrow {
    bits: usize,
    largest: u32,
    offset: u32,
    turn: Turn,
}

impl Constants {
    /// Words of a head in the cache: values where these are F32.
    const fn words(&self) -> usize {
        match self.narrow {
            None => self.d_head,
            Some(narrow) => self.d_head * narrow.bits / 32,
        }
    }
}

/// Norm, position and rotation of a head of a new token, then its place: queries in `queries`, keys and values in the
/// cache.
#[cube(launch)]
fn write_kernel<F: Float, P: Float, K: Float, C: Float>(
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
    let mut turned = Shared::<[f32]>::new_slice(d);
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
            turned[at] = value;
        }
    }
    sync_cube();
    if let Some(narrow) = comptime!(of.narrow) {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                turned[at] *= row::sign(signs, at);
            }
        }
        sync_cube();
        row::hadamard(&mut turned, narrow.turn, units);
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                head[at] = row::mixed(&turned, hartley, at, narrow.turn);
            }
        }
        sync_cube();
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                turned[at] = head[at];
            }
        }
        sync_cube();
    }

    if is_query {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                queries[((text * comptime!(of.n_heads) + h) * seq + token) * d + at] =
                    turned[at] / comptime!((d as f32).sqrt());
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
                peak = max(peak, f32::abs(turned[at]));
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
                    let rounded = f32::round(turned[w * per_word + field] / divisor);
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
                    values[place * d + at] = turned[at];
                } else if !is_query {
                    keys[place * d + at] = turned[at];
                }
            }
        }
    }
}

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
fn attend_kernel<F: Float>(
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
    let mut query = Shared::<[f32]>::new_slice(d);
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
            query[at] = queries[cube * d + at];
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
                score += query[at] * field(key_words, place, at, comptime!(of.words()), narrow);
            }
            score *= key_scales[place];
        } else {
            for at in 0..d {
                score += query[at] * keys[place * d + at];
            }
        }
        score = select(is_seen, score, f32::new(comptime!(f32::MIN)));
        let top = max(largest, row::max_of_units(score, &mut sums, units));
        let weight = select(is_seen, f32::exp(score - top), 0.0f32);
        let keep = f32::exp(largest - top);
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
        let keep = f32::exp(largest - top);
        total = total * keep + f32::exp(-top);
        for i in 0..steps {
            acc[i] *= keep;
        }
    }
    let divisor = max(total, comptime!(f32::MIN_POSITIVE));
    for i in 0..steps {
        let at = i * units + unit;
        if at < d {
            query[at] = acc[i] / divisor;
        }
    }
    sync_cube();
    let first_out = ((text * seq + token) * n_heads + h) * d;
    if let Some(narrow) = comptime!(of.narrow) {
        row::hadamard(&mut query, narrow.turn, units);
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                let value = row::mixed(&query, hartley, at, narrow.turn) * row::sign(signs, at);
                out[first_out + at] = F::cast_from(value);
            }
        }
    } else {
        for i in 0..steps {
            let at = i * units + unit;
            if at < d {
                out[first_out + at] = F::cast_from(query[at]);
            }
        }
    }
}

/// Keys or values as kernels take them: floats, words and scales, of which a format has some; the others are as small
/// as tensors can be.
struct Room {
    floats: CubeTensor,
    words: CubeTensor,
    scales: CubeTensor,
    capacity: usize,
    narrow: bool,
}

impl Room {
    fn new(held: HeldTensors<CubeBackend>) -> Self {
        // What others hold too is copied before it is written to.
        let own = |tensor: CubeTensor| {
            let tensor = into_contiguous(tensor);
            if tensor.can_mut() { tensor } else { tensor.copy() }
        };
        match held {
            HeldTensors::F32(values) => {
                let (floats, capacity) = (own(values), 0);
                let small = |dtype| empty_like(&floats, Shape::from([1]), dtype);
                let (words, scales) = (small(DType::U32), small(DType::F32));
                let room = Self { words, scales, capacity, narrow: false, floats };
                Self { capacity: room.floats.shape()[2], ..room }
            }
            HeldTensors::Rounded { words, scales } => {
                let (words, scales) = (own(words), own(scales));
                let floats = empty_like(&scales, Shape::from([1]), DType::F32);
                Self { capacity: scales.shape()[2], narrow: true, floats, words, scales }
            }
        }
    }

    fn into_held(self) -> HeldTensors<CubeBackend> {
        if self.narrow {
            HeldTensors::Rounded { words: self.words, scales: self.scales }
        } else {
            HeldTensors::F32(self.floats)
        }
    }
}

/// The rotation's tables, or something of their types.
fn tables(spec: &AttentionSpec, like: &CubeTensor) -> Bound {
    if spec.format == CacheFormat::F32 {
        let small = |dtype| empty_like(like, Shape::from([1]), dtype);
        return Bound::new(small(DType::U32), small(DType::F32));
    }
    let rotation = spec.rotation();
    let (signs, hartley) = (rotation.sign_words(), rotation.hartley_values());
    let (words, values) = ([signs.len()], [hartley.len()]);
    let signs = CubeBackend::int_from_data(TensorData::new(signs, words), &like.device);
    let signs = CubeBackend::int_cast(signs, IntDType::U32);
    Bound::new(signs, CubeBackend::float_from_data(TensorData::new(hartley, values), &like.device))
}

/// [`PixelBackend::attend`](crate::backend::PixelBackend::attend); in parts where a head has no room in shared memory.
pub(super) fn attend(
    qkv: FloatTensor<CubeBackend>,
    with: AttentionTensors<CubeBackend>,
    start: usize,
    spec: AttentionSpec,
) -> Attended<CubeBackend> {
    if !row::fits(&qkv, 3 * spec.d_head) || qkv.shape().num_elements() == 0 {
        return definition::attend::<CubeBackend>(qkv, with, start, &spec);
    }
    if let Err(error) = spec.validate() {
        panic!("{error}");
    }
    let qkv = into_contiguous(qkv);
    let (batch, seq, dtype) = (qkv.shape()[0], qkv.shape()[1], qkv.dtype);
    let (keys, values) = (Room::new(with.keys), Room::new(with.values));
    let capacity = keys.capacity;
    assert!(start + seq <= capacity, "{} tokens in a cache for {capacity}", start + seq);
    let narrow = (spec.format != CacheFormat::F32).then(|| {
        let (largest, offset) = spec.format.range();
        let (largest, offset) = (largest.into(), offset.into());
        Narrow { bits: spec.format.bits(), largest, offset, turn: Turn::new(&spec.rotation()) }
    });
    let (has_rotary, cos, sin, first_angle) = match with.rotary {
        RotaryTensors::Absent => (false, qkv.clone(), qkv.clone(), 0),
        RotaryTensors::Present { cos, sin, first } => (true, into_contiguous(cos), into_contiguous(sin), first),
    };
    let (gamma_query, gamma_key) = match with.norms {
        HeadNormTensors::Absent => (qkv.clone(), qkv.clone()),
        HeadNormTensors::Present { query, key } => (into_contiguous(query), into_contiguous(key)),
    };
    let hidden = match with.padding {
        PaddingTensor::Absent => None,
        PaddingTensor::Present(mask) => Some(into_contiguous(CubeBackend::bool_into_int(mask, IntDType::I32))),
    };
    let units = row::units(&qkv, spec.d_head.max(64));
    let of = Constants {
        n_heads: spec.n_heads,
        n_kv_heads: spec.n_kv_heads,
        d_head: spec.d_head,
        units: units as usize,
        causal: spec.causal,
        window: spec.window,
        quiet: spec.quiet_softmax,
        norm: spec.norm_epsilon.map(|epsilon| (epsilon as f32).to_bits()),
        has_rotary,
        has_padding: hidden.is_some(),
        narrow,
    };
    let hidden = hidden.unwrap_or_else(|| empty_like(&qkv, Shape::from([1]), DType::I32));
    let Bound { signs, hartley } = tables(&spec, &qkv);

    let queries = empty_like(&qkv, Shape::from([batch, spec.n_heads, seq, spec.d_head]), DType::F32);
    let out = empty_like(&qkv, Shape::from([batch, seq, spec.n_heads * spec.d_head]), dtype);
    let client = out.client.clone();
    let cube_dim = CubeDim::new_1d(units);
    let cubes = |count: usize| cubecl::calculate_cube_count_elemwise(&client, count * units as usize, cube_dim);
    let types = [&qkv, &gamma_query, &gamma_key, &cos].map(|tensor| dtype_to_storage_type(tensor.dtype));
    write_kernel::launch(
        &client,
        cubes(batch * seq * (spec.n_heads + 2 * spec.n_kv_heads)),
        cube_dim,
        qkv.into_tensor_arg(),
        gamma_query.into_tensor_arg(),
        gamma_key.into_tensor_arg(),
        cos.into_tensor_arg(),
        sin.into_tensor_arg(),
        signs.clone().into_tensor_arg(),
        hartley.clone().into_tensor_arg(),
        queries.clone().into_tensor_arg(),
        keys.floats.clone().into_tensor_arg(),
        values.floats.clone().into_tensor_arg(),
        keys.words.clone().into_tensor_arg(),
        values.words.clone().into_tensor_arg(),
        keys.scales.clone().into_tensor_arg(),
        values.scales.clone().into_tensor_arg(),
        first_angle,
        start,
        capacity,
        of,
        types[0],
        types[1],
        types[2],
        types[3],
    );
    attend_kernel::launch(
        &client,
        cubes(batch * seq * spec.n_heads),
        cube_dim,
        queries.into_tensor_arg(),
        keys.floats.clone().into_tensor_arg(),
        values.floats.clone().into_tensor_arg(),
        keys.words.clone().into_tensor_arg(),
        values.words.clone().into_tensor_arg(),
        keys.scales.clone().into_tensor_arg(),
        values.scales.clone().into_tensor_arg(),
        hidden.into_tensor_arg(),
        signs.into_tensor_arg(),
        hartley.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        start,
        capacity,
        of,
        dtype_to_storage_type(dtype),
    );
    Attended { out, keys: keys.into_held(), values: values.into_held() }
}
