//! A weight that is patterns: codes, scales and dictionary as parameters.

use crate::codes::Codes;
use crate::error::LayerError;
use crate::shared_input::SharedInput;
use crate::synthesis::{Slot, SynthesisMode};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use pixel_core::backend::{
    Direction, LowRankTensors, PatternTensors, ProtectedTensors, ReadyWeight, RotationTensors, check_device, rotate,
};
use pixel_core::codec::{CodecLayout, LayoutTables};
use pixel_core::math::Exponent;
use pixel_core::math::metrics::{ErrorSums, bits_per_weight};
use pixel_core::synthesis::{Arithmetic, KernelForm};
use pixel_core::{
    CodecSpec, CodingSpec, Encoder, FactorStorage, LowRankSpec, Matrix, PackedHeader, PackedWeight, Shape,
};
use std::sync::Arc;

/// A weight `[d_output, d_input]` as codes, scales and a dictionary.
///
/// Codes are constant; scales and dictionary are float parameters: records hold them, and [`Module::num_params`] counts
/// them. Scales are trained; the dictionary is not, since archives do not hold it, unless
/// [`with_trained_dictionary`](Self::with_trained_dictionary) asks for it. In a record the path of the codes ends with
/// shape, codec and rotation: a record can be loaded into a weight made with the same ones alone, and Burn refuses any
/// other by the path that is missing.
#[derive(Module, Debug)]
pub struct PatternWeight {
    codes: Codes,
    scales: Param<Tensor<2>>,
    dictionary: Param<Tensor<1>>,
    rotation: Option<RotationTensors>,
    protected: Option<ProtectedParams>,
    low_rank: Option<LowRankParams>,
    slot: Slot,
    #[module(skip)]
    form: Arc<Form>,
}

/// Columns of a weight that are not taken from the codes. Which they are is constant; their values may be trained.
#[derive(Module, Debug)]
pub struct ProtectedParams {
    /// Column numbers, ascending, `[k]`.
    pub columns: Param<Tensor<1, Int>>,
    /// `[d_output, k]`.
    pub values: Param<Tensor<2>>,
}

/// A low-rank part of a weight in addition to the codes, `x·down·up`. Both factors may be trained.
#[derive(Module, Debug)]
pub struct LowRankParams {
    /// `[d_input, rank]`. In a [`PatternWeight`] that is rotated, of the rotated inputs.
    pub down: Param<Tensor<2>>,
    /// `[rank, d_output]`.
    pub up: Param<Tensor<2>>,
}

impl LowRankParams {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.up.dims()[0]
    }

    fn of(tensors: LowRankTensors) -> Self {
        Self { down: Param::from_tensor(tensors.down), up: Param::from_tensor(tensors.up) }
    }
}

/// What never changes about a weight.
#[derive(Debug)]
struct Form {
    header: PackedHeader,
    layout: CodecLayout,
    tables: LayoutTables,
    stored_bytes: usize,
}

impl PatternWeight {
    /// Puts a packed weight on a device.
    ///
    /// # Errors
    /// [`LayerError::Backend`] if the codec has no kernels or the device no implementation.
    pub fn from_packed(packed: &PackedWeight, device: &Device) -> Result<Self, LayerError> {
        let tensors = PatternTensors::new(packed, device)?;
        let form = Form {
            header: packed.header().clone(),
            layout: tensors.layout,
            tables: tensors.tables,
            stored_bytes: packed.num_bytes(),
        };
        Ok(Self {
            codes: Codes::new(tensors.codes, packed.header())?,
            scales: Param::from_tensor(tensors.scales),
            dictionary: Param::from_tensor(tensors.dictionary).set_require_grad(false),
            rotation: tensors.rotation,
            protected: tensors.protected.map(|ProtectedTensors { columns, values }| ProtectedParams {
                columns: Param::initialized(ParamId::new(), columns),
                values: Param::from_tensor(values),
            }),
            low_rank: tensors.low_rank.map(LowRankParams::of),
            slot: Slot::default(),
            form: Arc::new(form),
        })
    }

    /// A weight with random codes, whose values have mean 0 and standard deviation `deviation`; how a layer starts that
    /// is trained from scratch, or into which a record is loaded. [`Device::seed`] makes it repeatable.
    ///
    /// # Errors
    /// [`LayerError::Config`] if the codec cannot be built; [`LayerError::Backend`].
    pub fn random(
        shape: Shape,
        spec: &CodecSpec,
        rotation: Option<u64>,
        deviation: f32,
        device: &Device,
    ) -> Result<Self, LayerError> {
        check_device(device)?;
        let header = CodingSpec::new(spec.clone()).with_rotation(rotation).header(shape, exponent_of(deviation));
        let stored: usize = header.streams()?.iter().map(|stream| stream.num_bytes()).sum();
        // Two draws of sixteen bits a word: every backend holds them exactly.
        let draws = Tensor::<1>::random([stored / 2 + 2], Distribution::Uniform(0.0, 65536.0), (device, DType::F32));
        let draws = draws.into_data().convert::<f32>().try_to_vec::<f32>();
        let draws = draws.map_err(|e| LayerError::Read { tensor: "random".into(), message: format!("{e:?}") })?;
        let mut draws = draws.into_iter().cycle().map(|draw| draw as u32 & 0xFFFF);
        let mut word = || draws.next().unwrap_or_default() | draws.next().unwrap_or_default() << 16;
        let form =
            KernelForm::random(&header, deviation, &mut word).map_err(pixel_core::backend::BackendError::from)?;
        let packed = form.to_packed(&header).map_err(pixel_core::backend::BackendError::from)?;
        Self::from_packed(&packed, device)
    }

    /// Back to the packed form, for an archive. Scales and protected columns are rounded to F16,
    /// low-rank factors as they were stored, or to F16 where they came with [`with_low_rank`](Self::with_low_rank).
    ///
    /// # Errors
    /// [`LayerError::Backend`] if the dictionary was [trained](Self::with_trained_dictionary) and archives do not hold
    /// what changed, or a scale does not fit F16.
    pub fn to_packed(&self) -> Result<PackedWeight, LayerError> {
        Ok(self.tensors().to_packed(&self.form.header)?)
    }

    /// Pattern indices, packed into words, U32.
    pub fn codes(&self) -> &Param<Tensor<1, Int>> {
        self.codes.words()
    }

    /// The scales, `[d_output, scales of a row]`.
    pub fn scales(&self) -> &Param<Tensor<2>> {
        &self.scales
    }

    /// The values that the codes select from.
    pub fn dictionary(&self) -> &Param<Tensor<1>> {
        &self.dictionary
    }

    /// The protected columns, if there are any.
    pub fn protected(&self) -> Option<&ProtectedParams> {
        self.protected.as_ref()
    }

    /// The low-rank part in addition to the codes, if there is one.
    pub fn low_rank(&self) -> Option<&LowRankParams> {
        self.low_rank.as_ref()
    }

    /// The same weight with `part` in addition to the codes, in place of the part before; `part` reads the inputs as
    /// they are, and is brought into the basis of the rotation here. Protected columns replace all else, this part too.
    ///
    /// # Panics
    /// If its shapes are not `[d_input, rank]` and `[rank, d_output]`, or the rank exceeds the shorter side.
    pub fn with_low_rank(self, part: LowRankParams) -> Self {
        let LowRankParams { down, up } = part;
        let down = match &self.rotation {
            None => down,
            // (x·Q)·(Qᵀ·down) = x·down: the columns of `down` turn as rows of inputs do.
            Some(tables) => {
                let trained = down.is_require_grad();
                let rotated = |down: Tensor<2>| rotate(down.transpose(), tables, Direction::Forward).transpose();
                down.map(|down| rotated(down).detach().set_require_grad(trained))
            }
        };
        self.with_rotated_low_rank(LowRankParams { down, up })
    }

    /// The same weight without a low-rank part.
    pub fn without_low_rank(mut self) -> Self {
        self.low_rank = None;
        self.change_form(None)
    }

    /// The same weight with `part` in addition to the codes, in the basis of the rotation.
    pub(crate) fn with_rotated_low_rank(mut self, part: LowRankParams) -> Self {
        let (shape, rank) = (self.shape(), part.rank());
        let expected = ([shape.d_input(), rank], [rank, shape.d_output()]);
        assert_eq!((part.down.dims(), part.up.dims()), expected, "shapes of the low-rank factors");
        let spec = LowRankSpec { rank, storage: FactorStorage::F16 };
        spec.check(shape).unwrap_or_else(|error| panic!("{error}"));
        self.low_rank = Some(part);
        self.change_form(Some(spec))
    }

    fn change_form(mut self, low_rank: Option<LowRankSpec>) -> Self {
        let bytes = |spec: Option<LowRankSpec>| spec.map_or(0, |spec| spec.num_bytes(self.shape()));
        let stored_bytes = self.form.stored_bytes - bytes(self.form.header.low_rank) + bytes(low_rank);
        let header = PackedHeader { low_rank, ..self.form.header.clone() };
        let (layout, tables) = (self.form.layout, self.form.tables.clone());
        self.codes = self.codes.with_header(&header);
        self.form = Arc::new(Form { header, layout, tables, stored_bytes });
        self.slot = Slot::default();
        self
    }

    /// Chooses whether training changes the dictionary. Records hold what comes of it;
    /// [`to_packed`](Self::to_packed), and with it an archive, the learned patterns of `matching` alone and the one
    /// value of `trellis`, which goes into the scales.
    pub fn with_trained_dictionary(mut self, trained: bool) -> Self {
        self.dictionary = self.dictionary.set_require_grad(trained);
        self.slot = Slot::default();
        self
    }

    /// The same weight with other scales.
    ///
    /// # Panics
    /// If `change` gives them another shape.
    pub fn map_scales(mut self, change: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let shape = self.scales.dims();
        self.scales = self.scales.map(change);
        assert_eq!(self.scales.dims(), shape, "shape of the scales");
        self.slot = Slot::default();
        self
    }

    /// The same weight with another dictionary.
    ///
    /// # Panics
    /// If `change` gives it another length.
    pub fn map_dictionary(mut self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        let shape = self.dictionary.dims();
        self.dictionary = self.dictionary.map(change);
        assert_eq!(self.dictionary.dims(), shape, "length of the dictionary");
        self.slot = Slot::default();
        self
    }

    /// Shape, codec, rotation, exponent, and what is stored in addition to the codes.
    pub fn header(&self) -> &PackedHeader {
        &self.form.header
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.form.header.shape
    }

    /// The codec.
    pub fn codec(&self) -> &CodecSpec {
        &self.form.header.codec
    }

    /// Bits per weight as an archive stores it, scales and padding counted.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.form.stored_bytes as u64, self.shape().num_weights() as u64)
    }

    /// Bytes that an archive takes for it.
    pub fn stored_bytes(&self) -> usize {
        self.form.stored_bytes
    }

    /// Bytes that it holds on its device: codes as stored, scales, dictionary, protected columns and low-rank factors
    /// in F32, the tables of the rotation.
    pub fn device_bytes(&self) -> usize {
        self.tensors().num_bytes()
    }

    /// The tensors of the parameters, as the operations take them: in F32, also where the whole model was cast.
    pub fn tensors(&self) -> PatternTensors {
        PatternTensors {
            layout: self.form.layout,
            codes: self.codes.words().val(),
            scales: as_f32(self.scales.val()),
            dictionary: as_f32(self.dictionary.val()),
            rotation: self.rotation.clone(),
            protected: self
                .protected
                .as_ref()
                .map(|it| ProtectedTensors { columns: it.columns.val(), values: as_f32(it.values.val()) }),
            low_rank: self
                .low_rank
                .as_ref()
                .map(|part| LowRankTensors { down: as_f32(part.down.val()), up: as_f32(part.up.val()) }),
            arithmetic: Arithmetic::default(),
            tables: self.form.tables.clone(),
        }
    }

    /// The weight as a part of a projection, if nothing but codes is part of it.
    pub(crate) fn ready(&self) -> Option<&ReadyWeight> {
        (self.protected.is_none() && self.low_rank.is_none()).then(|| self.slot.ready(|| self.tensors()))
    }

    /// `x · Wᵀ`: `[…, d_input]` to `[…, d_output]`, as `mode` says.
    ///
    /// # Panics
    /// If the last axis of `x` is not `d_input`.
    pub fn linear<const D: usize>(&self, x: Tensor<D>, mode: &SynthesisMode) -> Tensor<D> {
        self.linear_shared(&x.into(), mode)
    }

    /// [`linear`](Self::linear) of an input that other weights read as well.
    ///
    /// # Panics
    /// As [`linear`](Self::linear).
    pub fn linear_shared<const D: usize>(&self, input: &SharedInput<D>, mode: &SynthesisMode) -> Tensor<D> {
        let x = input.get();
        match self.cached(&x.device(), mode) {
            None => {
                let tensors = self.tensors().with_arithmetic(mode.arithmetic());
                // Protected columns leave the input before it is rotated, each weight its own.
                if tensors.protected.is_some() {
                    tensors.linear(x)
                } else {
                    tensors.linear_rotated(input.rotated(&tensors))
                }
            }
            Some(weight) => {
                // In f32 as on demand, whatever the type of `x`; with two axes, since Flex copies a transposed weight
                // in every product of more.
                let (dtype, mut dims) = (x.dtype(), x.dims());
                let d_input = dims[D - 1];
                let rows = dims.iter().product::<usize>() / d_input.max(1);
                dims[D - 1] = self.shape().d_output();
                let x = x.cast(DType::F32).reshape([rows, d_input]);
                x.matmul(weight.transpose()).reshape(dims).cast(dtype)
            }
        }
    }

    /// Rows `rows` `[k]` of the weight, `[k, d_input]`, as `mode` says.
    ///
    /// # Panics
    /// On CPU backends, if there is no such row.
    pub fn rows(&self, rows: Tensor<1, Int>, mode: &SynthesisMode) -> Tensor<2> {
        match self.cached(&rows.device(), mode) {
            None => self.tensors().rows(rows),
            Some(weight) => weight.select(0, rows),
        }
    }

    /// The dense weight, `[d_output, d_input]`, F32.
    pub fn synthesize(&self) -> Tensor<2> {
        self.tensors().synthesize()
    }

    /// [`synthesize`](Self::synthesize), or the cached weight, as `mode` says.
    pub(crate) fn dense(&self, mode: &SynthesisMode) -> Tensor<2> {
        self.cached(&self.scales.device(), mode).unwrap_or_else(|| self.synthesize())
    }

    /// The dense weight from the cache, where `mode` has one and nothing is being trained: gradients reach scales and
    /// dictionary through synthesis alone.
    fn cached(&self, device: &Device, mode: &SynthesisMode) -> Option<Tensor<2>> {
        let SynthesisMode::Cached(cache) = mode else { return None };
        if device.is_autodiff() || self.scales.device().is_autodiff() {
            return None;
        }
        Some(cache.weight(&self.slot, 4 * self.shape().num_weights(), || self.synthesize()))
    }
}

fn as_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.dtype() == DType::F32 { tensor } else { tensor.cast(DType::F32) }
}

/// The power of two nearest to `deviation` from below, so that F16 scales are precise.
fn exponent_of(deviation: f32) -> Exponent {
    if !(deviation > 0.0 && deviation.is_finite()) {
        return Exponent::ZERO;
    }
    let (low, high) = (Exponent::MIN.get(), Exponent::MAX.get());
    Exponent::new((deviation.log2().floor() as i32).clamp(low, high)).expect("clamped into the range")
}

/// Codes a dense weight, and reports its error.
pub(crate) fn encode(
    weight: Matrix,
    codec: &CodecSpec,
    rotation: Option<u64>,
) -> Result<(PackedWeight, ErrorSums), LayerError> {
    let spec = CodingSpec::new(codec.clone()).with_rotation(rotation);
    let (packed, outcome) = Encoder::new(&spec).encode(weight)?;
    Ok((packed, outcome.weight))
}

/// The float values of a tensor, as f32.
///
/// # Errors
/// [`LayerError::NotFloat`] if it is quantized; [`LayerError::Read`].
pub(crate) fn read_floats<const D: usize>(name: &str, tensor: Tensor<D>) -> Result<Vec<f32>, LayerError> {
    let dtype = tensor.dtype();
    if !matches!(dtype, DType::F64 | DType::F32 | DType::Flex32 | DType::F16 | DType::BF16) {
        return Err(LayerError::NotFloat { tensor: name.into(), found: format!("{dtype:?}") });
    }
    let data = tensor.try_into_data();
    let data = data.map_err(|e| LayerError::Read { tensor: name.into(), message: format!("{e:?}") })?;
    data.convert::<f32>()
        .try_into_vec()
        .map_err(|e| LayerError::Read { tensor: name.into(), message: format!("{e:?}") })
}
