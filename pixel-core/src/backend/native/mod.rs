//! Flex and NdArray: the slices code of core on the tensors' own memory. Tensors that are strided are copied once.

mod attention;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "Burn's ndarray backend is deprecated, and still offered here")]
mod nd;
mod projection;
#[cfg(feature = "flex")]
pub(super) mod ready;

use super::Direction;
use crate::math::rotation::Rotation;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape};
use rayon::prelude::*;

/// A tensor that lends its memory.
trait Lend: Sized {
    /// The same tensor with its values side by side, copied only where they are not.
    fn contiguous(self) -> Self;

    /// The values of a contiguous tensor of F32.
    fn floats(&self) -> &[f32];

    /// The values of a contiguous tensor of U32.
    fn words(&self) -> &[u32];

    /// The values of a contiguous tensor of F32, of a copy if others hold the tensor.
    fn floats_mut(&mut self) -> &mut [f32];

    /// The values of a contiguous tensor of U32, of a copy if others hold the tensor.
    fn words_mut(&mut self) -> &mut [u32];

    fn from_values(values: Vec<f32>, shape: Shape) -> Self;
}

/// A tensor of F32 whose values lie side by side.
fn ready<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B>
where
    FloatTensor<B>: Lend,
{
    in_f32::<B>(tensor).contiguous()
}

/// Values of a tensor below which it is rotated on the calling thread.
const PARALLEL_FROM: usize = 1 << 14;

/// Rotates every row of `values`, `[rows, d_input]`.
fn rotate_rows(values: &mut [f32], rotation: &Rotation, direction: Direction) {
    let run = |scratch: &mut crate::math::rotation::RotationScratch, row: &mut [f32]| match direction {
        Direction::Forward => rotation.forward(row, scratch),
        Direction::Inverse => rotation.inverse(row, scratch),
    };
    let n = rotation.d_input();
    if values.len() < PARALLEL_FROM {
        let mut scratch = rotation.scratch();
        values.chunks_exact_mut(n).for_each(|row| run(&mut scratch, row));
    } else {
        values.par_chunks_exact_mut(n).for_each_init(|| rotation.scratch(), run);
    }
}

fn in_f32<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    if x.dtype() == DType::F32 { x } else { B::float_cast(x, FloatDType::F32) }
}

fn from_f32<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if dtype == DType::F32 { x } else { B::float_cast(x, dtype.into()) }
}

/// Row numbers, from integers of any width.
fn row_numbers(values: impl Iterator<Item = i64>) -> Vec<usize> {
    values.map(|row| usize::try_from(row).unwrap_or_else(|_| panic!("row {row} of a weight"))).collect()
}

/// The operations for one backend: how its tensors lend their memory is all that differs.
macro_rules! operations {
    () => {
        fn rotate(
            x: FloatTensor<Self>,
            _signs: IntTensor<Self>,
            _hartley: FloatTensor<Self>,
            rotation: Arc<Rotation>,
            direction: Direction,
        ) -> FloatTensor<Self> {
            let (shape, dtype) = (x.shape(), x.dtype());
            let mut values = into_values(in_f32::<Self>(x));
            rotate_rows(&mut values, &rotation, direction);
            from_f32::<Self>(from_values(values, shape), dtype)
        }

        fn synthesize(
            codes: IntTensor<Self>,
            scales: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            layout: CodecLayout,
        ) -> FloatTensor<Self> {
            let mut out = vec![0.0; layout.shape().num_weights()];
            with_slices(&codes, &scales, &dictionary, layout, |weight| weight.synthesize(&mut out));
            from_values(out, definition::dense_shape(&layout))
        }

        fn synthesize_rows(
            rows: IntTensor<Self>,
            codes: IntTensor<Self>,
            scales: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            layout: CodecLayout,
        ) -> FloatTensor<Self> {
            let rows = row_numbers(into_integers(rows));
            let shape = Shape::from([rows.len(), layout.shape().d_input()]);
            let mut out = vec![0.0; shape.num_elements()];
            with_slices(&codes, &scales, &dictionary, layout, |weight| weight.rows(&rows, &mut out));
            from_values(out, shape)
        }

        fn pattern_linear(
            x: FloatTensor<Self>,
            codes: IntTensor<Self>,
            scales: FloatTensor<Self>,
            dictionary: FloatTensor<Self>,
            layout: CodecLayout,
            arithmetic: Arithmetic,
        ) -> FloatTensor<Self> {
            let (dtype, shape) = (x.dtype(), Shape::from([x.shape()[0], layout.shape().d_output()]));
            let x = in_f32::<Self>(x);
            let mut out = vec![0.0; shape.num_elements()];
            with_slices(&codes, &scales, &dictionary, layout, |weight| {
                with_values(&x, |x| weight.with_arithmetic(arithmetic).linear(x, &mut out));
            });
            from_f32::<Self>(from_values(out, shape), dtype)
        }

        fn project(x: FloatTensor<Self>, with: ProjectionTensors<Self>) -> FloatTensor<Self> {
            projection::project::<Self>(x, with)
        }

        fn attend(
            qkv: FloatTensor<Self>,
            with: AttentionTensors<Self>,
            start: usize,
            spec: AttentionSpec,
        ) -> Attended<Self> {
            attention::attend::<Self>(qkv, with, start, spec, flags)
        }
    };
}

use operations;
