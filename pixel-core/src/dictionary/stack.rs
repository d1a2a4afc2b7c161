//! All patterns of one shape, as one matrix.

use super::pattern::PatternId;
use crate::math::transposed;
use crate::patterns::{normalise, similarities};
use half::f16;
use std::sync::OnceLock;

/// Stacks up to this many values keep their widened, transposed form for matching: 16 MB.
const MAX_KEPT: usize = 1 << 22;
/// Patterns that are widened and transposed together.
const BLOCK: usize = 64;

/// Patterns of one shape, by ascending id, at two bytes a value.
#[derive(Debug, Clone)]
pub(super) struct Stack {
    len: usize,
    pub(super) ids: Vec<PatternId>,
    /// `[ids, len]`: the unit-norm patterns times √len, so that their values are near 1, where F16 is precise.
    values: Vec<f16>,
    /// Patterns `BLOCK·b` and on, `[len, ≤ BLOCK]`, of block b.
    blocks: Vec<OnceLock<Vec<f32>>>,
}

impl Stack {
    /// No patterns of `len` weights each.
    pub(super) fn new(len: usize) -> Self {
        Self { len, ids: Vec::new(), values: Vec::new(), blocks: Vec::new() }
    }

    /// What a pattern is rounded to before it is kept.
    pub(super) fn rounded(pattern: &[f32]) -> Vec<f16> {
        let unit = (pattern.len() as f64).sqrt();
        pattern.iter().map(|value| f16::from_f64(f64::from(*value) * unit)).collect()
    }

    /// Adds a pattern, whose id is greater than all others.
    pub(super) fn push(&mut self, id: PatternId, rounded: &[f16]) {
        self.forget_blocks(self.ids.len());
        self.ids.push(id);
        self.values.extend_from_slice(rounded);
    }

    pub(super) fn remove(&mut self, id: PatternId) {
        if let Ok(row) = self.ids.binary_search(&id) {
            self.forget_blocks(row);
            self.ids.remove(row);
            self.values.drain(row * self.len..(row + 1) * self.len);
        }
    }

    /// Drops the transposed form of row `row` and of those behind it.
    fn forget_blocks(&mut self, row: usize) {
        self.blocks.truncate(row / BLOCK);
        self.blocks.resize_with(row / BLOCK + 1, OnceLock::new);
    }

    /// The stored values of a pattern.
    pub(super) fn stored(&self, id: PatternId) -> Option<&[f16]> {
        let row = self.ids.binary_search(&id).ok()?;
        Some(&self.values[row * self.len..][..self.len])
    }

    /// The pattern with norm 1.
    pub(super) fn pattern(&self, id: PatternId) -> Option<Vec<f32>> {
        self.stored(id).map(widened)
    }

    /// Inner products of every pattern with `target`: one matrix product, block by block.
    pub(super) fn products(&self, target: &[f32]) -> Vec<f32> {
        let mut products = vec![0.0; self.ids.len()];
        let is_kept = self.values.len() <= MAX_KEPT;
        for (b, products) in products.chunks_mut(BLOCK).enumerate() {
            let end = self.values.len().min((b + 1) * BLOCK * self.len);
            let values = &self.values[b * BLOCK * self.len..end];
            match self.blocks.get(b) {
                Some(block) if is_kept => {
                    similarities(target, self.len, block.get_or_init(|| columns(values, self.len)), products);
                }
                _ => similarities(target, self.len, &columns(values, self.len), products),
            }
        }
        products
    }
}

fn columns(values: &[f16], len: usize) -> Vec<f32> {
    let rows: Vec<f32> = values.chunks_exact(len).flat_map(widened).collect();
    transposed(&rows, len)
}

fn widened(stored: &[f16]) -> Vec<f32> {
    let mut pattern: Vec<f32> = stored.iter().map(|value| value.to_f32()).collect();
    normalise(&mut pattern);
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(seed: usize, len: usize) -> Vec<f32> {
        let mut pattern: Vec<f32> = (0..len).map(|i| ((i * (seed + 1) * 37 % 101) as f32 - 50.0) / 50.0).collect();
        normalise(&mut pattern);
        pattern
    }

    fn check(stack: &Stack, len: usize) {
        let target = pattern(3, len);
        let products = stack.products(&target);
        assert_eq!(products.len(), stack.ids.len());
        for (id, product) in stack.ids.iter().zip(products) {
            let mut single = [0.0];
            similarities(&target, len, &stack.pattern(*id).unwrap(), &mut single);
            assert_eq!(product, single[0], "{id}");
        }
    }

    #[test]
    fn a_stack_too_large_to_keep_gives_the_same_products() {
        let len = 1 << 16;
        let mut stack = Stack::new(len);
        for id in 0..MAX_KEPT / len + 3 {
            stack.push(PatternId(id as u64), &Stack::rounded(&pattern(id, len)));
        }
        check(&stack, len);
        assert!(stack.blocks.iter().all(|block| block.get().is_none()));
    }

    proptest! {
        #[test]
        fn products_follow_what_is_pushed_and_removed(steps in prop::collection::vec((0u64..300, 0usize..90), 1..6)) {
            let mut stack = Stack::new(5);
            let mut next = 0;
            for (removed, pushed) in steps {
                for id in next..next + pushed {
                    stack.push(PatternId(id as u64), &Stack::rounded(&pattern(id, 5)));
                }
                next += pushed;
                check(&stack, 5);
                stack.remove(PatternId(removed));
                check(&stack, 5);
            }
        }
    }
}
