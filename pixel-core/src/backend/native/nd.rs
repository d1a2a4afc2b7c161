//! How tensors of NdArray lend their memory.

use super::{Lend, attention, from_f32, in_f32, projection, rotate_rows, row_numbers};
use crate::attention::AttentionSpec;
use crate::backend::{Attended, AttentionTensors, Direction, PixelBackend, ProjectionTensors, definition};
use crate::codec::CodecLayout;
use crate::math::rotation::Rotation;
use crate::synthesis::{Arithmetic, PatternSlices};
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::Shape;
use burn_ndarray::{NdArray, NdArrayTensor};
use ndarray::{ArcArray, IxDyn};
use std::sync::Arc;

impl PixelBackend for NdArray {
    super::operations!();
}

impl Lend for NdArrayTensor {
    fn contiguous(self) -> Self {
        match self {
            Self::F32(storage) if !storage.view().is_standard_layout() => {
                Self::F32(storage.view().as_standard_layout().into_owned().into_shared().into())
            }
            Self::U32(storage) if !storage.view().is_standard_layout() => {
                Self::U32(storage.view().as_standard_layout().into_owned().into_shared().into())
            }
            other => other,
        }
    }

    fn floats(&self) -> &[f32] {
        let Self::F32(storage) = self else { panic!("a tensor of {:?} where F32 belongs", self.dtype()) };
        storage.view().to_slice().expect("a contiguous tensor")
    }

    fn words(&self) -> &[u32] {
        let Self::U32(storage) = self else { panic!("codes of {:?} where U32 belongs", self.dtype()) };
        storage.view().to_slice().expect("a contiguous tensor")
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        let dtype = self.dtype();
        let Self::F32(storage) = self else { panic!("a tensor of {dtype:?} where F32 belongs") };
        storage.ensure_owned().as_slice_mut().expect("a contiguous tensor")
    }

    fn words_mut(&mut self) -> &mut [u32] {
        let dtype = self.dtype();
        let Self::U32(storage) = self else { panic!("codes of {dtype:?} where U32 belongs") };
        storage.ensure_owned().as_slice_mut().expect("a contiguous tensor")
    }

    fn from_values(values: Vec<f32>, shape: Shape) -> Self {
        from_values(values, shape)
    }
}

fn with_values(tensor: &NdArrayTensor, f: impl FnOnce(&[f32])) {
    let NdArrayTensor::F32(storage) = tensor else { panic!("a tensor of {:?} where F32 belongs", tensor.dtype()) };
    // A copy only where the tensor is strided.
    f(storage.view().as_standard_layout().as_slice().expect("standard layout"));
}

fn with_slices(
    codes: &NdArrayTensor,
    scales: &NdArrayTensor,
    dictionary: &NdArrayTensor,
    layout: CodecLayout,
    f: impl FnOnce(PatternSlices<'_>),
) {
    let NdArrayTensor::U32(codes) = codes else { panic!("codes of {:?} where U32 belongs", codes.dtype()) };
    let (view, mut f) = (codes.view(), Some(f));
    let codes = view.as_standard_layout();
    let codes = codes.as_slice().expect("standard layout");
    with_values(scales, |scales| {
        with_values(dictionary, |dictionary| {
            if let Some(f) = f.take() {
                f(PatternSlices::new(layout, codes, scales, dictionary));
            }
        });
    });
}

fn into_values(tensor: NdArrayTensor) -> Vec<f32> {
    let mut values = Vec::new();
    with_values(&tensor, |slice| values.extend_from_slice(slice));
    values
}

fn from_values(values: Vec<f32>, shape: Shape) -> NdArrayTensor {
    let dims: Vec<usize> = shape.as_slice().to_vec();
    ArcArray::from_shape_vec(IxDyn(&dims), values).expect("as many values as the shape says").into()
}

fn into_integers(tensor: NdArrayTensor) -> impl Iterator<Item = i64> {
    let values: Vec<i64> = match &tensor {
        NdArrayTensor::I64(values) => values.view().iter().copied().collect(),
        NdArrayTensor::I32(values) => values.view().iter().map(|v| i64::from(*v)).collect(),
        NdArrayTensor::U32(values) => values.view().iter().map(|v| i64::from(*v)).collect(),
        NdArrayTensor::U8(values) => values.view().iter().map(|v| i64::from(*v)).collect(),
        other => panic!("row numbers of type {:?}", other.dtype()),
    };
    values.into_iter()
}

fn flags(tensor: NdArrayTensor) -> Vec<bool> {
    let NdArrayTensor::Bool(storage) = &tensor else { panic!("a mask of {:?}", tensor.dtype()) };
    storage.view().iter().copied().collect()
}
