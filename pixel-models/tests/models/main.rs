//! Whole models: against an implementation in numpy (`tests/models/*/expected.safetensors`), cached and whole, packed
//! and dense, one file and several, and with every fault named.
#![cfg(feature = "flex")]

mod agreement;
mod files;
mod refusals;

use approx::abs_diff_eq;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData, s};
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::compressor::{RunOptions, compress_checkpoint, decompress_archive};
use pixel_core::plan::{Plan, Recipe};
use pixel_models::{
    CausalModel, EncoderModel, Llama, LoadOptions, LoadedModel, ModelError, Pooling, UnreadReason, UnreadTensor, load,
};
use pixel_nn::{Projection, SynthesisMode, WeightCache};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const DECODERS: [&str; 5] = ["llama", "llama3_rope", "mistral_window", "qwen2", "qwen3"];

/// Every matrix at 8 bits, uniform.
const UNIFORM: &str = "min_weights = 1\n[default]\ncodec = 'uniform'\nbits = 8\n";
/// Layers at 4 bits by the trellis, embeddings and heads uniform at 8.
const TRELLIS: &str = "min_weights = 1\n[default]\ncodec = 'trellis'\nbits = 4\noptions = { window = 10 }\n";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}

fn causal_with(path: &Path, options: &LoadOptions) -> CausalModel {
    load(path, options, &Device::flex()).unwrap().into_causal().unwrap()
}

fn causal(path: &Path) -> CausalModel {
    causal_with(path, &LoadOptions::default())
}

fn encoder(path: &Path) -> EncoderModel {
    load(path, &LoadOptions::default(), &Device::flex()).unwrap().into_encoder().unwrap()
}

/// The numbers that the other implementation found.
struct Expected(Vec<u8>);

impl Expected {
    fn of(name: &str) -> Self {
        Self(fs::read(folder(name).join("expected.safetensors")).unwrap())
    }

    fn ints(&self, name: &str) -> Tensor<2, Int> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64);
        let values: Vec<i64> = view.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &Device::flex())
    }

    fn floats<const D: usize>(&self, name: &str) -> Tensor<D> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        let values: Vec<f32> = view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &Device::flex())
    }

    /// True where a token is padding.
    fn padding(&self) -> Tensor<2, Bool> {
        self.ints("attention_mask").equal_elem(0)
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The largest difference, over the largest value expected.
fn distance<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let largest = |values: Vec<f32>| {
        assert!(values.iter().all(|value| value.is_finite()));
        values.into_iter().fold(0.0f32, |m, v| m.max(v.abs()))
    };
    largest(host(found - expected.clone())) / largest(host(expected))
}

/// A copy of a fixture that may be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(folder(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// Sets a field of `config.json`; null stands for "absent", which every reader of it takes alike.
fn edit_config(dir: &Path, field: &str, value: Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// The tensors of a file, by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))).collect()
}

fn write_tensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a (Dtype, Vec<usize>, Vec<u8>))>) {
    let views = tensors.into_iter().map(|(name, (dtype, shape, data))| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Changes the tensors of the fixture in `dir`.
fn edit_tensors(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model.safetensors");
    let mut tensors = read_tensors(&path);
    change(&mut tensors);
    write_tensors(&path, &tensors);
}

fn compress(source: &Path, target: &Path, recipe: &str) {
    let checkpoint = Checkpoint::open(source).unwrap();
    let recipe = Recipe::from_toml(recipe).unwrap().compile().unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    compress_checkpoint(&checkpoint, &plan, target, RunOptions::default(), &()).unwrap();
}

fn decompress(source: &Path, target: &Path) {
    let archive = Archive::open(source).unwrap();
    decompress_archive(&archive, target, None, RunOptions::default(), &()).unwrap();
}

fn refused(path: &Path) -> String {
    load(path, &LoadOptions::default(), &Device::flex()).unwrap_err().to_string()
}
