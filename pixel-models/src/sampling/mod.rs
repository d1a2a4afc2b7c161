//! The choice of the next token.

use burn::config::Config;
use pixel_core::{ConfigError, NumberRange};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// How tokens are chosen.
///
/// # Example
/// ```
/// use pixel_models::sampling::{Sampler, SamplingConfig};
///
/// let greedy = SamplingConfig::new().with_temperature(0.0);
/// assert_eq!(Sampler::new(&greedy)?.sample(&[0.5, 2.0, -1.0]), 1);
/// # Ok::<(), pixel_core::ConfigError>(())
/// ```
#[derive(Config, Debug, PartialEq)]
pub struct SamplingConfig {
    /// What logits are divided by before the softmax: less than 1 sharpens it, 0 takes the largest logit.
    #[config(default = 0.7)]
    pub temperature: f64,
    /// The number of most probable tokens that are left to choose from; `None` leaves all.
    pub top_k: Option<usize>,
    /// The probability, in (0, 1], that the tokens left to choose from have at least: the fewest that reach it, the
    /// most probable first, among those that `top_k` leaves. `None` leaves all.
    ///
    /// Source: Holtzman et al., The Curious Case of Neural Text Degeneration, <https://arxiv.org/abs/1904.09751>,
    /// section 3.1.
    pub top_p: Option<f64>,
    /// The least probability that a token left to choose from has, as a part of the largest, in [0, 1]; `None` leaves
    /// all.
    ///
    /// Source: Nguyen et al., Turning Up the Heat, <https://arxiv.org/abs/2407.01082>.
    pub min_p: Option<f64>,
    /// What the logits of tokens that the text has already are divided by if they are positive, and multiplied by if
    /// they are negative, before anything else, whatever the temperature: above 1 repetitions become rarer, 1 changes
    /// nothing.
    ///
    /// Source: Keskar et al., CTRL, <https://arxiv.org/abs/1909.05858>, section 4.1; as in Hugging Face's code and
    /// llama.cpp, for either sign.
    #[config(default = 1.0)]
    pub repetition_penalty: f64,
    /// The number of last tokens of prompt and text that count as repeated; `None` counts all.
    pub repetition_window: Option<usize>,
    /// The seed of the random numbers.
    #[config(default = 0)]
    pub seed: u64,
    /// The number of tokens after which a text ends, if the model has not ended it.
    #[config(default = 256)]
    pub max_tokens: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl SamplingConfig {
    /// Refuses what no text can be made with.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for a temperature that is negative or no number, a `top_p` outside the numbers above 0,
    /// at most 1, a `min_p` outside 0 to 1, a `repetition_penalty` that is not above 0, and a `top_k`,
    /// `repetition_window` or `max_tokens` of 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        finite("temperature", self.temperature, NumberRange::from(0.0..))?;
        finite("repetition_penalty", self.repetition_penalty, NumberRange::above(0.0, f64::INFINITY))?;
        self.top_k.map_or(Ok(()), |top_k| ConfigError::range("top_k", top_k, 1..))?;
        self.top_p.map_or(Ok(()), |top_p| ConfigError::range("top_p", top_p, NumberRange::above(0.0, 1.0)))?;
        self.min_p.map_or(Ok(()), |min_p| ConfigError::range("min_p", min_p, 0.0..=1.0))?;
        self.repetition_window.map_or(Ok(()), |window| ConfigError::range("repetition_window", window, 1..))?;
        ConfigError::range("max_tokens", self.max_tokens, 1..)
    }
}

/// Refuses a number outside of `range`, and infinity.
fn finite(field: &'static str, value: f64, range: NumberRange) -> Result<(), ConfigError> {
    ConfigError::range(field, value, range)?;
    if value.is_infinite() { Err(ConfigError::Range { field, value, range }) } else { Ok(()) }
}

/// Chooses tokens, one after the other.
///
/// The choices follow from the seed and the logits alone, bit for bit on every platform: random numbers are ChaCha's,
/// and the exponential is computed here, for the last bit of the standard library's depends on the platform.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
}

/// A token and its logit.
type Candidate = (u32, f32);

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// As [`SamplingConfig::validate`].
    pub fn new(config: &SamplingConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { config: config.clone(), rng: ChaCha8Rng::seed_from_u64(config.seed) })
    }

    /// Chooses one of the tokens `0..logits.len()`. A logit that is NaN or −∞ is never chosen; of equal logits, the
    /// first is the larger.
    ///
    /// # Panics
    /// If that leaves no token.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        self.sample_after(logits, &[])
    }

    /// [`sample`](Self::sample) for the text `text`, prompt included, whose tokens the repetition penalty is for.
    ///
    /// # Panics
    /// As [`sample`](Self::sample).
    pub fn sample_after(&mut self, logits: &[f32], text: &[u32]) -> u32 {
        let mut candidates = candidates(logits);
        self.penalize(&mut candidates, text);
        assert!(!candidates.is_empty(), "none of {} logits is a number above -inf", logits.len());
        if self.config.temperature == 0.0 {
            return candidates.into_iter().min_by(most_probable_first).expect("there is a candidate").0;
        }
        if let Some(top_k) = self.config.top_k.filter(|top_k| *top_k < candidates.len()) {
            candidates.select_nth_unstable_by(top_k, most_probable_first);
            candidates.truncate(top_k);
        }
        // From here on the order decides which token a random number chooses.
        match self.config.top_p.or(self.config.min_p) {
            Some(_) => candidates.sort_unstable_by(most_probable_first),
            None => candidates.sort_unstable_by_key(|(token, _)| *token),
        }
        let weights = softmax_weights(&candidates, self.config.temperature);
        let kept = self.config.top_p.map_or(weights.len(), |top_p| nucleus(&weights, top_p));
        // The largest weight is 1, and they descend.
        let probable = |min_p| weights[..kept].partition_point(|weight| *weight >= min_p);
        let kept = self.config.min_p.map_or(kept, probable);
        candidates[self.draw(&weights[..kept])].0
    }

    /// Makes the tokens that the text has already less probable.
    fn penalize(&self, candidates: &mut [Candidate], text: &[u32]) {
        let SamplingConfig { repetition_penalty: penalty, repetition_window, .. } = self.config;
        if penalty == 1.0 {
            return;
        }
        let first = text.len() - repetition_window.map_or(text.len(), |window| window.min(text.len()));
        let repeated = text[first..].iter().collect::<BTreeSet<_>>();
        for (_, logit) in candidates.iter_mut().filter(|(token, _)| repeated.contains(token)) {
            let wide = f64::from(*logit);
            *logit = if wide > 0.0 { wide / penalty } else { wide * penalty } as f32;
        }
    }

    /// An index, with a probability in proportion to its weight.
    fn draw(&mut self, weights: &[f64]) -> usize {
        let uniform = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let target = uniform * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let found = weights.iter().position(|weight| {
            sum += weight;
            sum > target
        });
        // The largest weight is 1 and `uniform` below 1, so only rounding can leave the target unreached.
        found.unwrap_or(weights.len() - 1)
    }
}

fn candidates(logits: &[f32]) -> Vec<Candidate> {
    (0u32..).zip(logits.iter().copied()).filter(|(_, logit)| *logit > f32::NEG_INFINITY).collect()
}

fn most_probable_first(a: &Candidate, b: &Candidate) -> Ordering {
    // 0 and −0 are equal logits, which `total_cmp` tells apart.
    b.1.partial_cmp(&a.1).expect("candidates are no NaN").then(a.0.cmp(&b.0))
}

/// `exp((l − max l) / temperature)`.
fn softmax_weights(candidates: &[Candidate], temperature: f64) -> Vec<f64> {
    let largest = candidates.iter().fold(f32::NEG_INFINITY, |largest, (_, logit)| largest.max(*logit));
    let weight = |logit: f32| match logit == largest {
        true => 1.0, // ∞ − ∞ would be no number
        false => exp_of_negative((f64::from(logit) - f64::from(largest)) / temperature),
    };
    candidates.iter().map(|(_, logit)| weight(*logit)).collect()
}

/// The least number of leading weights whose sum is at least `top_p` of all.
fn nucleus(weights: &[f64], top_p: f64) -> usize {
    let needed = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= needed
    });
    reached.map_or(weights.len(), |last| last + 1)
}

/// `e^x` for `x ≤ 0`, from additions and multiplications, which IEEE 754 rounds the same everywhere.
///
/// # Accuracy
/// `x = k·ln 2 + r` with `|r| ≤ 0.35`, where 14 terms of the series leave 5e-18; rounding leaves about `1e-16·(1 +
/// |x|)` of the value. Below the smallest normal number it is 0.
fn exp_of_negative(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    let exponent = (x / std::f64::consts::LN_2).round();
    let rest = x - exponent * std::f64::consts::LN_2;
    let series = (1..=14).rev().fold(1.0, |sum, term| 1.0 + sum * rest / f64::from(term));
    let power_of_two = f64::from_bits(((1023.0 + exponent) as u64) << 52);
    series * power_of_two
}

#[cfg(test)]
mod tests;
