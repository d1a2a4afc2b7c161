//! Calibration of whole models on texts.
//!
//! A decoder reads chunks of one length, as it does when its perplexity is taken; an encoder reads texts, those of one
//! length together. Under [`Weighting::Gradient`] each token counts by how much the model's output depends on what a
//! layer makes of it: of a decoder, the log likelihood of tokens drawn from its own predictions, whose gradients give
//! the Fisher information and so the Kullback–Leibler divergence that an error causes; of an encoder, a random
//! projection of its vectors, whose gradients give the squared distance by which they move.

use crate::evaluate::EvaluationError;
use crate::{CausalModel, EncoderModel, ModelError};
use burn::module::{Module, ParamId};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use pixel_core::archive::calibration::{Description, Weighting};
use pixel_nn::Projection;
use pixel_nn::calibration::{CalibrationOptions, CalibrationProgress, calibrate};
use std::collections::BTreeMap;
use std::path::Path;

/// The tokens that calibrate a model.
#[derive(Debug, Clone)]
pub struct CalibrationTokens {
    /// Texts or chunks of texts.
    pub texts: Vec<Vec<u32>>,
    /// Tokens run through the model at a time, at least one text.
    pub batch_tokens: usize,
    /// The seed of what is drawn under [`Weighting::Gradient`].
    pub seed: u64,
}

impl CalibrationTokens {
    /// Chunks of `context` tokens out of `text`, evenly spread over it, about `tokens` of them in all; `bos`, if the
    /// model's tokenizer begins texts with one, takes the place of each chunk's first token.
    ///
    /// # Errors
    /// [`EvaluationError::TooShort`] if there is not one whole chunk.
    pub fn chunks(text: &[u32], context: usize, tokens: usize, bos: Option<u32>) -> Result<Self, EvaluationError> {
        let all: Vec<&[u32]> = text.chunks_exact(context.max(1)).collect();
        if all.is_empty() {
            return Err(EvaluationError::TooShort { needed: context, found: text.len() });
        }
        let count = tokens.div_ceil(context.max(1)).clamp(1, all.len());
        let chunk = |i: usize| {
            let mut chunk = all[i * all.len() / count].to_vec();
            bos.into_iter().for_each(|bos| chunk[0] = bos);
            chunk
        };
        Ok(Self::new((0..count).map(chunk).collect()))
    }

    /// Whole texts, evenly spread over `texts`, until they have about `tokens` tokens.
    pub fn texts(texts: &[Vec<u32>], tokens: usize) -> Self {
        let total: usize = texts.iter().map(Vec::len).sum();
        let count = texts.len().saturating_mul(tokens).div_ceil(total.max(1)).min(texts.len());
        Self::new((0..count).map(|i| texts[i * texts.len() / count].clone()).collect())
    }

    fn new(texts: Vec<Vec<u32>>) -> Self {
        Self { texts, batch_tokens: 2048, seed: 0 }
    }

    /// The tokens of all texts.
    pub fn num_tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    /// Batches of texts of one length, `[batch, length]`, the longest first, so that a lack of memory shows at once;
    /// each with the seed of what is drawn for it, so that every pass draws the same.
    fn batches(&self, device: &Device) -> Vec<(u64, Tensor<2, Int>)> {
        let mut by_length: BTreeMap<usize, Vec<&Vec<u32>>> = BTreeMap::new();
        self.texts
            .iter()
            .filter(|text| !text.is_empty())
            .for_each(|text| by_length.entry(text.len()).or_default().push(text));
        let batches = by_length.into_iter().rev().flat_map(|(length, texts)| {
            let size = (self.batch_tokens / length).max(1);
            let batches: Vec<Vec<i64>> = texts
                .chunks(size)
                .map(|texts| texts.iter().flat_map(|text| text.iter().map(|&t| i64::from(t))).collect())
                .collect();
            batches.into_iter().map(move |batch| (length, batch))
        });
        batches
            .enumerate()
            .map(|(index, (length, tokens))| {
                let count = tokens.len() / length;
                let seed = self.seed.wrapping_add(index as u64);
                (seed, Tensor::from_data(TensorData::new(tokens, [count, length]), device))
            })
            .collect()
    }
}

/// The names of the linear layers among all weights.
fn linear_names<'a>(
    projections: impl Iterator<Item = &'a Projection>,
    names: &BTreeMap<ParamId, String>,
) -> BTreeMap<ParamId, String> {
    projections.map(Projection::weight_id).filter_map(|id| Some((id, names.get(&id)?.clone()))).collect()
}

/// A number that stands for a vector of them in the graph.
fn scalar<const D: usize>(tensor: Tensor<D>) -> Option<Tensor<1>> {
    Some(tensor.sum().reshape([1]))
}

/// Collects what the linear layers of a decoder read, and writes it to `output`.
///
/// # Errors
/// [`ModelError::UnknownToken`] for a token that the model does not have, [`ModelError::Calibration`].
pub fn calibrate_causal(
    model: &CausalModel,
    tokens: &CalibrationTokens,
    options: &CalibrationOptions,
    output: impl AsRef<Path>,
    progress: &mut dyn FnMut(CalibrationProgress),
) -> Result<Description, ModelError> {
    model.check_tokens(tokens.texts.iter().flatten())?;
    let device = model.network.norm.gamma.val().device();
    let names = linear_names(model.network.projections(), &model.weight_names);
    let batches = tokens.batches(&device);
    let description = match options.weighting {
        Weighting::Uniform => {
            // The head's inputs are seen as well, if it is a layer of its own.
            let forward = |(_, batch): &(u64, Tensor<2, Int>)| {
                let states = model.network.hidden(batch.clone());
                if model.network.lm_head.is_some() {
                    model.network.head(states);
                }
                None
            };
            calibrate(&names, &batches, forward, options, output, progress)
        }
        Weighting::Gradient => {
            let network = model.network.clone().train().no_grad();
            let forward = |(seed, batch): &(u64, Tensor<2, Int>)| {
                device.seed(*seed);
                let log_likelihoods = log_softmax(network.forward(batch.clone()).cast(DType::F32), 2);
                let drawn = draw(&log_likelihoods);
                scalar(log_likelihoods.gather(2, drawn))
            };
            calibrate(&names, &batches, forward, options, output, progress)
        }
    };
    Ok(description?)
}

/// Collects what the linear layers of an encoder read, and writes it to `output`.
///
/// # Errors
/// [`ModelError::UnknownToken`] for a token that the model does not have, [`ModelError::Calibration`].
pub fn calibrate_encoder(
    model: &EncoderModel,
    tokens: &CalibrationTokens,
    options: &CalibrationOptions,
    output: impl AsRef<Path>,
    progress: &mut dyn FnMut(CalibrationProgress),
) -> Result<Description, ModelError> {
    model.check_tokens(tokens.texts.iter().flatten())?;
    let device = model.network.norm.gamma.val().device();
    let names = linear_names(model.network.projections(), &model.weight_names);
    let batches = tokens.batches(&device);
    let description = match options.weighting {
        Weighting::Uniform => {
            let forward = |(_, batch): &(u64, Tensor<2, Int>)| {
                model.network.forward(batch.clone(), None);
                None
            };
            calibrate(&names, &batches, forward, options, output, progress)
        }
        Weighting::Gradient => {
            let network = model.network.clone().train().no_grad();
            let forward = |(seed, batch): &(u64, Tensor<2, Int>)| {
                device.seed(*seed);
                let vectors = network.embed(batch.clone(), None, model.pooling);
                let normal = Distribution::Normal(0.0, 1.0);
                let directions = Tensor::<2>::random(vectors.dims(), normal, (&device, vectors.dtype()));
                scalar(vectors * directions)
            };
            calibrate(&names, &batches, forward, options, output, progress)
        }
    };
    Ok(description?)
}

/// Draws one token a place from log likelihoods `[batch, length, vocabulary]`: `[batch, length, 1]`.
fn draw(log_likelihoods: &Tensor<3>) -> Tensor<3, Int> {
    let plain = without_graph(log_likelihoods.clone());
    let [batch, length, vocabulary] = plain.dims();
    let options = (&plain.device(), DType::F32);
    let place = Tensor::<3>::random([batch, length, 1], Distribution::Uniform(0.0, 1.0), options);
    // The first token up to which the probabilities sum to more than the number drawn.
    let below = plain.exp().cumsum(2).lower_equal(place);
    below.int().sum_dim(2).clamp_max(vocabulary as i64 - 1)
}

#[cfg(feature = "autodiff")]
fn without_graph<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.without_autodiff()
}

#[cfg(not(feature = "autodiff"))]
fn without_graph<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor
}
