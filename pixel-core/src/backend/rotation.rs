//! Rotations on a device.

use super::{Direction, Dispatch, PixelBackend, RotationTables};
use crate::math::rotation::Rotation;
use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, assert_shape};
use std::sync::Arc;

/// A rotation and its tables on a device: `d_input` bits and the odd part of `d_input` values, nothing that is stored
/// with a weight.
///
/// As part of a module it moves with it; it holds no parameters.
#[derive(Module, Debug)]
pub struct RotationTensors {
    #[module(skip)]
    rotation: Arc<Rotation>,
    /// Bit `i` is set where sign `i` is −1, `[⌈d_input / 32⌉]`.
    signs: Tensor<1, Int>,
    /// `cas(2πj/m)`, `[m]`, `m` the odd part of `d_input`.
    hartley: Tensor<1>,
}

impl RotationTensors {
    /// The tables of the rotation of width `d_input` whose signs come from `seed`.
    ///
    /// # Panics
    /// If `d_input` is zero.
    pub fn new(d_input: usize, seed: u64, device: &Device) -> Self {
        Self::from_rotation(Arc::new(Rotation::new(d_input, seed)), device)
    }

    pub(super) fn from_rotation(rotation: Arc<Rotation>, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let (words, values) = (rotation.sign_words(), rotation.hartley_values());
        let (num_words, num_values) = (words.len(), values.len());
        let signs = Tensor::from_data(TensorData::new(words, [num_words]), (&device, DType::U32));
        let hartley = Tensor::from_data(TensorData::new(values, [num_values]), (&device, DType::F32));
        Self { rotation, signs, hartley }
    }

    /// The rotation.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// The tables as an operation takes them.
    pub(super) fn tables(&self) -> RotationTables<Dispatch> {
        RotationTables::Present {
            signs: self.signs.clone().into_dispatch(),
            hartley: self.hartley.clone().into_dispatch(),
            rotation: Arc::clone(&self.rotation),
        }
    }

    /// Where the tables are.
    pub fn device(&self) -> Device {
        self.signs.device()
    }

    /// The same rotation on `device`.
    pub fn to_device(&self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        if self.device() == device { self.clone() } else { Self::from_rotation(Arc::clone(&self.rotation), &device) }
    }

    /// The definition of [`rotate`], which kernels are tested against.
    #[cfg(test)]
    pub(super) fn defined(&self, x: Tensor<2>, direction: Direction) -> burn::backend::DispatchTensor {
        let (signs, hartley) = (self.signs.clone().into_dispatch(), self.hartley.clone().into_dispatch());
        super::definition::rotate::<Dispatch>(x.into_dispatch(), signs, hartley, &self.rotation, direction)
    }
}

/// Rotates the last axis of `x`, `[…, d_input]`: `x · Q` or `x · Qᵀ`.
///
/// # Panics
/// If the last axis has another width or `x` is on another device than the tables.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_core::backend::{Direction, RotationTensors, rotate};
/// let device = Device::flex();
/// let rotation = RotationTensors::new(12, 7, &device);
/// let x = Tensor::<2>::from_data([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]], &device);
/// let y = rotate(rotate(x.clone(), &rotation, Direction::Forward), &rotation, Direction::Inverse);
/// assert!((y - x).abs().max().into_scalar::<f32>() < 1e-4);
/// # }
/// ```
pub fn rotate<const D: usize>(x: Tensor<D>, tables: &RotationTensors, direction: Direction) -> Tensor<D> {
    let d_input = tables.rotation.d_input();
    assert_shape!(x, [.., d_input]);
    Tensor::from_dispatch(Dispatch::rotate(
        x.into_dispatch(),
        tables.signs.clone().into_dispatch(),
        tables.hartley.clone().into_dispatch(),
        Arc::clone(&tables.rotation),
        direction,
    ))
}
