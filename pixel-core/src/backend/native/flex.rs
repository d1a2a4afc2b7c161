//! How tensors of Flex lend their memory.

use super::{Lend, attention, from_f32, in_f32, projection, rotate_rows, row_numbers};
use crate::attention::AttentionSpec;
use crate::backend::{Attended, AttentionTensors, Direction, PixelBackend, ProjectionTensors, definition};
use crate::codec::CodecLayout;
use crate::math::rotation::Rotation;
use crate::synthesis::{Arithmetic, PatternSlices};
use burn::backend::TensorMetadata;
use burn::backend::ops::IntTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{IntDType, Shape, TensorData};
use burn_flex::{Flex, FlexTensor};
use std::sync::Arc;

impl PixelBackend for Flex {
    super::operations!();
}

impl Lend for FlexTensor {
    fn contiguous(self) -> Self {
        if self.is_contiguous() { self } else { self.to_contiguous() }
    }

    fn floats(&self) -> &[f32] {
        self.as_slice().unwrap_or_else(|| panic!("a tensor of {:?} where F32 belongs", self.dtype()))
    }

    fn words(&self) -> &[u32] {
        self.as_slice().unwrap_or_else(|| panic!("codes of {:?} where U32 belongs", self.dtype()))
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        let (start, end) = self.layout().contiguous_offsets().expect("a contiguous tensor");
        &mut self.storage_mut()[start..end]
    }

    fn words_mut(&mut self) -> &mut [u32] {
        let (start, end) = self.layout().contiguous_offsets().expect("a contiguous tensor");
        &mut self.storage_mut()[start..end]
    }

    fn from_values(values: Vec<f32>, shape: Shape) -> Self {
        from_values(values, shape)
    }
}

fn with_values(tensor: &FlexTensor, f: impl FnOnce(&[f32])) {
    let tensor = tensor.to_contiguous();
    f(tensor.as_slice().unwrap_or_else(|| panic!("a tensor of {:?} where F32 belongs", tensor.dtype())));
}

fn with_slices(
    codes: &FlexTensor,
    scales: &FlexTensor,
    dictionary: &FlexTensor,
    layout: CodecLayout,
    f: impl FnOnce(PatternSlices<'_>),
) {
    let codes = codes.to_contiguous();
    let codes = codes.as_slice().unwrap_or_else(|| panic!("codes of {:?} where U32 belongs", codes.dtype()));
    with_values(scales, |scales| {
        with_values(dictionary, |dictionary| f(PatternSlices::new(layout, codes, scales, dictionary)));
    });
}

/// The values, without a copy where the tensor is contiguous and not shared.
fn into_values(tensor: FlexTensor) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("a tensor of F32")
}

fn from_values(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn into_integers(tensor: FlexTensor) -> impl Iterator<Item = i64> {
    let values: Vec<i64> = Flex::int_cast(tensor, IntDType::I64).into_data().try_into_vec().expect("a tensor of I64");
    values.into_iter()
}

fn flags(tensor: FlexTensor) -> Vec<bool> {
    tensor.into_data().iter::<bool>().collect()
}
