//! Training and measuring a model.

use std::time::Instant;

use anyhow::{Result, anyhow};
use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;

use crate::data::{Batch, TokenStream};
use crate::dice::Dice;
use crate::model::{Llama, LlamaShape};
use crate::positions::Positions;

/// How a model is trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// Number of updates.
    pub steps: usize,
    /// Updates over which the learning rate rises from zero.
    pub warmup: usize,
    /// Sequences per update.
    pub batch: usize,
    /// Highest learning rate.
    pub peak: f64,
    /// Learning rate at the end, as a part of the highest.
    pub floor: f64,
}

impl Schedule {
    /// The learning rate of an update: a linear rise, then half a cosine wave down.
    fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let progress = (step - self.warmup) as f64 / (self.steps - self.warmup) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// Updates between two reports.
const REPORT_EVERY: usize = 50;

/// Trains a model from random weights and prints the mean loss as it goes.
pub(crate) fn train(
    shape: &LlamaShape,
    schedule: &Schedule,
    stream: &TokenStream,
    dice: &mut Dice,
    device: &Device,
) -> Result<Llama> {
    let mut model = shape.init(device);
    println!("{} parameters, {} tokens", model.num_params(), stream.len());
    let mut optimizer = optimizer();
    let positions = Positions::new(shape, device);
    let loss = CrossEntropyLossConfig::new().init(device);
    let (start, mut sum) = (Instant::now(), 0.0);
    for step in 0..schedule.steps {
        let batch = stream.batch(schedule.batch, shape.context, dice, device);
        let value = loss.forward(model.forward(batch.inputs, &positions), batch.targets);
        sum += value.clone().into_scalar::<f32>();
        let gradients = GradientsParams::from_grads(value.backward(), &model);
        model = optimizer.step(schedule.learning_rate(step), model, gradients);
        if (step + 1) % REPORT_EVERY == 0 {
            let seconds = start.elapsed().as_secs_f32();
            let mean = sum / REPORT_EVERY as f32;
            println!("step {:5}  loss {mean:.4}  {seconds:6.0} s", step + 1);
            sum = 0.0;
        }
    }
    Ok(model)
}

fn optimizer() -> ModuleOptimizer {
    AdamWConfig::new()
        .with_beta_2(0.95)
        .with_epsilon(1e-8)
        .with_weight_decay(0.05)
        .with_grad_clipping(Some(GradientClippingConfig::Norm(1.0)))
        .init()
}

/// The mean over all tokens of `-ln p(token)`, windows taken one by one without shared context.
pub(crate) fn mean_loss(model: &Llama, shape: &LlamaShape, windows: &[Vec<u32>], device: &Device) -> Result<f64> {
    if windows.is_empty() {
        return Err(anyhow!("the text is shorter than {} tokens", shape.context));
    }
    let positions = Positions::new(shape, device);
    let loss: CrossEntropyLoss = CrossEntropyLossConfig::new().init(device);
    let losses = windows.iter().map(|window| {
        let batch = Batch::new(&[window], device);
        let logits = model.forward(batch.inputs, &positions);
        f64::from(loss.forward(logits, batch.targets).into_scalar::<f32>())
    });
    Ok(losses.sum::<f64>() / windows.len() as f64)
}
