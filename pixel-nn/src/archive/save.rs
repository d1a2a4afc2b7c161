//! The tensors of a module, as an archive holds them.

use crate::codes::{HEADER, read_header};
use crate::error::LayerError;
use crate::replace::ATTACHED;
use crate::trail::{Place, Trail};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use pixel_core::archive::{ArchivedTensor, Dtype, FloatType};
use pixel_core::backend::{BackendError, LowRankTensors, PatternTensors, ProtectedTensors};
use pixel_core::synthesis::{Arithmetic, KernelFormError};
use pixel_core::{PackedHeader, PackedWeight};
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
    floats: BTreeMap<String, Tensor<2>>,
    /// Codes and columns, in a row.
    ints: BTreeMap<String, Tensor<1, Int>>,
}

impl Parts {
    fn pack(mut self) -> Result<PackedWeight, LayerError> {
        let header = self.header.take().expect("the codes have a header");
        let codec = header.codec.build()?;
        let no_kernels = || KernelFormError::NoKernels { codec: header.codec.codec.clone() };
        let layout = codec.layout(header.shape).ok_or_else(no_kernels).map_err(BackendError::from)?;
        let mut floats = |part: &str| self.floats.remove(part);
        let (columns, values) = (self.ints.remove("protected.columns"), floats("protected.values"));
        let (down, up) = (floats("low_rank.down"), floats("low_rank.up"));
        let tensors = PatternTensors {
            layout,
            scales: floats("scales").expect("a weight has scales"),
            dictionary: floats("dictionary").expect("a weight has a dictionary").flatten(0, 1),
            codes: self.ints.into_values().next().expect("a weight has codes"),
            // The codes do not change with the basis in which they are read.
            rotation: None,
            protected: columns.zip(values).map(|(columns, values)| ProtectedTensors { columns, values }),
            low_rank: down.zip(up).map(|(down, up)| LowRankTensors { down, up }),
            arithmetic: Arithmetic::default(),
            tables: layout.tables(),
        };
        Ok(tensors.to_packed(&header)?)
    }
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

    fn foreign(&mut self, parameter: &str, attached: String) {
        self.error.get_or_insert(LayerError::Attached { attached }.at(parameter));
    }
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        match (container, self.trail.place()) {
            (HEADER, Place::Part { weight, .. }) => self.weights.entry(weight).or_default().header = read_header(name),
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
            Place::Part { weight, part, .. } => {
                // The dictionary has one axis; all others have two.
                let (value, dims) = (param.val(), param.dims());
                let dims = if D == 1 { [1, dims[0]] } else { [dims[0], dims[1]] };
                let value = value.reshape(dims).cast(DType::F32);
                self.weights.entry(weight).or_default().floats.insert(part, value);
            }
            Place::Foreign { parameter, attached } => self.foreign(&parameter, attached),
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        match self.trail.place() {
            Place::Tensor { name, .. } => {
                let data = read(&name, param.val()).map(|data| (Dtype::I64, data.convert::<i64>()));
                self.push(name, data);
            }
            Place::Part { weight, part, .. } => {
                let value = param.val().reshape([param.shape().num_elements()]);
                self.weights.entry(weight).or_default().ints.insert(part, value);
            }
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
