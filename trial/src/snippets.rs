//! Every piece of Rust in the README and in `docs/burn.md`, compiled as a user's crate compiles it; those that need no
//! files are run.

use super::{Listening, Mlp, Result, normal};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor};
use pixel_models::LoadOptions;
use pixel_nn::attention::CacheFormat;
use pixel_nn::prelude::*;
use pixel_nn::{Activation, ProjectionStep};

/// How many there are, so that a new one is not forgotten.
const COUNTED: [(&str, &str); 2] = [(env!("SNIPPETS_README"), "1"), (env!("SNIPPETS_BURN"), "6")];

macro_rules! snippet {
    ($name:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $name, ".rs"))
    };
}

pub fn run() -> Result<()> {
    for (found, known) in COUNTED {
        assert_eq!(found, known, "snippets on a page; add the new one here");
    }
    let device = Device::flex();
    readme(Mlp::new(&device))?;
    let projection = |m, n| Projection::from(LinearConfig::new(m, n).init(&device));
    let layers = [projection(64, 128), projection(64, 128), projection(128, 64)];
    let norm = RmsNormConfig::new(64).init(&device);
    let attention = PIXELAttentionConfig::new(64, 4).with_causal(true).with_bias(false).init(&device);
    transformer(layers, norm, attention, normal([1, 3, 64]));
    calibrated(Listening::new(&device), vec![normal([32, 64])])
}

fn readme(model: Mlp) -> Result<()> {
    snippet!("readme_0");
    Ok(())
}

#[allow(dead_code, unused_variables, reason = "needs an archive")]
fn layers(model: Mlp, linear: Linear, path: &str, device: Device) -> Result<()> {
    snippet!("burn_0");
    Ok(())
}

#[allow(dead_code, unused_variables, reason = "needs a model")]
fn models(tokens: Tensor<2, Int>, device: Device) -> Result<()> {
    snippet!("burn_1");
    Ok(())
}

#[allow(unused_variables, reason = "shows a form")]
fn transformer([gate, up, down]: [Projection; 3], norm: RmsNorm, attention: PIXELAttention, x: Tensor<3>) {
    snippet!("burn_2");
}

#[allow(unused_variables, reason = "shows a form")]
fn calibrated(model: Listening, batches: Vec<Tensor<2>>) -> Result<()> {
    let config = ReplaceConfig::new("lapped:2".parse()?);
    snippet!("burn_3");
    Ok(())
}

#[allow(dead_code, unused_variables, reason = "writes into the working directory")]
fn written(model: Listening, batches: Vec<Tensor<2>>) -> Result<()> {
    snippet!("burn_4");
    Ok(())
}

#[allow(dead_code, unused_variables, reason = "writes into the working directory")]
fn archives(small: Listening, model: Listening) -> Result<()> {
    snippet!("burn_5");
    Ok(())
}
