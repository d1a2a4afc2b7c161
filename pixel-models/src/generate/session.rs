//! A model that keeps what it has read.

use super::{FinishReason, Generation};
use crate::CausalModel;
use crate::error::ModelError;
use crate::llama::LlamaCache;
use crate::sampling::{Sampler, SamplingConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use pixel_nn::LayerError;
use std::iter::zip;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Tokens that a model reads in one go. What lies between its layers is as large as what it reads at a time, so that a
/// prompt of any length takes the memory of so many tokens, beside its keys and values; products of more rows are no
/// faster.
pub const PIECE: usize = 512;

/// A model with the keys and values of the text that it has read last.
///
/// A prompt that begins as that text does is read from where they part: a conversation, whose prompts each hold all
/// that was said before, is read once.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Device;
/// use pixel_models::generate::Session;
/// use pixel_models::{LoadOptions, sampling::SamplingConfig};
/// use std::ops::ControlFlow;
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
///
/// let model = pixel_models::load(path, &LoadOptions::default(), &Device::flex())?.into_causal()?;
/// let sampling = SamplingConfig::new().with_temperature(0.0).with_max_tokens(5);
/// let mut session = Session::new(&model);
/// let first = session.generate(&[1, 17, 4], &sampling, |_| ControlFlow::Continue(()))?;
/// let longer = [&[1, 17, 4], first.tokens.as_slice(), &[9]].concat();
/// let second = session.generate(&longer, &sampling, |_| ControlFlow::Continue(()))?;
/// // The last token of a text is chosen and not read.
/// assert_eq!((second.prompt_tokens, second.reused_tokens), (9, 7));
/// # }
/// # Ok::<(), pixel_models::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a CausalModel,
    device: Device,
    cache: LlamaCache,
    /// The tokens in the cache.
    held: Vec<u32>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Session<'a> {
    /// A model that has read nothing.
    pub fn new(model: &'a CausalModel) -> Self {
        let device = model.network.norm.gamma.val().device();
        Self { model, device, cache: model.network.cache(), held: Vec::new(), stop: None }
    }

    /// Ends a text as soon as `stop` is true, between two tokens or two pieces of a prompt; whoever sets it takes it
    /// back.
    pub fn with_stop(self, stop: &'a AtomicBool) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// The tokens whose keys and values are held.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// As [`generate`](super::generate()); what `prompt` has in common with the tokens [held](Self::held) is not read
    /// again.
    ///
    /// # Errors
    /// As [`generate`](super::generate()).
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: &SamplingConfig,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generation, ModelError> {
        let mut sampler = Sampler::new(sampling).map_err(LayerError::from)?;
        let prompt = opening(self.model, prompt)?;
        let ends = self.model.tokenizer.as_ref().map_or(&[][..], |tokenizer| tokenizer.end_ids());
        let room = self.model.max_positions - prompt.len();
        let start = Instant::now();
        let reused_tokens = self.keep(&prompt, room.min(sampling.max_tokens));
        let mut logits = self.read(&prompt[reused_tokens..])?;
        let prompt_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let (mut tokens, mut steps) = (Vec::new(), 0);
        let reason = loop {
            let Some(known) = logits else { break FinishReason::Stopped };
            // What is held is the whole text, for every token was read before its logits came.
            let token = sampler.sample_after(&known, &self.held);
            if ends.contains(&token) {
                break FinishReason::EndOfText;
            }
            tokens.push(token);
            if on_token(token).is_break() {
                break FinishReason::Stopped;
            }
            if tokens.len() == sampling.max_tokens {
                break FinishReason::MaxTokens;
            }
            if tokens.len() == room {
                break FinishReason::MaxPositions;
            }
            logits = self.read(&[token])?;
            steps += usize::from(logits.is_some());
        };
        let generation_seconds = start.elapsed().as_secs_f64();
        let prompt_tokens = prompt.len();
        Ok(Generation { tokens, reason, prompt_tokens, reused_tokens, prompt_seconds, steps, generation_seconds })
    }

    /// Forgets all but what the prompt begins with, short of its last token, whose logits are needed; returns how many
    /// tokens that is. A session that has read nothing takes room for the prompt and `more`.
    fn keep(&mut self, prompt: &[u32], more: usize) -> usize {
        if self.held.is_empty() {
            self.cache = self.model.network.cache_with_capacity(prompt.len() + more);
        }
        let same = zip(&self.held, &prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        self.held.truncate(same);
        self.cache.truncate(same);
        same
    }

    /// The logits that follow everything read, of which one is a number at least; `None` if it was told to stop before
    /// they were there.
    pub(super) fn read(&mut self, tokens: &[u32]) -> Result<Option<Vec<f32>>, ModelError> {
        let mut pieces = tokens.chunks(PIECE).peekable();
        while let Some(piece) = pieces.next() {
            if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Ok(None);
            }
            let numbers = piece.iter().map(|token| i64::from(*token)).collect::<Vec<_>>();
            let data = TensorData::new(numbers, [1, piece.len()]);
            let input = Tensor::<2, Int>::from_data(data, &self.device);
            self.held.extend(piece);
            if pieces.peek().is_some() {
                // Of all but the last the keys and values are needed, and no logits.
                self.model.network.hidden_cached(input, &mut self.cache);
                continue;
            }
            let logits = self.model.network.forward_cached(input, &mut self.cache).try_into_vec_as::<f32>();
            let logits =
                logits.map_err(|error| LayerError::Read { tensor: "logits".into(), message: error.to_string() })?;
            return self.checked(logits).map(Some);
        }
        Ok(None)
    }

    fn checked(&self, logits: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        if logits.iter().any(|logit| *logit > f32::NEG_INFINITY) {
            return Ok(logits);
        }
        let message = format!("after {} tokens, none of the logits is a number above -inf", self.held.len());
        Err(ModelError::Text { message })
    }
}

/// The prompt that the model reads: checked, with the token that begins a text if it is empty.
fn opening(model: &CausalModel, prompt: &[u32]) -> Result<Vec<u32>, ModelError> {
    let refuse = |message| Err(ModelError::Text { message });
    let prompt = match (prompt, model.tokenizer.as_ref().and_then(|tokenizer| tokenizer.bos_id())) {
        ([], Some(bos)) => vec![bos],
        ([], None) => return refuse("the prompt is empty, and no token is known that begins a text".into()),
        (prompt, _) => prompt.to_vec(),
    };
    let (length, most) = (prompt.len(), model.max_positions);
    if length >= most {
        return refuse(format!(
            "the prompt has {length} tokens, and the model's {most} positions leave no room for more"
        ));
    }
    model.check_tokens(&prompt)?;
    Ok(prompt)
}
