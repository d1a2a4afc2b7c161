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
fn min_p_cuts_what_is_far_less_probable_than_the_most_probable() {
    // Probabilities 1/8, 1/2, 1/8, 1/4: a quarter, all, a quarter and half of the largest.
    let logits = [1.0f32, 4.0, 1.0, 2.0].map(f32::ln);
    let config = SamplingConfig::new().with_temperature(1.0);
    let min_p = |min_p| config.clone().with_min_p(Some(min_p));
    assert_frequencies(min_p(0.26), &logits, &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
    assert_frequencies(min_p(0.24), &logits, &[0.125, 0.5, 0.125, 0.25]);
    assert_frequencies(min_p(0.0), &logits, &[0.125, 0.5, 0.125, 0.25]);
    assert_frequencies(min_p(1.0), &logits, &[0.0, 1.0, 0.0, 0.0]);
    // Of what top_p leaves, and at the temperature asked for: at 2 the parts are 1/2, 1, 1/2 and √½.
    assert_frequencies(min_p(0.24).with_top_p(Some(0.74)), &logits, &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
    let [first, second] = [1.0, 0.5f64.sqrt()].map(|part| part / (1.0 + 0.5f64.sqrt()));
    assert_frequencies(min_p(0.6).with_temperature(2.0), &logits, &[0.0, first, 0.0, second]);
}

#[test]
fn what_the_text_has_becomes_less_probable() {
    let config = SamplingConfig::new().with_temperature(0.0).with_repetition_penalty(2.0);
    let after = |config: &SamplingConfig, text: &[u32]| sampler(config.clone()).sample_after(&LOGITS, text);
    // 2.0 becomes 1.0, once however often the token comes; 1.5 becomes 0.75.
    assert_eq!([&[][..], &[5], &[2, 2, 2], &[2, 3]].map(|text| after(&config, text)), [2, 2, 3, 2]);
    // A negative logit grows more so: of −1 and −1.5, the first becomes −2.
    assert_eq!(sampler(config.clone()).sample_after(&[-1.0, -1.5], &[0]), 1);
    // Only the last tokens count, if so many are asked for.
    let window = config.clone().with_repetition_window(Some(1));
    assert_eq!([&[2, 5][..], &[5, 2], &[2]].map(|text| after(&window, text)), [2, 3, 3]);
    // Below 1 repetitions become likelier; numbers that no logit has are none.
    assert_eq!(after(&config.with_repetition_penalty(0.5), &[3, 99]), 3);
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
    assert_eq!(refused(config.clone().with_top_p(Some(0.0))), "top_p = 0 is outside the numbers above 0, at most 1");
    assert_eq!(refused(config.clone().with_top_p(Some(1.5))), "top_p = 1.5 is outside the numbers above 0, at most 1");
    let range = "is outside the numbers above 0";
    for penalty in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refused = refused(config.clone().with_repetition_penalty(penalty));
        assert_eq!(refused, format!("repetition_penalty = {penalty} {range}"));
    }
    assert_eq!(refused(config.clone().with_min_p(Some(1.5))), "min_p = 1.5 is outside 0 to 1");
    let window = config.clone().with_repetition_window(Some(0));
    assert_eq!(refused(window), "repetition_window = 0 is outside 1 and above");
    assert_eq!(refused(config.with_max_tokens(0)), "max_tokens = 0 is outside 1 and above");
}
