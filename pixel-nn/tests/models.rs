//! Whole models: against an implementation in numpy (`tests/models/*/expected.safetensors`), cached and whole, packed and
//! dense, one file and several, and with every fault named.
#![cfg(all(feature = "models", feature = "flex"))]

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData, s};
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::compressor::{Plan, RunOptions, compress_checkpoint, decompress_archive};
use pixel_core::recipe::Recipe;
use pixel_nn::models::{CausalModel, EncoderModel, Llama, LoadOptions, LoadedModel, ModelError, Pooling, load};
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

#[test]
fn decoders_are_what_another_implementation_computes() {
    for name in DECODERS {
        let (model, expected) = (causal(&folder(name)), Expected::of(name));
        let found = model.network.forward(expected.ints("tokens"));
        let distance = distance(found, expected.floats("logits"));
        assert!(distance <= 1e-4, "{name}: {distance}");
        assert_eq!(model.unused, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn the_encoder_is_what_another_implementation_computes() {
    let (model, expected) = (encoder(&folder("bert")), Expected::of("bert"));
    let (tokens, padding) = (expected.ints("tokens"), expected.padding());
    let states = model.network.forward(tokens.clone(), Some(padding.clone()));
    assert!(distance(states, expected.floats("states")) <= 1e-4);
    assert_eq!(model.pooling, Pooling::Mean);
    let vectors = model.embed(tokens.clone(), Some(padding.clone()));
    assert!(distance(vectors.clone(), expected.floats("embedding")) <= 1e-4);
    assert_eq!(model.unused, Vec::<String>::new());

    // What stands at padding is not read: other tokens there change nothing.
    let other = tokens.clone().mask_fill(padding.clone(), 7);
    assert!(distance(model.embed(other, Some(padding.clone())), vectors.clone()) < 1e-6);
    // The second type of token is another vector, the first the default.
    let types = Tensor::zeros_like(&tokens);
    let typed = |types| model.network.forward_typed(tokens.clone(), types, Some(padding.clone()));
    assert_eq!(host(typed(types.clone())), host(model.network.forward(tokens.clone(), Some(padding.clone()))));
    assert!(distance(typed(types.ones_like()), expected.floats("states")) > 0.01);
}

#[test]
fn a_text_in_pieces_is_the_text() {
    for name in DECODERS {
        let (model, tokens) = (causal(&folder(name)), Expected::of(name).ints("tokens"));
        let whole = model.network.forward(tokens.clone());
        let [_, seq, vocabulary] = whole.dims();
        for step in [1, 3, 4, seq] {
            let mut cache = model.network.cache();
            let mut all = Vec::new();
            for start in (0..seq).step_by(step) {
                let piece = tokens.clone().slice(s![.., start..(start + step).min(seq)]);
                all.push(model.network.forward_cached_all(piece, &mut cache));
            }
            assert_eq!(cache.len(), seq);
            let distance = distance(Tensor::cat(all, 1), whole.clone());
            assert!(distance < 1e-5, "{name}, {step} at a time: {distance}");
        }
        // The last logits alone, before and after some tokens are taken back.
        let mut cache = model.network.cache_with_capacity(seq);
        for _ in 0..2 {
            cache.truncate(2);
            let rest = tokens.clone().slice(s![.., cache.len()..]);
            let last = model.network.forward_cached(rest, &mut cache);
            let expected = whole.clone().slice(s![.., seq - 1.., ..]).reshape([2, vocabulary]);
            assert!(distance(last, expected) < 1e-5, "{name}");
        }
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let model = causal(&folder("mistral_window"));
    assert_eq!(model.config.windows, [Some(4), Some(4)]);
    let tokens = Expected::of("mistral_window").ints("tokens");
    let [batch, seq] = tokens.dims();
    // Two layers see two windows back: token 0 reaches position 6 and not 7.
    let first = tokens.clone().slice_fill(s![.., 0..1], 5);
    let change = (model.network.hidden(first) - model.network.hidden(tokens)).abs().max_dim(2);
    let change = host(change.reshape([batch, seq]).max_dim(0));
    assert!(change[..7].iter().all(|&c| c > 1e-4), "{change:?}");
    assert!(change[7..].iter().all(|&c| c == 0.0), "{change:?}");
}

#[test]
fn rotary_scaling_and_norms_matter() {
    // What a test against one fixture cannot show: that the fixture depends on the feature at all.
    let changes = [
        ("llama3_rope", "rope_scaling", Value::Null),
        ("llama3_rope", "rms_norm_eps", json!(1e-5)),
        ("mistral_window", "sliding_window", Value::Null),
    ];
    for (name, field, value) in changes {
        let dir = copy(name);
        edit_config(dir.path(), field, value);
        let expected = Expected::of(name);
        let found = causal(dir.path()).network.forward(expected.ints("tokens"));
        assert!(distance(found, expected.floats("logits")) > 1e-3, "{name}: {field}");
    }
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

#[test]
fn an_archive_is_the_dense_model_of_its_own_weights() {
    // Models as narrow as these make ten times more of an error than real ones do.
    for (name, recipe, most) in
        [("llama", UNIFORM, 0.1), ("llama3_rope", TRELLIS, 0.8), ("qwen2", TRELLIS, 0.8), ("qwen3", UNIFORM, 0.1)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (packed, dense) = (dir.path().join("packed"), dir.path().join("dense"));
        compress(&folder(name), &packed, recipe);
        decompress(&packed, &dense);
        let tokens = Expected::of(name).ints("tokens");
        let expected = causal(&dense).network.forward(tokens.clone());

        let model = causal(&packed);
        assert!(model.network.projections().all(|projection| matches!(projection, Projection::Pixel(_))));
        let bits = model.network.linear_size().bits_per_weight();
        assert!((4.0..11.0).contains(&bits), "{name}: {bits}");
        let found = model.network.forward(tokens.clone());
        assert!(distance(found.clone(), expected.clone()) < 1e-4, "{name}");
        assert_eq!(model.unused, Vec::<String>::new());
        // Packed at all, and not far from the original.
        let original = causal(&folder(name)).network.forward(tokens.clone());
        let loss = distance(found, original);
        assert!(loss > 1e-4 && loss < most, "{name}: {loss}");

        let cache = WeightCache::new(1 << 20);
        let options = LoadOptions::default().with_synthesis(SynthesisMode::Cached(cache.clone()));
        let cached = causal_with(&packed, &options);
        assert!(distance(cached.network.forward(tokens), expected) < 1e-4, "{name}");
        assert!(cache.used_bytes() > 0);
    }
}

#[test]
fn an_encoder_is_the_dense_model_of_its_own_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (packed, dense) = (dir.path().join("packed"), dir.path().join("dense"));
    compress(&folder("bert"), &packed, UNIFORM);
    decompress(&packed, &dense);
    let expected = Expected::of("bert");
    let (tokens, padding) = (expected.ints("tokens"), expected.padding());
    let embed = |path: &Path| encoder(path).embed(tokens.clone(), Some(padding.clone()));
    assert!(distance(embed(&packed), embed(&dense)) < 1e-4);
    assert!(encoder(&packed).network.projections().all(|projection| matches!(projection, Projection::Pixel(_))));
}

#[test]
fn shards_are_one_model() {
    for name in ["llama", "llama3_rope"] {
        let dir = copy(name);
        let single = dir.path().join("model.safetensors");
        let tensors = read_tensors(&single);
        fs::remove_file(single).unwrap();
        let mut weight_map = BTreeMap::new();
        for shard in 0..3 {
            let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
            let part: Tensors = tensors.clone().into_iter().skip(shard).step_by(3).collect();
            write_tensors(&dir.path().join(&file), &part);
            weight_map.extend(part.into_keys().map(|tensor| (tensor, file.clone())));
        }
        let index = json!({ "metadata": {}, "weight_map": weight_map });
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();

        let tokens = Expected::of(name).ints("tokens");
        let expected = host(causal(&folder(name)).network.forward(tokens.clone()));
        assert_eq!(host(causal(dir.path()).network.forward(tokens.clone())), expected);

        // And an archive of several files.
        let packed = tempfile::tempdir().unwrap();
        let packed = packed.path().join("packed");
        compress(dir.path(), &packed, UNIFORM);
        let found = host(causal(&packed).network.forward(tokens));
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 0.1 * largest));
    }
}

#[test]
fn a_file_is_a_model_with_the_files_beside_it() {
    let tokens = Expected::of("llama").ints("tokens");
    let file = causal(&folder("llama").join("model.safetensors")).network.forward(tokens.clone());
    assert_eq!(host(file), host(causal(&folder("llama")).network.forward(tokens)));
}

#[test]
fn names_with_and_without_a_prefix_are_the_same_model() {
    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| {
        let short = std::mem::take(tensors).into_iter();
        *tensors = short.map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_owned(), tensor)).collect();
    });
    let tokens = Expected::of("llama").ints("tokens");
    let model = causal(dir.path());
    assert_eq!(host(model.network.forward(tokens.clone())), host(causal(&folder("llama")).network.forward(tokens)));
    assert!(model.weight_names.values().any(|name| name == "layers.0.self_attn.q_proj.weight"));

    // The first checkpoints of BERT: a prefix, and other names for the norms.
    let dir = copy("bert");
    edit_tensors(dir.path(), |tensors| {
        let rename = |name: String| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            format!("bert.{name}")
        };
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
        tensors.insert("cls.predictions.bias".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let (model, expected) = (encoder(dir.path()), Expected::of("bert"));
    let vectors = model.embed(expected.ints("tokens"), Some(expected.padding()));
    assert!(distance(vectors, expected.floats("embedding")) <= 1e-4);
    assert_eq!(model.unused, ["cls.predictions.bias"]);
}

/// The ids of a module's parameters of two axes and of its codes.
#[derive(Default)]
struct Ids(BTreeSet<ParamId>);

impl ModuleVisitor for Ids {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D == 2 {
            self.0.insert(param.id);
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.insert(param.id);
    }
}

#[test]
fn every_weight_has_the_name_of_its_tensor() {
    let model = causal(&folder("llama3_rope"));
    let mut ids = Ids::default();
    model.network.visit(&mut ids);
    assert!(model.weight_names.keys().eq(&ids.0));
    let names: BTreeSet<&str> = model.weight_names.values().map(String::as_str).collect();
    let tensors = read_tensors(&folder("llama3_rope").join("model.safetensors"));
    assert!(names.into_iter().eq(tensors.iter().filter(|(_, t)| t.1.len() == 2).map(|(name, _)| name.as_str())));
    let Projection::Dense(up) = &model.network.layers[1].mlp.up else { panic!("a dense file") };
    assert_eq!(model.weight_names[&up.weight.id], "model.layers.1.mlp.up_proj.weight");

    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    compress(&folder("llama3_rope"), &packed, UNIFORM);
    let model = causal(&packed);
    let mut ids = Ids::default();
    model.network.visit(&mut ids);
    assert!(model.weight_names.keys().all(|id| ids.0.contains(id)));
    let Projection::Pixel(up) = &model.network.layers[1].mlp.up else { panic!("an archive") };
    assert_eq!(model.weight_names[&up.weight.codes().id], "model.layers.1.mlp.up_proj.weight");
    assert_eq!(model.weight_names.len(), tensors.values().filter(|tensor| tensor.1.len() == 2).count());
}

#[test]
fn narrow_types_come_near() {
    let tokens = Expected::of("qwen3").ints("tokens");
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    compress(&folder("qwen3"), &packed, UNIFORM);
    for path in [folder("qwen3"), packed] {
        let wide = causal(&path).network.forward(tokens.clone());
        let model = causal_with(&path, &LoadOptions::default().with_dtype(FloatDType::F16));
        assert_eq!(model.network.hidden(tokens.clone()).dtype(), DType::F16);
        let narrow = model.network.forward(tokens.clone());
        assert_eq!(narrow.dtype(), DType::F32);
        let distance = distance(narrow, wide);
        assert!(distance > 1e-6 && distance < 0.02, "{distance}");
    }
}

#[test]
fn the_first_token_is_pooled_where_the_model_says_so() {
    let dir = copy("bert");
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let pooling = dir.path().join("1_Pooling/config.json");
    fs::write(&pooling, json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false }).to_string())
        .unwrap();
    let (model, expected) = (encoder(dir.path()), Expected::of("bert"));
    assert_eq!(model.pooling, Pooling::First);
    let found = model.embed(expected.ints("tokens"), Some(expected.padding()));
    let states = expected.floats::<3>("states");
    let [batch, _, hidden] = states.dims();
    let first = states.slice(s![.., 0..1, ..]).reshape([batch, hidden]);
    let length = first.clone().square().sum_dim(1).sqrt();
    assert!(distance(found, first / length) < 1e-4);

    fs::write(&pooling, json!({ "pooling_mode_max_tokens": true }).to_string()).unwrap();
    let error = refused(dir.path());
    assert!(error.contains("1_Pooling/config.json") && error.contains("\"pooling_mode_max_tokens\" = true"), "{error}");
}

fn refused(path: &Path) -> String {
    load(path, &LoadOptions::default(), &Device::flex()).unwrap_err().to_string()
}

#[test]
fn faults_of_the_weights_name_file_and_tensor() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| drop(tensors.remove(name)));
    let error = load(dir.path(), &LoadOptions::default(), &Device::flex()).unwrap_err();
    assert!(matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == name), "{error}");
    assert_eq!(error.to_string(), format!("{}: tensor \"{name}\" is missing", dir.path().display()));

    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| tensors.get_mut(name).unwrap().1 = vec![32, 24]);
    let file = dir.path().join("model.safetensors");
    let expected = "has shape [32, 24], the configuration says [24, 32]";
    assert_eq!(refused(dir.path()), format!("{}: tensor \"{name}\" {expected}", file.display()));
    // The same in an archive.
    let packed = dir.path().with_extension("packed");
    compress(dir.path(), &packed, UNIFORM);
    assert!(refused(&packed).contains(&format!("model.safetensors: tensor \"{name}\" {expected}")));
    fs::remove_dir_all(packed).unwrap();

    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        *tensor = (Dtype::I32, tensor.1.clone(), tensor.2.clone());
    });
    let error = refused(dir.path());
    assert!(error.contains("model.safetensors") && error.contains(name) && error.contains("I32"), "{error}");

    // A head of its own that is not there, and one that is there in vain.
    let dir = copy("llama");
    edit_config(dir.path(), "tie_word_embeddings", json!(false));
    assert!(refused(dir.path()).ends_with("tensor \"lm_head.weight\" is missing"));
    let dir = copy("llama3_rope");
    edit_config(dir.path(), "tie_word_embeddings", json!(true));
    assert_eq!(causal(dir.path()).unused, ["lm_head.weight"]);

    let dir = copy("llama");
    fs::write(dir.path().join("model.safetensors"), "x").unwrap();
    let error = refused(dir.path());
    assert!(error.contains("model.safetensors") && error.contains("not a valid safetensors file"), "{error}");
}

#[test]
fn faults_of_the_configuration_name_file_and_field() {
    let cases = [
        (
            "llama",
            "vocab_size",
            json!(49),
            "model.embed_tokens.weight\" has shape [48, 32], the configuration says [49, 32]",
        ),
        ("llama", "hidden_size", Value::Null, "field \"hidden_size\" is missing"),
        ("llama", "num_attention_heads", json!(3), "field \"num_key_value_heads\" is 2: num_attention_heads = 3"),
        (
            "llama",
            "rope_parameters",
            json!({ "rope_type": "yarn" }),
            "\"rope_parameters.rope_type\" = \"yarn\"; default,",
        ),
        ("llama", "num_hidden_layers", json!(3), "\"model.layers.2.input_layernorm.weight\" is missing"),
        ("qwen2", "model_type", json!("gpt2"), "field \"model_type\" = \"gpt2\"; llama,"),
        ("bert", "hidden_act", json!(3), "field \"hidden_act\" is 3: invalid type: integer `3`, expected a string"),
    ];
    for (name, field, value, expected) in cases {
        let dir = copy(name);
        edit_config(dir.path(), field, value);
        let error = refused(dir.path());
        assert!(error.contains(&dir.path().display().to_string()) && error.contains(expected), "{error}");
    }

    let dir = copy("llama");
    for (text, expected) in [("[]", "not a JSON object"), ("{\"model_type\":", "not a JSON object: EOF")] {
        fs::write(dir.path().join("config.json"), text).unwrap();
        let error = refused(dir.path());
        assert!(error.contains("config.json") && error.contains(expected), "{error}");
    }
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(refused(dir.path()).starts_with("cannot read ") && refused(dir.path()).ends_with("config.json"));
}

#[test]
fn fewer_layers_than_the_file_has_leave_tensors_unused() {
    let dir = copy("llama");
    edit_config(dir.path(), "num_hidden_layers", json!(1));
    let unused = causal(dir.path()).unused;
    assert_eq!(unused.len(), 9);
    assert!(unused.iter().all(|name| name.starts_with("model.layers.1.")), "{unused:?}");
}

#[test]
fn a_model_of_the_other_kind_is_an_error() {
    let open = |name: &str| load(folder(name), &LoadOptions::default(), &Device::flex()).unwrap();
    assert!(matches!(open("bert"), LoadedModel::Encoder(_)));
    let error = open("bert").into_causal().unwrap_err().to_string();
    assert!(error.ends_with("bert holds an encoder, a decoder is needed"), "{error}");
    assert!(open("llama").into_encoder().is_err());
}

#[test]
fn a_damaged_archive_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    compress(&folder("llama"), &packed, UNIFORM);
    let file = packed.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    fs::write(&file, bytes).unwrap();
    let error = refused(&packed);
    assert!(error.contains("model.safetensors") && error.contains("is damaged: BLAKE3"), "{error}");
}

#[test]
#[should_panic(expected = "a text of 17 tokens, the model has 16 positions")]
fn a_text_beyond_the_last_position_is_refused() {
    encoder(&folder("bert")).network.forward(Tensor::zeros([1, 17], &Device::flex()), None);
}

#[test]
#[should_panic(expected = "layers of the cache (left) and of the model (right)")]
fn a_cache_of_another_model_is_refused() {
    let dir = copy("llama");
    edit_config(dir.path(), "num_hidden_layers", json!(1));
    let network: Llama = causal(&folder("llama")).network;
    network.forward_cached(Tensor::zeros([1, 1], &Device::flex()), &mut causal(dir.path()).network.cache());
}
