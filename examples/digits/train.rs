//! Training and measuring a classifier.

use anyhow::Result;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams};

use super::data::Images;
use super::model::Classifier;
use super::shuffle::permutation;

/// The seed of the first weights, of dropout and of the order of images.
const SEED: u64 = 1;

/// How a model is trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// Passes over the images.
    pub epochs: usize,
    /// Images per update.
    pub batch: usize,
    /// Learning rate at the start; it falls to zero along half a cosine wave.
    pub peak: f64,
    /// What AdamW takes off the weights, as a multiple of the learning rate.
    pub weight_decay: f32,
}

impl Schedule {
    /// From random weights: some 7 s on two cores.
    pub(crate) const DENSE: Self = Self { epochs: 20, batch: 32, peak: 1e-3, weight_decay: 0.05 };

    /// The learning rate of an update, the number of all of them given.
    fn learning_rate(&self, step: usize, steps: usize) -> f64 {
        let progress = step as f64 / steps as f64;
        self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

/// Whether training says how it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nothing is printed.
    Quiet,
    /// A line for each epoch.
    Verbose,
}

/// Trains a model from random weights, on the device of the images.
pub(crate) fn train(images: &Images, output: Output) -> Result<Classifier> {
    let device = images.pixels.device();
    device.seed(SEED);
    let model = Classifier::init(&device.autodiff());
    Ok(improve(model, images, &Schedule::DENSE, output)?.valid())
}

/// Trains what requires gradients in a model; the model is ready to train, the images are on a plain device.
pub(crate) fn improve(
    mut model: Classifier,
    images: &Images,
    schedule: &Schedule,
    output: Output,
) -> Result<Classifier> {
    let mut optimizer = AdamWConfig::new().with_weight_decay(schedule.weight_decay).init();
    let loss = CrossEntropyLossConfig::new().init(&images.pixels.device());
    let steps = schedule.epochs * images.len().div_ceil(schedule.batch);
    let mut step = 0;
    for epoch in 0..schedule.epochs {
        let mut sum = 0.0;
        for positions in permutation(images.len(), SEED + epoch as u64).chunks(schedule.batch) {
            let batch = images.select(positions);
            let value = loss.forward(model.forward(batch.pixels.autodiff()), batch.digits.autodiff());
            sum += f64::from(value.clone().try_into_scalar::<f32>()?) * positions.len() as f64;
            let gradients = GradientsParams::from_grads(value.backward(), &model);
            model = optimizer.step(schedule.learning_rate(step, steps), model, gradients);
            step += 1;
        }
        if output == Output::Verbose {
            println!("epoch {:3}  loss {:.4}", epoch + 1, sum / images.len() as f64);
        }
    }
    Ok(model)
}

/// How well a model does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Score {
    /// The mean of `-ln p(digit)`.
    pub loss: f64,
    /// The part of the images for which the likeliest digit is the right one.
    pub accuracy: f64,
}

/// Measures a model on images of its device.
pub(crate) fn evaluate(model: &Classifier, images: &Images) -> Result<Score> {
    let logits = model.forward(images.pixels.clone());
    let right = logits.clone().argmax(1).squeeze_dim::<1>(1).equal(images.digits.clone()).int().sum();
    let loss = CrossEntropyLossConfig::new().init(&images.pixels.device()).forward(logits, images.digits.clone());
    Ok(Score {
        loss: f64::from(loss.try_into_scalar::<f32>()?),
        accuracy: right.try_into_scalar::<i64>()? as f64 / images.len() as f64,
    })
}
