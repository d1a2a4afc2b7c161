//! Both factors as integers, block by block.
//!
//! With `N = 46300`, the integers of a block have a norm of at most `N·(1 + 10⁻⁵) + ½·√256 < √2³¹`, and none exceeds
//! 32767; so sums of products of two blocks, and of any part of them, fit 32 bits.

use super::super::activations::{peak, rounds};
use super::super::scratch::Scratch;
use super::weights::Pair;
use super::{DEPTH, LANES, for_each};
use crate::disjoint::Disjoint;
use crate::math::simd::{Simd, for_every_level};

/// The largest norm of a block in steps, before it is rounded.
const NORM: f32 = 46_300.0;

/// The largest integer.
const LARGEST: f32 = 32_767.0;

/// Rows of activations that a task rounds.
const ROWS: usize = 8;

/// A block of integers of one row; beyond the block's width they are arbitrary but for the first, which is zero.
pub(super) type Block = [i16; DEPTH];

for_every_level! {
    /// The norm of `factor · values`.
    fn norm(values: &[f32], factor: f32) -> f32 {
        const LANES: usize = 64;
        let (blocks, rest) = values.as_chunks::<LANES>();
        let mut squares = [0f32; LANES];
        for block in blocks {
            for (square, value) in squares.iter_mut().zip(block) {
                *square += (value * factor) * (value * factor);
            }
        }
        for (square, value) in squares.iter_mut().zip(rest) {
            *square += (value * factor) * (value * factor);
        }
        // In halves: one after the other they would take longer than all squares.
        for half in [32, 16, 8, 4, 2, 1] {
            let (left, right) = squares.split_at_mut(half);
            left.iter_mut().zip(right).for_each(|(left, right)| *left += *right);
        }
        squares[0].sqrt()
    }
}

for_every_level! {
    /// The nearest multiples of `1/factor`.
    pub(super) fn round(values: &[f32], factor: f32, out: &mut Block) -> () {
        /// Added and subtracted again, it leaves the nearest integer.
        const MAGIC: f32 = 12_582_912.0;
        for (out, value) in out.iter_mut().zip(values) {
            *out = ((value * factor + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32) as i16;
        }
        if let Some(next) = out.get_mut(values.len()) {
            *next = 0;
        }
    }
}

for_every_level! {
    /// The largest of the squared norms of the rows.
    fn largest_square(pairs: &[Pair]) -> f32 {
        let mut squares = [0f32; LANES];
        for pair in pairs {
            for (square, pair) in squares.iter_mut().zip(pair.as_chunks::<2>().0) {
                let [a, b] = pair.map(i32::from);
                *square += (a * a + b * b) as f32;
            }
        }
        squares.into_iter().fold(0.0, f32::max)
    }
}

/// Divides integers of magnitudes below 32767 by the least power of two with which the norms of all rows fit, and
/// returns it.
pub(super) fn fit(simd: Simd, pairs: &mut [Pair]) -> f32 {
    let mut norm = largest_square(simd, pairs).sqrt();
    let mut shift = 0;
    while norm > NORM {
        (norm, shift) = (norm / 2.0, shift + 1);
    }
    if shift > 0 {
        let half = 1 << (shift - 1);
        pairs.as_flattened_mut().iter_mut().for_each(|value| *value = ((i32::from(*value) + half) >> shift) as i16);
    }
    (1u32 << shift) as f32
}

/// What an integer stands for, the same in all blocks of `values`: the least step for which every block fits. Zero if
/// all values are; `None` if one is not finite, or all are nearly, but not quite, zero.
pub(super) fn step(simd: Simd, values: &[f32]) -> Option<f32> {
    let peak = peak(simd, values);
    if peak == 0.0 || !rounds(peak) {
        return rounds(peak).then_some(0.0);
    }
    let norm = values.chunks(DEPTH).map(|block| norm(simd, block, 1.0 / peak)).fold(0.0, f32::max);
    Some(peak * (1.0 / LARGEST).max(norm / NORM))
}

/// What values are multiplied by before they are rounded.
pub(super) fn factor(step: f32) -> f32 {
    if step > 0.0 { 1.0 / step } else { 0.0 }
}

/// Rows of activations, rounded, each by itself.
pub(super) struct Rows {
    /// `[blocks, batch]`.
    blocks: Scratch<Block>,
    /// What an integer of a row stands for; NaN for a row that cannot be rounded, whose integers are zero.
    steps: Scratch<f32>,
}

impl Rows {
    /// Rounds `x` `[batch, n]`.
    pub(super) fn new(simd: Simd, x: &[f32], n: usize, parallel: bool) -> Self {
        let batch = x.len() / n;
        let (mut blocks, mut steps) = (Scratch::<Block>::new(n.div_ceil(DEPTH) * batch), Scratch::<f32>::new(batch));
        let (parts, part_steps) = (Disjoint::new(&mut blocks), Disjoint::new(&mut steps));
        for_each(batch.div_ceil(ROWS), parallel, |task| {
            for b in task * ROWS..batch.min((task + 1) * ROWS) {
                let x = &x[b * n..][..n];
                let step = step(simd, x);
                // SAFETY: row `b` is that of this task alone; the same below.
                let to = unsafe { part_steps.part(b..b + 1) };
                to[0] = step.unwrap_or(f32::NAN);
                for (i, values) in x.chunks(DEPTH).enumerate() {
                    // SAFETY: as above.
                    let block = &mut unsafe { parts.part(i * batch + b..i * batch + b + 1) }[0];
                    match step {
                        Some(step) => round(simd, values, factor(step), block),
                        None => block.fill(0),
                    }
                }
            }
        });
        Self { blocks, steps }
    }

    /// The block that begins with column `start`, of all rows.
    pub(super) fn block(&self, start: usize) -> &[Block] {
        let batch = self.steps.len();
        &self.blocks[start / DEPTH * batch..][..batch]
    }

    /// What an integer of a row stands for.
    pub(super) fn steps(&self) -> &[f32] {
        &self.steps
    }

    /// The rows that could not be rounded.
    pub(super) fn unrounded(&self) -> Vec<usize> {
        (0..self.steps.len()).filter(|&b| self.steps[b].is_nan()).collect()
    }
}
