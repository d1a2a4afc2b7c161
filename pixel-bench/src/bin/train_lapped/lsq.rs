//! Least squares in turns: codes for the patterns, then the patterns for the codes.
//!
//! A weight is the sum of one value of each nibble that reaches it. For the weights of one place among the nibbles
//! these values are unknowns of their own, so that the patterns are found place by place.

use pixel_bench::least_squares::solve;
use pixel_core::codec::lapped::search::{Lookahead, Search};
use pixel_core::codec::nibble::{EIGHT, NibbleLayout, PATTERNS, Windows};
use pixel_core::{Matrix, Shape};
use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

/// Weights of a row: long enough for its start, where fewer nibbles reach, not to count.
const ROW: usize = 1024;

/// Added to the diagonal of the normal equations: a value that no row chose stays zero.
const RIDGE: f64 = 0.01;

/// Patterns of a sub-dictionary up to the sign.
const HALF: usize = PATTERNS / 2;

/// Root mean square of the weights that no later nibble reaches, at the start.
const FIRST_OWN: f32 = 0.8;

/// Root mean square of what all other nibbles add to a weight, at the start.
const FIRST_OTHERS: f32 = 0.5;

/// A code in training.
#[derive(Debug, Clone)]
pub(crate) struct Code {
    pub(crate) layout: NibbleLayout,
    pub(crate) lookahead: Lookahead,
    /// `[P, 16, S]`, each eight patterns followed by their negatives.
    pub(crate) patterns: Vec<f32>,
}

impl Code {
    /// A code with random patterns.
    pub(crate) fn random(per_eight: usize, span: usize, lookahead: Lookahead, rng: &mut impl Rng) -> Self {
        let shape = Shape::new(1, ROW).expect("a row");
        let layout = NibbleLayout { shape, per_eight, windows: Windows::Lapped { span } };
        let others = FIRST_OTHERS / (layout.depth() as f32).sqrt();
        let mut code = Self { layout, lookahead, patterns: vec![0.0; layout.dictionary_len()] };
        for place in 0..layout.period() {
            for pattern in 0..HALF {
                for j in 0..span {
                    let own = (j as f32) < EIGHT as f32 / per_eight as f32;
                    let size = if own { FIRST_OWN } else { others };
                    code.set(place, pattern, j, size * rng.sample::<f32, _>(StandardNormal));
                }
            }
        }
        code
    }

    /// Weight `j` of pattern `pattern`, one of eight, and of its negative.
    fn set(&mut self, place: usize, pattern: usize, j: usize, value: f32) {
        let span = self.layout.span();
        let at = |pattern: usize| (place * PATTERNS + pattern) * span + j;
        self.patterns[at(pattern)] = value;
        self.patterns[at(pattern + HALF)] = -value;
    }

    /// The codes of `rows`, `[rows, nibbles]`, and the relative squared error.
    pub(crate) fn encode(&self, rows: &Matrix, beam: usize) -> (Vec<u8>, f64) {
        let Self { layout, lookahead, patterns } = self;
        let search = Search::new(layout.per_eight, layout.span(), patterns.clone(), *lookahead, beam);
        let (mut codes, mut error) = (Vec::new(), 0.0);
        search.encode(rows.as_ref(), None, |row| {
            codes.extend_from_slice(row.codes);
            let pairs = rows.as_ref().row(row.row).iter().zip(row.decoded);
            error += pairs.map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        });
        (codes, error / rows.as_slice().iter().map(|x| f64::from(*x).powi(2)).sum::<f64>())
    }

    /// The patterns that leave least of `rows` by `codes`.
    pub(crate) fn fit(&mut self, rows: &Matrix, codes: &[u8]) {
        let layout = self.layout;
        // Nibbles and weights after which all repeats.
        let (nibbles, weights) = (layout.period(), layout.period() * EIGHT / layout.per_eight);
        for class in 0..weights {
            // The first weight of its class that is reached by as many nibbles as any.
            let first = (class..).step_by(weights).find(|&i| i + 1 >= layout.span()).expect("rows are long");
            let reaching = layout.reaching(first);
            let n = reaching.len() * HALF;
            let (mut together, mut sums) = (vec![0.0; n * n], vec![[0.0]; n]);
            let mut chosen = Vec::with_capacity(reaching.len());
            for (row, codes) in rows.as_slice().chunks_exact(ROW).zip(codes.chunks_exact(layout.fields())) {
                for (turn, weight) in row[first..].iter().step_by(weights).enumerate() {
                    chosen.clear();
                    let codes = &codes[turn * nibbles..][reaching.clone()];
                    chosen.extend(codes.iter().enumerate().map(|(k, code)| {
                        let code = usize::from(*code);
                        (k * HALF + code % HALF, if code < HALF { 1.0 } else { -1.0 })
                    }));
                    for (i, (a, sign)) in chosen.iter().enumerate() {
                        sums[*a][0] += sign * f64::from(*weight);
                        let row = &mut together[a * n..][..n];
                        chosen[..=i].iter().for_each(|(b, other)| row[*b] += sign * other);
                    }
                }
            }
            (0..n).for_each(|i| together[i * n + i] += RIDGE);
            solve(&mut together, &mut sums);
            for (k, t) in reaching.enumerate() {
                for pattern in 0..HALF {
                    let value = sums[k * HALF + pattern][0] as f32;
                    self.set(t % nibbles, pattern, first - layout.start(t), value);
                }
            }
        }
    }
}

/// `count` rows of independent N(0, 1) weights.
pub(crate) fn gaussian(count: usize, rng: &mut impl Rng) -> Matrix {
    let values = (0..count * ROW).map(|_| rng.sample(StandardNormal)).collect();
    Matrix::new(Shape::new(count, ROW).expect("rows"), values).expect("as many values as the shape says")
}
