//! How well a language model predicts a text.

use super::chunks::batches;
use super::estimate::Mean;
use super::{Estimate, EvaluationError, PerplexityConfig};
use burn::tensor::{Device, Int, Tensor};
use serde::Serialize;

/// The perplexity of a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log likelihood of the scored tokens, in nats, with `perplexity · σ(mean)`.
    pub perplexity: Estimate,
    /// The number of scored tokens.
    pub tokens: usize,
    /// The number of chunks they are of.
    pub chunks: usize,
}

impl Perplexity {
    pub(super) fn new(negative_log_likelihood: &Mean, chunks: usize) -> Self {
        let perplexity = negative_log_likelihood.estimate().exp();
        Self { perplexity, tokens: negative_log_likelihood.count(), chunks }
    }
}

/// The perplexity of a text under a model, as llama.cpp's `perplexity` tool defines it.
///
/// The tokens of the whole text are cut into consecutive chunks of `context` tokens, an incomplete last one is dropped.
/// Each chunk goes through the model by itself, with `bos` (the token that the tokenizer puts before a text, if it puts
/// one there) in the place of its first token. What the tokens from `context/2` on predict is scored, so that every
/// prediction sees at least half a context.
///
/// `logits` maps tokens `[batch, context]` to logits `[batch, context, vocab]`. After each batch `progress` gets the
/// number of chunks done and of all, and the perplexity so far.
///
/// # Errors
/// [`EvaluationError::Config`], [`EvaluationError::TooShort`]; [`EvaluationError::UnknownToken`] for a token that the
/// model does not have; [`EvaluationError::NotFinite`] for logits whose softmax is no number;
/// [`EvaluationError::Read`].
///
/// # Panics
/// If the logits are of another shape.
///
/// # Accuracy
/// Log likelihoods are computed in F32 on the device and summed in 64 bits.
///
/// # Sources
/// llama.cpp, `tools/perplexity/perplexity.cpp`, function `perplexity`.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_models::evaluate::{PerplexityConfig, perplexity};
///
/// // A model that knows nothing of its 50 tokens.
/// let device = Device::flex();
/// let config = PerplexityConfig::new().with_context(8);
/// let model = |tokens: Tensor<2, burn::tensor::Int>| {
///     let [batch, context] = tokens.dims();
///     Tensor::<3>::zeros([batch, context, 50], &tokens.device())
/// };
/// let result = perplexity(&config, &[7; 20], None, &device, model, |_, _, _| ())?;
/// assert!((result.perplexity.value - 50.0).abs() < 1e-3);
/// assert_eq!((result.chunks, result.tokens), (2, 6));
/// # }
/// # Ok::<(), pixel_models::evaluate::EvaluationError>(())
/// ```
pub fn perplexity(
    config: &PerplexityConfig,
    tokens: &[u32],
    bos: Option<u32>,
    device: &Device,
    mut logits: impl FnMut(Tensor<2, Int>) -> Tensor<3>,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<Perplexity, EvaluationError> {
    let total = config.count_chunks(tokens.len())?;
    let mut negative_log_likelihood = Mean::default();
    for batch in batches(config, tokens, bos, device)? {
        let log_likelihoods = batch.log_likelihoods(logits(batch.inputs.clone()))?;
        for [log_likelihood] in batch.read(batch.of_targets(log_likelihoods))? {
            negative_log_likelihood.add(-log_likelihood);
        }
        progress(batch.first + batch.chunks, total, negative_log_likelihood.estimate().value.exp());
    }
    Ok(Perplexity::new(&negative_log_likelihood, total))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use approx::{abs_diff_eq, assert_abs_diff_eq};
    use burn::tensor::TensorData;

    fn run(
        config: &PerplexityConfig,
        tokens: &[u32],
        model: impl FnMut(Tensor<2, Int>) -> Tensor<3>,
    ) -> Result<Perplexity, EvaluationError> {
        perplexity(config, tokens, None, &Device::flex(), model, |_, _, _| ())
    }

    /// Logits of equal value: nothing is known.
    fn uniform(vocab: usize, logit: f32) -> impl FnMut(Tensor<2, Int>) -> Tensor<3> {
        move |tokens| {
            let [batch, context] = tokens.dims();
            Tensor::full([batch, context, vocab], logit, &tokens.device())
        }
    }

    /// Two tokens: token 1 has the odds of the place, from 0 in each chunk, the same in all.
    fn odds(odds: Vec<f32>) -> impl FnMut(Tensor<2, Int>) -> Tensor<3> {
        move |tokens| {
            let [batch, context] = tokens.dims();
            let row = odds.iter().flat_map(|odds| [0.0, odds.ln()]).collect::<Vec<_>>();
            let logits = Tensor::from_data(TensorData::new(row, [1, context, 2]), &tokens.device());
            logits.repeat_dim(0, batch)
        }
    }

    #[test]
    fn uniform_logits_have_the_perplexity_of_their_number() {
        for (vocab, logit) in [(48, 0.0), (49_152, 1000.0), (49_152, -1000.0)] {
            let config = PerplexityConfig::new().with_context(8).with_batch(2);
            let result = run(&config, &[3; 40], uniform(vocab, logit)).unwrap();
            // ln is within an ulp of F32, 10.8 · 6e-8 for the larger vocabulary.
            let found = result.perplexity.value / vocab as f64;
            assert!(abs_diff_eq!(found, 1.0, epsilon = 2e-6), "{found} of {vocab}");
            assert_eq!(result.perplexity.error, 0.0);
            assert_eq!((result.chunks, result.tokens), (5, 15));
        }
    }

    #[test]
    fn what_places_from_the_middle_on_predict_is_scored() {
        // Of a context of 4, the place 2 predicts the token 3: the odds 3 give token 1 a probability of 3/4.
        let config = PerplexityConfig::new().with_context(4);
        let model = || odds(vec![100.0, 100.0, 3.0, 100.0]);
        let result = run(&config, &[0, 0, 0, 1, 0, 0, 0, 1], model()).unwrap();
        assert_abs_diff_eq!(result.perplexity.value, 4.0 / 3.0, epsilon = 1e-6);
        // Once 3/4 and once 1/4: exp of the mean is 4/√3. Two numbers d apart have a mean with the error d/2.
        let result = run(&config, &[0, 0, 0, 1, 0, 0, 0, 0], model()).unwrap();
        let expected = 4.0 / 3.0f64.sqrt();
        assert_abs_diff_eq!(result.perplexity.value, expected, epsilon = 1e-6);
        assert_abs_diff_eq!(result.perplexity.error, expected * 3.0f64.ln() / 2.0, epsilon = 1e-6);
    }

    #[test]
    fn a_batch_changes_nothing() {
        let tokens = (0..47u32).map(|i| i * i % 7 % 2).collect::<Vec<_>>();
        let model = || odds(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let config = PerplexityConfig::new().with_context(6);
        let alone = run(&config, &tokens, model()).unwrap();
        let together = run(&config.clone().with_batch(3), &tokens, model()).unwrap();
        assert_eq!(alone, together);
        assert_eq!((alone.chunks, alone.tokens), (7, 14));
    }

    #[test]
    fn progress_counts_chunks() {
        let config = PerplexityConfig::new().with_context(4).with_batch(2).with_chunks(Some(5));
        let mut seen = Vec::new();
        let progress = |done, total, _: f64| seen.push((done, total));
        perplexity(&config, &[0; 24], None, &Device::flex(), uniform(3, 0.0), progress).unwrap();
        assert_eq!(seen, [(2, 5), (4, 5), (5, 5)]);
    }

    #[test]
    fn logits_that_are_no_numbers_are_named() {
        let config = PerplexityConfig::new().with_context(8);
        let mut calls = 0;
        let model = |tokens: Tensor<2, Int>| {
            calls += 1;
            uniform(5, if calls == 2 { f32::NAN } else { 0.0 })(tokens)
        };
        let error = run(&config, &[0; 16], model).unwrap_err();
        assert!(matches!(error, EvaluationError::NotFinite { chunk: 1, position: 5, .. }), "{error}");
    }

    #[test]
    fn a_token_that_the_model_lacks_is_refused() {
        let config = PerplexityConfig::new().with_context(4);
        // Before the model runs, if it is known how many there are; by its logits, if it ran.
        let known = config.clone().with_vocabulary(Some(5));
        let unknown = EvaluationError::UnknownToken { token: 5, vocabulary: 5 };
        let error = run(&known, &[5, 0, 0, 0], |_| panic!("the model ran")).unwrap_err();
        assert_eq!(
            (error, unknown.to_string().as_str()),
            (unknown.clone(), "the text has the token 5, the model has 5 tokens")
        );
        assert_eq!(run(&config, &[0, 0, 0, 5], uniform(5, 0.0)).unwrap_err(), unknown);
        // What belongs to no chunk is not read.
        assert!(run(&known, &[0, 0, 0, 4, 5], uniform(5, 0.0)).is_ok());
    }

    #[test]
    fn a_short_text_is_refused_before_the_model_runs() {
        let error = run(&PerplexityConfig::new(), &[0; 100], |_| panic!("the model ran")).unwrap_err();
        assert_eq!(error, EvaluationError::TooShort { needed: 512, found: 100 });
    }
}
