//! A Burn user's first day with PIXEL, as a program that fails where the day would: plain modules, Burn's own
//! transformer, training, records, calibration, archives, a dictionary of one's own, what is refused and how it says
//! so.

mod snippets;

use burn::module::{Module, Param};
use burn::nn::transformer::{
    PositionWiseFeedForwardConfig, TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoderConfig,
    TransformerEncoderInput,
};
use burn::nn::{BiLstmConfig, Linear, LinearConfig, LstmConfig, SwiGluConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::store::{BurnToPyTorchAdapter, ModuleRecord, ModuleSnapshot, SafetensorsStore};
use burn::tensor::activation::relu;
use burn::tensor::{DType, Device, Distribution, Tensor};
use pixel_nn::pixel_core::archive::Checkpoint;
use pixel_nn::prelude::*;
use pixel_nn::{num_dense_params, replaced_parameters};
use std::error::Error;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the README's snippet is called with: 668 thousand weights.
#[derive(Module, Debug)]
struct Mlp {
    first: Linear,
    second: Linear,
    head: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        let linear = |m, n| LinearConfig::new(m, n).init(device);
        Self { first: linear(784, 512), second: linear(512, 512), head: linear(512, 10) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.head.forward(relu(self.second.forward(relu(self.first.forward(x)))))
    }
}

/// Layers that can be listened to.
#[derive(Module, Debug)]
struct Listening {
    up: Projection,
    down: Projection,
}

impl Listening {
    fn new(device: &Device) -> Self {
        let linear = |m, n| Projection::from(LinearConfig::new(m, n).init(device));
        Self { up: linear(64, 128), down: linear(128, 64) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(relu(self.up.forward(x)))
    }
}

fn normal<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// `‖a − b‖ / ‖b‖`.
fn distance<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    let norm = |t: Tensor<D>| t.cast(DType::F32).square().sum().sqrt().into_scalar::<f32>();
    norm(found - expected.clone()) / norm(expected)
}

#[track_caller]
fn within(what: &str, found: f32, bound: f32) {
    println!("  {what}: {found:.2e}");
    assert!(found < bound, "{what}: {found}, expected less than {bound}");
}

/// Burn's own module: replaced at 8 bits it gives nearly what it gave, and prints.
fn burns_own<M: Module + std::fmt::Display, const D: usize>(model: M, forward: impl Fn(&M) -> Tensor<D>) -> Result<()> {
    let (small, report) = replace_linear_layers(model.clone(), &ReplaceConfig::new("uniform:8".parse()?))?;
    let text = small.to_string();
    let name = text.split_whitespace().next().unwrap_or_default().to_owned();
    within(&format!("{name}, {} weights", report.layers.len()), distance(forward(&small), forward(&model)), 0.02);
    assert_eq!(num_dense_params(&small), model.num_params());
    Ok(())
}

fn main() -> Result<()> {
    let day = Instant::now();
    let device = Device::flex();
    device.seed(1);

    println!("what the pages show");
    snippets::run()?;

    println!("the README's snippet");
    let model = Mlp::new(&device);
    let clock = Instant::now();
    let config = ReplaceConfig::new("trellis:3".parse()?);
    let (small, report) = replace_linear_layers(model.clone(), &config)?;
    println!("{report}");
    let seconds = clock.elapsed().as_secs_f32();
    println!("  {seconds:.1} s for {} weights", report.num_weights());
    let x = normal([32, 784]);
    within("error of the outputs at 3 bits", distance(small.forward(x.clone()), model.forward(x.clone())), 0.35);
    assert_eq!(replaced_parameters(&small)[0].dims, [784, 512]);

    println!("a record, and one of another configuration");
    let bytes = small.clone().into_record().into_bytes()?;
    let loaded = replace_skeleton(Mlp::new(&device), &config)?.load_record(ModuleRecord::from_bytes(bytes.clone())?);
    within("the loaded model", distance(loaded.forward(x.clone()), small.forward(x.clone())), 1e-6);
    let other = replace_skeleton(Mlp::new(&device), &ReplaceConfig::new("trellis:3:window=12".parse()?))?;
    let error = other.try_load_record(ModuleRecord::from_bytes(bytes)?).unwrap_err().to_string();
    assert!(error.contains("window=16") || error.contains("trellis"), "{error}");

    println!("Burn's own modules");
    let (text, memory) = (normal([2, 5, 32]), normal([2, 7, 32]));
    burns_own(PositionWiseFeedForwardConfig::new(32, 64).with_dropout(0.0).init(&device), |m| m.forward(text.clone()))?;
    burns_own(SwiGluConfig::new(32, 64).init(&device), |m| m.forward(text.clone()))?;
    burns_own(TransformerEncoderConfig::new(32, 64, 4, 2).with_dropout(0.0).init(&device), |m| {
        m.forward(TransformerEncoderInput::new(text.clone()))
    })?;
    burns_own(TransformerDecoderConfig::new(32, 64, 4, 2).with_dropout(0.0).init(&device), |m| {
        m.forward(TransformerDecoderInput::new(text.clone(), memory.clone()))
    })?;
    burns_own(LstmConfig::new(32, 48, true).init(&device), |m| m.forward(text.clone(), None).0)?;
    burns_own(BiLstmConfig::new(32, 48, true).init(&device), |m| m.forward(text.clone(), None).0)?;

    println!("calibration");
    let model = Listening::new(&device);
    let mix = normal([8, 64]);
    let batch = || normal([256, 8]).matmul(mix.clone()) + normal([256, 64]) * 0.2;
    let batches: Vec<_> = (0..4).map(|_| batch()).collect();
    let x = batch();
    let config = ReplaceConfig::new("lapped:2".parse()?);
    let (plain, _) = replace_linear_layers(model.clone(), &config)?;
    let run = |model: &Listening, batch: &Tensor<2>| drop(model.forward(batch.clone()));
    let (small, _) = compress_model(model.clone(), &batches, run, &config)?;
    let error = |other: &Listening| distance(other.forward(x.clone()), model.forward(x.clone())).powi(2);
    println!("  relative squared error {:.3} without, {:.3} with", error(&plain), error(&small));
    assert!(error(&small) < 0.5 * error(&plain));

    println!("an archive");
    let dir = tempfile::tempdir()?;
    let store = ArchiveStore::new(dir.path().join("small.safetensors"));
    store.save(&small)?;
    let (loaded, report) = store.load(Listening::new(&device))?;
    assert_eq!(report.loaded, ["down.bias", "down.weight", "up.bias", "up.weight"]);
    within("the loaded model", distance(loaded.forward(x.clone()), small.forward(x.clone())), 1e-6);
    let archive = Archive::open(dir.path().join("small.safetensors"))?;
    let up = Projection::from_archive(&archive, "up", &device)?;
    let Projection::Dense(replaced) = &small.up else { panic!("the types stay") };
    within("a layer by itself", distance(up.forward(x.clone()), replaced.forward(x.clone())), 1e-3);

    println!("training, and an archive of what came of it");
    let mut trained = loaded.train();
    let mut optimizer = AdamConfig::new().init();
    let (inputs, target) = (Tensor::from_inner(x.clone()), Tensor::from_inner(model.forward(x.clone())));
    let loss = |model: &Listening| (model.forward(inputs.clone()) - target.clone()).square().mean();
    let before = loss(&trained).into_scalar::<f32>();
    for _ in 0..20 {
        let gradients = GradientsParams::from_grads(loss(&trained).backward(), &trained);
        trained = optimizer.step(1e-3, trained, gradients);
    }
    within("loss, as a share of that before", loss(&trained).into_scalar::<f32>() / before, 0.9);
    ArchiveStore::new(dir.path().join("trained.safetensors")).save(&trained.valid())?;

    println!("half precision");
    let half = LinearConfig::new(64, 64).init(&device);
    let half = Linear {
        weight: half.weight.map(|w| w.cast(DType::BF16)),
        bias: half.bias.map(|b| b.map(|b| b.cast(DType::BF16))),
    };
    let (layer, _) = PIXELLinear::from_linear(&half, &"trellis:4".parse()?, 0)?;
    let y = layer.forward(normal([3, 64]).cast(DType::BF16));
    assert_eq!(y.dtype(), DType::BF16);

    println!("a dictionary of one's own");
    let (mut dictionary, tile) = (PatternDictionary::default(), Shape::new(8, 8)?);
    dictionary.generate_base_patterns(tile)?;
    let weight = Matrix::random(Shape::new(64, 64)?, 3);
    dictionary.learn(tile, &weight.as_ref().tiles(tile), 16, 0)?;
    let dense = Linear { weight: Param::from_tensor(weight.to_tensor(&device).transpose()), bias: None };
    let over = ReplaceConfig::new("matching:2".parse()?).with_dictionary(dictionary);
    let (_, report) = replace_linear_layers(dense, &over)?;
    within("relative error of the weight", report.relative_error() as f32, 0.6);

    println!("what is refused, and how");
    let norm = burn::nn::LayerNormConfig::new(8).init(&device);
    println!("  {}", replace_linear_layers(norm, &config).unwrap_err());
    println!("  {}", "trellis:2:window=12:window=10".parse::<CodecSpec>().unwrap_err());
    let path = dir.path().join("burn.safetensors");
    let square = LinearConfig::new(64, 64).init(&device);
    square.save_into(&mut SafetensorsStore::from_file(&path))?;
    println!("  {}", Checkpoint::open(&path)?.check_layout().unwrap_err());
    let path = dir.path().join("right.safetensors");
    let mut right = SafetensorsStore::from_file(&path).with_to_adapter(BurnToPyTorchAdapter);
    right = right.skip_enum_variants(true).metadata("linear_layout", "output_input");
    square.save_into(&mut right)?;
    Checkpoint::open(&path)?.check_layout()?;
    let stored = Checkpoint::open(&path)?.to_f32("weight")?;
    let expected = square.weight.val().transpose().into_data().try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
    assert_eq!(stored, expected);

    println!("the day took {:.1} s", day.elapsed().as_secs_f32());
    Ok(())
}
