//! Random orders, the same for a seed on every platform and backend.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The numbers `0..n` in an order drawn by Fisher and Yates.
pub(crate) fn permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut words = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        // A word scaled to 0..=last; what that favours is below one part in 2³² / n.
        let other = (u64::from(words.next_u32()) * (last as u64 + 1)) >> 32;
        order.swap(last, other as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once() {
        let mut order = permutation(1000, 7);
        assert_ne!(order, Vec::from_iter(0..1000));
        order.sort_unstable();
        assert_eq!(order, Vec::from_iter(0..1000));
    }

    #[test]
    fn an_order_depends_on_its_seed_alone() {
        assert_eq!(permutation(50, 1), permutation(50, 1));
        assert_ne!(permutation(50, 1), permutation(50, 2));
    }
}
