//! Attention over a cache, as one operation.

use super::{Dispatch, PixelBackend, RotationTensors};
use crate::attention::{AttentionSpec, CacheFormat};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, DispatchTensor, ExtensionType};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Device, Element, Float, Int, Tensor, TensorData, s};
use std::sync::Arc;

/// What an attention reads beside the heads of the new tokens, and the cache that it writes to: the tensors of
/// [`attention::attend`](crate::attention::attend) on a backend.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct AttentionTensors<B: Backend> {
    /// The positions.
    #[extension_type]
    pub rotary: RotaryTensors<B>,
    /// The norms of query and key heads.
    #[extension_type]
    pub norms: HeadNormTensors<B>,
    /// The keys that no query of their text sees.
    #[extension_type]
    pub padding: PaddingTensor<B>,
    /// The keys of the cache.
    #[extension_type]
    pub keys: HeldTensors<B>,
    /// The values of the cache.
    #[extension_type]
    pub values: HeldTensors<B>,
}

/// Cosines and sines of the angles of positions, or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum RotaryTensors<B: Backend> {
    /// None.
    Absent,
    /// Tables of a window of positions.
    Present {
        /// `[positions, d_head / 2]`.
        cos: FloatTensor<B>,
        /// `[positions, d_head / 2]`.
        sin: FloatTensor<B>,
        /// The row of the first new token.
        first: usize,
    },
}

/// What normed heads are multiplied by, `[d_head]` each, or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum HeadNormTensors<B: Backend> {
    /// None.
    Absent,
    /// The factors.
    Present {
        /// Of query heads.
        query: FloatTensor<B>,
        /// Of key heads.
        key: FloatTensor<B>,
    },
}

/// Hidden keys, or none.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum PaddingTensor<B: Backend> {
    /// None.
    Absent,
    /// `[batch, start + seq]`, true = hidden.
    Present(BoolTensor<B>),
}

/// Keys or values of a cache with room for `capacity` tokens, as its [`CacheFormat`] holds them.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub enum HeldTensors<B: Backend> {
    /// `[batch, n_kv_heads, capacity, d_head]`, F32.
    F32(FloatTensor<B>),
    /// Turned heads, rounded.
    Rounded {
        /// `[batch, n_kv_heads, capacity, d_head · bits / 32]`, U32.
        words: IntTensor<B>,
        /// `[batch, n_kv_heads, capacity]`, F32.
        scales: FloatTensor<B>,
    },
}

/// What an attention returns: the outputs, and the cache with the new tokens.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion: cfg(feature = "cube"))]
pub struct Attended<B: Backend> {
    /// `[batch, seq, n_heads · d_head]`.
    pub out: FloatTensor<B>,
    /// The keys.
    #[extension_type]
    pub keys: HeldTensors<B>,
    /// The values.
    #[extension_type]
    pub values: HeldTensors<B>,
}

/// Keys or values of a cache on a device.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a cache has two")]
pub enum Held {
    /// As they are, `[batch, n_kv_heads, capacity, d_head]`.
    F32(Tensor<4>),
    /// As [`CacheFormat`] rounds them.
    Rounded {
        /// `[batch, n_kv_heads, capacity, d_head · bits / 32]`, U32.
        words: Tensor<4, Int>,
        /// `[batch, n_kv_heads, capacity]`, F32.
        scales: Tensor<3>,
    },
}

/// The cache of one attention and one batch of texts on a device.
#[derive(Debug, Clone)]
pub struct AttentionCache {
    /// The keys.
    pub keys: Held,
    /// The values.
    pub values: Held,
}

/// Zeros. Flex writes its own twice; here the system fills pages when they are used for the first time.
fn zeros<const D: usize, K: Basic, E: Element>(shape: [usize; D], device: &Device) -> Tensor<D, K> {
    if super::is_host(device) {
        let values = vec![E::from_elem(0); shape.iter().product()];
        return Tensor::from_data(TensorData::new(values, shape), (device, E::dtype()));
    }
    Tensor::zeros(shape, (device, E::dtype()))
}

/// What [`attend`] reads beside the heads; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct AttentionInputs {
    /// Cosines and sines of positions, each `[positions, d_head / 2]`, and the row of the first new token.
    pub rotary: Option<(Tensor<2>, Tensor<2>, usize)>,
    /// What normed query heads and key heads are multiplied by, each `[d_head]`.
    pub norms: Option<(Tensor<1>, Tensor<1>)>,
    /// The keys that no query of their text sees, `[batch, start + seq]`, true = hidden.
    pub padding: Option<Tensor<2, Bool>>,
}

impl Held {
    /// Room for `capacity` tokens of `batch` texts.
    fn empty(spec: &AttentionSpec, batch: usize, capacity: usize, device: &Device) -> Self {
        let room = [batch, spec.n_kv_heads, capacity];
        let heads = |width| [room[0], room[1], room[2], width];
        match spec.format {
            CacheFormat::F32 => Self::F32(zeros::<4, Float, f32>(heads(spec.d_head), device)),
            format => Self::Rounded {
                words: zeros::<4, Int, u32>(heads(format.words(spec.d_head)), device),
                scales: zeros::<3, Float, f32>(room, device),
            },
        }
    }

    /// Batch, heads, and tokens that there is room for.
    fn room(&self) -> [usize; 3] {
        match self {
            Self::F32(values) => {
                let [batch, heads, capacity, _] = values.dims();
                [batch, heads, capacity]
            }
            Self::Rounded { scales, .. } => scales.dims(),
        }
    }

    /// Moves to `room` of more tokens.
    fn grow(self, more: Self) -> Self {
        match (self, more) {
            (Self::F32(values), Self::F32(more)) => Self::F32(Tensor::cat(vec![values, more], 2)),
            (Self::Rounded { words, scales }, Self::Rounded { words: more_words, scales: more_scales }) => {
                Self::Rounded {
                    words: Tensor::cat(vec![words, more_words], 2),
                    scales: Tensor::cat(vec![scales, more_scales], 2),
                }
            }
            _ => panic!("caches of two formats"),
        }
    }

    fn into_tensors(self) -> HeldTensors<Dispatch> {
        match self {
            Self::F32(values) => HeldTensors::F32(values.into_dispatch()),
            Self::Rounded { words, scales } => {
                HeldTensors::Rounded { words: words.into_dispatch(), scales: scales.into_dispatch() }
            }
        }
    }

    fn from_tensors(held: HeldTensors<Dispatch>) -> Self {
        match held {
            HeldTensors::F32(values) => Self::F32(Tensor::from_dispatch(values)),
            HeldTensors::Rounded { words, scales } => {
                Self::Rounded { words: Tensor::from_dispatch(words), scales: Tensor::from_dispatch(scales) }
            }
        }
    }

    /// The heads of tokens `0..len` as numbers, `[batch, n_kv_heads, len, d_head]`, turned back.
    fn dense(&self, spec: &AttentionSpec, len: usize) -> Tensor<4> {
        let values = match self {
            Self::F32(values) => return values.clone().slice(s![.., .., ..len, ..]),
            Self::Rounded { words, scales } => super::definition::unpack::<Dispatch>(
                words.clone().into_dispatch(),
                scales.clone().into_dispatch(),
                spec,
            ),
        };
        let turned = Tensor::<4>::from_dispatch(values).slice(s![.., .., ..len, ..]);
        let rotation = RotationTensors::from_rotation(Arc::new(spec.rotation()), &turned.device());
        super::rotate(turned, &rotation, super::Direction::Inverse)
    }
}

impl AttentionCache {
    /// Room for `capacity` tokens of `batch` texts.
    pub fn new(spec: &AttentionSpec, batch: usize, capacity: usize, device: &Device) -> Self {
        let held = || Held::empty(spec, batch, capacity, device);
        Self { keys: held(), values: held() }
    }

    /// Texts, and tokens of each that there is room for.
    pub fn room(&self) -> [usize; 2] {
        let [batch, _, capacity] = self.keys.room();
        [batch, capacity]
    }

    /// The same cache with room for `capacity` tokens, if it has less.
    pub fn with_capacity(self, spec: &AttentionSpec, capacity: usize, device: &Device) -> Self {
        let [batch, has] = self.room();
        if has >= capacity {
            return self;
        }
        let more = || Held::empty(spec, batch, capacity - has, device);
        Self { keys: self.keys.grow(more()), values: self.values.grow(more()) }
    }

    /// The keys and values of tokens `0..len` as numbers, each `[batch, n_kv_heads, len, d_head]`.
    pub fn dense(&self, spec: &AttentionSpec, len: usize) -> (Tensor<4>, Tensor<4>) {
        (self.keys.dense(spec, len), self.values.dense(spec, len))
    }
}

/// Attention of new tokens to those of a cache and to themselves, `[batch, seq, n_heads · d_head]`, and the cache with
/// their keys and values at `start..start + seq`; see [`attention::attend`](crate::attention::attend). Backends write
/// in place where nothing else holds the cache.
///
/// Everything is computed in f32, and the result has the type of `qkv`, `[batch, seq, (n_heads + 2·n_kv_heads) ·
/// d_head]`.
///
/// # Panics
/// As [`attention::attend`](crate::attention::attend), and if a tensor is on another device.
pub fn attend(
    spec: &AttentionSpec,
    qkv: Tensor<3>,
    inputs: AttentionInputs,
    cache: AttentionCache,
    start: usize,
) -> (Tensor<3>, AttentionCache) {
    attend_by(|qkv, with, start, spec| Dispatch::attend(qkv, with, start, *spec), spec, qkv, inputs, cache, start)
}

/// [`attend`] by an implementation.
pub(super) fn attend_by(
    by: impl FnOnce(DispatchTensor, AttentionTensors<Dispatch>, usize, &AttentionSpec) -> Attended<Dispatch>,
    spec: &AttentionSpec,
    qkv: Tensor<3>,
    inputs: AttentionInputs,
    cache: AttentionCache,
    start: usize,
) -> (Tensor<3>, AttentionCache) {
    let rotary = inputs.rotary.map_or(RotaryTensors::Absent, |(cos, sin, first)| RotaryTensors::Present {
        cos: cos.into_dispatch(),
        sin: sin.into_dispatch(),
        first,
    });
    let norms = inputs.norms.map_or(HeadNormTensors::Absent, |(query, key)| HeadNormTensors::Present {
        query: query.into_dispatch(),
        key: key.into_dispatch(),
    });
    let padding = inputs.padding.map_or(PaddingTensor::Absent, |mask| PaddingTensor::Present(mask.into_dispatch()));
    let (keys, values) = (cache.keys.into_tensors(), cache.values.into_tensors());
    let with = AttentionTensors { rotary, norms, padding, keys, values };
    let Attended { out, keys, values } = by(qkv.into_dispatch(), with, start, spec);
    let cache = AttentionCache { keys: Held::from_tensors(keys), values: Held::from_tensors(values) };
    (Tensor::from_dispatch(out), cache)
}
