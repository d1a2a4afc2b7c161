//! Attention on the tensors' own memory.

use super::{Lend, from_f32, ready};
use crate::attention::{AttentionSpec, CacheMut, HeldMut, Tokens, attend as attend_slices};
use crate::backend::{Attended, AttentionTensors, HeadNormTensors, HeldTensors, PaddingTensor, RotaryTensors};
use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};

/// [`PixelBackend::attend`](crate::backend::PixelBackend::attend); `flags` reads a tensor of truth values.
pub(super) fn attend<B: Backend>(
    qkv: FloatTensor<B>,
    with: AttentionTensors<B>,
    start: usize,
    spec: AttentionSpec,
    flags: impl FnOnce(BoolTensor<B>) -> Vec<bool>,
) -> Attended<B>
where
    FloatTensor<B>: Lend,
    IntTensor<B>: Lend,
{
    let (dtype, mut shape) = (qkv.dtype(), qkv.shape());
    let (batch, seq) = (shape[0], shape[1]);
    let qkv = ready::<B>(qkv);
    let rotary = match with.rotary {
        RotaryTensors::Absent => None,
        RotaryTensors::Present { cos, sin, first } => Some((ready::<B>(cos), ready::<B>(sin), first)),
    };
    let norms = match with.norms {
        HeadNormTensors::Absent => None,
        HeadNormTensors::Present { query, key } => Some((ready::<B>(query), ready::<B>(key))),
    };
    let padding = match with.padding {
        PaddingTensor::Absent => None,
        PaddingTensor::Present(mask) => Some(flags(mask)),
    };
    let (mut keys, mut values) = (Own::<B>::new(with.keys), Own::<B>::new(with.values));

    let pairs = spec.d_head / 2;
    let tokens = Tokens {
        batch,
        seq,
        start,
        qkv: qkv.floats(),
        rotary: rotary.as_ref().map(|(cos, sin, first)| {
            let rows = first * pairs..(first + seq) * pairs;
            (&cos.floats()[rows.clone()], &sin.floats()[rows])
        }),
        norms: norms.as_ref().map(|(query, key)| (query.floats(), key.floats())),
        padding: padding.as_deref(),
    };
    shape[2] = spec.n_heads * spec.d_head;
    let mut out = vec![0.0; shape.num_elements()];
    let cache = CacheMut { capacity: keys.capacity(), keys: keys.lend(), values: values.lend() };
    attend_slices(&spec, &tokens, cache, &mut out);
    let out = from_f32::<B>(Lend::from_values(out, shape), dtype);
    Attended { out, keys: keys.0, values: values.0 }
}

/// Keys or values, side by side and held by nobody else.
struct Own<B: Backend>(HeldTensors<B>);

impl<B: Backend> Own<B>
where
    FloatTensor<B>: Lend,
    IntTensor<B>: Lend,
{
    fn new(held: HeldTensors<B>) -> Self {
        Self(match held {
            HeldTensors::F32(values) => HeldTensors::F32(ready::<B>(values)),
            HeldTensors::Rounded { words, scales } => {
                HeldTensors::Rounded { words: words.contiguous(), scales: ready::<B>(scales) }
            }
        })
    }

    fn capacity(&self) -> usize {
        match &self.0 {
            HeldTensors::F32(values) => values.shape()[2],
            HeldTensors::Rounded { scales, .. } => scales.shape()[2],
        }
    }

    fn lend(&mut self) -> HeldMut<'_> {
        match &mut self.0 {
            HeldTensors::F32(values) => HeldMut::F32(values.floats_mut()),
            HeldTensors::Rounded { words, scales } => {
                HeldMut::Rounded { words: words.words_mut(), scales: scales.floats_mut() }
            }
        }
    }
}
