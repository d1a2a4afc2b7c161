//! A Burn model of one's own, compressed with what is known about its inputs, saved as an archive, and loaded again.
//!
//! ```sh
//! cargo run --release --example compress_model
//! ```
//!
//! The same model by four ways: patterns of a dictionary that is learned from its weights, patterns that overlap, those
//! calibrated, and what the `pixel` binary makes of the archive.

use anyhow::Result;
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Tensor};
use pixel_nn::prelude::*;

/// Projections are Burn's `Linear` and can be listened to, for calibration.
#[derive(Module, Debug)]
struct Mlp {
    up: Projection,
    down: Projection,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        let linear = |m, n| Projection::from(LinearConfig::new(m, n).init(device));
        Self { up: linear(128, 512), down: linear(512, 128) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(relu(self.up.forward(x)))
    }
}

/// `‖a − b‖ / ‖b‖` of two models' outputs.
fn error(model: &Mlp, dense: &Mlp, x: &Tensor<2>) -> Result<f32> {
    let (found, expected) = (model.forward(x.clone()), dense.forward(x.clone()));
    let norm = |t: Tensor<2>| t.square().sum().sqrt().into_scalar::<f32>();
    Ok(norm(found - expected.clone()) / norm(expected))
}

fn main() -> Result<()> {
    let device = Device::flex();
    device.seed(7);
    let model = Mlp::new(&device);
    // Inputs whose parts have to do with one another, as those of a real model.
    let mix = Tensor::<2>::random([16, 128], Distribution::Normal(0.0, 1.0), &device);
    let batch = || Tensor::<2>::random([256, 16], Distribution::Normal(0.0, 1.0), &device).matmul(mix.clone());
    let batches: Vec<_> = (0..8).map(|_| batch()).collect();
    let x = batch();

    // A dictionary of one's own: the original's base patterns, and what tiles of the weights have in common.
    let tile = Shape::new(8, 8)?;
    let mut dictionary = PatternDictionary::default();
    dictionary.generate_base_patterns(tile)?;
    if let Projection::Dense(linear) = &model.up {
        let weight = Matrix::try_from(linear.weight.val().transpose())?;
        dictionary.learn(tile, &weight.as_ref().tiles(tile), 64, 0)?;
    }
    let config = ReplaceConfig::new("matching:2".parse()?).with_dictionary(dictionary);
    let (small, report) = replace_linear_layers(model.clone(), &config)?;
    for layer in &report.layers {
        println!("{}: relative error {:.3} at {:.2} bits", layer.name, layer.relative_error, layer.bits_per_weight);
    }
    println!("a dictionary of one's own: error of the outputs {:.3}", error(&small, &model, &x)?);

    let config = ReplaceConfig::new("lapped:2".parse()?);
    let (small, report) = replace_linear_layers(model.clone(), &config)?;
    println!("{}", report.summary());
    println!("lapped:2: error of the outputs {:.3}", error(&small, &model, &x)?);

    // The same bits, and the errors of one column made up for by the others.
    let run = |model: &Mlp, batch: &Tensor<2>| drop(model.forward(batch.clone()));
    let (small, report) = compress_model(model.clone(), &batches, run, &config)?;
    println!("lapped:2, calibrated: error of the outputs {:.3}", error(&small, &model, &x)?);
    println!("{report}");

    // An archive, as `pixel inspect`, `verify` and `decompress` read it.
    let dir = tempfile::tempdir()?;
    let store = ArchiveStore::new(dir.path().join("mlp.safetensors"));
    store.save(&small)?;
    let (loaded, found) = store.load(Mlp::new(&device))?;
    println!("loaded {}: error {:.1e}", found.loaded.join(", "), error(&loaded, &small, &x)?);
    Ok(())
}
