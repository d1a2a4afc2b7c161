//! A compressed language model compared with the dense one.

use super::chunks::batches;
use super::estimate::Mean;
use super::{Estimate, EvaluationError, Perplexity, PerplexityConfig};
use burn::tensor::{DType, Device, Int, Tensor};
use serde::Serialize;

/// A model compared with its dense reference, on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// The perplexity of the reference.
    pub dense: Perplexity,
    /// The perplexity of the model.
    pub model: Perplexity,
    /// Perplexity of the model over that of the reference. Its error is that of the mean difference of log likelihoods,
    /// token by token, and much smaller than those of the perplexities, which mostly vary together.
    pub ratio: Estimate,
    /// The mean of `KL(dense ‖ model) = Σ p·(ln p − ln q)` over the scored places, in nats.
    pub divergence: Estimate,
    /// The part of the scored places where both hold the same token for the most probable.
    pub agreement: Estimate,
}

/// Compares a model to its dense reference, on what [`perplexity`](super::perplexity()) scores.
///
/// `dense` and `model` are functions as `logits` is there; `progress` gets the model's perplexity.
///
/// # Errors
/// As [`perplexity`](super::perplexity()); a logit of −∞ makes the divergence no number and is
/// [`EvaluationError::NotFinite`] as well.
///
/// # Panics
/// If logits are of another shape than there, or the vocabularies differ.
///
/// # Accuracy
/// A divergence is summed in F32 over the vocabulary, with an error of the order of 1e-7; its mean in 64 bits.
pub fn compare(
    config: &PerplexityConfig,
    tokens: &[u32],
    bos: Option<u32>,
    device: &Device,
    mut dense: impl FnMut(Tensor<2, Int>) -> Tensor<3>,
    mut model: impl FnMut(Tensor<2, Int>) -> Tensor<3>,
    mut progress: impl FnMut(usize, usize, f64),
) -> Result<Comparison, EvaluationError> {
    let total = config.count_chunks(tokens.len())?;
    let [mut of_dense, mut of_model, mut difference, mut divergence, mut agreement] = <[Mean; 5]>::default();
    for batch in batches(config, tokens, bos, device)? {
        let reference = batch.log_likelihoods(dense(batch.inputs.clone()))?;
        let other = batch.log_likelihoods(model(batch.inputs.clone()))?;
        assert_eq!(reference.dims(), other.dims(), "log likelihoods of the dense model and of the other");
        let agree = reference.clone().argmax(2).equal(other.clone().argmax(2)).float().cast(DType::F32);
        let targets = [&reference, &other].map(|log_likelihoods| batch.of_targets(log_likelihoods.clone()));
        let [dense_target, model_target] = targets;
        let results = vec![dense_target, model_target, kl_divergence(reference, other), agree];
        for [dense_target, model_target, divergent, agrees] in batch.read(Tensor::cat(results, 2))? {
            of_dense.add(-dense_target);
            of_model.add(-model_target);
            difference.add(dense_target - model_target);
            divergence.add(divergent);
            agreement.add(agrees);
        }
        progress(batch.first + batch.chunks, total, of_model.estimate().value.exp());
    }
    Ok(Comparison {
        dense: Perplexity::new(&of_dense, total),
        model: Perplexity::new(&of_model, total),
        ratio: difference.estimate().exp(),
        divergence: divergence.estimate(),
        agreement: agreement.estimate(),
    })
}

/// `Σ p·(ln p − ln q)` over the last axis, from the logarithms: `[batch, scored, vocab]` to `[batch, scored, 1]`.
fn kl_divergence(reference: Tensor<3>, other: Tensor<3>) -> Tensor<3> {
    let difference = reference.clone() - other;
    (reference.exp() * difference).sum_dim(2)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use approx::abs_diff_eq;
    use burn::tensor::TensorData;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// The same probabilities everywhere.
    fn fixed<const V: usize>(probabilities: [f32; V]) -> impl FnMut(Tensor<2, Int>) -> Tensor<3> {
        move |tokens| {
            let [batch, context] = tokens.dims();
            let logits = TensorData::new(probabilities.map(f32::ln).to_vec(), [1, 1, V]);
            Tensor::<3>::from_data(logits, &tokens.device()).expand([batch, context, V])
        }
    }

    /// Random logits, of which the seed is the first token. Not by the device: its seed is that of all tests at once.
    fn random(tokens: Tensor<2, Int>) -> Tensor<3> {
        let ([batch, context], device) = (tokens.dims(), tokens.device());
        let mut rng = ChaCha8Rng::seed_from_u64(tokens.try_into_vec_as::<i64>().unwrap()[0] as u64);
        // A sum of four uniform numbers, with a standard deviation of 4.
        let mut normal = || (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>() * 12f32.sqrt();
        let logits: Vec<f32> = (0..batch * context * 301).map(|_| normal()).collect();
        Tensor::from_data(TensorData::new(logits, [batch, context, 301]), &device)
    }

    fn run(
        tokens: &[u32],
        dense: impl FnMut(Tensor<2, Int>) -> Tensor<3>,
        model: impl FnMut(Tensor<2, Int>) -> Tensor<3>,
    ) -> Comparison {
        let config = PerplexityConfig::new().with_context(4);
        compare(&config, tokens, None, &Device::flex(), dense, model, |_, _, _| ()).unwrap()
    }

    fn assert_close(found: f64, expected: f64) {
        assert!(abs_diff_eq!(found, expected, epsilon = 1e-6 * expected.max(1.0)), "{found}, not {expected}");
    }

    #[test]
    fn a_model_beside_itself_differs_in_nothing() {
        let tokens = (0..40).collect::<Vec<_>>();
        let comparison = run(&tokens, random, random);
        assert_eq!(comparison.dense, comparison.model);
        assert!(comparison.dense.perplexity.value > 10.0);
        assert_eq!(comparison.ratio, Estimate { value: 1.0, error: 0.0 });
        assert_eq!(comparison.divergence, Estimate { value: 0.0, error: 0.0 });
        assert_eq!(comparison.agreement, Estimate { value: 1.0, error: 0.0 });
    }

    #[test]
    fn two_known_models_compare_as_worked_by_hand() {
        // One prediction a chunk, of token 0 and then of token 1, which have 1/2 and 1/2 against 3/4 and 1/4.
        let comparison = run(&[9, 9, 9, 0, 9, 9, 9, 1], fixed([0.5, 0.5]), fixed([0.75, 0.25]));
        assert_close(comparison.dense.perplexity.value, 2.0);
        assert_close(comparison.model.perplexity.value, 4.0 / 3.0f64.sqrt());
        // Differences ln(2/3) and ln 2, ln 3 apart: the mean is ln(2/√3), its error ln(3)/2.
        assert_close(comparison.ratio.value, 2.0 / 3.0f64.sqrt());
        assert_close(comparison.ratio.error, 2.0 / 3.0f64.sqrt() * 3.0f64.ln() / 2.0);
        // ½·ln(½ / ¾) + ½·ln(½ / ¼) = ½·ln(4/3); the other way it would be ¾·ln(3/2) + ¼·ln(1/2) = 0.1308.
        assert_close(comparison.divergence.value, 0.5 * (4.0f64 / 3.0).ln());
        assert_close(comparison.divergence.error, 0.0);
    }

    #[test]
    fn agreement_is_about_the_most_probable_token() {
        let tokens = [0, 1, 2, 0, 1, 2, 0, 1];
        let dense = || fixed([0.2, 0.5, 0.3]);
        assert_eq!(run(&tokens, dense(), fixed([0.3, 0.4, 0.3])).agreement.value, 1.0);
        assert_eq!(run(&tokens, dense(), fixed([0.2, 0.3, 0.5])).agreement.value, 0.0);
    }

    #[test]
    fn errors_of_a_pair_are_smaller_than_those_of_each() {
        let tokens = (0..400).map(|i| i * i % 301).collect::<Vec<_>>();
        let comparison = run(&tokens, random, |tokens| random(tokens) * 1.05);
        let relative = comparison.model.perplexity.error / comparison.model.perplexity.value;
        assert!(comparison.ratio.error < 0.2 * relative, "{comparison:?}");
        assert!(comparison.divergence.value > 0.0 && comparison.agreement.value == 1.0);
        let quotient = comparison.model.perplexity.value / comparison.dense.perplexity.value;
        assert_close(comparison.ratio.value, quotient);
    }

    #[test]
    fn a_forbidden_token_is_an_error() {
        let config = PerplexityConfig::new().with_context(4);
        let models = (fixed([0.5, 0.5, 0.0]), fixed([0.5, 0.5, 0.0]));
        let result = compare(&config, &[0; 4], None, &Device::flex(), models.0, models.1, |_, _, _| ());
        assert!(matches!(result, Err(EvaluationError::NotFinite { chunk: 0, position: 3, .. })), "{result:?}");
    }

    #[test]
    fn a_comparison_is_written_as_json() {
        let comparison = run(&[0, 1, 0, 1, 0, 1, 0, 1], fixed([0.5, 0.5]), fixed([0.5, 0.5]));
        let json = serde_json::to_value(comparison).unwrap();
        assert_eq!(json["model"]["tokens"], 2);
        assert_eq!(json["ratio"]["value"], 1.0);
        assert_eq!(json["agreement"]["error"], 0.0);
    }
}
