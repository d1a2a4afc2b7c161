//! Matrices of the host as tensors of a device, and back.

use super::BackendError;
use super::tensors::floats;
use crate::matrix::{Matrix, Shape};
use crate::synthesis::KernelFormError;
use burn::tensor::{DType, Device, Tensor, TensorData};

impl Matrix {
    /// The matrix on a device, `[d_output, d_input]`, F32.
    ///
    /// # Example
    /// ```
    /// # #[cfg(feature = "flex")] {
    /// use burn::tensor::{Device, Tensor};
    /// use pixel_core::{Matrix, Shape};
    /// let matrix = Matrix::random(Shape::new(3, 5)?, 1);
    /// let tensor: Tensor<2> = matrix.to_tensor(&Device::flex());
    /// assert_eq!(Matrix::try_from(tensor)?, matrix);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn to_tensor(&self, device: &Device) -> Tensor<2> {
        let shape = <[usize; 2]>::from(self.shape());
        Tensor::from_data(TensorData::new(self.as_slice().to_vec(), shape), (device, DType::F32))
    }
}

impl TryFrom<Tensor<2>> for Matrix {
    type Error = BackendError;

    /// The values of `tensor`, as they lie in it: the weight of a Burn `Linear` is the transpose of a matrix here.
    fn try_from(tensor: Tensor<2>) -> Result<Self, BackendError> {
        let [rows, columns] = tensor.dims();
        let shape = Shape::new(rows, columns).map_err(crate::FormatError::from).map_err(KernelFormError::from)?;
        let values = floats("matrix", &tensor.cast(DType::F32))?;
        Ok(Self::new(shape, values).map_err(crate::FormatError::from).map_err(KernelFormError::from)?)
    }
}
