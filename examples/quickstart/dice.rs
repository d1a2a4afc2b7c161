//! Random choices, the same for a seed on every platform.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A seeded source of choices.
///
/// It takes raw words of the ChaCha8 stream, so that no library's way of sampling is part of the
/// corpus.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// Starts the stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number in `0..n`; some are likelier than others by at most one part in `2³² / n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// One of the items, each equally likely.
    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// One of the items, the earlier the likelier: words of a language are not equally frequent.
    pub(crate) fn pick_skewed<T: Copy>(&mut self, items: &[T]) -> T {
        let (a, b) = (self.below(items.len()), self.below(items.len()));
        items[a.min(b)]
    }

    /// Two different items.
    pub(crate) fn pick_two<T: Copy>(&mut self, items: &[T]) -> [T; 2] {
        let first = self.below(items.len());
        let step = 1 + self.below(items.len() - 1);
        [items[first], items[(first + step) % items.len()]]
    }
}
