//! Least squares in turns: codes for the dictionary, then the dictionary for the codes.
//!
//! # Sources
//! Babenko and Lempitsky, "Additive Quantization for Extreme Vector Compression", CVPR 2014; Martinez et al.,
//! "Revisiting Additive Quantization", ECCV 2016, and "LSQ++", ECCV 2018: the joint update. Their noise on
//! the dictionary brought nothing here: fresh groups, few at first, are noise enough.

use pixel_bench::least_squares::solve;
use pixel_core::codec::additive::search::Search;
use pixel_core::codec::additive::{GROUP, PATTERNS, Patterns};
use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

/// The weights of one group.
pub(crate) type Group = [f32; GROUP];

/// Added to the diagonal of the normal equations, as a share of the groups. Without it they are singular: a constant
/// moved from one sub-dictionary to another changes no sum.
const RIDGE: f64 = 1e-6;

/// Share of the last step that a step repeats (Polyak's heavy ball). The turns converge slowly: in 100 rounds at 4 bits
/// the error fell to .0080 without and to .0076 with it.
const MOMENTUM: f32 = 0.9;

/// Share of the least-squares step that a step adds.
const RATE: f32 = 0.5;

/// Rounds at the end that go to the least-squares dictionary itself.
const PLAIN_ROUNDS: u32 = 10;

/// Root mean square of a sub-dictionary at the start, over that of the one before.
const FIRST_DECAY: f32 = 0.75;

/// How a training runs.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Rounds of encoding and fitting.
    pub(crate) rounds: u32,
    /// Groups of the first round. Few groups make rough steps, which leave poor optima.
    pub(crate) first_groups: u32,
    /// Groups of the last round; those between grow in equal ratios.
    pub(crate) last_groups: u32,
    /// Sums that the search keeps.
    pub(crate) beam: usize,
}

impl Schedule {
    fn groups(&self, round: u32) -> usize {
        let (first, last) = (f64::from(self.first_groups), f64::from(self.last_groups));
        (first * (last / first).powf(f64::from(round + 1) / f64::from(self.rounds))) as usize
    }
}

/// A sub-dictionary in training.
struct Trained {
    patterns: Patterns,
    /// What the last step added.
    step: Patterns,
}

/// Trains `count` sub-dictionaries on Gaussian groups, new ones every round.
pub(crate) fn train(count: usize, schedule: &Schedule, rng: &mut impl Rng) -> Vec<Patterns> {
    let mut trained: Vec<_> = (0..count).map(|m| start(FIRST_DECAY.powi(m as i32), rng)).collect();
    for round in 0..schedule.rounds {
        let dictionary: Vec<_> = trained.iter().map(|t| t.patterns).collect();
        let groups = gaussian(schedule.groups(round), rng);
        let codes = encode(&dictionary, schedule.beam, &groups);
        let (momentum, rate) = if round + PLAIN_ROUNDS < schedule.rounds { (MOMENTUM, RATE) } else { (0.0, 1.0) };
        for (t, correction) in trained.iter_mut().zip(fit(&residuals(&dictionary, &groups, &codes), &codes, count)) {
            t.advance(momentum, rate, &correction);
        }
        arrange(&mut trained);
    }
    trained.into_iter().map(|t| t.patterns).collect()
}

/// Random patterns of N(0, scale²) weights.
fn start(scale: f32, rng: &mut impl Rng) -> Trained {
    let patterns = std::array::from_fn(|_| std::array::from_fn(|_| scale * rng.sample::<f32, _>(StandardNormal)));
    Trained { patterns, step: [[0.0; GROUP]; PATTERNS] }
}

impl Trained {
    /// `step = momentum · step + rate · correction`, and the patterns move by it.
    fn advance(&mut self, momentum: f32, rate: f32, correction: &Patterns) {
        let steps = self.step.as_flattened_mut().iter_mut().zip(correction.as_flattened());
        for (weight, (step, correction)) in self.patterns.as_flattened_mut().iter_mut().zip(steps) {
            *step = momentum * *step + rate * correction;
            *weight += *step;
        }
    }

    fn energy(&self) -> f32 {
        self.patterns.as_flattened().iter().map(|weight| weight * weight).sum()
    }
}

/// Brings the sub-dictionaries to mean zero, the total mean in the first, which changes no sum; and puts those of most
/// energy first, where the beam decides first.
fn arrange(trained: &mut [Trained]) {
    let mut total = [0.0; GROUP];
    for Trained { patterns, .. } in &mut *trained {
        for j in 0..GROUP {
            let mean = patterns.iter().map(|pattern| pattern[j]).sum::<f32>() / PATTERNS as f32;
            patterns.iter_mut().for_each(|pattern| pattern[j] -= mean);
            total[j] += mean;
        }
    }
    trained.sort_by(|a, b| b.energy().total_cmp(&a.energy()));
    for pattern in &mut trained[0].patterns {
        pattern.iter_mut().zip(total).for_each(|(weight, mean)| *weight += mean);
    }
}

/// `n` groups of independent N(0, 1) weights.
pub(crate) fn gaussian(n: usize, rng: &mut impl Rng) -> Vec<Group> {
    (0..n).map(|_| std::array::from_fn(|_| rng.sample(StandardNormal))).collect()
}

/// The codes of `groups`.
pub(crate) fn encode(dictionary: &[Patterns], beam: usize, groups: &[Group]) -> Vec<u32> {
    let search = Search::new(dictionary, beam);
    groups.iter().map(|group| search.encode(group)).collect()
}

/// The sum of the patterns that `codes` choose.
fn decode(dictionary: &[Patterns], codes: u32) -> Group {
    let mut sum = [0.0; GROUP];
    for (m, patterns) in dictionary.iter().enumerate() {
        sum.iter_mut().zip(patterns[nibble(codes, m)]).for_each(|(sum, weight)| *sum += weight);
    }
    sum
}

fn nibble(codes: u32, m: usize) -> usize {
    (codes >> (4 * m) & 15) as usize
}

/// `Σ(x − s·x̂)² / Σx²` with the best scale `s`, which is one for all groups.
pub(crate) fn relative_mse(dictionary: &[Patterns], groups: &[Group], codes: &[u32]) -> f64 {
    let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
    for (group, codes) in groups.iter().zip(codes) {
        for (x, y) in group.iter().zip(decode(dictionary, *codes)) {
            xx += f64::from(x * x);
            xy += f64::from(x * y);
            yy += f64::from(y * y);
        }
    }
    1.0 - xy * xy / (xx * yy)
}

/// What each group lacks.
fn residuals(dictionary: &[Patterns], groups: &[Group], codes: &[u32]) -> Vec<Group> {
    let residual = |(group, &codes): (&Group, _)| {
        let decoded = decode(dictionary, codes);
        std::array::from_fn(|j| group[j] - decoded[j])
    };
    groups.iter().zip(codes).map(residual).collect()
}

/// The correction of the dictionary that leaves least of `residuals`: `C` in `(N + λI) C = R`, where `N` counts how
/// often two patterns are chosen together and `R` sums the residuals of the groups that choose a pattern.
fn fit(residuals: &[Group], codes: &[u32], count: usize) -> Vec<Patterns> {
    let n = count * PATTERNS;
    let mut together = vec![0f64; n * n];
    let mut sums = vec![[0f64; GROUP]; n];
    for (residual, &codes) in residuals.iter().zip(codes) {
        let chosen = (0..count).map(|m| m * PATTERNS + nibble(codes, m));
        for a in chosen.clone() {
            chosen.clone().for_each(|b| together[a * n + b] += 1.0);
            sums[a].iter_mut().zip(residual).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    for i in 0..n {
        together[i * n + i] += RIDGE * residuals.len() as f64;
    }
    solve(&mut together, &mut sums);
    let (sub_dictionaries, _) = sums.as_chunks::<PATTERNS>();
    sub_dictionaries.iter().map(|patterns| patterns.map(|pattern| pattern.map(|weight| weight as f32))).collect()
}
