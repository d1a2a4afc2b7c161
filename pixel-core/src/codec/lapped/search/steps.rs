//! What one nibble may do to the columns that it reaches, in whole numbers.

use crate::codec::nibble::PATTERNS;

/// Columns that a path knows its residuals in: the longest window, and how far its own errors are fed back.
pub(super) const REACH: usize = 32;

/// The most columns from one nibble to the next: 4 at 1 bit.
pub(super) const MAX_HOP: usize = 4;

/// Residuals and patterns are whole multiples of this.
pub(super) const UNIT: f32 = 1.0 / 2048.0;

/// What stands for one in factors of 16 bits.
const ONE: f32 = 32768.0;

/// One number for each column that a path knows, from the first of a nibble's on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [i16; REACH]);

impl Lanes {
    pub(super) const ZERO: Self = Self([0; REACH]);
}

/// One number for each pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct PerPattern(pub(super) [i32; PATTERNS]);

/// The numbers of two neighbouring columns for each pattern.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct PairPerPattern(pub(super) [[i16; 2]; PATTERNS]);

/// How the cost of a path looks ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lookahead {
    /// What a squared residual counts in a column that later nibbles reach; one in those that none does.
    pub weight: f32,
    /// Columns that are looked at from a nibble's first on, even, at most 32.
    pub columns: usize,
}

/// The choice of one nibble.
///
/// With residuals `y` of a path before it and the pattern `d`, what the path will have cost is
///
/// ```text
/// Σ_h g_h (y_h − d_h)²  =  Σ g·y²  +  Σ g·d²  −  2·Σ y·(g·d)
/// ```
///
/// so that all patterns share one number of the path and need one product with it each. The residuals in the columns
/// that the nibble settles are fed back as they stand before `d` is taken away; what `d` changes of that is part of it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Columns that no later nibble reaches.
    pub(super) hop: usize,
    /// Pairs of columns that the cost looks at.
    pub(super) num_pairs: usize,
    /// `−2·g·d`.
    pub(super) products: [PairPerPattern; REACH / 2],
    /// `Σ g·d²`.
    pub(super) energies: PerPattern,
    /// `d`.
    pub(super) patterns: [Lanes; PATTERNS],
    /// `√g · 2¹⁵` in the columns ahead, zero in those of the hop.
    pub(super) ahead: Lanes,
    /// `√g · 2¹⁵`.
    pub(super) all: Lanes,
    /// What the residual in a column of the hop adds to those behind it, times 2¹⁵; empty without feedback.
    pub(super) feedback: Vec<Lanes>,
}

/// Where a nibble stands in its row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Columns to the start of the next nibble.
    pub(super) hop: usize,
    /// Columns to the end of the row.
    pub(super) inside: usize,
}

impl Step {
    /// The choice among `patterns`, `[16, span]`. `feedback(k, h)` is what the residual in column `k` of the hop adds
    /// to the target of column `h`.
    pub(super) fn new(
        patterns: &[f32],
        place: Place,
        lookahead: Lookahead,
        feedback: Option<&dyn Fn(usize, usize) -> f32>,
    ) -> Self {
        let Place { hop, inside } = place;
        let span = patterns.len() / PATTERNS;
        let weight = |h: usize| match h {
            _ if h >= inside.min(lookahead.columns) => 0.0,
            _ if h < hop => 1.0,
            _ => lookahead.weight,
        };
        let roots = Lanes(std::array::from_fn(|h| round(weight(h).sqrt() * ONE)));
        let mut step = Self {
            hop,
            num_pairs: lookahead.columns.div_ceil(2),
            products: [PairPerPattern([[0; 2]; PATTERNS]); REACH / 2],
            energies: PerPattern([0; PATTERNS]),
            patterns: [Lanes::ZERO; PATTERNS],
            ahead: Lanes(std::array::from_fn(|h| if h < hop { 0 } else { roots.0[h] })),
            all: roots,
            feedback: Vec::new(),
        };
        if let Some(feedback) = feedback {
            let factor = |k: usize, h: usize| if h > k && h < inside { feedback(k, h) } else { 0.0 };
            step.feedback = (0..hop).map(|k| Lanes(std::array::from_fn(|h| round(factor(k, h) * ONE)))).collect();
        }
        for (code, pattern) in patterns.chunks_exact(span).enumerate() {
            let mut values = [0.0; REACH];
            values[..span].copy_from_slice(pattern);
            for (k, factors) in step.feedback.iter().enumerate() {
                let settled = values[k];
                for (value, factor) in values.iter_mut().zip(&factors.0) {
                    *value += settled * f32::from(*factor) / ONE;
                }
            }
            let values = values.map(|value| round(value / UNIT));
            step.patterns[code] = Lanes(values);
            let mut energy = 0.0;
            for (h, value) in values.into_iter().enumerate() {
                step.products[h / 2].0[code][h % 2] = round(-2.0 * weight(h) * f32::from(value));
                energy += f64::from(weight(h)) * f64::from(value).powi(2);
            }
            step.energies.0[code] = energy.round() as i32;
        }
        step
    }
}

fn round(value: f32) -> i16 {
    value.round().clamp(-f32::from(i16::MAX), f32::from(i16::MAX)) as i16
}
