//! The choice of the next token.

use burn::config::Config;
use pixel_core::{ConfigError, NumberRange};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Ordering;

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
    /// at most 1, and a `top_k` or `max_tokens` of 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = NumberRange::from(0.0..);
        ConfigError::range("temperature", self.temperature, range)?;
        if self.temperature.is_infinite() {
            return Err(ConfigError::Range { field: "temperature", value: self.temperature, range });
        }
        self.top_k.map_or(Ok(()), |top_k| ConfigError::range("top_k", top_k, 1..))?;
        self.top_p.map_or(Ok(()), |top_p| ConfigError::range("top_p", top_p, NumberRange::above(0.0, 1.0)))?;
        ConfigError::range("max_tokens", self.max_tokens, 1..)
    }
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
        let mut candidates = candidates(logits);
        assert!(!candidates.is_empty(), "none of {} logits is a number above -inf", logits.len());
        if self.config.temperature == 0.0 {
            return candidates.into_iter().min_by(most_probable_first).expect("there is a candidate").0;
        }
        if let Some(top_k) = self.config.top_k.filter(|top_k| *top_k < candidates.len()) {
            candidates.select_nth_unstable_by(top_k, most_probable_first);
            candidates.truncate(top_k);
        }
        // From here on the order decides which token a random number chooses.
        match self.config.top_p {
            Some(_) => candidates.sort_unstable_by(most_probable_first),
            None => candidates.sort_unstable_by_key(|(token, _)| *token),
        }
        let weights = softmax_weights(&candidates, self.config.temperature);
        let kept = self.config.top_p.map_or(weights.len(), |top_p| nucleus(&weights, top_p));
        candidates[self.draw(&weights[..kept])].0
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
mod tests {
    use super::*;
    use approx::{abs_diff_eq, assert_abs_diff_eq};

    const LOGITS: [f32; 6] = [0.5, -1.0, 2.0, 1.5, f32::NEG_INFINITY, 0.0];

    fn sampler(config: SamplingConfig) -> Sampler {
        Sampler::new(&config).unwrap()
    }

    fn tokens(config: SamplingConfig, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = sampler(config);
        (0..count).map(|_| sampler.sample(logits)).collect()
    }

    /// How often each token comes, next to its probability.
    fn assert_frequencies(config: SamplingConfig, logits: &[f32], expected: &[f64]) {
        let count = 40_000;
        let mut found = vec![0usize; logits.len()];
        tokens(config, logits, count).into_iter().for_each(|token| found[token as usize] += 1);
        for (token, (found, expected)) in found.iter().zip(expected).enumerate() {
            // A count is binomial; five of its standard deviations miss once in 1.7 million.
            let bound = 5.0 * (expected * (1.0 - expected) / count as f64).sqrt();
            let frequency = *found as f64 / count as f64;
            assert!(
                abs_diff_eq!(frequency, expected, epsilon = bound),
                "token {token}: {frequency}, not {expected} ± {bound}"
            );
        }
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let powers = logits.iter().map(|logit| (f64::from(*logit) / temperature).exp()).collect::<Vec<_>>();
        let sum = powers.iter().sum::<f64>();
        powers.into_iter().map(|power| power / sum).collect()
    }

    #[test]
    fn temperature_zero_takes_the_largest_logit() {
        assert_eq!(tokens(SamplingConfig::new().with_temperature(0.0), &LOGITS, 3), [2, 2, 2]);
    }

    #[test]
    fn one_candidate_is_the_largest_logit_at_any_temperature() {
        let config = SamplingConfig::new().with_temperature(50.0).with_top_k(Some(1));
        assert_eq!(tokens(config, &LOGITS, 20), [2; 20]);
    }

    #[test]
    fn the_first_of_equal_logits_is_the_largest() {
        let logits = [0.0, 3.0, 3.0];
        assert_eq!(tokens(SamplingConfig::new().with_temperature(0.0), &logits, 1), [1]);
        assert_eq!(tokens(SamplingConfig::new().with_top_k(Some(1)), &logits, 20), [1; 20]);
        assert_eq!(tokens(SamplingConfig::new().with_temperature(0.0), &[-0.0, 0.0], 1), [0]);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        for temperature in [0.5, 1.0, 2.0] {
            let config = SamplingConfig::new().with_temperature(temperature);
            assert_frequencies(config, &LOGITS, &softmax(&LOGITS, temperature));
        }
    }

    #[test]
    fn top_k_keeps_the_most_probable() {
        let [second, first] = [1.0 / (1.0 + 0.5f64.exp()), 1.0 / (1.0 + (-0.5f64).exp())];
        let config = SamplingConfig::new().with_temperature(1.0).with_top_k(Some(2));
        assert_frequencies(config, &LOGITS, &[0.0, 0.0, first, second, 0.0, 0.0]);
    }

    #[test]
    fn top_p_cuts_the_tail() {
        // Probabilities 1/8, 1/2, 1/8, 1/4: three quarters are reached by two tokens, a little more needs a third.
        let logits = [1.0f32, 4.0, 1.0, 2.0].map(f32::ln);
        let config = SamplingConfig::new().with_temperature(1.0);
        assert_frequencies(config.clone().with_top_p(Some(0.74)), &logits, &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert_frequencies(config.clone().with_top_p(Some(0.76)), &logits, &[1.0 / 7.0, 4.0 / 7.0, 0.0, 2.0 / 7.0]);
        assert_frequencies(config.clone().with_top_p(Some(0.01)), &logits, &[0.0, 1.0, 0.0, 0.0]);
        assert_frequencies(config.with_top_p(Some(1.0)), &logits, &[0.125, 0.5, 0.125, 0.25]);
    }

    #[test]
    fn top_p_counts_what_top_k_leaves() {
        // Of 1/2 and 1/4 alone, the first has two thirds: that is enough for .6, of all four it is not.
        let logits = [1.0f32, 4.0, 1.0, 2.0].map(f32::ln);
        let config = SamplingConfig::new().with_temperature(1.0).with_top_p(Some(0.6));
        assert_frequencies(config.clone().with_top_k(Some(2)), &logits, &[0.0, 1.0, 0.0, 0.0]);
        assert_frequencies(config, &logits, &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
    }

    #[test]
    fn a_seed_fixes_the_tokens() {
        let config = |seed| SamplingConfig::new().with_temperature(1.0).with_seed(seed);
        let logits = [0.0; 1000];
        assert_eq!(tokens(config(7), &logits, 50), tokens(config(7), &logits, 50));
        assert_ne!(tokens(config(7), &logits, 50), tokens(config(8), &logits, 50));
    }

    #[test]
    fn a_logit_that_is_no_number_is_never_chosen() {
        let config = SamplingConfig::new().with_temperature(10.0);
        let logits = [f32::NAN, 0.0, f32::NEG_INFINITY];
        assert_eq!(tokens(config.clone(), &logits, 20), [1; 20]);
        assert_eq!(tokens(config.clone().with_temperature(0.0), &logits, 1), [1]);
        assert_eq!(tokens(config, &[0.0, f32::INFINITY], 20), [1; 20]);
    }

    #[test]
    #[should_panic(expected = "none of 2 logits")]
    fn logits_without_a_number_panic() {
        sampler(SamplingConfig::new()).sample(&[f32::NAN, f32::NEG_INFINITY]);
    }

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        for step in 0..70_000 {
            let x = -0.01 * f64::from(step);
            let expected = x.exp();
            let bound = 4.0 * f64::EPSILON * (1.0 - x) * expected;
            assert_abs_diff_eq!(exp_of_negative(x), expected, epsilon = bound);
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(f64::NEG_INFINITY), 0.0);
    }

    #[test]
    fn a_configuration_outside_its_ranges_is_refused() {
        let config = SamplingConfig::new();
        assert_eq!(config.validate(), Ok(()));
        let refused = |config: SamplingConfig| Sampler::new(&config).unwrap_err().to_string();
        assert_eq!(refused(config.clone().with_temperature(-0.5)), "temperature = -0.5 is outside 0 and above");
        assert_eq!(refused(config.clone().with_temperature(f64::NAN)), "temperature = NaN is outside 0 and above");
        assert_eq!(refused(config.clone().with_top_k(Some(0))), "top_k = 0 is outside 1 and above");
        assert_eq!(
            refused(config.clone().with_top_p(Some(0.0))),
            "top_p = 0 is outside the numbers above 0, at most 1"
        );
        assert_eq!(
            refused(config.clone().with_top_p(Some(1.5))),
            "top_p = 1.5 is outside the numbers above 0, at most 1"
        );
        assert_eq!(refused(config.with_max_tokens(0)), "max_tokens = 0 is outside 1 and above");
    }
}
