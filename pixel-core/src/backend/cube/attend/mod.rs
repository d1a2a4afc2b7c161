//! Attention over a cache: one launch writes the heads of the new tokens, one lets their queries attend.
//!
//! A cube is a head of a token. In the second launch it takes as many keys at a time as it has units, a unit a key for
//! the scores and a unit a few values of the head for the sums; the softmax keeps up with the largest score so far.
//!
//! Source: Milakov and Gimelshein, *Online normalizer calculation for softmax*, <https://arxiv.org/abs/1805.02867>.

mod mix;
mod write;

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
    write::write_kernel::launch(
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
    mix::mix_kernel::launch(
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
