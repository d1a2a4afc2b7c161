//! A module filled from an archive.

use crate::codes::fingerprint;
use crate::error::LayerError;
use crate::replace::{PatternParam, attach, or_gone};
use crate::trail::{Place, Trail};
use crate::weight::PatternWeight;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, Reparameterizer};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use pixel_core::PackedHeader;
use pixel_core::archive::{Archive, Dtype, FloatType, TensorInfo};
use pixel_core::backend::PatternTensors;
use pixel_core::math::transposed;
use std::collections::{BTreeMap, BTreeSet};

/// What came of loading, names in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The parameters that were filled; the parts of a weight that is patterns count as one.
    pub loaded: Vec<String>,
    /// Parameters that the archive does not have, and that stay as they were.
    pub missing: Vec<String>,
    /// Tensors of the archive that the model has no place for.
    pub unused: Vec<String>,
}

/// Fills `model` with the tensors of `archive`, which are known by the keys of `names`.
pub(super) fn load<M: Module>(
    model: M,
    archive: &Archive,
    names: BTreeMap<String, String>,
) -> Result<(M, LoadReport), LayerError> {
    let mut survey = Survey::default();
    model.visit(&mut survey);
    let source = Source { archive, names };
    // Packed weights for dense parameters first, since their shapes are then those of placeholders.
    let mut attach = Attach { source: &source, places: survey.places, attached: BTreeSet::new(), error: None };
    let model = model.apply_reparameterization(&mut attach);
    attach.error.map_or(Ok(()), Err)?;
    let mut fill = Fill {
        source: &source,
        trail: Trail::default(),
        placeholders: survey.placeholders,
        loaded: attach.attached.clone(),
        attached: attach.attached,
        missing: BTreeSet::new(),
        weights: BTreeMap::new(),
        met: BTreeSet::new(),
        error: None,
    };
    let model = model.map(&mut fill);
    if let Some(error) = fill.error {
        return Err(error);
    }
    fill.check_whole()?;
    let Fill { loaded, missing, .. } = fill;
    let unused = source.names.keys().filter(|name| !loaded.contains(*name)).cloned().collect();
    Ok((model, LoadReport { loaded: loaded.into_iter().collect(), missing: missing.into_iter().collect(), unused }))
}

/// The archive, by the names of the model.
struct Source<'a> {
    archive: &'a Archive,
    names: BTreeMap<String, String>,
}

impl Source<'_> {
    /// The header of a packed weight.
    fn header(&self, name: &str) -> Option<&PackedHeader> {
        self.archive.entries().get(self.names.get(name)?).map(|entry| entry.header())
    }

    /// The values of a tensor that is kept, and its shape.
    fn kept(&self, name: &str) -> Result<Option<(&TensorInfo, &[u8])>, LayerError> {
        match self.names.get(name).filter(|stored| self.archive.kept().contains_key(*stored)) {
            None => Ok(None),
            Some(stored) => Ok(Some(self.archive.kept_bytes(stored)?)),
        }
    }
}

/// Where the parameters of a model are, by their paths as Burn joins them.
#[derive(Default)]
struct Survey {
    trail: Trail,
    path: Vec<String>,
    places: BTreeMap<String, (String, bool)>,
    /// The names of parameters that are patterns.
    placeholders: BTreeSet<String>,
}

impl ModuleVisitor for Survey {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.exit();
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        match self.trail.place() {
            Place::Tensor { name, is_linear } => drop(self.places.insert(self.path.join("."), (name, is_linear))),
            // What has something attached keeps it.
            Place::Part { is_attached: true, weight, .. } => {
                self.places.retain(|_, (name, _)| *name != weight);
                self.placeholders.insert(weight);
            }
            Place::Foreign { parameter, .. } => self.places.retain(|_, (name, _)| *name != parameter),
            Place::Part { .. } => {}
        }
    }
}

/// The first walk: packed weights take the place of dense parameters.
struct Attach<'a> {
    source: &'a Source<'a>,
    /// Name and whether it is the weight of a `Linear`, by path.
    places: BTreeMap<String, (String, bool)>,
    attached: BTreeSet<String>,
    error: Option<LayerError>,
}

impl Attach<'_> {
    fn attach<const D: usize>(
        &self,
        name: &str,
        is_linear: bool,
        param: Param<Tensor<D>>,
    ) -> Result<(Param<Tensor<D>>, PatternParam), LayerError> {
        let packed = self.source.archive.packed(&self.source.names[name])?;
        let weight = PatternWeight::from_packed(&packed, &param.lazy_device())?;
        attach(param, weight, is_linear)
    }
}

impl Reparameterizer for &mut Attach<'_> {
    type Reparam = PatternParam;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<PatternParam>) {
        let Some((name, is_linear)) = self.places.remove(path) else { return (param, None) };
        if self.error.is_some() || self.source.header(&name).is_none() {
            return (param, None);
        }
        let place = (param.id, param.lazy_device());
        let found = self.attach(&name, is_linear, param).map(|(base, pattern)| (base, Some(pattern)));
        let found = or_gone(found, place, &name, &mut self.error);
        self.attached.insert(name);
        found
    }
}

/// The second walk: values of dense parameters, and of the parts of weights that were patterns before.
struct Fill<'a> {
    source: &'a Source<'a>,
    trail: Trail,
    /// The parameters that were patterns before.
    placeholders: BTreeSet<String>,
    /// The weights that the first walk has attached.
    attached: BTreeSet<String>,
    loaded: BTreeSet<String>,
    missing: BTreeSet<String>,
    /// Weights of which a part was met: their tensors, if they are there.
    weights: BTreeMap<String, Option<PatternTensors>>,
    /// The weights and parts that the model has.
    met: BTreeSet<(String, String)>,
    error: Option<LayerError>,
}

impl Fill<'_> {
    /// The new value of a parameter of its own.
    fn value<const D: usize, K: Basic>(
        &mut self,
        name: &str,
        shape: &[usize],
        options: (&Device, DType),
        is_linear: bool,
    ) -> Option<Tensor<D, K>> {
        match self.read(name, shape, is_linear) {
            Ok(Some(data)) => {
                self.loaded.insert(name.into());
                Some(Tensor::from_data(data, options))
            }
            Ok(None) => {
                self.missing.insert(name.into());
                None
            }
            Err(error) => {
                self.error.get_or_insert(error.at(name));
                None
            }
        }
    }

    /// The values of a tensor of `shape`; where it is the weight of a `Linear` they are stored as the transpose, and
    /// are turned here.
    fn read(&self, name: &str, shape: &[usize], is_linear: bool) -> Result<Option<TensorData>, LayerError> {
        let Some((info, bytes)) = self.source.kept(name)? else {
            return match self.source.header(name) {
                None => Ok(None),
                Some(header) => Err(LayerError::OtherForm {
                    found: format!("codes of {}", header.codec),
                    expected: format!("values of shape {shape:?}"),
                }),
            };
        };
        let expected: Vec<usize> = if is_linear { shape.iter().rev().copied().collect() } else { shape.to_vec() };
        if info.shape != expected {
            let (found, expected) =
                (format!("values of shape {:?}", info.shape), format!("values of shape {expected:?}"));
            return Err(LayerError::OtherForm { found, expected });
        }
        let data = match (FloatType::of(info.dtype), info.dtype) {
            (Some(float), _) => {
                let mut values = vec![0.0; bytes.len() / float.size()];
                float.read(bytes, &mut values);
                if is_linear && !values.is_empty() {
                    values = transposed(&values, expected[1]);
                }
                TensorData::new(values, shape.to_vec())
            }
            (None, Dtype::I64) => {
                let (values, _) = bytes.as_chunks::<8>();
                TensorData::new(values.iter().map(|&value| i64::from_le_bytes(value)).collect(), shape.to_vec())
            }
            (None, Dtype::BOOL) => {
                TensorData::new(bytes.iter().map(|&value| value != 0).collect::<Vec<bool>>(), shape.to_vec())
            }
            (None, other) => {
                return Err(LayerError::OtherForm {
                    found: format!("values of type {other}"),
                    expected: "floats, I64 or BOOL".into(),
                });
            }
        };
        Ok(Some(data))
    }

    /// The tensors of the packed weight of which a part is met; `None` if it is not to be filled.
    fn weight(&mut self, weight: &str, device: &Device) -> Option<&PatternTensors> {
        if self.attached.contains(weight) || self.error.is_some() {
            return None;
        }
        if !self.weights.contains_key(weight) {
            let tensors = self.tensors(weight, device).unwrap_or_else(|error| {
                self.error.get_or_insert(error.at(weight));
                None
            });
            self.weights.insert(weight.into(), tensors);
        }
        self.weights[weight].as_ref()
    }

    fn tensors(&mut self, weight: &str, device: &Device) -> Result<Option<PatternTensors>, LayerError> {
        if self.source.header(weight).is_some() {
            let packed = self.source.archive.packed(&self.source.names[weight])?;
            self.loaded.insert(weight.into());
            return Ok(Some(PatternTensors::new(&packed, device)?));
        }
        if self.source.kept(weight)?.is_some() {
            let expected = "codes; load it into the dense model".into();
            return Err(LayerError::OtherForm { found: "a dense tensor".into(), expected });
        }
        self.missing.insert(weight.into());
        Ok(None)
    }

    /// The part `part` of a weight for a parameter of `shape`: what `pick` takes from the weight's tensors, if they are
    /// to be filled.
    fn part<const D: usize, K: Basic>(
        &mut self,
        weight: &str,
        part: &str,
        (shape, device): ([usize; D], &Device),
        pick: impl FnOnce(&PatternTensors) -> Option<(Vec<usize>, Tensor<1, K>)>,
    ) -> Option<Tensor<D, K>> {
        let found = pick(self.weight(weight, device)?);
        self.met.insert((weight.into(), part.into()));
        match found {
            Some((found, values)) if found == shape => Some(values.reshape(burn::tensor::Shape::from(found))),
            other => {
                let found = other.map_or(format!("no {part}"), |(found, _)| format!("{part} of shape {found:?}"));
                let error = LayerError::OtherForm { found, expected: format!("{part} of shape {shape:?}") };
                self.error.get_or_insert(error.at(weight));
                None
            }
        }
    }

    /// Refuses codes that the model's weight would read otherwise.
    fn check_fingerprint(&mut self, weight: &str, expected: &str) {
        let Some(found) = self.source.header(weight).and_then(|header| fingerprint(header).ok()) else { return };
        if found != expected {
            let (found, expected) = (format!("codes of {found}"), format!("codes of {expected}"));
            self.error.get_or_insert(LayerError::OtherForm { found, expected }.at(weight));
        }
    }

    /// Refuses weights of which the archive has parts that the model lacks.
    fn check_whole(&self) -> Result<(), LayerError> {
        for (weight, tensors) in &self.weights {
            let Some(tensors) = tensors else { continue };
            let parts = [
                ("protected.values", "protected columns", tensors.protected.is_some()),
                ("low_rank.up", "a low-rank part", tensors.low_rank.is_some()),
            ];
            for (part, what, is_there) in parts {
                if is_there && !self.met.contains(&(weight.clone(), part.to_owned())) {
                    let error = LayerError::OtherForm { found: what.into(), expected: format!("no {part}") };
                    return Err(error.at(weight));
                }
            }
        }
        Ok(())
    }
}

/// The shape of a tensor, and its values in a row.
fn flat<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> (Vec<usize>, Tensor<1, K>) {
    let shape = tensor.dims().to_vec();
    let len = shape.iter().product::<usize>();
    (shape, tensor.clone().reshape([len]))
}

impl ModuleMapper for Fill<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (device, shape) = (param.lazy_device(), param.dims());
        let value = match self.trail.place() {
            Place::Tensor { name, .. } if self.attached.contains(&name) || self.placeholders.contains(&name) => None,
            Place::Tensor { name, is_linear } => {
                let options = (&device, param.dtype());
                self.value(&name, &shape, options, is_linear && D == 2)
            }
            Place::Part { weight, part, .. } => self.part(&weight, &part, (shape, &device), |tensors| match &*part {
                "scales" => Some(flat(&tensors.scales)),
                "dictionary" => Some(flat(&tensors.dictionary)),
                "protected.values" => tensors.protected.as_ref().map(|protected| flat(&protected.values)),
                "low_rank.down" => tensors.low_rank.as_ref().map(|part| flat(&part.down)),
                "low_rank.up" => tensors.low_rank.as_ref().map(|part| flat(&part.up)),
                _ => None,
            }),
            Place::Foreign { .. } => None,
        };
        match value {
            None => param,
            Some(value) => param.map(|old| value.set_require_grad(old.is_require_grad())),
        }
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let (device, shape) = (param.lazy_device(), param.dims());
        let value = match self.trail.place() {
            Place::Tensor { name, .. } => {
                let options = (&device, param.dtype());
                self.value(&name, &shape, options, false)
            }
            Place::Part { weight, part, .. } => {
                if let Some(expected) = part.strip_prefix("codes.") {
                    self.check_fingerprint(&weight, expected);
                }
                self.part(&weight, &part, (shape, &device), |tensors| match &*part {
                    "protected.columns" => tensors.protected.as_ref().map(|protected| flat(&protected.columns)),
                    _ => Some(flat(&tensors.codes)),
                })
            }
            Place::Foreign { .. } => None,
        };
        match value {
            None => param,
            Some(value) => param.map(|_| value),
        }
    }

    fn map_bool<const D: usize>(&mut self, param: Param<Tensor<D, Bool>>) -> Param<Tensor<D, Bool>> {
        let (device, shape) = (param.lazy_device(), param.dims());
        let Place::Tensor { name, .. } = self.trail.place() else { return param };
        match self.value(&name, &shape, (&device, param.dtype()), false) {
            None => param,
            Some(value) => param.map(|_| value),
        }
    }
}
