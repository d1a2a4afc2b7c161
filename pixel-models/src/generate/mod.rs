//! A text, token by token.
//!
//! ```text
//!  prompt ──▶ pieces ──▶ forward_cached ──▶ logits ──▶ Sampler ──▶ token ──▶ on_token
//!                             ▲                                      │
//!                             └────────────── one token ─────────────┘
//! ```

mod session;

pub use session::{PIECE, Session};

use crate::CausalModel;
use crate::error::ModelError;
use crate::sampling::SamplingConfig;
use serde::Serialize;
use std::ops::ControlFlow;

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
    /// The receiver of the tokens wants no more, or a [`Session`] was told to stop.
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
    /// Tokens of the prompt that the [`Session`] had read before, and did not read again.
    pub reused_tokens: usize,
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
        (self.prompt_tokens - self.reused_tokens) as f64 / self.prompt_seconds
    }

    /// Tokens read one by one in a second; `None` if the text ended before there was one.
    pub fn generation_rate(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.steps as f64 / self.generation_seconds)
    }
}

/// Goes on with a text: the model reads `prompt`, in pieces of [`PIECE`] tokens, then each token that it has chosen.
/// `on_token` gets every token as it comes, and ends the text with [`ControlFlow::Break`].
///
/// A text ends with any of the tokenizer's [`end_ids`](crate::tokenizer::TextTokenizer::end_ids), which is not handed
/// out; without a tokenizer only with one of the limits. An empty prompt stands for the token that begins a text.
///
/// A [`Session`] does the same for texts that go on from each other.
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
    on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation, ModelError> {
    Session::new(model).generate(prompt, sampling, on_token)
}

#[cfg(all(test, feature = "flex"))]
mod tests;
