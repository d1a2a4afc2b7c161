//! The tensors of a module, as an archive holds them.

use super::trail::{Place, Trail};
use crate::codes::{HEADER, read_header};
use crate::error::LayerError;
use crate::replace::ATTACHED;
use crate::weight::read_floats;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use pixel_core::archive::{ArchivedTensor, Dtype, FloatType};
use pixel_core::backend::BackendError;
use pixel_core::synthesis::{KernelForm, KernelFormError};
use pixel_core::{FormatError, LowRank, Matrix, PackedHeader, PackedWeight, Shape};
use std::collections::BTreeMap;

/// The tensors of `model` by name; two fields may have one.
pub(super) fn tensors_of<M: Module>(model: &M) -> Result<Vec<(String, ArchivedTensor)>, LayerError> {
    let mut collector = Collector::default();
    model.visit(&mut collector);
    let Collector { mut tensors, weights, error, .. } = collector;
    error.map_or(Ok(()), Err)?;
    for (name, parts) in weights {
        let weight = Box::new(parts.pack().map_err(|error| error.at(&name))?);
        tensors.push((name, ArchivedTensor::Packed { weight, dtype: FloatType::F32 }));
    }
    Ok(tensors)
}

#[derive(Default)]
struct Collector {
    trail: Trail,
    tensors: Vec<(String, ArchivedTensor)>,
    weights: BTreeMap<String, Parts>,
    error: Option<LayerError>,
}

/// What a walk has met of a weight that is patterns.
#[derive(Default)]
struct Parts {
    header: Option<PackedHeader>,
    codes: Vec<u32>,
    floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    columns: Vec<u32>,
}

impl Parts {
    fn pack(mut self) -> Result<PackedWeight, LayerError> {
        let header = self.header.take().expect("the codes have a header");
        let codec = header.codec.build()?;
        let no_kernels = || KernelFormError::NoKernels { codec: header.codec.codec.clone() };
        let layout = codec.layout(header.shape).ok_or_else(no_kernels).map_err(BackendError::from)?;
        let mut floats = |part: &str| self.floats.remove(part).unwrap_or_default().1;
        let (scales, dictionary) = (floats("scales"), floats("dictionary"));
        let protected_values = floats("protected.values");
        let low_rank = match (self.floats.remove("low_rank.up"), self.floats.remove("low_rank.down")) {
            (Some(up), Some(down)) => Some(LowRank { up: transposed(up)?, down: transposed(down)? }),
            _ => None,
        };
        let (codes, protected) = (self.codes, self.columns);
        let form = KernelForm { layout, codes, scales, dictionary, protected, protected_values, low_rank };
        Ok(form.to_packed(&header).map_err(BackendError::from)?)
    }
}

/// The transpose of a matrix.
fn transposed((dims, values): (Vec<usize>, Vec<f32>)) -> Result<Matrix, FormatError> {
    let (rows, columns) = (dims[0], dims[1]);
    let turned = (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect();
    Ok(Matrix::new(Shape::new(columns, rows)?, turned)?)
}

impl Collector {
    /// Adds a tensor of its own, `[d_input, d_output]` as the transpose.
    fn keep<const D: usize>(&mut self, name: String, tensor: Tensor<D>, is_linear: bool) {
        // Two axes turn where there are two.
        let tensor = if is_linear && D == 2 { tensor.transpose() } else { tensor };
        let dtype = tensor.dtype();
        let stored = match dtype {
            DType::F64 => Ok(Dtype::F64),
            DType::F32 | DType::Flex32 => Ok(Dtype::F32),
            DType::F16 => Ok(Dtype::F16),
            DType::BF16 => Ok(Dtype::BF16),
            _ => Err(LayerError::NotFloat { tensor: name.clone(), found: format!("{dtype:?}") }),
        };
        let tensor = if dtype == DType::Flex32 { tensor.cast(DType::F32) } else { tensor };
        let read = stored.and_then(|dtype| Ok((dtype, read(&name, tensor)?)));
        self.push(name, read);
    }

    fn push(&mut self, name: String, read: Result<(Dtype, TensorData), LayerError>) {
        match read {
            Ok((dtype, data)) => {
                let (shape, bytes) = (data.shape().to_vec(), data.as_bytes().to_vec());
                self.tensors.push((name, ArchivedTensor::Kept { dtype, shape, bytes }));
            }
            Err(error) => drop(self.error.get_or_insert(error)),
        }
    }

    /// Adds a part of a weight.
    fn part(&mut self, weight: String, add: impl FnOnce(&mut Parts) -> Result<(), LayerError>) {
        if let Err(error) = add(self.weights.entry(weight.clone()).or_default()) {
            self.error.get_or_insert(error.at(&weight));
        }
    }

    fn foreign(&mut self, parameter: &str, attached: String) {
        self.error.get_or_insert(LayerError::Attached { attached }.at(parameter));
    }
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        match (container, self.trail.place()) {
            (HEADER, Place::Part { weight, .. }) => self.part(weight, |parts| {
                parts.header = read_header(name);
                Ok(())
            }),
            // What was met just now is the placeholder of what is attached.
            (ATTACHED, Place::Tensor { name, .. }) => self.tensors.retain(|(found, _)| *found != name),
            _ => {}
        }
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.trail.place() {
            Place::Tensor { name, is_linear } => self.keep(name, param.val(), is_linear),
            Place::Part { weight, part, .. } => self.part(weight, |parts| {
                let values = read_floats(&part, param.val())?;
                parts.floats.insert(part, (param.dims().to_vec(), values));
                Ok(())
            }),
            Place::Foreign { parameter, attached } => self.foreign(&parameter, attached),
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        match self.trail.place() {
            Place::Tensor { name, .. } => {
                let data = read(&name, param.val()).map(|data| (Dtype::I64, data.convert::<i64>()));
                self.push(name, data);
            }
            Place::Part { weight, part, .. } => self.part(weight, |parts| {
                let data = read(&part, param.val())?;
                let unread = |error| LayerError::Read { tensor: part.clone(), message: format!("{error:?}") };
                match part.as_str() {
                    // A value that cannot be a column becomes `u32::MAX`, which is refused with the weight.
                    "protected.columns" => {
                        let columns = data.convert::<i64>().try_to_vec::<i64>().map_err(unread)?;
                        parts.columns =
                            columns.into_iter().map(|column| u32::try_from(column).unwrap_or(u32::MAX)).collect();
                    }
                    _ => parts.codes = data.try_to_vec::<u32>().map_err(unread)?,
                }
                Ok(())
            }),
            Place::Foreign { parameter, attached } => self.foreign(&parameter, attached),
        }
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        match self.trail.place() {
            Place::Tensor { name, .. } => {
                let data = read(&name, param.val()).map(|data| (Dtype::BOOL, data.convert::<bool>()));
                self.push(name, data);
            }
            Place::Part { .. } => unreachable!("patterns hold no booleans"),
            Place::Foreign { parameter, attached } => self.foreign(&parameter, attached),
        }
    }
}

/// The values of a tensor.
fn read<const D: usize, K: Basic>(name: &str, tensor: Tensor<D, K>) -> Result<TensorData, LayerError> {
    tensor.try_into_data().map_err(|error| LayerError::Read { tensor: name.into(), message: format!("{error:?}") })
}
