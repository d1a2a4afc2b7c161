//! A packed weight as tensors of one device.

use super::{BackendError, Direction, Dispatch, PixelBackend, RotationTensors, check_device, rotate};
use crate::codec::CodecLayout;
use crate::packed::{PackedHeader, PackedWeight};
use crate::synthesis::KernelForm;
use burn::tensor::{DType, Device, Int, Tensor, TensorData, assert_shape};

/// The largest odd part of a width that kernels rotate: they multiply it out, and count in 32 bits.
const LARGEST_ODD_PART: usize = 1 << 14;

/// Codes, scales and dictionary of one weight on a device: all that is kept of it there.
///
/// The fields are plain tensors, so that a module can hold them as parameters; see [`KernelForm`] for what they mean.
#[derive(Debug, Clone)]
pub struct PatternTensors {
    /// How the codes are read.
    pub layout: CodecLayout,
    /// `[layout.num_words()]`, U32.
    pub codes: Tensor<1, Int>,
    /// `[d_output, layout.scales_per_row()]`, F32.
    pub scales: Tensor<2>,
    /// `[layout.dictionary_len()]`, F32.
    pub dictionary: Tensor<1>,
    /// The rotation of the input side, if there is one.
    pub rotation: Option<RotationTensors>,
}

impl PatternTensors {
    /// Puts `packed` on `device`.
    ///
    /// # Errors
    /// [`BackendError`] if the codec has no kernels, a scale leaves f32's range, or the device's backend was not compiled
    /// in.
    pub fn new(packed: &PackedWeight, device: &Device) -> Result<Self, BackendError> {
        check_device(device)?;
        let form = KernelForm::new(packed)?;
        let (layout, shape) = (form.layout, packed.shape());
        let odd = shape.d_input() >> shape.d_input().trailing_zeros();
        if packed.header().rotation.is_some() && odd > LARGEST_ODD_PART {
            return Err(BackendError::Width { d_input: shape.d_input(), odd, limit: LARGEST_ODD_PART });
        }
        let rotation = packed.header().rotation.map(|seed| RotationTensors::new(shape.d_input(), seed, device));
        let (words, values) = (form.codes.len(), form.dictionary.len());
        let scales = [shape.d_output(), layout.scales_per_row()];
        Ok(Self {
            layout,
            codes: Tensor::from_data(TensorData::new(form.codes, [words]), (device, DType::U32)),
            scales: Tensor::from_data(TensorData::new(form.scales, scales), (device, DType::F32)),
            dictionary: Tensor::from_data(TensorData::new(form.dictionary, [values]), (device, DType::F32)),
            rotation,
        })
    }

    /// Reads the tensors back into a packed weight. Scales are rounded to F16.
    ///
    /// # Errors
    /// As [`KernelForm::to_packed`]; [`BackendError::Read`] if a tensor cannot be read.
    pub fn to_packed(&self, header: &PackedHeader) -> Result<PackedWeight, BackendError> {
        let read = |error: String| BackendError::Read { message: error };
        let data = self.codes.clone().try_into_data().map_err(|e| read(format!("codes: {e:?}")))?;
        let codes = data.try_to_vec::<u32>().map_err(|e| read(format!("codes: {e:?}")))?;
        let data = self.scales.clone().try_into_data().map_err(|e| read(format!("scales: {e:?}")))?;
        let scales = data.try_to_vec::<f32>().map_err(|e| read(format!("scales: {e:?}")))?;
        let data = self.dictionary.clone().try_into_data().map_err(|e| read(format!("dictionary: {e:?}")))?;
        let dictionary = data.try_to_vec::<f32>().map_err(|e| read(format!("dictionary: {e:?}")))?;
        let form = KernelForm { layout: self.layout, codes, scales, dictionary };
        Ok(form.to_packed(header)?)
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.scales.device()
    }

    /// Bytes of codes, scales, dictionary and rotation tables.
    pub fn num_bytes(&self) -> usize {
        let tables = self.rotation.as_ref().map_or(0, |tables| {
            let rotation = tables.rotation();
            rotation.d_input().div_ceil(32) + rotation.odd_part()
        });
        let scales = self.layout.shape().d_output() * self.layout.scales_per_row();
        4 * (self.layout.num_words() + scales + self.layout.dictionary_len() + tables)
    }

    /// `x · Wᵀ`: `x` is `[…, d_input]`, the result `[…, d_output]`.
    ///
    /// # Panics
    /// If the last axis of `x` is not `d_input`, or `x` is on another device.
    pub fn linear<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let d_input = self.layout.shape().d_input();
        assert_shape!(x, [.., d_input]);
        self.linear_rotated(self.rotate(x))
    }

    /// `x · Q`, the activations as [`linear_rotated`](Self::linear_rotated) takes them. Weights with the same width and
    /// seed share them.
    pub fn rotate<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match &self.rotation {
            None => x,
            Some(tables) => rotate(x, tables, Direction::Forward),
        }
    }

    /// [`linear`](Self::linear) for activations that are rotated already.
    ///
    /// # Panics
    /// As [`linear`](Self::linear).
    pub fn linear_rotated<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (d_input, d_output) = (self.layout.shape().d_input(), self.layout.shape().d_output());
        assert_shape!(x, [.., d_input]);
        let mut shape = x.dims();
        let batch = shape.iter().product::<usize>() / d_input;
        shape[D - 1] = d_output;
        if batch == 0 {
            return Tensor::zeros(shape, (&x.device(), x.dtype()));
        }
        let y: Tensor<2> = Tensor::from_dispatch(Dispatch::pattern_linear(
            x.reshape([batch, d_input]).into_dispatch(),
            self.codes.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.dictionary.clone().into_dispatch(),
            self.layout,
        ));
        y.reshape(shape)
    }

    /// The weight, `[d_output, d_input]`.
    pub fn synthesize(&self) -> Tensor<2> {
        self.rotate_back(Tensor::from_dispatch(Dispatch::synthesize(
            self.codes.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.dictionary.clone().into_dispatch(),
            self.layout,
        )))
    }

    /// Rows `rows` `[k]` of the weight, `[k, d_input]`.
    ///
    /// # Panics
    /// On the CPU backends, if there is no such row; other backends read some other row.
    pub fn rows(&self, rows: Tensor<1, Int>) -> Tensor<2> {
        let [k] = rows.dims();
        if k == 0 {
            return Tensor::zeros([0, self.layout.shape().d_input()], (&self.device(), DType::F32));
        }
        self.rotate_back(Tensor::from_dispatch(Dispatch::synthesize_rows(
            rows.into_dispatch(),
            self.codes.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.dictionary.clone().into_dispatch(),
            self.layout,
        )))
    }

    fn rotate_back(&self, rows: Tensor<2>) -> Tensor<2> {
        match &self.rotation {
            None => rows,
            Some(tables) => rotate(rows, tables, Direction::Inverse),
        }
    }
}

/// The cosine of every tile with every pattern, `[tiles, patterns]`, for `tiles` `[tiles, tile_len]` and `patterns`
/// `[patterns, tile_len]`; 0 where one of them is zero.
///
/// # Panics
/// If the two differ in `tile_len` or in their device.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_core::backend::match_patterns;
/// let device = Device::flex();
/// let tiles = Tensor::<2>::from_data([[3.0, 4.0], [0.0, 0.0]], &device);
/// let patterns = Tensor::<2>::from_data([[1.0, 0.0], [0.0, -2.0]], &device);
/// let found = match_patterns(tiles, patterns).into_data().try_to_vec::<f32>().unwrap();
/// assert!(found.iter().zip([0.6, -0.8, 0.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-6));
/// # }
/// ```
pub fn match_patterns(tiles: Tensor<2>, patterns: Tensor<2>) -> Tensor<2> {
    let [_, tile_len] = tiles.dims();
    assert_shape!(patterns, [_, tile_len]);
    Tensor::from_dispatch(Dispatch::match_patterns(tiles.into_dispatch(), patterns.into_dispatch()))
}
