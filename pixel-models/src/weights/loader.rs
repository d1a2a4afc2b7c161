//! The parameters of a model, one by one.

use super::TokenEmbedding;
use crate::LoadOptions;
use crate::error::ModelError;
use burn::module::{Param, ParamId};
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear, RmsNorm};
use burn::tensor::{DType, Device, Tensor, TensorData};
use pixel_core::archive::{Archive, Model, ModelTensor};
use pixel_core::backend::is_host;
use pixel_core::math::transposed;
use pixel_nn::attention::CacheFormat;
use pixel_nn::{LayerError, PIXELEmbedding, PIXELLinear, PatternWeight, Projection, SynthesisMode};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Ends of the names of tensors that a model need not read: tables that follow from the configuration, and the head of
/// BERT's next-sentence task.
const IGNORED: [&str; 5] =
    ["position_ids", "token_type_ids", "rotary_emb.inv_freq", "pooler.dense.weight", "pooler.dense.bias"];

/// Hands out the parameters of a model one by one, and keeps account of the tensors that it has read.
///
/// A tensor that an archive holds as codes becomes a [`PIXELLinear`] or [`PIXELEmbedding`], any other a layer of
/// Burn's; every shape is compared with what the caller expects before a value is read.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Device;
/// use pixel_core::archive::Model;
/// use pixel_models::{LoadOptions, weights::WeightLoader};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
///
/// let model = Model::open(path)?;
/// let mut loader = WeightLoader::new(&model, LoadOptions::default(), Device::flex());
/// let table = loader.embedding("model.embed_tokens.weight", [48, 32])?;
/// assert_eq!((table.n_embedding(), table.d_model()), (48, 32));
/// let error = loader.embedding("model.embed_tokens.weight", [48, 33]).unwrap_err().to_string();
/// assert!(error.contains("has shape [48, 32], the configuration says [48, 33]"));
/// let (names, unused) = loader.finish();
/// assert_eq!(names.len(), 1);
/// assert!(!unused.is_empty());
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WeightLoader<'a> {
    model: &'a Model,
    tensors: BTreeMap<String, ModelTensor>,
    options: LoadOptions,
    device: Device,
    used: BTreeSet<String>,
    names: BTreeMap<ParamId, String>,
    /// The packed weights that were put on the device beforehand, until they are asked for.
    packed: BTreeMap<String, Result<PatternWeight, ModelError>>,
}

impl<'a> WeightLoader<'a> {
    /// A loader of the tensors of `model`, which puts parameters on `device`.
    ///
    /// Where that is the processor, packed weights are read, checked and brought into the order of their kernels now,
    /// by all its threads; what is wrong with one is told when it is asked for.
    pub fn new(model: &'a Model, options: LoadOptions, device: Device) -> Self {
        let (tensors, used, names) = (model.tensors(), BTreeSet::new(), BTreeMap::new());
        let packed = match model {
            Model::Packed(archive) if is_host(&device) => {
                let read = |name: &String| (name.clone(), read_packed(archive, name, &device));
                archive.entries().par_iter().map(|(name, _)| read(name)).collect()
            }
            _ => BTreeMap::new(),
        };
        Self { model, tensors, options, device, used, names, packed }
    }

    /// How packed layers get at their weights.
    pub fn synthesis(&self) -> &SynthesisMode {
        &self.options.synthesis
    }

    /// How caches are to hold keys and values.
    pub fn cache_format(&self) -> CacheFormat {
        self.options.cache_format
    }

    /// The directory or file of the model.
    pub(crate) fn root(&self) -> PathBuf {
        self.model.checkpoint().root().to_owned()
    }

    /// Counts the tensor `name` as read if it is there and holds what `other` does, byte for byte: a head that is
    /// stored although it is the embedding.
    ///
    /// # Errors
    /// [`ModelError::Archive`] for damaged contents.
    pub fn skip_copy(&mut self, name: &str, other: &str) -> Result<(), ModelError> {
        let (Some(tensor), Some(original)) = (self.tensors.get(name), self.tensors.get(other)) else { return Ok(()) };
        let same = (&tensor.shape, tensor.dtype) == (&original.shape, original.dtype)
            && match (self.archive_of(name), self.archive_of(other)) {
                (None, None) => self.model.bytes(name)? == self.model.bytes(other)?,
                (Some(archive), Some(_)) => {
                    let [copy, original] = [name, other].map(|name| &archive.entries()[name]);
                    copy.header() == original.header()
                        && copy.manifest().stored_blake3 == original.manifest().stored_blake3
                }
                _ => false,
            };
        if same {
            self.used.insert(name.to_owned());
        }
        Ok(())
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The first of `prefixes` under which the tensor `name` is stored; the first of all if it is under none, so that
    /// the error that follows has the usual name.
    pub fn prefix(&self, prefixes: &[&'static str], name: &str) -> &'static str {
        let found = prefixes.iter().find(|prefix| self.contains(&format!("{prefix}{name}")));
        found.or(prefixes.first()).copied().unwrap_or_default()
    }

    /// The affine map whose tensors are `NAME.weight`, `[d_output, d_input]`, and, if `bias`, `NAME.bias`,
    /// `[d_output]`.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::Shape`]; [`ModelError::Archive`] for damaged contents and types
    /// other than floats; [`ModelError::Layer`] if the device has no implementation for the weight.
    pub fn projection(
        &mut self,
        name: &str,
        [d_output, d_input]: [usize; 2],
        bias: bool,
    ) -> Result<Projection, ModelError> {
        let weight = format!("{name}.weight");
        let bias = match bias {
            true => Some(self.floats(&format!("{name}.bias"), &[d_output])?),
            false => None,
        };
        self.check(&weight, &[d_output, d_input])?;
        let (id, projection) = match self.archive_of(&weight) {
            Some(archive) => {
                let layer = PIXELLinear::from_weight(self.packed(archive, &weight)?, bias, &self.device);
                let layer = layer.map_err(named(&weight))?.with_synthesis(self.options.synthesis.clone());
                (layer.weight.codes().id, Projection::Pixel(layer))
            }
            None => {
                // Burn's layers hold the transpose. As a view it would make them five times slower on Flex.
                let values = transposed(&self.floats(&weight, &[d_output, d_input])?, d_input);
                let dense = self.to_device(values, [d_input, d_output]);
                let bias = bias.map(|values| Param::from_tensor(self.to_device(values, [d_output])));
                let layer = Linear { weight: Param::from_tensor(dense), bias };
                (layer.weight.id, Projection::Dense(layer))
            }
        };
        self.names.insert(id, weight);
        Ok(projection)
    }

    /// The lookup table `name`, `[n_embedding, d_model]`.
    ///
    /// # Errors
    /// As [`projection`](Self::projection).
    pub fn embedding(&mut self, name: &str, shape: [usize; 2]) -> Result<TokenEmbedding, ModelError> {
        self.check(name, &shape)?;
        let (id, table) = match self.archive_of(name) {
            Some(archive) => {
                let table = PIXELEmbedding::from_weight(self.packed(archive, name)?);
                let table = table.with_synthesis(self.options.synthesis.clone());
                (table.weight.codes().id, TokenEmbedding::Pixel(table))
            }
            None => {
                let table = Embedding { weight: Param::from_tensor(self.tensor(name, shape)?) };
                (table.weight.id, TokenEmbedding::Dense(table))
            }
        };
        self.names.insert(id, name.to_owned());
        Ok(table)
    }

    /// The vector `name`, `[len]`.
    ///
    /// # Errors
    /// As [`projection`](Self::projection).
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Param<Tensor<1>>, ModelError> {
        Ok(Param::from_tensor(self.tensor(name, [len])?))
    }

    /// The RMS norm whose tensor is `NAME.weight`, `[len]`.
    ///
    /// # Errors
    /// As [`projection`](Self::projection).
    pub fn rms_norm(&mut self, name: &str, len: usize, epsilon: f64) -> Result<RmsNorm, ModelError> {
        Ok(RmsNorm { gamma: self.vector(&format!("{name}.weight"), len)?, epsilon })
    }

    /// The layer norm whose tensors are `NAME.weight` and `NAME.bias`, or `NAME.gamma` and `NAME.beta` as the first
    /// checkpoints of BERT have them, each `[len]`.
    ///
    /// # Errors
    /// As [`projection`](Self::projection).
    pub fn layer_norm(&mut self, name: &str, len: usize, epsilon: f64) -> Result<LayerNorm, ModelError> {
        let [gamma, beta] = match self.contains(&format!("{name}.gamma")) {
            true => ["gamma", "beta"],
            false => ["weight", "bias"],
        };
        let mut norm = LayerNormConfig::new(len).with_epsilon(epsilon).init(&self.device);
        norm.gamma = self.vector(&format!("{name}.{gamma}"), len)?;
        norm.beta = Some(self.vector(&format!("{name}.{beta}"), len)?);
        Ok(norm)
    }

    /// The name of the tensor of every weight handed out, by the id of its parameter (of the codes where it is packed),
    /// and the tensors that nothing asked for.
    pub fn finish(self) -> (BTreeMap<ParamId, String>, Vec<String>) {
        let ignored = |name: &String| IGNORED.iter().any(|end| name.ends_with(end));
        let unused = self.tensors.into_keys().filter(|name| !self.used.contains(name) && !ignored(name)).collect();
        (self.names, unused)
    }

    /// A packed weight on the device.
    fn packed(&mut self, archive: &Archive, name: &str) -> Result<PatternWeight, ModelError> {
        self.packed.remove(name).unwrap_or_else(|| read_packed(archive, name, &self.device))
    }

    /// The archive, if it holds the tensor as codes.
    fn archive_of(&self, name: &str) -> Option<&'a Archive> {
        match self.model {
            Model::Packed(archive) if archive.entries().contains_key(name) => Some(archive),
            _ => None,
        }
    }

    /// Notes that a tensor is used, and refuses one of another shape.
    fn check(&mut self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        let Some(tensor) = self.tensors.get(name) else {
            let path = self.model.checkpoint().root().to_owned();
            return Err(ModelError::MissingTensor { path, tensor: name.to_owned() });
        };
        if tensor.shape != expected {
            let (found, expected) = (tensor.shape.clone(), expected.to_vec());
            return Err(ModelError::Shape { path: self.path_of(name), tensor: name.to_owned(), expected, found });
        }
        self.used.insert(name.to_owned());
        Ok(())
    }

    /// The file that holds a tensor.
    fn path_of(&self, name: &str) -> PathBuf {
        let checkpoint = self.model.checkpoint();
        let shard = match self.archive_of(name) {
            Some(archive) => archive.entries().get(name).map(|entry| entry.shard()),
            None => checkpoint.tensors().get(name).map(|info| info.shard),
        };
        shard.map_or(checkpoint.root(), |shard| &checkpoint.shards()[shard].path).to_owned()
    }

    fn floats(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.check(name, shape)?;
        Ok(self.model.to_f32(name)?)
    }

    fn tensor<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Result<Tensor<D>, ModelError> {
        let values = self.floats(name, &shape)?;
        Ok(self.to_device(values, shape))
    }

    fn to_device<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        let dtype = DType::from(self.options.dtype);
        let data = TensorData::new(values, shape);
        self.device.memory_persistent_allocations(data, |data| Tensor::from_data(data, (&self.device, dtype)))
    }
}

/// Reads a packed weight and puts it on `device`.
fn read_packed(archive: &Archive, name: &str, device: &Device) -> Result<PatternWeight, ModelError> {
    let packed = archive.packed(name)?;
    Ok(PatternWeight::from_packed(&packed, device).map_err(named(name))?)
}

/// Says which tensor a layer could not be made of.
fn named(name: &str) -> impl FnOnce(LayerError) -> LayerError {
    let name = name.to_owned();
    move |source| LayerError::Parameter { name, cause: Box::new(source) }
}
