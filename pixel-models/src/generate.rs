//! A text, token by token.
//!
//! ```text
//!  prompt ──▶ forward_cached ──▶ logits ──▶ Sampler ──▶ token ──▶ on_token
//!                  ▲                                      │
//!                  └────────────── one token ─────────────┘
//! ```

use crate::error::ModelError;
use crate::llama::LlamaCache;
use crate::sampling::{Sampler, SamplingConfig};
use crate::{CausalModel, Llama};
use burn::tensor::{Device, Int, Tensor, TensorData};
use pixel_nn::LayerError;
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Instant;

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// The model chose a token that ends a text.
    EndOfText,
    /// There are as many tokens as [`SamplingConfig::max_tokens`] allows.
    MaxTokens,
    /// Prompt and tokens are together [`CausalModel::max_positions`] long.
    MaxPositions,
    /// The receiver of the tokens wants no more.
    Stopped,
}

/// A text that [`generate`] has made.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generation {
    /// The tokens after the prompt, without the one that ends a text.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Seconds from the prompt to the logits that follow it.
    pub prompt_seconds: f64,
    /// Tokens that the model has read one by one. The first logits come from the prompt and the last token is not
    /// always read, so this is not the length of `tokens`.
    pub steps: usize,
    /// Seconds from the first choice of a token to the end, `on_token` among them.
    pub generation_seconds: f64,
}

impl Generation {
    /// Tokens of the prompt read in a second.
    pub fn prompt_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prompt_seconds
    }

    /// Tokens read one by one in a second; `None` if the text ended before there was one.
    pub fn generation_rate(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.steps as f64 / self.generation_seconds)
    }
}

/// Goes on with a text: the model reads `prompt` in one go, then each token that it has chosen. `on_token` gets every
/// token as it comes, and ends the text with [`ControlFlow::Break`].
///
/// A text ends with any of the tokenizer's [`end_ids`](crate::tokenizer::TextTokenizer::end_ids), which is not handed
/// out; without a tokenizer only with one of the limits. An empty prompt stands for the token that begins a text.
///
/// The attention of the prompt takes memory in proportion to the square of its length.
///
/// # Errors
/// [`ModelError::Layer`] for a configuration outside its ranges, and for logits that cannot be read from the device;
/// [`ModelError::Text`] for an empty prompt where the tokenizer knows no token to begin with, a prompt that leaves no
/// position free, and logits of which none is a number; [`ModelError::UnknownToken`] for a token that the model does
/// not have.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Device;
/// use pixel_models::generate::{FinishReason, generate};
/// use pixel_models::{LoadOptions, sampling::SamplingConfig};
/// use std::ops::ControlFlow;
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
///
/// let model = pixel_models::load(path, &LoadOptions::default(), &Device::flex())?.into_causal()?;
/// let sampling = SamplingConfig::new().with_temperature(0.0).with_max_tokens(5);
/// let mut seen = Vec::new();
/// let text = generate(&model, &[1, 17, 4], &sampling, |token| {
///     seen.push(token);
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!((text.tokens, text.reason), (seen, FinishReason::MaxTokens));
/// # }
/// # Ok::<(), pixel_models::ModelError>(())
/// ```
pub fn generate(
    model: &CausalModel,
    prompt: &[u32],
    sampling: &SamplingConfig,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, ModelError> {
    let mut sampler = Sampler::new(sampling).map_err(LayerError::from)?;
    let prompt = opening(model, prompt)?;
    let ends = model.tokenizer.as_ref().map_or(&[][..], |tokenizer| tokenizer.end_ids());
    let room = model.max_positions - prompt.len();
    let mut reader = Reader::new(model, prompt.len() + room.min(sampling.max_tokens));

    let start = Instant::now();
    let mut logits = reader.read(&prompt)?;
    let prompt_seconds = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let (mut tokens, mut steps) = (Vec::new(), 0);
    let reason = loop {
        let token = sampler.sample(&logits);
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
        logits = reader.read(&[token])?;
        steps += 1;
    };
    let generation_seconds = start.elapsed().as_secs_f64();
    Ok(Generation { tokens, reason, prompt_tokens: prompt.len(), prompt_seconds, steps, generation_seconds })
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

/// A model and what it has read.
struct Reader<'a> {
    network: &'a Llama,
    cache: LlamaCache,
    device: Device,
}

impl<'a> Reader<'a> {
    /// A reader of up to `capacity` tokens.
    fn new(model: &'a CausalModel, capacity: usize) -> Self {
        let network = &model.network;
        let (cache, device) = (network.cache_with_capacity(capacity), network.norm.gamma.val().device());
        Self { network, cache, device }
    }

    /// The logits that follow everything read, of which one is a number at least.
    fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
        let numbers = tokens.iter().map(|token| i64::from(*token)).collect::<Vec<_>>();
        let data = TensorData::new(numbers, [1, tokens.len()]);
        let tokens = Tensor::<2, Int>::from_data(data, &self.device);
        let logits = self.network.forward_cached(tokens, &mut self.cache).try_into_vec_as::<f32>();
        let logits =
            logits.map_err(|error| LayerError::Read { tensor: "logits".into(), message: error.to_string() })?;
        if !logits.iter().any(|logit| *logit > f32::NEG_INFINITY) {
            let message = format!("after {} tokens, none of the logits is a number above -inf", self.cache.len());
            return Err(ModelError::Text { message });
        }
        Ok(logits)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::tokenizer::TextTokenizer;
    use crate::{LoadOptions, load};
    use burn::tensor::s;
    use serde_json::{Map, Value, json};

    const PROMPT: [u32; 4] = [1, 17, 4, 40];

    /// Two layers, 48 tokens, 64 positions, no tokenizer.
    fn tiny() -> CausalModel {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
        load(path, &LoadOptions::default(), &Device::flex()).unwrap().into_causal().unwrap()
    }

    /// A tokenizer of the words `t0` to `t47`, of which the named ones begin and end a text.
    fn words(special: Value) -> TextTokenizer {
        tokenizer(&[("tokenizer_config.json", special)])
    }

    /// That tokenizer with files next to it.
    fn tokenizer(files: &[(&str, Value)]) -> TextTokenizer {
        let vocab = (0..48).map(|id| (format!("t{id}"), json!(id))).collect::<Map<_, _>>();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (name, contents) in files {
            std::fs::write(dir.path().join(name), contents.to_string()).unwrap();
        }
        TextTokenizer::from_file(dir.path().join("tokenizer.json")).unwrap()
    }

    fn greedy(max_tokens: usize) -> SamplingConfig {
        SamplingConfig::new().with_temperature(0.0).with_max_tokens(max_tokens)
    }

    /// The logits lie far apart: at lower temperatures the text is one token again and again.
    fn hot(max_tokens: usize) -> SamplingConfig {
        SamplingConfig::new().with_temperature(30.0).with_max_tokens(max_tokens)
    }

    fn run(model: &CausalModel, prompt: &[u32], sampling: &SamplingConfig) -> Generation {
        generate(model, prompt, sampling, |_| ControlFlow::Continue(())).unwrap()
    }

    fn message(model: &CausalModel, prompt: &[u32], sampling: &SamplingConfig) -> String {
        generate(model, prompt, sampling, |_| panic!("a token")).unwrap_err().to_string()
    }

    /// The tokens chosen, each from the whole text before it.
    fn without_cache(model: &CausalModel, prompt: &[u32], sampling: &SamplingConfig) -> Vec<u32> {
        let (mut text, mut sampler) = (prompt.to_vec(), Sampler::new(sampling).unwrap());
        for _ in 0..sampling.max_tokens {
            let numbers = text.iter().map(|token| i64::from(*token)).collect::<Vec<_>>();
            let tokens = Tensor::<2, Int>::from_data(TensorData::new(numbers, [1, text.len()]), &Device::flex());
            let logits = model.network.forward(tokens).slice(s![.., text.len() - 1.., ..]);
            let logits: Vec<f32> = logits.try_into_vec_as().unwrap();
            text.push(sampler.sample(&logits));
        }
        text.split_off(prompt.len())
    }

    #[test]
    fn the_tokens_are_those_of_the_whole_text_read_anew() {
        let model = tiny();
        for sampling in [greedy(20), hot(20)] {
            assert_eq!(run(&model, &PROMPT, &sampling).tokens, without_cache(&model, &PROMPT, &sampling));
        }
        let text = run(&model, &PROMPT, &hot(20));
        assert_eq!((text.reason, text.prompt_tokens, text.steps), (FinishReason::MaxTokens, 4, 19));
        assert!(text.prompt_rate() > 0.0 && text.generation_rate().unwrap() > 0.0);
        assert!(run(&model, &PROMPT, &greedy(1)).generation_rate().is_none());
    }

    #[test]
    fn a_seed_fixes_the_text() {
        let model = tiny();
        let tokens = |seed| run(&model, &PROMPT, &hot(30).with_seed(seed)).tokens;
        assert_eq!(tokens(3), tokens(3));
        assert_ne!(tokens(3), tokens(4));
    }

    #[test]
    fn the_positions_of_the_model_are_not_exceeded() {
        let model = tiny();
        let text = run(&model, &PROMPT, &greedy(1000));
        assert_eq!((text.tokens.len(), text.reason), (60, FinishReason::MaxPositions));
        let text = run(&model, &[5; 63], &greedy(1000));
        assert_eq!((text.tokens.len(), text.reason, text.steps), (1, FinishReason::MaxPositions, 0));
        let refused = message(&model, &[5; 64], &greedy(1));
        assert_eq!(refused, "the prompt has 64 tokens, and the model's 64 positions leave no room for more");
    }

    #[test]
    fn the_token_that_ends_a_text_is_not_handed_out() {
        let mut model = tiny();
        let free = run(&model, &PROMPT, &greedy(20)).tokens;
        let eos = free[7];
        let first = free.iter().position(|token| *token == eos).unwrap();
        model.tokenizer = Some(words(json!({ "eos_token": format!("t{eos}") })));
        let text = run(&model, &PROMPT, &greedy(20));
        assert_eq!((text.tokens.as_slice(), text.reason), (&free[..first], FinishReason::EndOfText));
        assert_eq!(text.steps, first);
    }

    #[test]
    fn every_token_that_ends_a_text_ends_it() {
        let mut model = tiny();
        let free = run(&model, &PROMPT, &hot(20)).tokens;
        for end in [free[3], free[9]] {
            // Two that the text does not have come before it in the list.
            let absent = (0..48).filter(|token| !free.contains(token)).take(2).chain([end]).collect::<Vec<u32>>();
            model.tokenizer = Some(tokenizer(&[("generation_config.json", json!({ "eos_token_id": absent }))]));
            let text = run(&model, &PROMPT, &hot(20));
            let first = free.iter().position(|token| *token == end).unwrap();
            assert_eq!((text.tokens.as_slice(), text.reason), (&free[..first], FinishReason::EndOfText));
        }
    }

    #[test]
    fn the_receiver_can_stop() {
        let mut left = 3;
        let text = generate(&tiny(), &PROMPT, &greedy(20), |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let text = text.unwrap();
        assert_eq!((text.tokens.len(), text.reason, text.steps), (3, FinishReason::Stopped, 2));
    }

    #[test]
    fn an_empty_prompt_is_the_token_that_begins_a_text() {
        let mut model = tiny();
        assert_eq!(message(&model, &[], &greedy(5)), "the prompt is empty, and no token is known that begins a text");
        model.tokenizer = Some(words(json!({ "bos_token": "t1" })));
        let empty = run(&model, &[], &greedy(5));
        assert_eq!(empty.tokens, run(&model, &[1], &greedy(5)).tokens);
        assert_eq!(empty.prompt_tokens, 1);
    }

    #[test]
    fn what_cannot_be_generated_from_is_refused() {
        let mut model = tiny();
        let refused = message(&model, &[1, 48], &greedy(5));
        assert_eq!(refused, "the token 48 has no row in the model's embedding of 48 rows");
        assert_eq!(message(&model, &PROMPT, &greedy(0)), "max_tokens = 0 is outside 1 and above");
        model.network.norm.gamma = model.network.norm.gamma.map(|gamma| gamma * f32::NAN);
        let refused = message(&model, &PROMPT, &greedy(5));
        assert_eq!(refused, "after 4 tokens, none of the logits is a number above -inf");
    }
}
