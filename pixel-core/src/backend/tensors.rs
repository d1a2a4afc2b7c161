//! A packed weight as tensors of one device.

use super::{BackendError, Direction, Dispatch, PixelBackend, RotationTensors, check_device, rotate};
use crate::codec::{CodecLayout, LayoutTables};
use crate::encode::LowRank;
use crate::error::FormatError;
use crate::math::transposed;
use crate::matrix::{Matrix, Shape};
use crate::packed::{PackedHeader, PackedWeight};
use crate::synthesis::{Arithmetic, KernelForm, KernelFormError};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData, assert_shape};

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
    /// The protected columns, if there are any.
    pub protected: Option<ProtectedTensors>,
    /// The low-rank part in addition to the codes, if there is one.
    pub low_rank: Option<LowRankTensors>,
    /// What products compute with.
    pub arithmetic: Arithmetic,
    /// The tables of the layout, held so that products share them.
    pub tables: LayoutTables,
}

/// Protected columns on a device: `W[:, columns[i]] = values[:, i]`, whatever the codes decode to.
///
/// Kernels do not handle them: Burn's own operations apply them before and after the kernels.
#[derive(Debug, Clone)]
pub struct ProtectedTensors {
    /// Column numbers, ascending, `[k]`, I32.
    pub columns: Tensor<1, Int>,
    /// `[d_output, k]`, F32.
    pub values: Tensor<2>,
}

impl ProtectedTensors {
    fn new(form: &KernelForm, device: &Device) -> Option<Self> {
        let k = form.protected.len();
        let columns = form.protected.iter().map(|&column| column as i32).collect::<Vec<_>>();
        (k > 0).then(|| Self {
            columns: Tensor::from_data(TensorData::new(columns, [k]), (device, DType::I32)),
            values: Tensor::from_data(
                TensorData::new(form.protected_values.clone(), [form.layout.shape().d_output(), k]),
                (device, DType::F32),
            ),
        })
    }

    /// `x` `[rows, d_input]` with its columns at exactly zero, and these columns `[rows, k]`.
    fn split(&self, x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let there = x.clone().select(1, self.columns.clone());
        let rest = x.select_assign(1, self.columns.clone(), there.clone().neg(), IndexingUpdateOp::Add);
        (rest, there)
    }

    /// `weights` `[rows, d_input]` with these `values` `[rows, k]` in its columns.
    fn replace(&self, weights: Tensor<2>, values: Tensor<2>) -> Tensor<2> {
        self.split(weights).0.select_assign(1, self.columns.clone(), values, IndexingUpdateOp::Add)
    }
}

/// A low-rank part on a device, in the basis of the rotation: `(W·Q)ᵀ` is what the codes decode to plus `down · up`, so
/// that a product with rotated activations takes two thin products in addition.
///
/// Kernels do not handle it either.
#[derive(Debug, Clone)]
pub struct LowRankTensors {
    /// `[d_input, rank]`, F32.
    pub down: Tensor<2>,
    /// `[rank, d_output]`, F32.
    pub up: Tensor<2>,
}

impl LowRankTensors {
    fn new(part: &LowRank, device: &Device) -> Self {
        // The host holds both factors transposed; a transposed operand would be copied in every product.
        let turned = |matrix: &Matrix| {
            let [rows, columns] = <[usize; 2]>::from(matrix.shape());
            let values = transposed(matrix.as_slice(), columns);
            Tensor::from_data(TensorData::new(values, [columns, rows]), (device, DType::F32))
        };
        Self { down: turned(&part.down), up: turned(&part.up) }
    }

    /// Back to the host.
    fn to_host(&self) -> Result<LowRank, BackendError> {
        let matrix = |what, tensor: &Tensor<2>| -> Result<Matrix, BackendError> {
            let tensor = tensor.clone().transpose();
            let [rows, columns] = tensor.dims();
            let values = floats(what, &tensor)?;
            let matrix = Shape::new(rows, columns).and_then(|shape| Matrix::new(shape, values));
            matrix.map_err(|error| KernelFormError::from(FormatError::from(error)).into())
        };
        Ok(LowRank { up: matrix("low_rank_up", &self.up)?, down: matrix("low_rank_down", &self.down)? })
    }

    /// `x · down · up` for rotated activations `[batch, d_input]`.
    fn linear(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.down.clone()).matmul(self.up.clone())
    }

    /// The part as a matrix in the basis of the rotation, rows `rows` or all of them.
    fn rows(&self, rows: Option<Tensor<1, Int>>) -> Tensor<2> {
        let up = self.up.clone().transpose();
        let up = match rows {
            None => up,
            Some(rows) => up.select(0, rows),
        };
        up.matmul(self.down.clone().transpose())
    }
}

impl PatternTensors {
    /// Puts `packed` on `device`.
    ///
    /// # Errors
    /// [`BackendError`] if the codec has no kernels, a scale leaves f32's range, or the device's backend was not
    /// compiled in.
    pub fn new(packed: &PackedWeight, device: &Device) -> Result<Self, BackendError> {
        check_device(device)?;
        let form = KernelForm::new(packed)?;
        let (layout, shape) = (form.layout, packed.shape());
        let odd = shape.d_input() >> shape.d_input().trailing_zeros();
        if packed.header().rotation.is_some() && odd > LARGEST_ODD_PART {
            return Err(BackendError::Width { d_input: shape.d_input(), odd, limit: LARGEST_ODD_PART });
        }
        let protected = ProtectedTensors::new(&form, device);
        let low_rank = form.low_rank.as_ref().map(|part| LowRankTensors::new(part, device));
        let rotation = packed.header().rotation.map(|seed| RotationTensors::new(shape.d_input(), seed, device));
        let (words, values) = (form.codes.len(), form.dictionary.len());
        let scales = [shape.d_output(), layout.scales_per_row()];
        Ok(Self {
            layout,
            codes: Tensor::from_data(TensorData::new(form.codes, [words]), (device, DType::U32)),
            // Of one axis first: devices leave gaps between the rows of what has two.
            scales: Tensor::<1>::from_data(TensorData::new(form.scales, [scales[0] * scales[1]]), (device, DType::F32))
                .reshape(scales),
            dictionary: Tensor::from_data(TensorData::new(form.dictionary, [values]), (device, DType::F32)),
            rotation,
            protected,
            low_rank,
            arithmetic: Arithmetic::default(),
            tables: layout.tables(),
        })
    }

    /// Reads the tensors back into a packed weight. Scales and protected columns are rounded to F16,
    /// low-rank factors to the storage that the header names.
    ///
    /// # Errors
    /// As [`KernelForm::to_packed`]; [`BackendError::Read`] if a tensor cannot be read.
    pub fn to_packed(&self, header: &PackedHeader) -> Result<PackedWeight, BackendError> {
        let codes = self.codes.clone().try_into_data().map_err(|e| unread("codes", &e))?;
        let codes = codes.try_to_vec::<u32>().map_err(|e| unread("codes", &e))?;
        let scales = floats("scales", &self.scales)?;
        let dictionary = floats("dictionary", &self.dictionary)?;
        let (mut protected, mut protected_values) = (Vec::new(), Vec::new());
        if let Some(ProtectedTensors { columns, values }) = &self.protected {
            let columns = columns.clone().try_into_data().map_err(|e| unread("protected", &e))?;
            let columns = columns.convert::<i64>().try_to_vec::<i64>().map_err(|e| unread("protected", &e))?;
            // A value that cannot be a column becomes `u32::MAX`, which is refused with the weight.
            protected = columns.into_iter().map(|column| u32::try_from(column).unwrap_or(u32::MAX)).collect();
            protected_values = floats("protected_values", values)?;
        }
        let low_rank = self.low_rank.as_ref().map(LowRankTensors::to_host).transpose()?;
        let layout = self.layout;
        let form = KernelForm { layout, codes, scales, dictionary, protected, protected_values, low_rank };
        Ok(form.to_packed(header)?)
    }

    /// The same weight, to be multiplied in `arithmetic`.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// The seed of the rotation, if there is one.
    pub fn seed(&self) -> Option<u64> {
        self.rotation.as_ref().map(|tables| tables.rotation().seed())
    }

    /// Whether there is nothing beside the codes: neither protected columns nor a low-rank part.
    pub fn is_coded_alone(&self) -> bool {
        self.protected.is_none() && self.low_rank.is_none()
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.scales.device()
    }

    /// Bytes of codes, scales, dictionary, rotation tables, protected columns and low-rank factors.
    pub fn num_bytes(&self) -> usize {
        let tables = self.rotation.as_ref().map_or(0, |tables| {
            let rotation = tables.rotation();
            rotation.d_input().div_ceil(32) + rotation.odd_part()
        });
        let d_output = self.layout.shape().d_output();
        let protected = self.protected.as_ref().map_or(0, |protected| protected.columns.dims()[0] * (d_output + 1));
        let scales = d_output * self.layout.scales_per_row();
        let sides = d_output + self.layout.shape().d_input();
        let low_rank = self.low_rank.as_ref().map_or(0, |part| part.up.dims()[0] * sides);
        4 * (low_rank + self.layout.num_words() + scales + self.layout.dictionary_len() + tables + protected)
    }

    /// `x · Wᵀ`: `x` is `[…, d_input]`, the result `[…, d_output]`.
    ///
    /// # Panics
    /// If the last axis of `x` is not `d_input`, or `x` is on another device.
    pub fn linear<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (d_input, d_output) = (self.layout.shape().d_input(), self.layout.shape().d_output());
        assert_shape!(x, [.., d_input]);
        // NdArray's matrix product cannot take an empty batch.
        let is_empty = x.dims().contains(&0);
        let Some(protected) = self.protected.as_ref().filter(|_| !is_empty) else { return self.coded(self.rotate(x)) };
        // In f32, because two products are added.
        let (mut shape, dtype) = (x.dims(), x.dtype());
        let batch = shape.iter().product::<usize>() / d_input;
        let (rest, there) = protected.split(x.reshape([batch, d_input]).cast(DType::F32));
        let y = self.coded(self.rotate(rest)) + there.matmul(protected.values.clone().transpose());
        shape[D - 1] = d_output;
        y.reshape(shape).cast(dtype)
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
    /// As [`linear`](Self::linear), and if columns are protected: these take activations that are not rotated.
    pub fn linear_rotated<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        assert!(self.protected.is_none(), "protected columns take activations that are not rotated");
        self.coded(x)
    }

    /// The product of the codes and the low-rank part with rotated activations.
    fn coded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (d_input, d_output) = (self.layout.shape().d_input(), self.layout.shape().d_output());
        assert_shape!(x, [.., d_input]);
        let mut shape = x.dims();
        let batch = shape.iter().product::<usize>() / d_input;
        shape[D - 1] = d_output;
        if batch == 0 {
            return Tensor::zeros(shape, (&x.device(), x.dtype()));
        }
        let (dtype, x) = (x.dtype(), x.reshape([batch, d_input]));
        // In f32, because two products are added.
        let x = if self.low_rank.is_some() { x.cast(DType::F32) } else { x };
        let y: Tensor<2> = Tensor::from_dispatch(Dispatch::pattern_linear(
            x.clone().into_dispatch(),
            self.codes.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.dictionary.clone().into_dispatch(),
            self.layout,
            self.arithmetic,
        ));
        match &self.low_rank {
            None => y.reshape(shape),
            Some(part) => (y + part.linear(x)).cast(dtype).reshape(shape),
        }
    }

    /// The weight, `[d_output, d_input]`.
    pub fn synthesize(&self) -> Tensor<2> {
        let weights = Tensor::from_dispatch(Dispatch::synthesize(
            self.codes.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.dictionary.clone().into_dispatch(),
            self.layout,
        ));
        let weights = self.rotate_back(match &self.low_rank {
            None => weights,
            Some(part) => weights + part.rows(None),
        });
        match &self.protected {
            None => weights,
            Some(protected) => protected.replace(weights, protected.values.clone()),
        }
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
        let values = self.protected.as_ref().map(|protected| protected.values.clone().select(0, rows.clone()));
        let low_rank = self.low_rank.as_ref().map(|part| part.rows(Some(rows.clone())));
        let weights = Tensor::from_dispatch(Dispatch::synthesize_rows(
            rows.into_dispatch(),
            self.codes.clone().into_dispatch(),
            self.scales.clone().into_dispatch(),
            self.dictionary.clone().into_dispatch(),
            self.layout,
        ));
        let weights = self.rotate_back(match low_rank {
            None => weights,
            Some(low_rank) => weights + low_rank,
        });
        match (&self.protected, values) {
            (Some(protected), Some(values)) => protected.replace(weights, values),
            _ => weights,
        }
    }

    fn rotate_back(&self, rows: Tensor<2>) -> Tensor<2> {
        match &self.rotation {
            None => rows,
            Some(tables) => rotate(rows, tables, Direction::Inverse),
        }
    }
}

/// The values of a tensor of F32.
pub(super) fn floats<const D: usize>(what: &str, tensor: &Tensor<D>) -> Result<Vec<f32>, BackendError> {
    let data = tensor.clone().try_into_data().map_err(|e| unread(what, &e))?;
    data.try_to_vec::<f32>().map_err(|e| unread(what, &e))
}

fn unread(what: &str, error: &dyn std::fmt::Debug) -> BackendError {
    BackendError::Read { message: format!("{what}: {error:?}") }
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
