//! The chunks of a text that models are evaluated on.

use super::EvaluationError;
use burn::config::Config;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use pixel_core::ConfigError;

/// How a text is cut and how much of it is used.
#[derive(Config, Debug, PartialEq)]
pub struct PerplexityConfig {
    /// Tokens of a chunk, at least 3. Perplexities are comparable only at the same length.
    #[config(default = 512)]
    pub context: usize,
    /// The number of chunks used, from the beginning; `None` uses all.
    pub chunks: Option<usize>,
    /// The number of chunks that go through the model together. It changes memory and time, not the result.
    #[config(default = 1)]
    pub batch: usize,
    /// The number of tokens that the model has, so that a text with others is refused before the model reads it;
    /// `None` finds only those that have to be predicted, by the size of the logits.
    pub vocabulary: Option<usize>,
}

impl Default for PerplexityConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl PerplexityConfig {
    /// Refuses what nothing can be measured with.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for a context below 3, and for 0 chunks or a batch of 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("context", self.context, 3..)?;
        self.chunks.map_or(Ok(()), |chunks| ConfigError::range("chunks", chunks, 1..))?;
        ConfigError::range("batch", self.batch, 1..)
    }

    /// The place in a chunk of the first token whose prediction of the next one is scored.
    fn first_scored(&self) -> usize {
        self.context / 2
    }

    /// The number of predictions that are scored in a chunk: those of the tokens at `context/2 + 1..context`.
    pub fn scored_per_chunk(&self) -> usize {
        self.context - 1 - self.first_scored()
    }

    /// The number of chunks that `tokens` tokens give.
    ///
    /// # Errors
    /// [`EvaluationError::Config`] as [`validate`](Self::validate); [`EvaluationError::TooShort`] for less than one.
    pub fn count_chunks(&self, tokens: usize) -> Result<usize, EvaluationError> {
        self.validate()?;
        match tokens / self.context {
            0 => Err(EvaluationError::TooShort { needed: self.context, found: tokens }),
            whole => Ok(self.chunks.map_or(whole, |chunks| chunks.min(whole))),
        }
    }
}

/// Chunks that go through a model together.
pub(super) struct Batch {
    /// The index of the first of them.
    pub(super) first: usize,
    /// How many there are.
    pub(super) chunks: usize,
    /// What the model reads: `[chunks, context]`.
    pub(super) inputs: Tensor<2, Int>,
    /// What it should predict where it is scored: `[chunks, scored, 1]`.
    targets: Tensor<3, Int>,
    /// The largest of them.
    largest_target: u32,
    first_scored: usize,
}

/// Cuts the text, of which `bos` replaces the first token of each chunk.
pub(super) fn batches<'a>(
    config: &'a PerplexityConfig,
    tokens: &'a [u32],
    bos: Option<u32>,
    device: &'a Device,
) -> Result<impl Iterator<Item = Batch> + 'a, EvaluationError> {
    let chunks = config.count_chunks(tokens.len())?;
    let (context, first_scored) = (config.context, config.first_scored());
    let used = &tokens[..chunks * context];
    if let Some(vocabulary) = config.vocabulary {
        check_tokens(used.iter().copied().chain(bos), vocabulary)?;
    }
    let batches = used.chunks(config.batch * context).enumerate();
    Ok(batches.map(move |(index, tokens)| {
        let rows = || tokens.chunks_exact(context);
        let inputs = rows().flat_map(|row| bos.into_iter().chain(row.iter().copied().skip(bos.map_or(0, |_| 1))));
        let targets = || rows().flat_map(|row| row[first_scored + 1..].iter().copied());
        let chunks = tokens.len() / context;
        Batch {
            first: index * config.batch,
            chunks,
            largest_target: targets().max().unwrap_or_default(),
            inputs: Tensor::from_data(integers(inputs, [chunks, context]), device),
            targets: Tensor::from_data(integers(targets(), [chunks, config.scored_per_chunk(), 1]), device),
            first_scored,
        }
    }))
}

fn check_tokens(tokens: impl IntoIterator<Item = u32>, vocabulary: usize) -> Result<(), EvaluationError> {
    match tokens.into_iter().find(|token| *token as usize >= vocabulary) {
        Some(token) => Err(EvaluationError::UnknownToken { token, vocabulary }),
        None => Ok(()),
    }
}

fn integers<const D: usize>(tokens: impl Iterator<Item = u32>, shape: [usize; D]) -> TensorData {
    TensorData::new(tokens.map(i64::from).collect::<Vec<_>>(), shape)
}

impl Batch {
    /// The log likelihoods of all tokens at the scored places, `[chunks, scored, vocab]` in F32, from logits
    /// `[chunks, context, vocab]`.
    ///
    /// # Errors
    /// [`EvaluationError::UnknownToken`] for a token to predict that has no logit.
    ///
    /// # Panics
    /// If the logits are of another shape.
    pub(super) fn log_likelihoods(&self, logits: Tensor<3>) -> Result<Tensor<3>, EvaluationError> {
        let [chunks, context] = self.inputs.dims();
        let [.., vocab] = logits.dims();
        assert_eq!(logits.dims(), [chunks, context, vocab], "shape of the logits");
        check_tokens([self.largest_target], vocab)?;
        let scored = self.targets.dims()[1];
        Ok(log_softmax(logits.narrow(1, self.first_scored, scored).cast(DType::F32), 2))
    }

    /// The log likelihood of each token that comes: `[chunks, scored, 1]`.
    pub(super) fn of_targets(&self, log_likelihoods: Tensor<3>) -> Tensor<3> {
        log_likelihoods.gather(2, self.targets.clone())
    }

    /// The rows `N` numbers long of a tensor `[chunks, scored, N]`.
    ///
    /// # Errors
    /// [`EvaluationError::Read`]; [`EvaluationError::NotFinite`] for the first number that is not.
    pub(super) fn read<const N: usize>(&self, results: Tensor<3>) -> Result<Vec<[f64; N]>, EvaluationError> {
        let scored = self.targets.dims()[1];
        let read = results.try_into_vec_as::<f32>();
        let values = read.map_err(|error| EvaluationError::Read { message: error.to_string() })?;
        let (rows, rest) = values.as_chunks::<N>();
        assert!(rest.is_empty() && rows.len() == self.chunks * scored, "{} results", values.len());
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (chunk, place) = (self.first + index / N / scored, index / N % scored);
            let position = self.first_scored + 1 + place;
            return Err(EvaluationError::NotFinite { chunk, position, value: f64::from(values[index]) });
        }
        Ok(rows.iter().map(|row| row.map(f64::from)).collect())
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    fn numbers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
        tensor.try_into_vec_as().unwrap()
    }

    fn cut(config: &PerplexityConfig, tokens: &[u32], bos: Option<u32>) -> Vec<(usize, Vec<i64>, Vec<i64>)> {
        let device = Device::flex();
        let batches = batches(config, tokens, bos, &device).unwrap();
        batches.map(|batch| (batch.first, numbers(batch.inputs), numbers(batch.targets))).collect()
    }

    const TOKENS: [u32; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18];

    #[test]
    fn the_second_half_of_whole_chunks_is_scored() {
        let config = PerplexityConfig::new().with_context(6);
        assert_eq!(config.scored_per_chunk(), 2);
        assert_eq!(PerplexityConfig::new().scored_per_chunk(), 255);
        assert_eq!(
            cut(&config, &TOKENS, None),
            [
                (0, vec![0, 1, 2, 3, 4, 5], vec![4, 5]),
                (1, vec![6, 7, 8, 9, 10, 11], vec![10, 11]),
                (2, vec![12, 13, 14, 15, 16, 17], vec![16, 17]),
            ]
        );
    }

    #[test]
    fn a_first_token_replaces_that_of_each_chunk() {
        let config = PerplexityConfig::new().with_context(6).with_batch(2);
        assert_eq!(
            cut(&config, &TOKENS, Some(99)),
            [
                (0, vec![99, 1, 2, 3, 4, 5, 99, 7, 8, 9, 10, 11], vec![4, 5, 10, 11]),
                (2, vec![99, 13, 14, 15, 16, 17], vec![16, 17]),
            ]
        );
    }

    #[test]
    fn chunks_are_limited() {
        let config = PerplexityConfig::new().with_context(5).with_batch(8);
        assert_eq!(config.count_chunks(19), Ok(3));
        assert_eq!(config.clone().with_chunks(Some(2)).count_chunks(19), Ok(2));
        assert_eq!(config.clone().with_chunks(Some(9)).count_chunks(19), Ok(3));
        let limited = cut(&config.with_chunks(Some(1)), &TOKENS, None);
        assert_eq!(limited, [(0, vec![0, 1, 2, 3, 4], vec![3, 4])]);
    }

    #[test]
    fn a_text_shorter_than_a_chunk_is_refused() {
        let error = PerplexityConfig::new().count_chunks(511).unwrap_err();
        assert_eq!(error, EvaluationError::TooShort { needed: 512, found: 511 });
        assert_eq!(error.to_string(), "a chunk needs 512 tokens, the text has 511");
    }

    #[test]
    fn a_configuration_outside_its_ranges_is_refused() {
        let refused = |config: PerplexityConfig| config.validate().unwrap_err().to_string();
        assert_eq!(refused(PerplexityConfig::new().with_context(2)), "context = 2 is outside 3 and above");
        assert_eq!(refused(PerplexityConfig::new().with_chunks(Some(0))), "chunks = 0 is outside 1 and above");
        assert_eq!(refused(PerplexityConfig::new().with_batch(0)), "batch = 0 is outside 1 and above");
        assert_eq!(PerplexityConfig::new().with_context(3).count_chunks(3), Ok(1));
    }
}
