//! Attention over a cache, in Burn's primitives: a matrix of scores, masks, a softmax.

use super::{indices, row, to_f32};
use crate::attention::{AttentionSpec, CacheFormat};
use crate::backend::{
    Attended, AttentionTensors, Direction, HeadNormTensors, HeldTensors, PaddingTensor, PixelBackend, RotaryTensors,
};
use burn::backend::tensor::{BoolTensor, Device, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{DType, FloatDType, IntDType, Shape, Slice, TensorData};
use std::sync::Arc;

/// Attention of new tokens to a cache and to themselves.
pub(in crate::backend) fn attend<B: PixelBackend>(
    qkv: FloatTensor<B>,
    with: AttentionTensors<B>,
    start: usize,
    spec: &AttentionSpec,
) -> Attended<B> {
    if let Err(error) = spec.validate() {
        panic!("{error}");
    }
    let AttentionTensors { rotary, norms, padding, keys, values } = with;
    let (batch, seq, dtype) = (qkv.shape()[0], qkv.shape()[1], qkv.dtype());
    let (n_heads, n_kv_heads, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
    let qkv = if dtype == DType::F32 { qkv } else { to_f32::<B>(qkv) };
    let qkv = B::float_reshape(qkv, Shape::from([batch, seq, n_heads + 2 * n_kv_heads, d]));
    // `[batch, heads, seq, d_head]`
    let part = |first: usize, heads: usize| B::float_swap_dims(narrow::<B>(qkv.clone(), 2, first, heads), 1, 2);
    let (query, key) = (part(0, n_heads), part(n_heads, n_kv_heads));
    let value = part(n_heads + n_kv_heads, n_kv_heads);
    let (query, key) = match norms {
        HeadNormTensors::Absent => (query, key),
        HeadNormTensors::Present { query: q, key: k } => (norm::<B>(query, q, spec), norm::<B>(key, k, spec)),
    };
    let (query, key) = match rotary {
        RotaryTensors::Absent => (query, key),
        RotaryTensors::Present { cos, sin, first } => {
            let rows = |table: FloatTensor<B>| {
                let table = if table.dtype() == DType::F32 { table } else { to_f32::<B>(table) };
                B::float_reshape(narrow::<B>(table, 0, first, seq), Shape::from([1, 1, seq, d / 2]))
            };
            let (cos, sin) = (rows(cos), rows(sin));
            (turn::<B>(query, &cos, &sin), turn::<B>(key, &cos, &sin))
        }
    };
    let query = B::float_div_scalar(query, (d as f64).sqrt().into());

    let len = start + seq;
    let (keys, values) = (write::<B>(keys, key, start, spec), write::<B>(values, value, start, spec));
    // In the basis in which the cache holds heads.
    let query = in_basis::<B>(query, spec, Direction::Forward);
    let (all_keys, all_values) = (read::<B>(&keys, len, spec), read::<B>(&values, len, spec));
    // Query heads that share a key head follow one another.
    let stacked = spec.group() * seq;
    let query = B::float_reshape(query, Shape::from([batch, n_kv_heads, stacked, d]));
    let scores = B::float_matmul(query, B::float_swap_dims(all_keys, 2, 3));
    let scores = B::float_reshape(scores, Shape::from([batch, n_heads, seq, len]));
    let hidden = hidden::<B>(padding, [batch, seq, len], spec, &scores.device());
    let weights = softmax::<B>(scores, hidden, spec.quiet_softmax);
    let weights = B::float_reshape(weights, Shape::from([batch, n_kv_heads, stacked, len]));
    let out = B::float_reshape(B::float_matmul(weights, all_values), Shape::from([batch, n_heads, seq, d]));
    let out = in_basis::<B>(out, spec, Direction::Inverse);
    let out = B::float_reshape(B::float_swap_dims(out, 1, 2), Shape::from([batch, seq, n_heads * d]));
    Attended { out: if dtype == DType::F32 { out } else { B::float_cast(out, dtype.into()) }, keys, values }
}

/// `len` values of axis `axis` from `first` on.
fn narrow<B: Backend>(x: FloatTensor<B>, axis: usize, first: usize, len: usize) -> FloatTensor<B> {
    let shape = x.shape();
    let all = |i: usize| if i == axis { first..first + len } else { 0..shape[i] };
    let slices: Vec<_> = (0..shape.num_dims()).map(|i| Slice::from(all(i))).collect();
    B::float_slice(x, &slices)
}

/// Heads `[batch, heads, seq, d_head]` over their root mean square, times `gamma`.
fn norm<B: Backend>(heads: FloatTensor<B>, gamma: FloatTensor<B>, spec: &AttentionSpec) -> FloatTensor<B> {
    let power = B::float_mean_dim(B::float_mul(heads.clone(), heads.clone()), 3);
    let root = B::float_sqrt(B::float_add_scalar(power, spec.norm_epsilon.unwrap_or_default().into()));
    let gamma = B::float_reshape(row::<B>(gamma), Shape::from([1, 1, 1, spec.d_head]));
    B::float_mul(B::float_div(heads, root), gamma)
}

/// Heads turned by the angles of their positions.
fn turn<B: Backend>(heads: FloatTensor<B>, cos: &FloatTensor<B>, sin: &FloatTensor<B>) -> FloatTensor<B> {
    let half = heads.shape()[3] / 2;
    let (first, second) = (narrow::<B>(heads.clone(), 3, 0, half), narrow::<B>(heads, 3, half, half));
    let by = |x: &FloatTensor<B>, factor: &FloatTensor<B>| B::float_mul(x.clone(), factor.clone());
    let turned_first = B::float_sub(by(&first, cos), by(&second, sin));
    let turned_second = B::float_add(by(&second, cos), by(&first, sin));
    B::float_cat(vec![turned_first, turned_second], 3)
}

/// Heads turned by the rotation of narrow formats, or as they are.
fn in_basis<B: PixelBackend>(heads: FloatTensor<B>, spec: &AttentionSpec, direction: Direction) -> FloatTensor<B> {
    if spec.format == CacheFormat::F32 {
        return heads;
    }
    let (rotation, device) = (Arc::new(spec.rotation()), heads.device());
    let signs = rotation.sign_words();
    let signs = TensorData::new(signs.clone(), [signs.len()]);
    let hartley = rotation.hartley_values();
    let hartley = TensorData::new(hartley.clone(), [hartley.len()]);
    let signs = B::int_cast(B::int_from_data(signs, &device), IntDType::U32);
    B::rotate(heads, signs, B::float_from_data(hartley, &device), rotation, direction)
}

/// The cache with new heads `[batch, n_kv_heads, seq, d_head]` from token `start` on.
fn write<B: PixelBackend>(
    held: HeldTensors<B>,
    heads: FloatTensor<B>,
    start: usize,
    spec: &AttentionSpec,
) -> HeldTensors<B> {
    let (shape, bits) = (heads.shape(), spec.format.bits());
    let place = |last: Option<usize>| {
        let axes = [0..shape[0], 0..shape[1], start..start + shape[2]];
        axes.into_iter().chain(last.map(|n| 0..n)).map(Slice::from).collect::<Vec<_>>()
    };
    match held {
        HeldTensors::F32(values) => HeldTensors::F32(B::float_slice_assign(values, &place(Some(spec.d_head)), heads)),
        HeldTensors::Rounded { words, scales } => {
            let heads = in_basis::<B>(heads, spec, Direction::Forward);
            let (largest, offset) = spec.format.range();
            let peak = B::float_max_dim(B::float_abs(heads.clone()), 3);
            let scale = B::float_div_scalar(peak, f64::from(largest).into());
            // A head of zeros has a scale of zero, and any integer is right.
            let divisor = B::float_clamp_min(scale.clone(), f32::MIN_POSITIVE.into());
            let codes = B::float_round(B::float_div(heads, divisor));
            let codes = B::float_add_scalar(codes, f64::from(offset).into());
            let codes = B::int_cast(B::float_into_int(codes, IntDType::I32), IntDType::U32);
            let (per_word, width) = (32 / bits, spec.format.words(spec.d_head));
            let codes = B::int_reshape(codes, Shape::from([shape[0], shape[1], shape[2], width, per_word]));
            let field = |i: usize| {
                let axes = [shape[0], shape[1], shape[2], width].map(|n| 0..n);
                let slices: Vec<_> = axes.into_iter().chain(std::iter::once(i..i + 1)).map(Slice::from).collect();
                B::bitwise_left_shift_scalar(B::int_slice(codes.clone(), &slices), ((i * bits) as u32).into())
            };
            let packed = (0..per_word).map(field).reduce(B::bitwise_or).expect("a word has fields");
            let packed = B::int_reshape(packed, Shape::from([shape[0], shape[1], shape[2], width]));
            let scale = B::float_reshape(scale, Shape::from([shape[0], shape[1], shape[2]]));
            HeldTensors::Rounded {
                words: B::int_slice_assign(words, &place(Some(width)), packed),
                scales: B::float_slice_assign(scales, &place(None), scale),
            }
        }
    }
}

/// The heads of tokens `0..len`, `[batch, n_kv_heads, len, d_head]`, in the basis of the cache.
fn read<B: Backend>(held: &HeldTensors<B>, len: usize, spec: &AttentionSpec) -> FloatTensor<B> {
    let all = match held {
        HeldTensors::F32(values) => values.clone(),
        HeldTensors::Rounded { words, scales } => unpack::<B>(words.clone(), scales.clone(), spec),
    };
    narrow::<B>(all, 2, 0, len)
}

/// The turned heads of a narrow cache, `[batch, n_kv_heads, capacity, d_head]`.
pub(in crate::backend) fn unpack<B: Backend>(
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    spec: &AttentionSpec,
) -> FloatTensor<B> {
    let (shape, bits) = (words.shape(), spec.format.bits());
    let field = |i: usize| {
        let shifted = B::bitwise_right_shift_scalar(words.clone(), ((i * bits) as u32).into());
        let field = B::bitwise_and_scalar(shifted, ((1u32 << bits) - 1).into());
        let field = B::int_into_float(field, FloatDType::F32);
        B::float_reshape(field, Shape::from([shape[0], shape[1], shape[2], shape[3], 1]))
    };
    let codes = B::float_cat((0..32 / bits).map(field).collect(), 4);
    let codes = B::float_reshape(codes, Shape::from([shape[0], shape[1], shape[2], spec.d_head]));
    let (_, offset) = spec.format.range();
    let scales = B::float_reshape(scales, Shape::from([shape[0], shape[1], shape[2], 1]));
    B::float_mul(B::float_sub_scalar(codes, f64::from(offset).into()), scales)
}

/// Which keys each query does not see, to be broadcast to `[batch, n_heads, seq, len]`; `None` if all are seen.
fn hidden<B: Backend>(
    padding: PaddingTensor<B>,
    [batch, seq, len]: [usize; 3],
    spec: &AttentionSpec,
    device: &Device<B>,
) -> Option<BoolTensor<B>> {
    let start = len - seq;
    let sees = |q: usize, k: usize| {
        !spec.causal || (k <= start + q && spec.window.is_none_or(|window| k + window > start + q))
    };
    let places = (0..seq * len).map(|i| i32::from(!sees(i / len, i % len))).collect::<Vec<_>>();
    let by_place = places.contains(&1).then(|| {
        let places = B::int_reshape(indices::<B>(places, device), Shape::from([1, 1, seq, len]));
        B::int_greater_elem(places, 0.into(), get_device_settings::<B>(device).bool_dtype)
    });
    let by_padding = match padding {
        PaddingTensor::Absent => None,
        PaddingTensor::Present(mask) => Some(B::bool_reshape(mask, Shape::from([batch, 1, 1, len]))),
    };
    match (by_place, by_padding) {
        (Some(a), Some(b)) => {
            let a = B::bool_expand(a, Shape::from([batch, 1, seq, len]));
            Some(B::bool_or(a, B::bool_expand(b, Shape::from([batch, 1, seq, len]))))
        }
        (a, b) => a.or(b),
    }
}

/// The softmax over the last axis of what is not hidden; zeros where all is.
fn softmax<B: Backend>(scores: FloatTensor<B>, hidden: Option<BoolTensor<B>>, quiet: bool) -> FloatTensor<B> {
    let shape = scores.shape();
    let hidden = hidden.map(|hidden| B::bool_expand(hidden, shape));
    let fill = |x: FloatTensor<B>, value: f32| match &hidden {
        None => x,
        Some(hidden) => B::float_mask_fill(x, hidden.clone(), value.into()),
    };
    let scores = fill(scores, f32::MIN);
    let top = B::float_max_dim(scores.clone(), 3);
    // With a one in the denominator, e⁰, the largest score is no less than zero.
    let top = if quiet { B::float_clamp_min(top, 0.into()) } else { top };
    let weights = fill(B::float_exp(B::float_sub(scores, top.clone())), 0.0);
    let sum = B::float_sum_dim(weights.clone(), 3);
    let sum = if quiet { B::float_add(sum, B::float_exp(B::float_neg(top))) } else { sum };
    B::float_div(weights, B::float_clamp_min(sum, f32::MIN_POSITIVE.into()))
}
